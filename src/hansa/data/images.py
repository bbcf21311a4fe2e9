"""Pools of labelled images, kept as bytes until they are read."""

from __future__ import annotations

from typing import Final

import numpy as np

from hansa.core.datasets import Examples
from hansa.core.layout import Array
from hansa.core.nouns import Signature
from hansa.data.pool import Pool
from hansa.data.refusals import invalid
from hansa.data.stores import ArrayStore, converted

DIGITS: Final = tuple("0123456789")
_SIDE: Final = 28


def image_pool(
    train: tuple[Array, Array], test: tuple[Array, Array] | None, class_names: tuple[str, ...], origin: str
) -> Pool:
    """Return images [N, 28, 28] of bytes with labels [N]; the test images are the server's own.

    A flat image [784] is accepted. Raises DataError for other shapes and types, or labels out of range.
    """
    x, y = _checked(*train, len(class_names), origin)
    central = None
    if test is not None:
        test_x, test_y = _checked(*test, len(class_names), origin)
        central = Examples(converted(test_x, "unit"), test_y)
    return Pool(
        store=ArrayStore(x, y, "unit"),
        signature=Signature(shape=(_SIDE, _SIDE), classes=len(class_names)),
        class_names=class_names,
        roster=None,
        central=central,
        notes=() if test is not None else (f"{origin} has no test images for central evaluation",),
    )


def _checked(x: Array, y: Array, classes: int, origin: str) -> tuple[Array, Array]:
    flat = x.ndim == 2 and x.shape[1] == _SIDE**2
    if x.dtype != np.uint8 or not (flat or x.shape[1:] == (_SIDE, _SIDE)) or y.shape != x.shape[:1] or not len(x):
        raise invalid(
            rule=f"Images are bytes [N, {_SIDE}, {_SIDE}], with one label each.",
            found=f"{origin} has {x.dtype} {list(x.shape)} and labels {list(y.shape)}.",
            action='Use source = "npz" for other arrays.',
        )
    if y.dtype.kind not in "iu" or int(y.min()) < 0 or int(y.max()) >= classes:
        raise invalid(
            rule=f"Labels are class numbers below {classes}.",
            found=f"{origin} has {y.dtype} labels from {y.min()} to {y.max()}.",
            action="Mend the labels.",
        )
    return x.reshape(-1, _SIDE, _SIDE), y.astype(np.int64)

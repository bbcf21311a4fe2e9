"""The hospitals of the demonstration: each with a folder of its own patients, cut from the shipped file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Final

from hansa.core.datasets import FederatedData
from hansa.data import heart
from hansa.data.shipped import shipped_file

_FILE: Final = "heart_disease_uci.csv"


def write_hospitals(folder: Path, data: FederatedData) -> dict[str, Path]:
    """Write train.csv and test.csv of each hospital, split as the simulation splits them: name -> its folder."""
    with shipped_file(_FILE) as path, path.open(encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file))
    rows = [[*row, heart.CLASSES[int(float(row[header.index("num")]) > 0)]] for row in rows]
    folders = {}
    for number, name in enumerate(data.train.names):
        own = folder / name.replace(" ", "-").lower()
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part, datasets in (("train", data.train), ("test", data.test)):
            _write(own / f"{part}.csv", [*header, heart.LABEL], [rows[place] for place in _places(datasets, number)])
        folders[name] = own
    return folders


def _places(datasets: Any, number: int) -> list[int]:
    """Return the rows of the file that one client has in a part."""
    places: list[int] = datasets.rows.order[datasets.rows.offsets[number] : datasets.rows.offsets[number + 1]].tolist()
    return places


def _write(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])

"""A model of a gigabyte."""

from typing import Any


def model() -> dict[str, Any]:
    raise NotImplementedError

"""The columns of the UCI heart disease data, as a hospital would declare them before seeing any other's data."""

from __future__ import annotations

from typing import Final

from hansa.core.sections import Column, Features

CLIENT: Final = "dataset"
LABEL: Final = "disease"
CLASSES: Final = ("healthy", "disease")


def _number(name: str, low: float, high: float, *missing: str) -> Column:
    return Column(name=name, low=low, high=high, missing=missing)


def _category(name: str, *categories: str) -> Column:
    return Column(name=name, kind="category", categories=categories)


COLUMNS: Final = (
    _number("age", 18, 100),
    _category("sex", "Female", "Male"),
    _category("cp", "typical angina", "atypical angina", "non-anginal", "asymptomatic"),
    # Nobody alive has a blood pressure or a cholesterol of 0: it is how two hospitals wrote "not measured".
    _number("trestbps", 60, 240, "0"),
    _number("chol", 80, 650, "0"),
    _category("fbs", "FALSE", "TRUE"),
    _category("restecg", "normal", "st-t abnormality", "lv hypertrophy"),
    _number("thalch", 50, 220),
    _category("exang", "FALSE", "TRUE"),
    _number("oldpeak", -4, 8),
    # Vessels narrowed, by count: each adds risk. Hardly measured outside Cleveland.
    _number("ca", 0, 3),
    # Often not measured outside Cleveland: as categories, "unknown" is a value of its own instead of a guess.
    _category("slope", "upsloping", "flat", "downsloping"),
    _category("thal", "normal", "fixed defect", "reversable defect"),
)

FEATURES: Final = Features(label=LABEL, task="classification", classes=CLASSES, columns=COLUMNS)

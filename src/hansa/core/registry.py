"""Pieces by name: family and kind -> "module:name", imported only when used.

A kind that holds a colon is a piece of the user's own, ``"package.module:Class"``. Where a plan comes from outside, its
names resolve through the site's allow-list only (:mod:`hansa.core.allowed`); the pieces listed here are Hansa's own.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

from hansa.core.allowed import allowance_for, is_guarded, refuse_borrowed
from hansa.core.errors import HansaError, ModelError

PIECES: Final[dict[str, dict[str, str]]] = {
    "sampler": {
        "full": "hansa.algorithms.samplers:Full",
        "uniform": "hansa.algorithms.samplers:Uniform",
        "poisson": "hansa.algorithms.samplers:Poisson",
        "min-separation": "hansa.algorithms.samplers:MinSeparation",
    },
    "schedule": {
        "sync": "hansa.algorithms.schedule:Sync",
        "buffered": "hansa.algorithms.schedule:Buffered",
    },
    "hook": {
        "prox": "hansa.algorithms.hooks:Prox",
        "control-variate": "hansa.algorithms.hooks:ControlVariate",
    },
    "transform": {
        "weigh-by-size": "hansa.algorithms.transforms:WeighBySize",
        "normalise-by-steps": "hansa.algorithms.transforms:NormaliseBySteps",
        "clip": "hansa.algorithms.transforms:Clip",
        "int8-rotation": "hansa.algorithms.compressors:Int8Rotation",
    },
    "aggregator": {
        "mean": "hansa.algorithms.aggregators:Mean",
        "fixed-mean": "hansa.algorithms.aggregators:FixedMean",
        "median": "hansa.algorithms.aggregators:Median",
        "trimmed-mean": "hansa.algorithms.aggregators:TrimmedMean",
    },
    "server_optimizer": {
        "sgd": "hansa.algorithms.server_optimizers:Sgd",
        "momentum": "hansa.algorithms.server_optimizers:Momentum",
        "adagrad": "hansa.algorithms.server_optimizers:Adagrad",
        "adam": "hansa.algorithms.server_optimizers:Adam",
        "yogi": "hansa.algorithms.server_optimizers:Yogi",
    },
    "client_optimizer": {
        "sgd": "hansa.training.optimizers:Sgd",
        "adam": "hansa.training.optimizers:Adam",
        "adamw": "hansa.training.optimizers:AdamW",
    },
    "trainer": {
        "linear": "hansa.training.linear:LinearTrainer",
        "torch": "hansa.training.torch_trainer:TorchTrainer",
    },
    "recipe": {
        "fedavg": "hansa.algorithms.recipes:fedavg",
        "fedsgd": "hansa.algorithms.recipes:fedsgd",
        "fedprox": "hansa.algorithms.recipes:fedprox",
        "fedavgm": "hansa.algorithms.recipes:fedavgm",
        "fedadagrad": "hansa.algorithms.recipes:fedadagrad",
        "fedadam": "hansa.algorithms.recipes:fedadam",
        "fedyogi": "hansa.algorithms.recipes:fedyogi",
        "scaffold": "hansa.algorithms.recipes:scaffold",
        "fednova": "hansa.algorithms.recipes:fednova",
        "fedbuff": "hansa.algorithms.recipes:fedbuff",
    },
    "partition": {
        "natural": "hansa.data.partitions:Natural",
        "iid": "hansa.data.partitions:Iid",
        "dirichlet": "hansa.data.partitions:Dirichlet",
        "shards": "hansa.data.partitions:Shards",
        "quantity": "hansa.data.partitions:Quantity",
    },
    "source": {
        "heart": "hansa.data.shipped:heart",
        "wsn": "hansa.data.shipped:wsn",
        "shakespeare": "hansa.data.shipped:shakespeare",
        "fashion-mnist-small": "hansa.data.shipped:fashion_mnist_small",
        "digits": "hansa.data.shipped:digits",
        "synthetic": "hansa.data.synthetic:synthetic",
        "mnist": "hansa.data.arrays:mnist",
        "npz": "hansa.data.arrays:npz",
        "csv": "hansa.data.tables:csv",
        "parquet": "hansa.data.tables:parquet",
        "folder": "hansa.data.folder:folder",
    },
    "metric": {
        "loss": "hansa.evaluation.metrics:LOSS",
        "accuracy": "hansa.evaluation.metrics:ACCURACY",
        "auc": "hansa.evaluation.metrics:AUC",
        "rmse": "hansa.evaluation.metrics:RMSE",
        "mae": "hansa.evaluation.metrics:MAE",
    },
}

ABOVE: Final[dict[str, dict[str, str]]] = {
    "mechanism": {
        "gaussian": "hansa.privacy.mechanisms:INDEPENDENT",
        "banded-matrix": "hansa.privacy.mechanisms:BANDED_MATRIX",
        "tree": "hansa.privacy.mechanisms:TREE",
    },
    "calibration": {
        "privacy": "hansa.privacy.planned:calibrated",
        "examples": "hansa.privacy.examples:calibrated_examples",
    },
    "noise": {
        "discrete-gaussian": "hansa.privacy.noise:discrete_gaussian",
    },
}
"""What lower rooms call of higher ones, which they do not import: no piece, and in no plan by name."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the known word nearest to ``name``, or lists what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}."


def resolve(family: str, kind: str) -> Any:
    """Return the object that ``kind`` names in ``family``.

    Raises LookupError for an unknown kind, ModelError for one that cannot be imported, and RefusedError for code that
    the allow-list in force does not name.
    """
    return import_named(kind) if ":" in kind else _registered(family, kind)


@cache
def _registered(family: str, kind: str) -> Any:
    known = PIECES.get(family) or ABOVE[family]
    target = known.get(kind)
    if target is None:
        raise LookupError(f"unknown {family} {kind!r}; {nearest(kind, known)}")
    return _imported(target)


def import_named(target: str) -> Any:
    """Import ``"package.module:name"``, also from the working directory.

    Raises ModelError, which names what is missing. Under an allow-list (:func:`hansa.core.allowed.allowing`) anything
    else is refused with RefusedError before it is imported, and the working directory is not looked into.
    """
    if not is_guarded():
        return _imported(target)
    allowance = allowance_for(target)
    found = _imported(target)
    refuse_borrowed(target, found, allowance)
    return found


def _imported(target: str) -> Any:
    module_name, separator, name = target.partition(":")
    if not (separator and module_name and name):
        raise _import_error(target, "it is not of the form 'package.module:name'")
    known = getattr(sys.modules.get(module_name), name, None)
    if known is not None:
        return known
    working_directory = str(Path.cwd())
    if working_directory not in sys.path and "" not in sys.path and not is_guarded():
        sys.path.append(working_directory)
    importlib.invalidate_caches()
    try:
        return getattr(importlib.import_module(module_name), name)
    except HansaError:
        raise
    except AttributeError as error:
        raise _import_error(target, f"the module has no {name!r}") from error
    except (Exception, SystemExit) as error:  # a module may end the process as it is imported
        raise _import_error(target, f"{type(error).__name__}: {error}") from error


def _import_error(target: str, why: str) -> ModelError:
    return ModelError(
        "HANSA-CODE-IMPORT",
        rule="A name in a plan must be importable from the environment or the working directory.",
        found=f"{target!r} is not: {why}.",
        action="Correct the name, install the package, or run from the folder that holds the module.",
    )


@cache
def kinds_by_object(family: str) -> dict[str, str]:
    """Return "module:name" -> kind for the registered pieces of ``family``."""
    return {target: kind for kind, target in PIECES[family].items()}


def kind_of(family: str, piece: object) -> str:
    """Return the kind under which a plan file names ``piece``: a registered one, or "module:Class"."""
    target = f"{type(piece).__module__}:{type(piece).__qualname__}"
    return kinds_by_object(family).get(target, target)

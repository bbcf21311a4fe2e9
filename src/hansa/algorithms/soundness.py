"""What a plan must satisfy beyond its fields: order, sensitivity, divisor, branches.

Each check names the sections that it reads as parameters and is run where those could be built, so that one
reading of a plan finds every problem. Each sentence says what to change.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

from hansa.algorithms import example_checks, privacy_checks, schedule_checks, secure_checks
from hansa.algorithms.travelling import travelling_branches
from hansa.core.errors import Problem
from hansa.core.layout import Branch, Layout, Parameter
from hansa.core.registry import PIECES, kind_of, nearest
from hansa.core.sections import Evaluation, Features, Model, Stopping

Found = Iterator[Problem]


def problems(sections: Mapping[str, Any]) -> list[Problem]:
    """Return every problem of the sections that are given; a section that did not build is left out."""
    return [
        problem
        for check in CHECKS
        if all(name in sections for name in inspect.signature(check).parameters)
        for problem in check(**{name: sections[name] for name in inspect.signature(check).parameters})
    ]


def transform_order(transforms: tuple[Any, ...]) -> Found:
    """Linear transforms are decoded on the sum, so none may lie outside one that is decoded row by row."""
    inner = None
    for position, transform in enumerate(transforms):
        if not transform.linear:
            inner = transform
        elif inner is not None and transform.noise_unit is None:
            yield Problem(
                f"transforms.{position}",
                f"{_kind(transform)} is undone on the sum, but {_kind(inner)} inside it is undone row by row; "
                f"list {_kind(transform)} before {_kind(inner)}.",
            )


def weighted_lanes_before_weights(transforms: tuple[Any, ...]) -> Found:
    """Weighted lanes must exist when the update is weighed."""
    weighed = None
    for position, transform in enumerate(transforms):
        if weighed is not None and any(lane.weighted for lane in transform.lanes()):
            yield Problem(
                f"transforms.{position}",
                f"{_kind(transform)} needs the weights of {_kind(weighed)}; list {_kind(transform)} first.",
            )
        if _kind(transform) == "weigh-by-size":
            weighed = transform


def one_of_each(transforms: tuple[Any, ...]) -> Found:
    """Two transforms of a kind would write the same lanes and side arrays."""
    kinds = [_kind(transform) for transform in transforms]
    for position, kind in enumerate(kinds):
        if kind in kinds[:position]:
            yield Problem(f"transforms.{position}", f"{kind} is listed twice; keep one.")


def noise_is_sized(transforms: tuple[Any, ...], trainer: Any, model: Model) -> Found:
    """Noise needs a bound that still holds where it is added, in the unit in which it is added."""
    names = travelling_branches(trainer, model)
    layout = Layout(tuple(Branch(name, (Parameter(name, (1,)),)) for name in names))
    bounds: Mapping[str, float | None] = dict.fromkeys(names)
    unit, lost = "value", "there is no clip"
    for position, transform in enumerate(transforms):
        if transform.noise_unit is not None:
            yield from _noise_problems(transform, f"transforms.{position}", bounds, unit, lost)
            continue
        claimed = transform.bound(bounds, layout)
        following = {name: claimed.get(name) for name in names}
        if any(bounds[name] is not None and following[name] is None for name in names):
            lost = f"{_kind(transform)} loses the bound of what comes before it"
        elif any(bound is not None for bound in following.values()):
            lost = f"{_kind(transform)} names other branches"
        bounds, unit = following, transform.emits or unit


def _noise_problems(noise: Any, path: str, bounds: Mapping[str, float | None], unit: str, lost: str) -> Found:
    free = ", ".join(name for name, bound in bounds.items() if bound is None)
    if free:
        yield Problem(
            path,
            f"{_kind(noise)} adds noise sized to a bound, but {lost}, so one client's part in {free} is not bounded; "
            "put clip directly before the noise.",
        )
    if unit != noise.noise_unit:
        yield Problem(
            path,
            f"{_kind(noise)} adds noise in {noise.noise_unit} units to what is in {unit} units, so its scale would be "
            f"wrong; move it to where the vector is in {noise.noise_unit} units.",
        )


def noise_beside_rows(transforms: tuple[Any, ...]) -> Found:
    """Noise is added to what is summed, so nothing beside it may be undone row by row, in any order."""
    noisy = next((transform for transform in transforms if transform.noise_unit is not None), None)
    for position, transform in enumerate(transforms):
        if noisy is not None and not transform.linear:
            yield Problem(
                f"transforms.{position}",
                f"{_kind(transform)} is undone row by row, and {_kind(noisy)} protects a sum; "
                f"remove {_kind(transform)} or the noise.",
            )


def noise_comes_last(transforms: tuple[Any, ...]) -> Found:
    """Nothing may distort the noise that protects people."""
    for position, (noise, after) in enumerate(pairwise(transforms)):
        if noise.noise_unit is not None and after.linear:
            yield Problem(
                f"transforms.{position + 1}",
                f"{_kind(after)} after {_kind(noise)} would distort the noise that protects people; "
                f"list {_kind(after)} before {_kind(noise)}.",
            )


def noise_over_a_fixed_divisor(transforms: tuple[Any, ...], aggregator: Any) -> Found:
    """Noise is divided by a fixed number: any other would itself tell who came."""
    noisy = next((transform for transform in transforms if transform.noise_unit is not None), None)
    if noisy is not None and not aggregator.fixed:
        yield Problem(
            "aggregator",
            f"{_kind(noisy)} needs a divisor fixed in advance, but {kind_of('aggregator', aggregator)} divides by "
            "what the data give; use fixed-mean with a divisor.",
        )


def rules_over_rows(transforms: tuple[Any, ...], aggregator: Any) -> Found:
    """Rules over single updates cannot compare what means something only in a sum."""
    for position, transform in enumerate(() if aggregator.needs_sum_only else transforms):
        if transform.changes_values:
            yield Problem(
                f"transforms.{position}",
                f"{_kind(transform)} makes sense under a sum, but {kind_of('aggregator', aggregator)} looks at each "
                f"update; remove {_kind(transform)} or use the mean.",
            )


def hooks(trainer: Any) -> Found:
    """Hooks bend gradients; some are defined for plain SGD only, and none may write another's branch."""
    if trainer.hooks and not trainer.bends_gradients:
        yield Problem("trainer.hooks", f"{kind_of('trainer', trainer)} has no gradients to bend; remove the hooks.")
    seen: set[str] = set()
    for position, hook in enumerate(trainer.hooks):
        name, path, owned = kind_of("hook", hook), f"trainer.hooks.{position}", {*hook.branches, *hook.state}
        if trainer.bends_gradients and hook.needs_plain_sgd and not trainer.optimizer.plain_sgd:
            yield Problem(
                path, f"{name} is derived for SGD without momentum; set trainer.optimizer to sgd, momentum 0."
            )
        if seen & owned:
            yield Problem(path, f"{name} is listed twice; keep one.")
        seen |= owned


def normalised_steps(trainer: Any, transforms: tuple[Any, ...]) -> Found:
    """Normalisation knows the weights that SGD without hooks gives its gradients, and no others."""
    plain = kind_of("client_optimizer", trainer.optimizer) == "sgd" and not trainer.hooks
    for position, transform in enumerate(transforms):
        if _kind(transform) == "normalise-by-steps" and not plain:
            yield Problem(
                f"transforms.{position}",
                "normalise-by-steps knows how SGD without hooks weighs its gradients, and nothing else; "
                "use the sgd optimizer and no hooks, or remove it.",
            )


def branch_optimizers(trainer: Any, server_optimizer: Any) -> Found:
    """Every branch that a hook adds needs its own server optimizer, and no other may have one."""
    needed = {branch for hook in trainer.hooks for branch in hook.branches}
    for name in sorted(needed - set(server_optimizer.branches)):
        yield Problem(
            f"server_optimizer.branches.{name}",
            "is required by a hook of the trainer; for control variates write "
            f'{name} = {{ kind = "sgd", learning_rate = "included/population" }}.',
        )
    for name in sorted(set(server_optimizer.branches) - needed):
        yield Problem(f"server_optimizer.branches.{name}", f"no piece of the plan has a branch {name!r}; remove it.")


def clipped_branches(trainer: Any, transforms: tuple[Any, ...], model: Model) -> Found:
    """Clips name branches that exist."""
    known = set(travelling_branches(trainer, model))
    for position, transform in enumerate(transforms):
        for name in sorted(set(getattr(transform, "branches", ())) - known):
            yield Problem(f"transforms.{position}.branches", f"no branch {name!r}; {nearest(name, known)}")


def declared_scaling(features: Features | None) -> Found:
    """Scaling that is declared needs its numbers."""
    if features is None or features.scaling != "declared":
        return
    for position, column in enumerate(features.columns):
        if column.kind == "number" and column.declared is None:
            yield Problem(
                f"features.columns.{position}",
                f'scaling = "declared" needs center and scale of {column.name!r}, or low and high; give two, or use '
                '"none".',
            )


def metrics(evaluation: Evaluation) -> Found:
    """Metrics are known by name."""
    for position, name in enumerate(evaluation.metrics):
        path = f"evaluation.metrics.{position}"
        if name not in PIECES["metric"]:
            yield Problem(path, f"unknown metric {name!r}; {nearest(name, PIECES['metric'])}")
        if name in evaluation.metrics[:position]:
            yield Problem(path, f"{name} is listed twice; keep one.")


def watched_metric(stopping: Stopping, evaluation: Evaluation) -> Found:
    """Only what is measured can be watched."""
    if stopping.metric is None:
        return
    part, _, name = stopping.metric.partition(".")
    parts = ("central", "federated", "validation")
    message = None
    if part not in parts or name not in PIECES["metric"]:
        message = (
            f"{stopping.metric!r} is not one of {', '.join(parts)}, a dot, and a metric, such as central.accuracy."
        )
    elif evaluation.metrics and name not in evaluation.metrics:
        message = f"{name} is not measured; add it to evaluation.metrics."
    elif not (evaluation.central if part == "central" else evaluation.federated):
        switch = "central" if part == "central" else "federated"
        message = f"evaluation.{switch} is off; turn it on or watch another part."
    if message is not None:
        yield Problem("stopping.metric", message)


CHECKS: Final[tuple[Callable[..., Found], ...]] = (
    transform_order,
    weighted_lanes_before_weights,
    one_of_each,
    noise_is_sized,
    noise_beside_rows,
    noise_comes_last,
    noise_over_a_fixed_divisor,
    rules_over_rows,
    *privacy_checks.CHECKS,
    *example_checks.CHECKS,
    hooks,
    normalised_steps,
    *schedule_checks.CHECKS,
    *secure_checks.CHECKS,
    branch_optimizers,
    clipped_branches,
    declared_scaling,
    metrics,
    watched_metric,
)


def _kind(transform: Any) -> str:
    return kind_of("transform", transform)

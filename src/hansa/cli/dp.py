"""``hansa dp``: what differential privacy costs, and which setting a budget pays for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hansa.cli.console import facts, print_json, screen, sentence
from hansa.cli.dp_study import study
from hansa.cli.options import AsJson, Overrides
from hansa.core.schema import to_mapping
from hansa.wire.plans import read_plan

if TYPE_CHECKING:
    from hansa.core.privacy import Adjacency
    from hansa.privacy.accounting import Composition, Cost
    from hansa.privacy.event import Event

app = typer.Typer()
app.command()(study)

SamplingKind = Literal["none", "poisson", "fixed-size"]
AdjacencyName = Literal["add-or-remove-one", "zero-out", "replace-one"]

NoiseMultiplier = Annotated[
    float | None, typer.Option(metavar="Z", help="Standard deviation of a round's noise on the sum, by the clip norm.")
]
Rounds = Annotated[int | None, typer.Option(metavar="T", min=1, help="Rounds, each with a release.")]
Delta = Annotated[float, typer.Option(metavar="DELTA", help="The delta of (epsilon, delta).")]
Sampling = Annotated[
    SamplingKind,
    typer.Option(
        help="Who is in a round. none: anybody may be, in every round. poisson and fixed-size claim that who was drawn "
        "stays secret, by independent coins or as a fixed number; shuffled batches are neither."
    ),
]
Share = Annotated[
    float | None, typer.Option("--q", metavar="Q", help="The probability to be asked; over-selection is part of it.")
]
AdjacencyOption = Annotated[
    AdjacencyName | None,
    typer.Option(
        "--adjacency",
        help="Which data sets are neighbours. Default: replace-one for fixed-size, else add-or-remove-one.",
    ),
]
MaxParticipations = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        min=1,
        help="A unit is in at most so many rounds; with correlated noise, as many rounds apart as it has bands.",
    ),
]
Unit = Annotated[str, typer.Option(help="Who or what is protected: the privacy unit.")]


@app.command()
def epsilon(  # noqa: PLR0913 - a command's options
    *,
    noise_multiplier: NoiseMultiplier = None,
    rounds: Rounds = None,
    delta: Delta,
    sampling: Sampling = "none",
    q: Share = None,
    adjacency: AdjacencyOption = None,
    max_participations: MaxParticipations = None,
    unit: Unit = "client",
    as_json: AsJson = False,
) -> None:
    """Say what rounds with noise cost: the charged epsilon, and a reference beside it."""
    if noise_multiplier is None or rounds is None:
        raise typer.BadParameter(
            "give --noise-multiplier and --rounds; `hansa dp calibrate` finds one that is missing."
        )
    neighbours = _adjacency(adjacency, sampling)
    composition = _composition(sampling, q, max_participations)(noise_multiplier, rounds)
    _show({}, composition, delta=delta, adjacency=neighbours, unit=unit, as_json=as_json)


@app.command()
def calibrate(  # noqa: PLR0913 - a command's options
    *,
    epsilon: Annotated[float, typer.Option(metavar="EPSILON", help="The charged epsilon that is not to be passed.")],
    delta: Delta,
    noise_multiplier: NoiseMultiplier = None,
    rounds: Rounds = None,
    deviation: Annotated[
        float | None,
        typer.Option(metavar="S", help="Standard deviation of the noise in each entry of the mean update, to reach."),
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(metavar="C", help="The clip norm, for --deviation.")] = None,
    population: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Clients in all, for --deviation with sampling.")
    ] = None,
    sampling: Sampling = "none",
    q: Share = None,
    adjacency: AdjacencyOption = None,
    max_participations: MaxParticipations = None,
    unit: Unit = "client",
    as_json: AsJson = False,
) -> None:
    """Find what a budget pays for: the least noise for --rounds, the most rounds for --noise-multiplier, or the
    smallest cohort for --deviation, --clip-norm and --rounds.
    """  # noqa: D205 - the help of a command is one paragraph
    budget: dict[str, Any] = {"epsilon": epsilon, "delta": delta, "adjacency": _adjacency(adjacency, sampling)}
    if deviation is not None:
        if rounds is None or clip_norm is None or noise_multiplier is not None or q is not None:
            raise typer.BadParameter(
                "it needs --clip-norm and --rounds, and finds q and noise.", param_hint="--deviation"
            )
        of = _cohort(sampling, population, max_participations, rounds)
        found, composition = _smallest_cohort(deviation, clip_norm, of, population, budget)
    elif rounds is not None and noise_multiplier is None:
        found, composition = _least_noise(rounds, _composition(sampling, q, max_participations), budget)
    elif noise_multiplier is not None and rounds is None and max_participations is None:
        found, composition = _most_rounds(noise_multiplier, _composition(sampling, q, None), budget)
    else:
        raise typer.BadParameter("give --rounds, or --noise-multiplier alone, or --deviation; the rest is found.")
    _show(found, composition, delta=delta, adjacency=budget["adjacency"], unit=unit, as_json=as_json)


@app.command()
def explain(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="The plan.")],
    *,
    settings: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say what a plan protects, against whom, for which unit and at what cost. No data are read."""
    from hansa.reporting.disclosure import server_sees  # noqa: PLC0415 - only where a command needs it
    from hansa.reporting.example_sentences import example_sentences, told_examples  # noqa: PLC0415 - as below
    from hansa.reporting.privacy_sentences import NOT_PRIVATE, sentences, told  # noqa: PLC0415 - as above

    read = read_plan(plan, overrides=settings or [])
    said = [*sentences(read), *example_sentences(read)] or NOT_PRIVATE
    seen = server_sees(to_mapping(read), metrics=(), on_clients=read.evaluation.federated)
    pairs = [*said, *(("the server sees" if phrase == seen[0] else "", phrase) for phrase in seen)]
    console = screen()
    facts(console, [(about, text) for about, text in pairs])
    if as_json:
        numbers = {"privacy": told(read), "example_privacy": told_examples(read)}
        print_json({"name": read.name, **numbers, "server_sees": list(seen), "said": [t for _, t in said]})


def _least_noise(
    rounds: int, events: Callable[[float, int], Composition], budget: dict[str, Any]
) -> tuple[dict[str, Any], Composition]:
    from hansa.privacy.calibration import noise_for  # noqa: PLC0415 - only where a command needs it

    found = noise_for(composition=lambda noise: events(noise, rounds), **budget)
    return {"noise_multiplier": found}, events(found, rounds)


def _most_rounds(
    noise_multiplier: float, events: Callable[[float, int], Composition], budget: dict[str, Any]
) -> tuple[dict[str, Any], Composition]:
    from hansa.privacy.calibration import rounds_for  # noqa: PLC0415 - as above

    found = rounds_for(composition=lambda rounds: events(noise_multiplier, rounds), **budget)
    return {"rounds": found}, events(noise_multiplier, found)


def _smallest_cohort(
    deviation: float,
    clip_norm: float,
    events: Callable[[float, int], Composition],
    population: int | None,
    budget: dict[str, Any],
) -> tuple[dict[str, Any], Composition]:
    from hansa.privacy.calibration import MOST_CLIENTS, cohort_for  # noqa: PLC0415 - as above

    limit = MOST_CLIENTS if population is None else population
    size = cohort_for(deviation, clip_norm=clip_norm, composition=events, limit=limit, **budget)
    noise_multiplier = deviation * size / clip_norm
    return {"cohort_size": size, "noise_multiplier": noise_multiplier}, events(noise_multiplier, size)


def _adjacency(given: AdjacencyName | None, sampling: SamplingKind) -> Adjacency:
    return given or ("replace-one" if sampling == "fixed-size" else "add-or-remove-one")


def _composition(
    sampling: SamplingKind, q: float | None, max_participations: int | None
) -> Callable[[float, int], Composition]:
    """Return what makes the events of a noise multiplier and a number of rounds."""
    from hansa.privacy.accounting import Composition  # noqa: PLC0415 - only where a command needs it
    from hansa.privacy.event import (  # noqa: PLC0415 - as above
        FixedSizeGaussian,
        Gaussian,
        MatrixGaussian,
        PoissonGaussian,
    )

    if (sampling == "none") != (q is None):
        raise typer.BadParameter("it goes with --sampling poisson or fixed-size, and they with it.", param_hint="--q")
    if sampling != "none" and max_participations is not None:
        raise typer.BadParameter("who is drawn by secret coins is not counted.", param_hint="--max-participations")

    def events(noise_multiplier: float, rounds: int) -> Composition:
        if q is not None:
            kind = PoissonGaussian if sampling == "poisson" else FixedSizeGaussian
            drawn: Event = kind(probability=q, noise_multiplier=noise_multiplier)
            return Composition.of((drawn, rounds))
        if max_participations is not None:
            times = min(max_participations, rounds)
            return Composition.of(MatrixGaussian(noise_multiplier=noise_multiplier, participations=times))
        return Composition.of((Gaussian(noise_multiplier=noise_multiplier), rounds))

    return events


def _cohort(
    sampling: SamplingKind, population: int | None, max_participations: int | None, rounds: int
) -> Callable[[float, int], Composition]:
    """Return what makes the events of a noise multiplier and a cohort's size."""
    if sampling != "none" and population is None:
        raise typer.BadParameter("a cohort that is drawn needs it.", param_hint="--population")

    def events(noise_multiplier: float, size: int) -> Composition:
        share = None if sampling == "none" or population is None else size / population
        return _composition(sampling, share, max_participations)(noise_multiplier, rounds)

    return events


def _show(  # noqa: PLR0913 - what was found, and all that a guarantee names
    found: dict[str, Any], composition: Composition, *, delta: float, adjacency: Adjacency, unit: str, as_json: bool
) -> None:
    """Print what was found, and what it costs."""
    from hansa.privacy.accounting import price  # noqa: PLC0415 - only where a command needs it

    guarantee: dict[str, Any] = {"delta": delta, "adjacency": adjacency, "unit": unit}
    cost = price(composition, trusted_sampling=True, **guarantee)
    plain = price(composition, **guarantee).epsilon_charged if cost.amplified else cost.epsilon_charged
    console = screen()
    facts(console, [*((name.replace("_", " "), f"{value:,.10g}") for name, value in found.items()), *_facts(cost)])
    console.print()
    sentence(console, _sentence(cost, plain))
    if as_json:
        print_json({**found, **asdict(cost), "epsilon_charged_without_sampling": plain})


def _facts(cost: Cost) -> list[tuple[str, str]]:
    pairs = [
        ("epsilon, charged", f"{cost.epsilon_charged:.6g}"),
        (
            "epsilon, reference",
            f"{cost.epsilon_reference:.6g}  (continuous Gaussian, all declared; {cost.reference_method})",
        ),
        ("delta", f"{cost.delta:g}"),
        ("privacy unit", cost.unit),
        ("adjacency", cost.adjacency),
    ]
    return pairs if cost.rho is None else [*pairs, ("rho (zCDP)", f"{cost.rho:.6g}")]


def _sentence(cost: Cost, without_sampling: float) -> str:
    if cost.amplified:
        return (
            "The charged epsilon is the guarantee, and it is amplified by sampling: it holds only where who was drawn "
            "stays secret from everybody who sees a release, and every client's coin is thrown as said. "
            f"Without that it would be {without_sampling:.6g}."
        )
    return "The charged epsilon is the guarantee. Nothing is gained by sampling."

"""What a plan with ``[privacy]`` cannot go with; each sentence says what to change.

See :mod:`hansa.algorithms.soundness`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from hansa.algorithms.private_sums import honest_parties
from hansa.algorithms.schedule import has_fixed_size
from hansa.core.errors import Problem
from hansa.core.privacy import Privacy
from hansa.core.registry import kind_of
from hansa.core.sections import Evaluation, Features, Model
from hansa.core.secure_aggregation import SecureAggregation

Found = Iterator[Problem]


def nothing_beside(privacy: Privacy | None, transforms: tuple[Any, ...]) -> Found:
    """Refuse what clips, rounds, weighs or adds noise beside the section, which does so after the last transform."""
    for position, transform in enumerate(transforms if privacy is not None else ()):
        kind, path = kind_of("transform", transform), f"transforms.{position}"
        if kind == "clip":
            yield Problem(path, "[privacy] clips by itself, to privacy.clip_norm; remove clip.")
        elif not transform.linear:
            yield Problem(path, f"{kind} is undone row by row, and privacy protects a sum; remove {kind} or [privacy].")
        elif transform.noise_unit is not None or transform.emits == "ring":
            yield Problem(path, f"[privacy] rounds and adds noise after the last transform by itself; remove {kind}.")
        elif kind == "weigh-by-size":
            yield Problem(
                path,
                "weights tell the sizes of clients and multiply one client's part of the sum; under [privacy] every "
                "update counts the same: remove weigh-by-size.",
            )
        elif transform.lanes():
            named = ", ".join(lane.name for lane in transform.lanes())
            yield Problem(path, f"{kind} sums {named} beside the update, to which no noise is added; remove {kind}.")


def fixed_divisor(privacy: Privacy | None, aggregator: Any) -> Found:
    """Noise is divided by a number that is fixed in advance: any other would itself tell who came."""
    if privacy is not None and not (aggregator.fixed and aggregator.needs_sum_only):
        yield Problem(
            "aggregator",
            f"privacy needs a sum and a divisor fixed in advance, which {kind_of('aggregator', aggregator)} has not; "
            "use fixed-mean with the expected cohort as its divisor.",
        )


def buffers(privacy: Privacy | None, model: Model) -> Found:
    """Averaged buffers are statistics of examples."""
    if privacy is not None and model.buffers == "average":
        yield Problem(
            "model.buffers", 'averaged buffers leave clients unprotected; use "keep-local", or GroupNorm in the model.'
        )


def other_releases(privacy: Privacy | None, evaluation: Evaluation, features: Features | None) -> Found:
    """Whatever else leaves the clients is charged or withheld; nothing else is charged yet."""
    if privacy is None:
        return
    if evaluation.federated:
        yield Problem(
            "evaluation.federated",
            "metrics over clients' examples are sums without noise, which the plan's epsilon does not cover; set it to "
            "false. evaluation.central measures on the server's own examples.",
        )
    if features is not None and features.scaling == "federated":
        yield Problem(
            "features.scaling",
            "means and deviations over all clients are sums without noise, which the plan's epsilon does not cover; "
            'use "declared" (by center and scale, or low and high, of each column) or "none".',
        )


def correlated(privacy: Privacy | None, cohort: Any) -> Found:
    """Noise that later rounds take back holds for clients that rest between two participations."""
    if privacy is None or privacy.mechanism == "gaussian":
        if privacy is not None and privacy.bands is not None:
            yield Problem("privacy.bands", "gaussian noise is independent in every round; remove it.")
        return
    path, kind = "privacy.mechanism", privacy.mechanism
    if kind_of("sampler", cohort) != "min-separation":
        yield Problem("cohort", f"{kind} needs clients that rest between two participations; use min-separation.")
    elif privacy.bands is not None and privacy.bands > cohort.rounds:
        yield Problem(
            "privacy.bands",
            f"noise is correlated over {privacy.bands} rounds, but a client may take part again after {cohort.rounds}; "
            "lower it, or raise cohort.rounds.",
        )
    if privacy.noise_by == "clients":
        yield Problem(path, f'{kind} is one party\'s noise over many rounds; use gaussian, or noise_by = "server".')
    if privacy.adaptive_clip is not None:
        yield Problem(
            "privacy.adaptive_clip", f"{kind} is one release with one clip norm for the whole run; remove it."
        )


def by_clients(privacy: Privacy | None, secure_aggregation: SecureAggregation | None) -> Found:
    """Clients' shares of noise protect them where nobody sees less than their sum."""
    if privacy is None or privacy.noise_by == "server":
        return
    path = "privacy.noise_by"
    if secure_aggregation is None:
        yield Problem(path, "each client's share of the noise is too little alone; add [secure_aggregation].")
        return
    if secure_aggregation.group_size is not None:
        yield Problem(path, "a group's sum would have a part of the noise only; remove secure_aggregation.group_size.")
    if honest_parties(secure_aggregation) < 1:
        yield Problem(
            "secure_aggregation.minimum_survivors",
            f"of {secure_aggregation.minimum_survivors} survivors {secure_aggregation.assumed_colluding} know their "
            "own noise, so none may be left; raise it.",
        )
    if privacy.adaptive_clip is not None:
        yield Problem("privacy.adaptive_clip", "the clip's bit is noised by the server only; remove it.")


def amplification(
    privacy: Privacy | None, cohort: Any, schedule: Any, secure_aggregation: SecureAggregation | None
) -> Found:
    """Refuse to claim what sampling gains where who was drawn is no secret, or not drawn as the account has it."""
    if privacy is None or not privacy.trusted_sampling:
        if privacy is not None and privacy.population is not None:
            yield Problem("privacy.population", "it matters under trusted_sampling only; remove it.")
        return
    path, kind = "privacy.trusted_sampling", kind_of("sampler", cohort)
    if privacy.mechanism != "gaussian" or privacy.noise_by == "clients" or secure_aggregation is not None:
        yield Problem(
            path,
            "sampling amplifies independent noise that the server adds, and who takes part in a secure sum is no "
            "secret; remove it.",
        )
    for name in ("report_goal", "minimum_reports"):
        if getattr(schedule, name, None) is not None:
            yield Problem(f"schedule.{name}", "amplified rounds end by their deadline alone; remove it.")
    if kind == "uniform":
        if privacy.adjacency != "replace-one" or privacy.population is None:
            yield Problem(
                path,
                "a fixed number of clients is amplified for replace-one, and for a known population; set "
                "privacy.adjacency and privacy.population, or use poisson.",
            )
        elif privacy.population < cohort.size:
            yield Problem("privacy.population", f"it is less than the cohort, {cohort.size}; raise it.")
    elif kind != "poisson":
        yield Problem(path, f"{kind} does not draw clients by secret coins; use poisson or uniform, or remove it.")


def own_coins(
    privacy: Privacy | None, cohort: Any, schedule: Any, secure_aggregation: SecureAggregation | None
) -> Found:
    """Refuse add-or-remove-one where one client's presence changes more than its own part of a sum.

    Of a cohort of fixed size it takes another's place, which moves the sum by two clip norms, and with min-separation
    also the cohorts of later rounds. Nor is there such a neighbour where a round needs a number of clients, or where
    each of them adds noise.
    """
    if privacy is None or privacy.adjacency != "add-or-remove-one":
        return
    path, kind = "privacy.adjacency", kind_of("sampler", cohort)
    if kind not in ("poisson", "full"):
        yield Problem(
            path,
            f"under {kind} a client that is added takes the place of another, so that the sum moves by more than one "
            "clip norm; use zero-out or replace-one, or the cohort poisson or full.",
        )
    if secure_aggregation is not None or getattr(schedule, "needed_reports", None) is not None:
        yield Problem(
            path,
            "a secure sum, a report goal and a minimum of reports need a number of clients, which tells whether one is "
            "there; use zero-out or replace-one.",
        )


def bit_noise(privacy: Privacy | None, aggregator: Any) -> Found:
    """Refuse more noise than an adaptive clip's bits leave room for (Andrew et al. 2021, theorem 1)."""
    if privacy is None or privacy.adaptive_clip is None or not aggregator.fixed:
        return
    most = aggregator.divisor / 10
    if privacy.noise_multiplier is not None and privacy.noise_multiplier >= most:
        yield Problem(
            "privacy.adaptive_clip",
            f"a noise multiplier of {privacy.noise_multiplier:g} needs more than {10 * privacy.noise_multiplier:g} "
            f"clients in a round, and the divisor is {aggregator.divisor:g}; ask more clients, or fix the clip norm.",
        )


def population_problems(privacy: Privacy | None, population: int) -> Found:
    """Refuse amplification for more clients than there are."""
    if privacy is not None and privacy.population is not None and population < privacy.population:
        yield Problem(
            "privacy.population",
            f"amplification is claimed for at least {privacy.population} clients, and there are {population}; lower "
            "it, or find more.",
        )


def divisor_of_size(privacy: Privacy | None, cohort: Any, aggregator: Any) -> Found:
    """Refuse a divisor far from the cohort's size: a mistake of scale."""
    if privacy is None or not aggregator.fixed or not has_fixed_size(cohort):
        return
    if aggregator.divisor > 2 * cohort.size or 2 * aggregator.divisor < cohort.size:
        yield Problem(
            "aggregator.divisor",
            f"{aggregator.divisor:g} is far from the cohort's {cohort.size} clients, so that the mean would be a "
            f"multiple of itself; use about {cohort.size}.",
        )


CHECKS: Final[tuple[Callable[..., Found], ...]] = (
    nothing_beside,
    fixed_divisor,
    buffers,
    other_releases,
    correlated,
    by_clients,
    amplification,
    own_coins,
    bit_noise,
    divisor_of_size,
)

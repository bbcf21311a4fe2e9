"""What a plan's differential privacy protects, against whom, for which unit and at what cost, without overclaiming."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from hansa.algorithms.plan import Plan
from hansa.algorithms.private_sums import honest_parties, mechanism_of
from hansa.algorithms.ring_plan import RingCode
from hansa.algorithms.round_storage import update_bytes
from hansa.core.ledger import Balance
from hansa.core.secure_aggregation import SecureAggregation
from hansa.privacy.accounting import Cost
from hansa.privacy.mechanisms import Correlated, times
from hansa.privacy.planned import cost_of
from hansa.reporting.figures import bytes_text, count_text, plural
from hansa.reporting.secure_sentences import Sentence, branch_text

HYPOTHETICAL: Final = (
    "hypothetical: this simulation draws its noise from the plan's seed, which protects nobody, and charges no ledger; "
    "it is what a federation with this plan would be charged"
)
"""What the epsilon of a simulation is worth."""

_CHARGED: Final = (
    "charged, not hypothetical: the scope {scope!r} of the ledger has spent epsilon {charged:.4g} of {limit:g}, and "
    "{remaining:.4g} remains; the noise was drawn from the operating system's generator, and nobody can draw it again. "
    "It covers the models of this run. Whatever else the run folder tells of clients (baselines, figures of single "
    "clients or measured on examples that they held out, sizes and labels of their data) has no noise and is not for "
    "release"
)

NOT_PRIVATE: Final = (
    Sentence("privacy unit", "none"),
    Sentence("epsilon", "none: this plan makes no differential privacy claim"),
    Sentence(
        "it means",
        "examples are not pooled in one place, and that is no guarantee: nothing bounds what models, or the updates "
        "that the server sees, tell about one client",
    ),
    Sentence(
        "what would", "a table [privacy] with clip_norm, delta and epsilon, a fixed divisor, and few participations"
    ),
)
_ADJACENT: Final = {
    "add-or-remove-one": "one client takes part or does not",
    "zero-out": "one client's updates are its own or zeros",
    "replace-one": "one client's updates are its own or any others",
}
_OF_THE_PLAN: Final = "the models and the figures that are published after each round"


def sentences(plan: Plan, code: RingCode | None = None) -> list[Sentence]:
    """Return what the plan promises; nothing for a plan without [privacy].

    With ``code``, the integers of the model, the noise of clients' shares is priced for it.
    """
    if plan.privacy is None:
        return []
    found = [*_guarantee(plan, cost_of(plan, code)), *_against(plan), *_noise(plan, code), *_not_covered(plan)]
    return found if code is None or plan.secure_aggregation is not None else [*found, *_integers(plan, code)]


def told(plan: Plan, code: RingCode | None = None) -> dict[str, Any] | None:
    """Return the numbers of a plan's privacy for programs, or None for a plan without."""
    if plan.privacy is None:
        return None
    cost, privacy = cost_of(plan, code), plan.privacy
    return {
        "unit": privacy.unit,
        "adjacency": privacy.adjacency,
        "delta": privacy.delta,
        "epsilon_charged": cost.epsilon_charged,
        "epsilon_reference": cost.epsilon_reference,
        "rho": cost.rho,
        "amplified": cost.amplified,
        "mechanism": privacy.mechanism,
        "noise_by": privacy.noise_by,
        "noise_multiplier": privacy.noise_multiplier,
        "clip_norm": privacy.clip_norm,
        "participations": times(plan),
    }


def charged_meaning(balance: Balance) -> str:
    """Return what the epsilon of a simulation is worth that was charged to a ledger."""
    return _CHARGED.format(
        scope=balance.scope, charged=balance.charged, limit=balance.limit, remaining=balance.remaining
    )


def headline(cost: Cost) -> str:
    """Return the guarantee in one line."""
    return f"{cost.epsilon_charged:.4g} at delta {cost.delta:g}, charged ({cost.adjacency})"


def _guarantee(plan: Plan, cost: Cost) -> Iterator[Sentence]:
    privacy: Any = plan.privacy
    yield Sentence("privacy unit", f"{privacy.unit}: all that one client contributes over the whole run")
    yield Sentence("epsilon", headline(cost))
    yield Sentence(
        "",
        f"{cost.epsilon_reference:.4g} for reference, as if the noise were a continuous Gaussian and all rounds were "
        f"declared before ({cost.reference_method}); it is not the guarantee",
    )
    yield Sentence(
        "it means", f"whether {_ADJACENT[privacy.adjacency]} changes {_OF_THE_PLAN} within these bounds only"
    )
    if cost.amplified:
        yield Sentence(
            "", "this is amplified by sampling: it holds only while nobody who sees a model knows who was drawn"
        )
    else:
        rounds = plural(times(plan), "round")
        yield Sentence("", f"one client's data are in {rounds} of {plan.rounds} at most; sampling is not counted on")


def _against(plan: Plan) -> Iterator[Sentence]:
    privacy, section = plan.privacy, plan.secure_aggregation
    outside = "everybody who sees released models, however many and whatever else they know"
    if privacy is not None and privacy.noise_by == "clients" and section is not None:
        yield Sentence("protects against", f"{outside}; and against the server, with up to {_clients(section)}")
        yield Sentence(
            "",
            "against a server that keeps to the protocol: one that lies about who was included, or asks for attempt "
            "after attempt of a round, gets more noised sums of a client than are charged",
        )
        yield Sentence(
            "",
            f"no sum without noise exists anywhere: {honest_parties(section)} honest clients of the "
            f"{section.minimum_survivors} whose sum is shown at least add enough of it",
        )
        return
    yield Sentence("protects against", outside)
    sees = "each client's clipped update" if section is None else "the sum of each cohort before it adds the noise"
    yield Sentence("does not protect", f"against the server, which is trusted to add the noise: it sees {sees}")


def _clients(section: SecureAggregation) -> str:
    return f"{plural(section.assumed_colluding, 'client')} that work with it"


def _noise(plan: Plan, code: RingCode | None) -> Iterator[Sentence]:
    privacy: Any = plan.privacy
    kind = "independent in every round"
    mechanism = mechanism_of(plan)
    if isinstance(mechanism, Correlated):
        bands = mechanism.matrix(plan).bands
        kind = f"correlated over {bands} rounds, one release for the whole run, which must not go on beyond it"
    yield Sentence(
        "noise",
        f"discrete Gaussian, {privacy.noise_multiplier:g} clip norms of {privacy.clip_norm:g} in each entry of a "
        f"round's sum, {kind}",
    )
    if privacy.adaptive_clip is not None:
        adaptive = privacy.adaptive_clip
        yield Sentence(
            "",
            f"the clip norm follows the {adaptive.quantile:.0%} quantile of the updates' norms by a noised count, "
            f"within {adaptive.lowest:g} and {adaptive.highest:g}; that is part of the epsilon",
        )
    if code is not None and code.norm is not None:
        limit = max(branch.limit for branch in code.branches)
        yield Sentence(
            "",
            "it is made for the largest norm of an update after its rounding to integers, which is above the clip norm "
            f"by a fraction of {code.norm / limit - 1:.1e}",
        )


def _integers(plan: Plan, code: RingCode) -> Iterator[Sentence]:
    """Yield in which integers updates travel where no secure sum packs them, and what they take."""
    for number, branch in enumerate(code.branches):
        yield Sentence("" if number else "integers", branch_text(code, branch))
    size, counts = bytes_text(float(update_bytes(plan, code.layout))), plural(len(code.layout.lanes), "count")
    yield Sentence(
        "",
        f"{size} for each client's update: {count_text(code.width)} entries of {8 * code.dtype.itemsize} bits, the "
        f"whole type in which sums of them fit, and {counts} of 64 bits",
    )


def _not_covered(plan: Plan) -> Iterator[Sentence]:
    yield Sentence(
        "not covered", "who takes part, when, and how many they are; choices of settings made on the same clients' data"
    )
    if plan.data is not None and plan.data.test_at == "server":
        yield Sentence("", "figures measured on examples that clients held out, which stand in for the server's own")
    if plan.evaluation.baselines:
        yield Sentence("", "the baselines of this simulation, which have no noise: for comparison, not for release")

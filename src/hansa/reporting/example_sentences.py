"""What ``trainer.example_privacy`` protects, in sentences: single examples, which is another promise than clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from hansa.algorithms.example_checks import example_privacy_of
from hansa.algorithms.plan import Plan
from hansa.core.example_privacy import EXAMPLE
from hansa.privacy.examples import example_cost, share, steps
from hansa.reporting.figures import plural
from hansa.reporting.secure_sentences import Sentence

SIMULATED: Final = (
    "hypothetical: this simulation drew coins and noise from the plan's seed, which protects nobody; it is what every "
    "run of a federation with this plan costs an example"
)
"""What the epsilon of a simulation is worth."""


_MEANING: Final = (
    "it means that whether one example is among a client's changes all that the client sends within these bounds only",
    "how many examples a client has is covered, too",
    "it protects against everybody but the client itself, the server included: noise is added before anything leaves",
    "it assumes that the client runs this program, and that nobody else learns its coins or its noise",
    "it says nothing about a client as a whole, nor about a person: k examples of one person are k units",
)


def example_sentences(plan: Plan) -> Iterator[Sentence]:
    """Yield what the plan promises about single examples; nothing for a plan that promises nothing about them."""
    given = example_privacy_of(plan.trainer)
    if given is None:
        return
    cost, probability = example_cost(plan), share(plan.trainer)
    trained = plural(given.max_participations or 0, "time")
    coins = f"; each example is in a step by a coin of probability {probability:.4g}" if probability < 1 else ""
    yield Sentence(
        "example privacy",
        f"unit: {EXAMPLE}, over the whole run; epsilon {cost.epsilon_charged:.4g} at delta {cost.delta:g}, charged "
        f"({cost.adjacency}), for every client alike",
    )
    yield Sentence(
        "",
        f"{cost.epsilon_reference:.4g} for reference, as if the noise were a continuous Gaussian and all steps were "
        f"declared before ({cost.reference_method}); it is not the guarantee",
    )
    yield Sentence(
        "",
        f"noise: discrete Gaussian, {given.noise_multiplier:g} clip norms of {given.clip_norm:g} in each entry of a "
        f"step's sum of gradients, in {steps(plan):,} steps at most{coins}",
    )
    yield Sentence(
        "",
        f"a client trains {trained} at most, rounds that are tried again included; its agent counts, and declines "
        "beyond",
    )
    yield from (Sentence("", text) for text in _MEANING)


def told_examples(plan: Plan) -> dict[str, Any] | None:
    """Return the numbers of a plan's example privacy for programs, or None for a plan without."""
    given = example_privacy_of(plan.trainer)
    if given is None:
        return None
    cost = example_cost(plan)
    return {
        "unit": EXAMPLE,
        "adjacency": cost.adjacency,
        "delta": cost.delta,
        "epsilon_charged": cost.epsilon_charged,
        "epsilon_reference": cost.epsilon_reference,
        "noise_multiplier": given.noise_multiplier,
        "clip_norm": given.clip_norm,
        "probability": share(plan.trainer),
        "steps": steps(plan),
        "participations": given.max_participations,
    }

"""What the ledger refuses, in sentences. What would overdraw a budget is a ``Refusal`` of the core."""

from __future__ import annotations

from hansa.core.errors import HansaError
from hansa.core.ledger import SpendKey
from hansa.privacy.release import Release
from hansa.store.records import LedgerScope


def missing() -> HansaError:
    """Return the error of a population that has no budget."""
    return HansaError(
        "HANSA-BUDGET-MISSING",
        rule="Privacy is spent from a budget that an owner has set.",
        found="The population spends from no scope of the ledger.",
        action="Set one: hansa ledger limit SCOPE --epsilon E --delta D --unit UNIT --adjacency A --population NAME.",
    )


def no_scope(name: str) -> HansaError:
    """Return the error of a name that is no scope."""
    return HansaError(
        "HANSA-NOT-FOUND",
        rule="A scope is named as `hansa ledger show` lists it.",
        found=f"There is no scope {name!r}.",
        action="Check the name.",
    )


def require_same(scope: LedgerScope, release: Release) -> None:
    """Raise HansaError for a release whose guarantee is another than its scope's."""
    for what, held, found in (
        ("privacy unit", scope.unit, release.unit),
        ("adjacency", scope.adjacency, release.adjacency),
        ("delta", f"{scope.delta:g}", f"{release.delta:g}" if release.delta != scope.delta else f"{scope.delta:g}"),
    ):
        if held != found:
            raise another(scope.name, what, held, found)


def another(scope: str, what: str, held: str, found: str) -> HansaError:
    """Return the error of a second unit, adjacency or delta in a scope."""
    return HansaError(
        "HANSA-BUDGET-SCOPE",
        rule=f"The scope {scope!r} has one {what} for ever: {held}. Costs of another do not add up with its own.",
        found=f"This one is {found}.",
        action="State the scope's own; another guarantee needs a population of its own.",
    )


def unprotected(scope: LedgerScope, population: str) -> HansaError:
    """Return the error of a plan that promises nothing to clients who have a budget."""
    return HansaError(
        "HANSA-BUDGET-SCOPE",
        rule=f"Whatever is released about the clients of {population!r} is charged to the scope {scope.name!r}.",
        found="The plan has no [privacy], so that nothing bounds what its models tell about one of them.",
        action="Add [privacy] to the plan, or train it on a population without a budget.",
    )


def elsewhere(population: str) -> HansaError:
    """Return the error of a population that has a scope already."""
    return HansaError(
        "HANSA-BUDGET-SCOPE",
        rule="A population stays with its scope: elsewhere its people would have a second budget.",
        found=f"The population {population!r} spends from another scope.",
        action="Set the limit of that one.",
    )


def incomplete(scope: str, absent: str) -> HansaError:
    """Return the error of a new scope that lacks something."""
    return HansaError(
        "HANSA-BUDGET-SCOPE",
        rule="A new scope names its privacy unit, adjacency, delta and at least one population.",
        found=f"{scope!r} is new, and {absent} is missing.",
        action="Add it.",
    )


def invalid(found: str) -> HansaError:
    """Return the error of a limit that makes no sense."""
    rule = "A budget is an epsilon above 0 at a delta between 0 and 1, for a named unit and a known adjacency."
    return HansaError("HANSA-PRIVACY-INVALID", rule=rule, found=found, action="Correct it.")


def restored(scope: LedgerScope) -> HansaError:
    """Return the error of a scope whose last rows may be missing."""
    return HansaError(
        "HANSA-BUDGET-RESTORED",
        rule="What was spent after a backup was made is not in it, so a restored scope spends nothing.",
        found=f"The scope {scope.name!r} was restored, and no owner has set its limit since.",
        action="Compare it with the last export, then set a limit that leaves what is missing out: hansa ledger limit.",
    )


def settled(key: SpendKey, found: str) -> HansaError:
    """Return the error of a reservation that is not what a call takes it for."""
    return HansaError(
        "HANSA-BUDGET-SETTLED",
        rule="A reservation is for one release; it is frozen before its sum is seen, and void only before that.",
        found=f"The reservation {key}: {found}",
        action="Read it again; a new attempt has a reservation of its own.",
    )


def noise_row(found: str) -> HansaError:
    """Return the error of a row of correlated noise that may not be used."""
    return HansaError(
        "HANSA-NOISE-ROW",
        rule="A row of correlated noise is released once: two sums under the same noise show their difference.",
        found=found,
        action="Submit the job anew: its run has noise of its own, and is charged for it.",
    )


def noise_row_unknown(run: str) -> HansaError:
    """Return the error of a run of whose rows some may have been released unknown to the ledger."""
    return noise_row(f"The ledger was restored after the run {run} was charged; which rows were released is not known.")

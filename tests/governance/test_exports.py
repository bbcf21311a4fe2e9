"""Exports: verified without the server, by Hansa or by twenty lines of anybody else's."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
from tests.governance.spending import key_of, ledger_of, origin_of, outcome_of, release_of, whole_run

from hansa.core.errors import HansaError
from hansa.core.ledger import SpendKey
from hansa.governance.exports import exported, lines_of, statement_of, verify_lines
from hansa.governance.ledger import all_rows


async def spent(store, seed):
    """Return the lines of a ledger with something of every kind, and its balance."""
    ledger = await ledger_of(store, seed)
    for number in (1, 2, 3):
        await ledger.reserve(key_of(seed, number), release_of(4.0 + number), origin_of(seed))
    await ledger.freeze(key_of(seed, 1))
    await ledger.commit(key_of(seed, 1), outcome_of())
    await ledger.void(key_of(seed, 2), "nobody came")
    await ledger.reserve(SpendKey("run-2", 1, 1), whole_run(8.0), origin_of(seed))
    await ledger.commit(SpendKey("run-2", 1, 1), outcome_of(noise_row=0))
    await ledger.commit(SpendKey("run-2", 2, 1), outcome_of(noise_row=1))
    async with store.reading() as rows:
        scope = await rows.ledger.named(ledger.tenant, "wards")
        told = [exported(row) for row in await all_rows(rows, scope)]
    balance = await ledger.balance("wards")
    body = {"rows": scope.rows, "head": scope.head, "epsilon_charged": balance.charged, "accountant": scope.accountant}
    return list(lines_of(body, told)), balance


def test_an_export_stands_and_every_changed_line_is_named(run_on):
    async def test(store, seed):
        lines, balance = await spent(store, seed)
        (found,) = verify_lines(lines)
        assert (found.scope, found.rows, found.charged) == ("wards", len(lines) - 1, pytest.approx(balance.charged))
        for place in range(1, len(lines)):
            row = json.loads(lines[place])
            row["row"]["actor"] = "somebody else"
            changed = [*lines[:place], json.dumps(row), *lines[place + 1 :]]
            for broken in (changed, lines[:place] + lines[place + 1 :]):
                with pytest.raises(HansaError, match=f"Row {place}:") as caught:
                    verify_lines(broken)
                assert caught.value.code == "HANSA-LEDGER-CHANGED"
        swapped = [*lines[:2], lines[3], lines[2], *lines[4:]]
        with pytest.raises(HansaError, match="Row 2: it is row 3"):
            verify_lines(swapped)
        for unreadable in ([], ["{}"], ["nonsense"], [lines[0], "[]"], ['{"hansa_ledger": 1}']):
            with pytest.raises(HansaError, match="LEDGER-CHANGED|cannot be read|empty"):
                verify_lines(unreadable)
        kept = json.loads(lines[3])["hash"]
        assert verify_lines(lines, known=kept)
        with pytest.raises(HansaError, match="which an earlier export had"):
            verify_lines(lines, known="0" * 64)

    run_on(test)


def test_a_third_party_verifies_an_export_from_its_own_description(run_on):
    """The hashes with nothing but SHA-256 and sorted JSON, the epsilon by the formula in the first line."""

    async def test(store, seed):
        lines, balance = await spent(store, seed)
        first, *rows = map(json.loads, lines)
        previous, divergences = "0" * 64, dict.fromkeys(first["orders"], 0.0)
        events = {}
        for each in rows:
            row = each["row"]
            # canonical JSON of what this ledger holds: sorted keys, no blanks, floats as the shortest text
            text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            for python, ecma in (("1e-05", "0.00001"), (".0,", ","), (".0}", "}")):
                text = text.replace(python, ecma)
            assert hashlib.sha256(text.encode()).hexdigest() == each["hash"]
            assert row["previous"] == previous
            previous = each["hash"]
            if row["kind"] == "reserve":
                events[row["number"]] = row["release"]["event"]
            if row["kind"] == "void":
                del events[row["reserved"]]
        assert previous == first["head"]
        for event in events.values():
            rho = event.get("participations", 1) / (2 * event["noise_multiplier"] ** 2)
            divergences = {order: value + rho * order for order, value in divergences.items()}
        delta = rows[0]["row"]["delta"]
        epsilon = min(value + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a, value in divergences.items())
        assert epsilon == pytest.approx(balance.charged, rel=1e-12)

    run_on(test)


def test_a_statement_says_what_each_run_and_round_cost(run_on):
    async def test(store, seed):
        lines, balance = await spent(store, seed)
        found = statement_of(map(json.loads, lines[1:]))
        assert [(str(each.key), each.state, each.cohort) for each in found.spent] == [
            (f"{seed.run.id}-training-1-1", "committed", 90),
            (f"{seed.run.id}-training-2-1", "void", None),
            (f"{seed.run.id}-training-3-1", "reserved", None),
            ("run-2", "committed", None),
        ]
        assert all(0 < each.alone <= each.charged for each in found.spent)
        assert [each.noise_rows for each in found.spent] == [0, 0, 0, 2]
        first, second = found.runs
        assert (first.states["committed"], first.states["void"], first.states["reserved"]) == (1, 1, 1)
        assert second.course[-1][1] == pytest.approx(found.spent[-1].alone)
        assert found.course[-1][1] == balance.charged < first.course[-1][1] + second.course[-1][1]

    run_on(test)

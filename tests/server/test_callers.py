"""Who called lately, and how often a caller may call."""

from __future__ import annotations

import pytest

from hansa.core.errors import RefusedError
from hansa.server.callers import Callers
from hansa.server.rates import Rates


def test_callers_are_known_by_population_and_time():
    callers = Callers()
    for number, at in ((9, 3.0), (3, 2.0), (5, 1.0)):
        callers.called("p", number, at)
    callers.called("q", 4, 3.0)
    assert callers.recent("p", 0.5).tolist() == [3, 5, 9]
    assert callers.recent("p", 2.0).tolist() == [3, 9]
    assert callers.recent("q", 0.5).tolist() == [4]
    assert callers.recent("x", 0.5).tolist() == []
    callers.called("p", 5, 4.0)
    assert callers.recent("p", 3.5).tolist() == [5]
    assert (callers.count("p"), callers.count("q"), callers.count("x")) == (3, 1, 0)


def test_a_million_callers_take_eight_bytes_each_or_so():
    callers = Callers()
    callers.called("p", 999_999, 1.0)
    callers.called("p", 0, 2.0)
    assert callers.recent("p", 0.5).tolist() == [0, 999_999]
    assert callers.times["p"].nbytes <= 16 * 1_000_000


def test_a_caller_may_call_so_often_and_no_more():
    rates = Rates(per_second=2.0)
    for _ in range(4):
        rates.take("a", 100.0)
    with pytest.raises(RefusedError, match="2 times a second") as refused:
        rates.take("a", 100.0)
    assert refused.value.code == "HANSA-SERVER-LIMIT"
    rates.take("b", 100.0)
    rates.take("a", 100.5)
    with pytest.raises(RefusedError):
        rates.take("a", 100.5)


def test_a_refused_caller_gets_in_again_at_the_rate():
    rates = Rates(per_second=1.0)
    taken = 0
    for tenth in range(100):
        try:
            rates.take("a", tenth / 10)
        except RefusedError:
            continue
        taken += 1
    assert 10 <= taken <= 12


def test_without_a_rate_nobody_is_refused():
    rates = Rates(per_second=0.0)
    for _ in range(1000):
        rates.take("a", 0.0)

"""Spans of a cohort: each is computed once, in an order that ends evenly, with little waiting at a time."""

from __future__ import annotations

import time
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.algorithms.fold import BLOCK
from hansa.simulation.spans import Span, gathered, in_order_of_work, spans


@given(st.integers(0, 500), st.integers(1, 600))
def test_spans_cover_a_cohort_once_in_whole_blocks(cohort, chunk):
    found = spans(cohort, chunk)
    assert [place for span in found for place in range(span.start, span.stop)] == list(range(cohort))
    assert all(span.start % BLOCK == 0 for span in found)
    assert all(chunk <= span.stop - span.start < chunk + BLOCK for span in found[:-1])


@given(st.integers(0, 500), st.integers(1, 90), st.integers(1, 90))
def test_the_chunks_of_a_span_cover_it_once_and_are_no_larger_than_asked_for(cohort, chunk, size):
    for span in spans(cohort, chunk):
        parts = list(span.chunks(size))
        assert [place for part in parts for place in range(part.start, part.stop)] == [*range(span.start, span.stop)]
        assert all(part.stop - part.start <= size for part in parts)


@given(st.lists(st.integers(0, 100), max_size=200), st.integers(1, 30), st.integers(1, 40))
def test_all_but_the_last_spans_are_handed_out_in_order_and_these_largest_first(sizes, chunk, tail):
    sizes = np.array(sizes, dtype=np.int64)
    all_spans = spans(len(sizes), chunk)
    ordered = in_order_of_work(all_spans, sizes, tail)
    assert sorted(ordered, key=lambda span: span.start) == all_spans
    first = max(0, len(all_spans) - tail)
    assert ordered[:first] == all_spans[:first]
    work = [int(sizes[span.positions].sum()) for span in ordered[first:]]
    assert work == sorted(work, reverse=True)


class Workers:
    """Finish what was begun only when ``gathered`` waits, in an order that a test draws."""

    def __init__(self, draw, monkeypatch, fails=None):
        self.draw, self.fails = draw, fails
        self.begun, self.under_way, self.finished, self.most = [], [], set(), 0
        monkeypatch.setattr("hansa.simulation.spans.wait", self.wait)

    def submit(self, span):
        future = Future()
        future.span = span
        self.begun.append(span)
        self.under_way.append(future)
        oldest = min(self.begun.index(each.span) for each in self.under_way)
        self.most = max(self.most, len(self.begun) - oldest)
        return future

    def wait(self, futures, return_when):
        some = self.draw(st.lists(st.sampled_from(self.under_way), min_size=1, unique=True))
        for future in some:
            self.under_way.remove(future)
            if future.span.start == self.fails:
                future.set_exception(LookupError("a worker's"))
            else:
                future.set_result(future.span)
        return type("Done", (), {"done": set(some)})


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_every_result_comes_once_and_no_more_than_some_are_begun_from_the_oldest_on(count, ahead, data):
    ordered = [Span(place, place + 1) for place in range(count)]
    with pytest.MonkeyPatch.context() as patched:
        workers = Workers(data.draw, patched)
        found = list(gathered(ordered, workers.submit, ahead))
    assert sorted(found, key=lambda span: span.start) == ordered
    assert workers.begun == ordered
    assert workers.most <= ahead


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.data())
def test_an_error_is_raised_and_what_has_not_begun_is_cancelled(count, ahead, data):
    ordered = [Span(place, place + 1) for place in range(count)]
    with pytest.MonkeyPatch.context() as patched:
        workers = Workers(data.draw, patched, fails=data.draw(st.integers(0, count - 1)))
        with pytest.raises(LookupError, match="a worker's"):
            list(gathered(ordered, workers.submit, ahead))
    assert all(future.cancelled() for future in workers.under_way)


def test_whoever_stops_listening_cancels_what_has_not_begun():
    futures = []

    def submit(span):
        futures.append(Future())
        if len(futures) == 1:
            futures[0].set_result(span)
        return futures[-1]

    results = gathered([Span(place, place + 1) for place in range(9)], submit, 4)
    assert next(results) == Span(0, 1)
    results.close()
    assert all(future.cancelled() for future in futures[1:])


def test_a_large_cohort_costs_little_to_share_out():
    count = 100_000

    def at_once(span):
        future = Future()
        future.set_result(span)
        return future

    began = time.process_time()
    ordered = in_order_of_work(spans(count, 4), np.ones(count, dtype=np.int64), 16)
    assert sum(1 for _ in gathered(ordered, at_once, 16)) == count // 4
    assert time.process_time() - began < 5

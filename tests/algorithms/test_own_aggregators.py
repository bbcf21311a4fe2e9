from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from hansa.algorithms.fold import Fold, RowStore
from hansa.core.errors import PlanError
from hansa.core.layout import Branch, Layout, Parameter
from hansa.core.nouns import Batch
from hansa.core.pieces import lacking

LAYOUT = Layout((Branch("params", (Parameter("w", (3,)),)),))


@dataclass(frozen=True)
class Own:
    needs_sum_only: ClassVar[bool] = True
    fixed: ClassVar[bool] = False

    def problems(self, cohort_size):
        return []


class Forgetful(Own):
    def finish(self, total):
        return total


class Strange(Own):
    def finish(self, total):
        return total.values


class Halving(Own):
    def finish(self, total):
        return replace(total, weights=dict.fromkeys(total.weights, 2.0))


class Wide(Own):
    needs_sum_only: ClassVar[bool] = False

    def combine(self, rows):
        return rows


def batch():
    return Batch(np.ones((2, 3), np.float32), np.zeros((2, 0), np.int64), LAYOUT)


def test_an_aggregator_must_have_what_its_kind_needs():
    assert lacking("aggregator", Own()) == ("finish",)
    assert lacking("aggregator", Halving()) == ()
    assert lacking("aggregator", Wide()) == ()


@pytest.mark.parametrize(
    ("aggregator", "said"), [(Forgetful(), "params has none"), (Strange(), "with its weights set")]
)
def test_a_sum_whose_weights_were_not_set_is_refused(aggregator, said):
    fold = Fold(LAYOUT)
    fold.add(batch(), 0)
    with pytest.raises(PlanError, match=said):
        fold.finish(aggregator, 2)


def test_weights_that_are_set_are_kept():
    fold = Fold(LAYOUT)
    fold.add(batch(), 0)
    assert fold.finish(Halving(), 2).weights == {"params": 2.0}


def test_a_combination_of_another_shape_is_refused():
    rows = RowStore(LAYOUT, 2)
    rows.add(batch(), 0)
    with pytest.raises(PlanError, match="combine must return 3 numbers"):
        rows.finish(Wide(), 2)

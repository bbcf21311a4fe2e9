"""Model files: parameters by name, out of a run and into the next one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

from hansa.core.errors import ModelError
from hansa.simulation.preparation import prepare
from hansa.testing.hospitals import small_plan
from hansa.wire.models import model_bytes, values_of


@pytest.fixture(scope="module")
def trained():
    """A plan, its state after training, and the file of its model."""
    prepared = prepare(small_plan())
    size = prepared.first.layout.size
    state = replace(prepared.first, model=np.random.default_rng(0).standard_normal(size).astype(np.float32))
    return prepared.plan, state, model_bytes(prepared.plan, state)


def test_what_a_model_file_holds_comes_back_bit_for_bit_and_the_rest_stays(trained):
    _, state, content = trained
    zeros = np.zeros_like(state.model)
    np.testing.assert_array_equal(values_of(content, state.layout, zeros), state.model)
    assert not zeros.any()
    control = replace(state.layout.branches[0], name="control")
    both = state.layout.with_branches(control)
    found = values_of(content, both, np.full(both.size, 7.0, dtype=np.float32))
    np.testing.assert_array_equal(found, np.concatenate([state.model, np.full(control.size, 7.0, dtype=np.float32)]))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda held: held.pop("params/weight"), "params/weight is in the plan only"),
        (lambda held: held.update({"params/more": np.zeros(1, dtype=np.float32)}), "params/more is in it only"),
        (lambda held: held.update({"params/weight": held["params/weight"][:, :-1]}), "params/weight is float32"),
        (lambda held: held.update({"params/weight": held["params/weight"].astype(np.float64)}), "is float64"),
    ],
)
def test_another_model_is_refused_by_the_name_of_what_differs(trained, change, found):
    _, state, content = trained
    held = safetensors.numpy.load(content)
    change(held)
    with pytest.raises(ModelError, match="HANSA|model") as caught:
        values_of(safetensors.numpy.save({name: np.ascontiguousarray(each) for name, each in held.items()}),
                  state.layout, state.model)  # fmt: skip
    assert found in caught.value.found


def test_what_is_no_model_file_is_refused(trained):
    _, state, content = trained
    for other in (b"", b"nothing", content[:20]):
        with pytest.raises(ModelError, match="no safetensors file"):
            values_of(other, state.layout, state.model)

"""The blob that clients fetch, and the slots that they do not."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.errors import RefusedError
from hansa.core.layout import COUNT, Branch, Layout, Parameter
from hansa.core.nouns import Scaling, ServerState
from hansa.wire.server_models import ServedModel, slots_bytes, slots_from_bytes

SCALING = Scaling(np.array([1, 2], dtype=np.float32), np.array([3, 4], dtype=np.float32))
MODEL = ServedModel(np.arange(6, dtype=np.float32), SCALING)


@given(st.lists(st.floats(width=32), max_size=20), st.none() | st.lists(st.floats(width=32), max_size=5))
def test_a_model_comes_back_bit_for_bit(values, features):
    scaling = None if features is None else Scaling(*[np.array(features, dtype=np.float32)] * 2)
    model = ServedModel(np.array(values, dtype=np.float32), scaling)
    read = ServedModel.from_bytes(model.to_bytes(), len(values))
    assert read.values.tobytes() == model.values.tobytes()
    assert (read.features is None) == (scaling is None)
    if read.features is not None and scaling is not None:
        assert read.features.center.tobytes() == scaling.center.tobytes()
        assert read.features.scale.tobytes() == scaling.scale.tobytes()
    assert read.to_bytes() == model.to_bytes()


def saved(**tensors):
    return safetensors.numpy.save({name.replace("_", "/"): array for name, array in tensors.items()})


F = np.zeros(2, dtype=np.float32)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        MODEL.to_bytes()[:-1],
        MODEL.to_bytes() + b"\0",
        struct.pack("<Q", 2**63) + MODEL.to_bytes()[8:],
        saved(other=np.zeros(6, dtype=np.float32)),
        saved(model=np.zeros(7, dtype=np.float32)),
        saved(model=np.zeros((6, 1), dtype=np.float32)),
        saved(model=np.zeros(6)),
        saved(model=np.zeros(6, dtype=np.int32)),
        saved(model=np.zeros(6, dtype=np.float32), features_center=F),
        saved(model=np.zeros(6, dtype=np.float32), features_scale=F),
        saved(model=np.zeros(6, dtype=np.float32), features_scale=F, features_center=F[:1]),
        saved(model=np.zeros(6, dtype=np.float32), features_scale=F, features_center=np.zeros(2)),
        saved(model=np.zeros(6, dtype=np.float32), features_scale=F[None], features_center=F[None]),
    ],
    ids=range(15),
)
def test_other_blobs_are_refused(content):
    with pytest.raises(RefusedError) as raised:
        ServedModel.from_bytes(content, 6)
    assert raised.value.code == "HANSA-MODEL-UNSUITABLE"


def test_mutated_blobs_are_read_or_refused():
    random_, content = random.Random(2), MODEL.to_bytes()  # noqa: S311 - a test that repeats
    codes = set()
    for _ in range(5000):
        other = bytearray(content)
        at = random_.randrange(len(other))
        other[at : at + random_.randrange(3)] = random_.randbytes(random_.randrange(3))
        try:
            read = ServedModel.from_bytes(bytes(other), 6)
            assert read.values.shape == (6,)
        except RefusedError as error:
            codes.add(error.code)
    assert codes == {"HANSA-MODEL-UNSUITABLE"}


def test_slots_come_back():
    layout = Layout((Branch("params", (Parameter("w", (6,)),)),), (COUNT,))
    slots = {
        "server_optimizer.params": {"momentum": np.arange(6.0), "step": np.array(3, dtype=np.int64)},
        "server_optimizer.control": {},
    }
    state = ServerState(3, layout, MODEL.values, SCALING, slots)
    read = slots_from_bytes(slots_bytes(state), slots)
    assert read.keys() == slots.keys()
    for piece, slot in slots.items():
        assert read[piece].keys() == slot.keys()
        for name, array in slot.items():
            assert read[piece][name].dtype == array.dtype
            assert read[piece][name].shape == array.shape
            assert read[piece][name].tobytes() == array.tobytes()


def test_slots_that_lack_something_are_refused():
    layout = Layout((Branch("params", (Parameter("w", (6,)),)),), (COUNT,))
    state = ServerState(3, layout, MODEL.values, None, {"a": {"m": np.arange(6.0)}})
    for content, like in ((slots_bytes(state), {"a": {"v": np.arange(6.0)}}), (b"", {})):
        with pytest.raises(RefusedError) as raised:
            slots_from_bytes(content, like)
        assert raised.value.code == "HANSA-MODEL-UNSUITABLE"

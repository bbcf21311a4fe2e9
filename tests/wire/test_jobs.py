"""Job descriptors: canonical, named by their digest, and strict about what they hold."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import RefusedError
from hansa.core.layout import COUNT, TRAIN_LOSS, Branch, Layout, Parameter
from hansa.core.nouns import Signature
from hansa.wire.jobs import LARGEST, JobDescriptor, layout_from_mapping, layout_to_mapping
from hansa.wire.strict_json import read_json

JOB = JobDescriptor(
    name="é",
    plan={"rounds": 3, "model": {"factory": "hansa.training.linear:logistic"}, "transforms": []},
    plan_sha256="0" * 64,
    signature=Signature((3, 2), classes=2, integer_inputs=True, vocabulary=9),
    layout=Layout((Branch("params", (Parameter("w", (3, 2)), Parameter("b", ()))),), (COUNT, TRAIN_LOSS)),
    population="hospitals",
    operator="Alice",
    purpose="heart disease",
)


def changed(path, value):
    read = json.loads(JOB.to_bytes())
    at = read
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(read).encode()


def test_a_descriptor_comes_back_and_is_canonical():
    content = JOB.to_bytes()
    assert JobDescriptor.from_bytes(content) == JOB
    assert rfc8785.dumps(json.loads(content)) == content
    assert JobDescriptor.from_bytes(json.dumps(json.loads(content), indent=2).encode()) == JOB


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
LENGTHS = st.lists(st.integers(0, 1000), max_size=4)


@given(
    TEXTS,
    LENGTHS,
    st.lists(st.tuples(TEXTS, st.lists(st.tuples(TEXTS, LENGTHS), max_size=3)), max_size=3, unique_by=lambda b: b[0]),
)
def test_any_descriptor_comes_back(name, shape, branches):
    layout = Layout(
        tuple(Branch(each, tuple(Parameter(n, tuple(s)) for n, s in parameters)) for each, parameters in branches)
    )
    plan = {name: shape, "rounds": len(shape)}
    job = JobDescriptor(
        name=name, plan=plan, plan_sha256="", signature=Signature(tuple(shape), 0), layout=layout, population=name
    )
    assert JobDescriptor.from_bytes(job.to_bytes()) == job
    assert layout_from_mapping(layout_to_mapping(layout)) == layout


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], 2),
        (["format"], None),
        (["more"], 1),
        (["name"], 3),
        (["plan"], []),
        (["plan", "rounds"], "3"),
        (["plan", "rounds"], -1),
        (["plan_sha256"], None),
        (["operator"], ["x"]),
        (["signature"], None),
        (["signature", "classes"], 2.5),
        (["signature", "classes"], -1),
        (["signature", "classes"], True),
        (["signature", "integer_inputs"], "no"),
        (["signature", "shape"], "3"),
        (["signature", "shape"], [-1]),
        (["signature", "shape"], [1] * 100),
        (["signature", "more"], 1),
        (["layout"], 4),
        (["layout", "branches"], {}),
        (["layout", "branches"], 5),
        (["layout", "branches", 0, "parameters"], [["w"]]),
        (["layout", "branches", 0, "parameters"], [[1, [2]]]),
        (["layout", "branches", 0, "parameters"], [["w", [2**52, 2**52]]]),
        (["layout", "branches", 0, "name"], None),
        (["layout", "lanes", 0, "low"], "0"),
        (["layout", "lanes", 0, "resolution"], 0),
        (["layout", "lanes", 0, "purpose"], "other"),
        (["layout", "lanes", 0, "weighted"], 1),
        (["layout", "lanes", 0, "name"], None),
        (["layout", "lanes", 0, "more"], 0),
    ],
)
def test_other_values_are_refused(path, value):
    with pytest.raises(RefusedError) as raised:
        JobDescriptor.from_bytes(changed(path, value))
    assert raised.value.code == "HANSA-REQUEST-INVALID"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"3",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format":1e999}',
        b'{"format":NaN}',
        b'{"format":1,"format":1}',
        b" " * (LARGEST + 1),
        JOB.to_bytes().replace(b'"shape":[3,2]', b'"shape":[1e999]'),
        JOB.to_bytes().replace(b'"rounds":3', b'"rounds":NaN'),
        JOB.to_bytes().replace(b'"rounds":3', b'"rounds":1e999'),
        JOB.to_bytes().replace(b'"rounds":3', b'"rounds":"\\ud800"'),
        JOB.to_bytes().replace(b'"rounds":3', b'"rounds":' + b"9" * 5000),
    ],
    ids=lambda content: str(content[:24]),
)
def test_what_is_no_descriptor_is_refused(content):
    with pytest.raises(RefusedError) as raised:
        JobDescriptor.from_bytes(content)
    assert raised.value.code == "HANSA-REQUEST-INVALID"


def test_mutated_descriptors_are_read_or_refused():
    random_, content = random.Random(1), JOB.to_bytes()  # noqa: S311 - a test that repeats
    read, codes = 0, set()
    for _ in range(5000):
        other = bytearray(content)
        for _ in range(random_.choice((1, 1, 3))):
            at = random_.randrange(len(other))
            match random_.randrange(3):
                case 0:
                    other[at] = random_.randrange(256)
                case 1:
                    del other[at : at + random_.randrange(8)]
                case 2:
                    other[at:at] = random_.choice([b"null", b"1e999", b"-", b"[", b'"', b"\\u", b"0"])
        try:
            JobDescriptor.from_bytes(bytes(other)).to_bytes()
            read += 1
        except RefusedError as error:
            codes.add(error.code)
    assert codes == {"HANSA-REQUEST-INVALID"}
    assert read > 100


NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200)
@given(VALUES)
def test_strict_json_reads_what_is_json(value):
    for content in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert read_json(content.encode()) == value


def test_strict_json_reads_pairs_of_surrogates():
    assert read_json(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"
    for half in itertools.product(("\\ud83d", "\\ude00"), ("", "a")):
        with pytest.raises(ValueError, match="surrogates"):
            read_json(f'"{half[0]}{half[1]}"'.encode())

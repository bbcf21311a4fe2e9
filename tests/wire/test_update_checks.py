"""What a server takes for an update: whatever comes, a verdict with a stable code, the same however it is cut."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import RefusedError
from hansa.core.layout import COUNT, NON_FINITE, TRAIN_LOSS, Branch, Lane, Layout, Parameter
from hansa.core.nouns import Batch
from hansa.wire.update_checks import UpdateCheck, Wanted
from hansa.wire.updates import decode_tallies, decode_update, encode_tallies, encode_update

CODES = {"HANSA-REPORT-INVALID", "HANSA-REPORT-NOT-FINITE", "HANSA-UPLOAD-DIGEST"}
LAYOUT = Layout(
    (Branch("params", (Parameter("w", (2, 3)),)), Branch("control", (Parameter("w", (2, 3)),))),
    (COUNT, NON_FINITE, TRAIN_LOSS, Lane("weight.params", 0.0, 2.0**24, 2.0**-8, purpose="weight")),
)
STATISTICS = Layout((), (Lane("n.age", 0.0, 2.0**24), Lane("sum.age", -(2.0**24), 2.0**24, 2.0**-20)))
TALLIES = {"accuracy": 2, "auc": 7}
LANES = (1, 0, 70000, 256)


def update(values=None, lanes=LANES, side=None, layout=LAYOUT):
    values = np.arange(layout.size, dtype=np.float32) if values is None else np.asarray(values)
    batch = Batch(
        values[None], np.array([lanes], dtype=np.int64), layout, {k: v[None] for k, v in (side or {}).items()}
    )
    return encode_update(batch)


def packed(header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def good_header():
    return {"lanes": entry("I64", [4], 0, 32), "values": entry("F32", [12], 32, 80)}


def good_data():
    return struct.pack("<4q", *LANES) + np.arange(12, dtype="<f4").tobytes()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def verdict(content, cuts=(), make=lambda: UpdateCheck(LAYOUT), digest=None):
    """Return (code, sentence) of a refusal, or None where the update is taken."""
    check, ends = make(), [*sorted(cuts), len(content)]
    try:
        for begin, end in itertools.pairwise([0, *ends]):
            check.feed(content[begin:end])
        check.finish(digest or sha256(content))
    except RefusedError as error:
        refused = error
    else:
        return None
    assert refused.code in CODES
    return refused.code, str(refused)


def code_of(content, **options):
    refused = verdict(content, **options)
    return refused and refused[0]


def test_a_good_update_is_taken_whole_in_bytes_and_in_any_pieces():
    content = update()
    assert packed(good_header(), good_data()) != content  # another writer's header is as good
    for each in (content, packed(good_header(), good_data())):
        UpdateCheck(LAYOUT).whole(each, sha256(each))
        assert verdict(each, cuts=range(len(each))) is None


def test_statistics_and_evaluations_are_taken():
    statistics = update(np.zeros(0), (5, -9), layout=STATISTICS)
    assert verdict(statistics, make=lambda: UpdateCheck(STATISTICS)) is None
    evaluation = encode_tallies({"accuracy": np.ones(2), "auc": np.ones(7)})
    assert verdict(evaluation, make=lambda: UpdateCheck(tallies=TALLIES)) is None


@pytest.mark.parametrize("number", [-1.0, -1e300, 11.0, 1e308])
def test_tallies_that_no_metric_has_are_refused(number):
    for name in ("accuracy", "auc"):
        tallies = {"accuracy": np.full(2, 10.0), "auc": np.zeros(7)}
        tallies[name][1] = number
        content = encode_tallies(tallies)
        refused = code_of(content, make=lambda: UpdateCheck(tallies=TALLIES, most={"accuracy": 10.0, "auc": 10.0}))
        assert refused == "HANSA-REPORT-INVALID"


def test_one_round_takes_no_update_of_another():
    contents = {
        "training": update(),
        "statistics": update(np.zeros(0), (5, -9), layout=STATISTICS),
        "evaluation": encode_tallies({"accuracy": np.ones(2), "auc": np.ones(7)}),
    }
    checks = {
        "training": lambda: UpdateCheck(LAYOUT),
        "statistics": lambda: UpdateCheck(STATISTICS),
        "evaluation": lambda: UpdateCheck(tallies=TALLIES),
    }
    for wanted, sent in itertools.product(checks, contents):
        expected = None if wanted == sent else "HANSA-REPORT-INVALID"
        assert code_of(contents[sent], make=checks[wanted]) == expected, (wanted, sent)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(12))
def test_a_number_that_is_not_finite_is_found_at_any_place(place, number):
    values = np.arange(12, dtype=np.float32)
    values[place] = number
    content = update(values)
    for piece in range(1, 14):
        assert code_of(content, cuts=range(piece, len(content), piece)) == "HANSA-REPORT-NOT-FINITE", piece


def test_tallies_that_are_not_finite_are_refused_across_any_cut():
    content = encode_tallies({"accuracy": np.array([1.0, np.nan]), "auc": np.ones(7)})
    for cut in range(len(content)):
        assert code_of(content, cuts=[cut], make=lambda: UpdateCheck(tallies=TALLIES)) == "HANSA-REPORT-NOT-FINITE"


@pytest.mark.parametrize(
    ("lanes", "code"),
    [
        ((1, 0, 70000, 256), None),
        ((1, 1, 0, 0), "HANSA-REPORT-NOT-FINITE"),
        ((2, 0, 0, 0), "HANSA-REPORT-INVALID"),
        ((-1, 0, 0, 0), "HANSA-REPORT-INVALID"),
        ((1, 0, -1, 0), "HANSA-REPORT-INVALID"),
        ((1, 0, 2**46, 0), None),
        ((1, 0, 2**46 + 1, 0), "HANSA-REPORT-INVALID"),
        ((1, 0, 0, 2**32), None),
        ((1, 0, 0, 2**32 + 1), "HANSA-REPORT-INVALID"),
        ((1, 0, 0, -(2**63)), "HANSA-REPORT-INVALID"),
        ((1, 0, 2**63 - 1, 0), "HANSA-REPORT-INVALID"),
    ],
)
def test_lanes_stay_within_what_they_declare(lanes, code):
    assert code_of(update(lanes=lanes)) == code


def test_another_digest_is_refused():
    assert code_of(update(), digest="0" * 64) == "HANSA-UPLOAD-DIGEST"


def mutated(**changes):
    return packed({**good_header(), **changes}, good_data())


BAD = {
    "nothing": b"",
    "less than a length": b"\0" * 7,
    "an empty header": packed(b"", good_data()),
    "no object": packed([1, 2], good_data()),
    "a header of another encoding": packed(json.dumps(good_header()).encode("utf-16"), good_data()),
    "a header with a byte order mark": packed(b"\xef\xbb\xbf" + json.dumps(good_header()).encode(), good_data()),
    "a header before which there is a space": packed(b" " + json.dumps(good_header()).encode(), good_data()),
    "bytes that are no text": packed(b'{"\xff": 1}', good_data()),
    "deep nesting": packed(b'{"a":' + b"[" * 100_000, good_data()),
    "a header that is too long": packed(good_header(), good_data(), length=2**20 + 1),
    "a header longer than the file": packed(good_header(), good_data(), length=2**19),
    "a huge header": packed(good_header(), good_data(), length=2**64 - 1),
    "a key that comes twice": packed(
        b'{"lanes": 1, ' + json.dumps(good_header()).encode()[1:],
        good_data(),
    ),
    "another type": mutated(values=entry("F64", [6], 32, 80)),
    "numbers of no known type": mutated(values=entry("BF16", [12], 32, 56)),
    "a type that is no text": mutated(values=entry(["F32"], [12], 32, 80)),
    "integers for values": mutated(values=entry("I32", [12], 32, 80)),
    "another shape": mutated(values=entry("F32", [3, 4], 32, 80)),
    "another length": mutated(values=entry("F32", [11], 32, 76)),
    "bytes that are not those of the shape": mutated(values=entry("F32", [12], 32, 84)),
    "an overlap": mutated(values=entry("F32", [12], 28, 76)),
    "a gap": mutated(values=entry("F32", [12], 36, 84)),
    "offsets that go backwards": mutated(values=entry("F32", [12], 80, 32)),
    "a negative offset": mutated(values=entry("F32", [12], -48, 0)),
    "an offset that is no whole number": mutated(values=entry("F32", [12], 32.0, 80)),
    "an offset of infinity": packed(json.dumps(good_header()).replace("80", "1e999").encode(), good_data()),
    "an offset that is not a number": packed(json.dumps(good_header()).replace("80", "NaN").encode(), good_data()),
    "a truth value for an offset": mutated(values=entry("F32", [12], 32, True)),
    "one offset": mutated(values={"dtype": "F32", "shape": [12], "data_offsets": [32]}),
    "three offsets": mutated(values={"dtype": "F32", "shape": [12], "data_offsets": [32, 80, 96]}),
    "no offsets": mutated(values={"dtype": "F32", "shape": [12]}),
    "more than an array has": mutated(values={**entry("F32", [12], 32, 80), "compressed": True}),
    "an array that is no object": mutated(values=[1]),
    "a negative length": mutated(values=entry("F32", [-12], 32, 80)),
    "a huge length": mutated(values=entry("F32", [10**30], 32, 80)),
    "a number of too many digits": packed(
        json.dumps(good_header()).replace("80", "8" * 5000).encode(), good_data()
    ),
    "an array that nobody wants": mutated(more=entry("F32", [0], 80, 80)),
    "no lanes": packed({"values": entry("F32", [12], 0, 48)}, good_data()[32:]),
    "no values": packed({"lanes": entry("I64", [4], 0, 32)}, good_data()[:32]),
    "lanes of floats": mutated(lanes=entry("F64", [4], 0, 32)),
    "fewer lanes": packed({"lanes": entry("I64", [3], 0, 24), "values": entry("F32", [12], 24, 72)}, good_data()[8:]),
    "metadata that are no texts": mutated(__metadata__={"a": 1}),
    "metadata that are no object": mutated(__metadata__="a"),
    "data that end too early": packed(good_header(), good_data()[:-1]),
    "data that end too late": packed(good_header(), good_data() + b"\0"),
    "a name that is no text": packed(
        json.dumps({**good_header(), "side/\ud800": entry("U8", [1], 80, 81)}).encode(), good_data() + b"\0"
    ),
    "too many arrays": packed(
        {**good_header(), **{f"side/{n}": entry("U8", [0], 80, 80) for n in range(1000)}}, good_data()
    ),
    "too many axes": mutated(**{"side/a": entry("U8", [1] * 65, 80, 81)}) + b"\0",
    "a product that takes for ever": mutated(**{"side/a": entry("U8", [99] * 200_000, 80, 81)}) + b"\0",
    "a truth value of 2": mutated(**{"side/a": entry("BOOL", [1], 80, 81)}) + b"\2",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_update_is_refused_however_it_is_cut(name):
    content = BAD[name]
    refused = verdict(content)
    assert refused is not None
    assert refused[0] == "HANSA-REPORT-INVALID", refused
    sizes = [1, 3, 8, 9, 64, 4096] if len(content) < 2000 else [1000, 65536]
    for piece in sizes:
        assert verdict(content, cuts=range(piece, len(content), piece)) == refused


def test_metadata_of_other_writers_is_let_by():
    assert verdict(mutated(__metadata__={"format": "np"})) is None


def test_what_transforms_made_is_any_array_unless_its_form_is_known():
    side = {"scales": np.ones((1, 2), dtype=np.float32)}
    content = update(np.ones(64, dtype=np.int8), side=side)
    assert verdict(content) is None
    form = {"values": Wanted("I8", (64,)), "side/scales": Wanted("F32", (1, 2))}
    assert verdict(content, make=lambda: UpdateCheck(LAYOUT, encoded=form)) is None
    for other in (
        {"values": Wanted("I8", (63,)), "side/scales": Wanted("F32", (1, 2))},
        {"values": Wanted("I8", (64,)), "side/scales": Wanted("F32", (2, 1))},
        {"values": Wanted("U8", (64,)), "side/scales": Wanted("F32", (1, 2))},
        {"values": Wanted("I8", (64,))},
    ):
        assert code_of(content, make=lambda other=other: UpdateCheck(LAYOUT, encoded=other)) == "HANSA-REPORT-INVALID"
    side = {"scales": np.array([[1, np.inf]], dtype=np.float32)}
    assert code_of(update(np.ones(64, dtype=np.int8), side=side)) == "HANSA-REPORT-NOT-FINITE"


def test_a_round_of_lanes_alone_takes_no_side():
    content = encode_update(
        Batch(np.zeros((1, 0)), np.array([[5, 9]]), STATISTICS, {"more": np.zeros((1, 3), dtype=np.float32)})
    )
    assert code_of(content, make=lambda: UpdateCheck(STATISTICS)) == "HANSA-REPORT-INVALID"


def _mutations(random_, contents):
    """Yield bytes like those of updates, with something wrong, for ever."""
    while True:
        content = bytearray(random_.choice(contents))
        for _ in range(random_.choice((1, 1, 1, 2, 5))):
            at, other = random_.randrange(len(content) + 1), random_.choice(contents)
            kind = random_.randrange(7)
            if kind == 0:
                content[at : at + 1] = bytes([random_.randrange(256)])
            elif kind == 1:
                del content[at:]
            elif kind == 2:
                del content[at : at + random_.randrange(16)]
            elif kind == 3:
                content[at:at] = random_.randbytes(random_.randrange(16))
            elif kind == 4:
                content[at:at] = other[at : at + random_.randrange(64)]
            elif kind == 5:
                digits = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
                if digits:
                    content[random_.choice(digits)] = ord(random_.choice("0123456789-.e"))
            else:
                content[:8] = struct.pack("<Q", random_.choice((0, 1, 2**20, 2**63, random_.randrange(400))))
        yield bytes(content)


def test_mutated_updates_get_a_verdict_and_what_is_taken_can_be_decoded():
    random_ = random.Random(4)  # noqa: S311 - a test that repeats
    side = {"scales": np.ones((1, 2), dtype=np.float32)}
    contents = [update(), update(np.ones(64, dtype=np.int8), side=side), packed(good_header(), good_data())]
    taken = 0
    for content in itertools.islice(_mutations(random_, contents), 20_000):
        found = verdict(content)
        cuts = [random_.randrange(len(content) + 1) for _ in range(random_.randrange(5))]
        assert verdict(content, cuts=cuts) == found
        if found is None:
            taken += 1
            batch = decode_update(content, LAYOUT)
            assert batch.lanes.shape == (1, 4)
            assert batch.lanes.dtype == np.int64
            if not batch.side:
                assert batch.values.shape == (1, LAYOUT.size)
                assert batch.values.dtype == np.float32
                assert np.isfinite(batch.values).all()
    assert taken > 100  # changed values are good values


def test_mutated_evaluations_get_a_verdict_and_what_is_taken_can_be_decoded():
    random_ = random.Random(5)  # noqa: S311 - a test that repeats
    contents = [encode_tallies({"accuracy": np.ones(2), "auc": np.arange(7.0)})]
    for content in itertools.islice(_mutations(random_, contents), 5_000):
        if verdict(content, make=lambda: UpdateCheck(tallies=TALLIES)) is None:
            tallies = decode_tallies(content)
            assert {name: len(tally) for name, tally in tallies.items()} == TALLIES
            assert all(np.isfinite(tally).all() for tally in tallies.values())


NAMES = st.sampled_from(["lanes", "values", "side/a", "side/b", "other", "tallies/auc"])
NUMBERS = st.one_of(st.integers(-4, 200), st.floats(), st.booleans(), st.none(), st.integers(2**60, 2**70))
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I64", "U8", "BOOL", "F8", "", 3]),
        "shape": st.lists(NUMBERS, max_size=3) | NUMBERS,
        "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
    }
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(NAMES, ENTRIES | NUMBERS, max_size=5), st.binary(max_size=200), st.lists(st.integers(0, 400)))
def test_invented_headers_get_the_same_verdict_however_they_are_cut(header, data, cuts):
    content = packed(header, data)
    inside = [cut for cut in cuts if cut <= len(content)]
    for make in (lambda: UpdateCheck(LAYOUT), lambda: UpdateCheck(STATISTICS), lambda: UpdateCheck(tallies=TALLIES)):
        found = verdict(content, make=make)
        assert verdict(content, cuts=inside, make=make) == found
        if found is None:
            safetensors.numpy.load(content)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(width=32), min_size=12, max_size=12),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 1), min_size=4, max_size=4),
    st.lists(st.integers(0, 300)),
)
def test_an_update_is_taken_exactly_if_its_numbers_are_finite_and_its_lanes_in_bounds(values, lanes, cuts):
    content = update(np.array(values, dtype=np.float32), lanes)
    highs = (1, 0, 2**46, 2**32)
    good = np.isfinite(values).all() and all(0 <= lane <= high for lane, high in zip(lanes, highs, strict=True))
    inside = [cut for cut in cuts if cut <= len(content)]
    assert (verdict(content, cuts=inside) is None) == good


def test_a_large_update_in_pieces_takes_the_memory_of_a_piece():
    numbers, piece = 50_000_000, np.zeros(250_000, dtype=np.float32).tobytes()
    layout = Layout((Branch("params", (Parameter("w", (numbers,)),)),), LAYOUT.lanes)
    header = {"lanes": entry("I64", [4], 0, 32), "values": entry("F32", [numbers], 32, 32 + 4 * numbers)}
    check, digest = UpdateCheck(layout), hashlib.sha256()
    tracemalloc.start()
    try:
        for content in (packed(header, struct.pack("<4q", *LANES)), *itertools.repeat(piece, 200)):
            check.feed(content)
            digest.update(content)
        check.finish(digest.hexdigest())
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


def test_what_comes_after_the_end_is_refused_at_once_and_not_kept():
    check = UpdateCheck(LAYOUT)
    check.feed(update())
    with pytest.raises(RefusedError, match="too late"):
        check.feed(b"\0" * 1000)


def test_many_tiny_pieces_are_as_cheap_as_few_large_ones():
    import time

    layout = Layout((Branch("params", (Parameter("w", (50_000,)),)),), LAYOUT.lanes)
    content = update(np.ones(50_000, dtype=np.float32), layout=layout)
    began = time.perf_counter()
    assert verdict(content, cuts=range(len(content)), make=lambda: UpdateCheck(layout)) is None
    assert time.perf_counter() - began < 5

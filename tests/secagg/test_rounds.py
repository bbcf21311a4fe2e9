"""Whole rounds with drop-outs in every phase: the exact sum of the survivors, or a clean end; never a wrong sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.ring import Ring, Segment
from hansa.secagg.server import Phase
from hansa.secagg.task import PHASES
from hansa.testing.secagg import Federation

PLUS = {"neighbours": 6, "threshold": 4, "minimum_cohort": 4, "minimum_survivors": 4}


def federation(protocol, clients, **more):
    return Federation(clients, protocol=protocol, settings=PLUS if protocol == "secagg-plus" else {}, **more)


def is_exact(one):
    return one.server.phase is Phase.DONE and all(
        np.array_equal(mine, plain) for mine, plain in zip(one.server.result, one.expected(), strict=True)
    )


def is_clean(one):
    """Say whether nothing was learnt: no result, and no share of any secret ever reached the server."""
    return one.server.phase is Phase.ABORTED and one.server.result is None and one.server.abort_reason != ""


@pytest.mark.parametrize("protocol", ["secagg-full", "secagg-plus"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("gone", [0, 1, 3])
def test_who_drops_out_before_masking_is_left_out_and_after_it_is_in(protocol, phase, gone):
    one = federation(protocol, 11)
    one.run(drop={(client, phase) for client in range(gone)})
    assert is_exact(one)
    counted = phase in {"consist", "unmask"}
    assert one.server.survivors == tuple(range(0 if counted else gone, 11))
    assert one.refused == []
    assert one.server.blamed == []


@pytest.mark.parametrize("phase", PHASES[1:])
@pytest.mark.parametrize("clients", [3, 4, 5, 9, 10])
def test_the_full_graph_bears_drop_outs_down_to_its_threshold(clients, phase):
    threshold = 2 * clients // 3 + 1
    for left in (threshold - 1, threshold, threshold + 1):
        if not 3 <= left <= clients:
            continue
        one = federation("secagg-full", clients)
        one.run(drop={(client, phase) for client in range(clients - left)})
        assert is_exact(one) if left >= threshold else is_clean(one), (left, one.server.abort_reason)


@pytest.mark.parametrize("phase", PHASES)
def test_when_nobody_answers_there_is_no_sum(phase):
    one = federation("secagg-full", 5)
    one.run(drop={(client, phase) for client in range(5)})
    assert is_clean(one)


@pytest.mark.parametrize("phase", PHASES)
def test_below_the_fewest_survivors_nothing_is_revealed(phase):
    one = federation("secagg-full", 10)
    one.run(drop={(client, phase) for client in range(8)})
    assert is_clean(one)
    assert one.server._revealed == {}


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["secagg-full", "secagg-plus"]),
    st.integers(7, 12),
    st.dictionaries(st.integers(0, 11), st.sampled_from(PHASES), max_size=7),
    st.sets(st.integers(0, 11), max_size=2),
)
def test_any_drop_outs_give_the_exact_sum_or_a_clean_end(protocol, clients, gone, mute):
    """``mute`` clients receive everything, and what they answer in the phase of their number is lost."""
    one = federation(protocol, clients)

    def lose(client, phase, answer):
        return None if client in mute and phase == PHASES[client % 5] else answer

    one.run(drop=set(gone.items()), tamper=lose)
    assert is_exact(one) or is_clean(one)


@pytest.mark.parametrize("bits", [8, 13, 16, 20, 32, 33, 64])
def test_sums_wrap_in_every_width(bits):
    ring = Ring((Segment("params", 37, bits), Segment("lane", 1, 64), Segment("empty", 0, 9)))
    one = Federation(5, ring=ring)
    one.run(drop={(4, "mask")})
    assert is_exact(one)


def test_a_second_thread_gives_the_same_sum():
    one = federation("secagg-full", 10, threads=2)
    one.run(drop={(4, "mask")})
    assert is_exact(one)


def test_what_a_server_keeps_at_the_end_is_the_sum_only():
    one = federation("secagg-full", 5)
    one.run(drop={(4, "mask")})
    kept = vars(one.server)
    assert all(not kept[name] for name in ("_adverts", "_shares", "_signatures", "_revealed", "_total", "_answers"))
    assert all(client.done for client in one.machines.values() if client.index != 4)


def test_clients_keep_no_secret_after_their_last_answer():
    one = federation("secagg-full", 4)
    one.run()
    for client in one.machines.values():
        kept = vars(client)
        assert not {"_sealing_key", "_given", "_own_share"} & set(kept)
        assert all(not kept[name] for name in ("_seed", "_mask_secret", "_self_seed", "_pairs", "_received"))

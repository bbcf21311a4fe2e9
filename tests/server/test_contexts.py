"""A run's model is in memory once, whoever asks for it, and its updates' form is found without making one."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

from tests.server.by_hand import PLAN, deployed, run_async

from hansa.core.layout import Branch, Layout, Parameter
from hansa.core.nouns import Signature
from hansa.server.contexts import Contexts
from hansa.server.forms import encoded_form
from hansa.wire.plans import read_plan
from hansa.wire.update_checks import Wanted


async def run_of(server, run):
    async with server.services.store.reading() as rows:
        return await rows.runs.get(run)


def test_those_who_ask_at_once_get_one_model(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            run = await run_of(server, await server.submit())
            contexts = Contexts(server.services.store, server.services.blobs, ())
            first, second = await asyncio.gather(contexts.of(run), contexts.of(run))
            assert first.state is second.state
            assert (await contexts.of(run)).state is first.state

    run_async(work())


def test_a_model_that_nobody_holds_is_let_go(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            run = await run_of(server, await server.submit())
            contexts = Contexts(server.services.store, server.services.blobs, ())
            assert (await contexts.of(run)).state.model is not None
            gc.collect()
            assert not contexts._held

    run_async(work())


def test_the_form_of_a_linear_update_is_found_without_making_one():
    """64 MB of zeros would be counted, touched or not."""
    layout = Layout((Branch("params", (Parameter("w", (1 << 24,)),)),))
    plan = read_plan(PLAN)
    tracemalloc.start()
    form = encoded_form(plan, layout, Signature((30,), 2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert form == {"values": Wanted("F32", (1 << 24,))}
    assert peak < 1 << 20

"""What the tests of the operator side share: a world with two tenants."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for operating, which pytest does not import by itself

from operating import MODEL, MODEL_SHA256, Clock, World, application, closed_rounds, job, opened, with_tenants


@pytest.fixture
def make_world(tmp_path):
    """Return a function that makes a world with some settings."""
    made = []

    def make(**options: Any) -> World:
        clock = Clock()
        runner = asyncio.Runner()
        services = runner.run(opened(tmp_path / f"server-{len(made)}", clock, options))
        world = World(runner, services, application(services), clock)
        made.append(world)
        runner.run(with_tenants(services, world))
        return world

    yield make
    for world in made:
        world.run(world.services.store.close())
        world.runner.close()


@pytest.fixture
def world(make_world):
    return make_world()


@pytest.fixture
def populated(world):
    """A world with a population, two invited clients, and an uploaded model."""
    schema = {"region": "string", "ram_gb": "number"}
    world.ok("POST", "/populations", json={"name": "hospitals", "attributes": schema})
    world.clients = [
        world.ok("POST", "/populations/hospitals/invitations", json={"name": name})["client"] for name in ("one", "two")
    ]
    world.ok("PUT", f"/models/{MODEL_SHA256}", content=MODEL)
    return world


@pytest.fixture
def submitted(populated):
    """A world with a run."""
    populated.taken = populated.ok("POST", "/jobs", json=job())
    populated.run_id = populated.taken["run"]["id"]
    return populated


@pytest.fixture
def released(submitted):
    """A world whose run has closed two rounds and given a model."""
    submitted.release = submitted.run(closed_rounds(submitted))
    return submitted

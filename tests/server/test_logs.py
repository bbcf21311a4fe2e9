"""Logs: JSON for programs, and nothing secret in them."""

from __future__ import annotations

import json

import pytest
import structlog

from hansa.server import logs
from hansa.server.settings import ServerSettings


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_an_event_is_one_line_of_json_with_its_time_level_part_and_replica(capsys):
    logs.set_up(ServerSettings(log_format="json", replica="one"))
    private = {"token_value": "abc", "Authorization": "Bearer abc"}
    logs.logger("operator").info("token made", role="owner", **private)
    written = capsys.readouterr().err
    event = json.loads(written)
    assert "abc" not in written
    assert event.pop("timestamp").endswith("Z")
    assert event == {"event": "token made", "part": "operator", "role": "owner", "level": "info", "replica": "one",
                     "token_value": "(hidden)", "Authorization": "(hidden)"}  # fmt: skip


def test_less_than_the_level_is_not_written(capsys):
    logs.set_up(ServerSettings(log_level="warning", log_format="console"))
    logs.logger("operator").info("a detail")
    logs.logger("operator").warning("a thing to know")
    written = capsys.readouterr().err
    assert "a detail" not in written
    assert "a thing to know" in written

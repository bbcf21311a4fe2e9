"""Logs of the server: events with named values, as JSON for programs or lines for people.

What is logged is named where it is logged: ids, codes, counts and seconds; never a token, a key, a body, an attribute
or a number of one client's data. ``hidden`` takes out what looks like a secret all the same.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from hansa.server.settings import ServerSettings

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_SECRET: Final = ("token", "secret", "authorization", "password", "private", "cookie", "attributes", "body", "values")
"""Words in a name whose value is never written."""


def set_up(settings: ServerSettings) -> None:
    """Send the events of this process to standard error, as the settings say."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            hidden,
            *([structlog.processors.format_exc_info] if as_json else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log_level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(replica=settings.replica_name)


def logger(name: str) -> Any:
    """Return a logger whose events say from which part of the server they are."""
    return structlog.get_logger().bind(part=name)


def hidden(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return an event without the values whose names say that they are secret or somebody's data."""
    for name in event:
        if name != "event" and any(word in name.lower() for word in _SECRET):
            event[name] = "(hidden)"
    return event

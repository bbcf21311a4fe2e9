"""What the server counts about itself, for Prometheus. No label names a client or a tenant."""

from __future__ import annotations

from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest

REGISTRY: Final = CollectorRegistry()

CHECK_INS: Final = Counter("hansa_check_ins", "Check-ins, by what they were answered", ("answer",), registry=REGISTRY)
REPORTS: Final = Counter("hansa_reports", "Updates that arrived whole, by verdict", ("verdict",), registry=REGISTRY)
REPORT_BYTES: Final = Counter("hansa_report_bytes", "Bytes of updates that arrived whole", registry=REGISTRY)
ROUNDS: Final = Counter("hansa_rounds", "Rounds that ended, by kind and how", ("kind", "outcome"), registry=REGISTRY)
ROUND_SECONDS: Final = Histogram(
    "hansa_round_seconds",
    "From the opening of a round to its close",
    ("kind",),
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400),
    registry=REGISTRY,
)
RUNS: Final = Gauge("hansa_runs", "Runs by state: of all tenants, or of the caller's", ("state",), registry=REGISTRY)
CLIENTS: Final = Gauge(
    "hansa_clients", "Clients by state: of all tenants, or of the caller's", ("state",), registry=REGISTRY
)

ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def exposition(*, counted: bool = True) -> bytes:
    """Return all of it as Prometheus reads it; or runs and clients only, without what is counted over all tenants."""
    if counted:
        return generate_latest(REGISTRY)
    states: Any = REGISTRY.restricted_registry([RUNS._name, CLIENTS._name])  # noqa: SLF001 - what they are called
    return generate_latest(states)

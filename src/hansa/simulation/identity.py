"""What makes a run the same run: plan, data, executor, and the files of the code that the plan names."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from hansa.algorithms.plan import Plan
from hansa.core.errors import RunError
from hansa.core.schema import to_mapping
from hansa.reporting.run_folder import ENVIRONMENT, METRICS, MODEL, PLAN, RunFolder, describe_environment
from hansa.simulation.preparation import Prepared, prepare
from hansa.wire.plans import read_plan

_MEASURED: Final = frozenset({"seconds", "seconds_per_round", "client_updates_per_second", "peak_rss_mb"})


def identity_of(prepared: Prepared, executor: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    """Return what replay.json holds from the start, with how it is computed; "files" follows at the end."""
    return {
        "run_id": run_id,
        "executor": executor,
        "seed": prepared.plan.seed,
        "plan_sha256": prepared.plan_sha256,
        "data_sha256": prepared.data.sha256,
        "devices_sha256": None if prepared.fleet is None else prepared.fleet.sha256,
        "code_sha256": code_digests(prepared.plan),
        "working_directory": str(Path.cwd()),
        "files": {},
    }


@contextlib.contextmanager
def where_it_began(identity: Mapping[str, Any]) -> Iterator[None]:
    """Work in the folder in which a run was started, if there is one: paths and modules may be relative to it."""
    began = Path(str(identity.get("working_directory", "")))
    with contextlib.chdir(began) if began.is_dir() else contextlib.nullcontext():
        yield


def prepare_again(folder: RunFolder, identity: Mapping[str, Any]) -> Prepared:
    """Prepare a run folder's plan. Raises RunError if plan, data or the plan's own code are not what they were."""
    prepared = prepare(read_plan(folder.path / PLAN))
    now = {
        "plan_sha256": prepared.plan_sha256,
        "data_sha256": prepared.data.sha256,
        "devices_sha256": None if prepared.fleet is None else prepared.fleet.sha256,
        "code_sha256": code_digests(prepared.plan),
    }
    restore = {
        "plan_sha256": f"Restore {PLAN}.",
        "data_sha256": "Restore the data, at the path in the plan.",
        "devices_sha256": f"Restore the file of devices, and [devices] in {PLAN}.",
        "code_sha256": "Restore the modules that the plan names.",
    }
    for what, digest in now.items():
        if identity.get(what) != digest:
            raise RunError(
                "HANSA-RUN-CHANGED",
                rule="A run goes on, or is repeated, with the same plan, data and code.",
                found=f"{what} was {identity.get(what)} and is {digest}.",
                action=restore[what],
            )
    return prepared


def code_digests(plan: Plan) -> dict[str, str]:
    """Return module -> SHA-256 of its file, for modules outside Hansa that the plan names ("module:function")."""
    modules = {name.partition(":")[0] for name in _named(to_mapping(plan)) if not name.startswith("hansa.")}
    files = {module: getattr(sys.modules.get(module), "__file__", None) for module in sorted(modules)}
    return {module: hashlib.sha256(Path(file).read_bytes()).hexdigest() for module, file in files.items() if file}


def _named(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _named(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _named(item, key)
    elif key in ("kind", "factory", "source") and isinstance(value, str) and ":" in value:
        yield value


def differences(folder: RunFolder, again: RunFolder) -> tuple[str, ...]:
    """Return what two runs of one plan have that differs, measured times and memory aside.

    Where something differs, what changed in the environment comes first.
    """
    found = [MODEL] if folder.digests()[MODEL] != again.digests()[MODEL] else []
    before, after = folder.events(), again.events()
    if len(before) != len(after):
        found.append(f"{METRICS}: {len(before)} lines, then {len(after)}")
    unlike = [
        (number, keys)
        for number, (one, other) in enumerate(zip(before, after, strict=False), start=1)
        if (keys := sorted(key for key in {*one, *other} - _MEASURED if one.get(key) != other.get(key)))
    ]
    if unlike:
        number, keys = unlike[0]
        found.append(f"{METRICS}: {len(unlike)} of {len(before)} lines, from line {number} on ({', '.join(keys)})")
    changes = (f"environment: {change}" for change in environment_changes(folder))
    return (*changes, *found) if found else ()


def environment_changes(folder: RunFolder) -> list[str]:
    """Return what a result may depend on and is no longer what it was when the run began."""
    before = folder.read_json(ENVIRONMENT)
    now = describe_environment(str(before.get("executor", "")))
    return [
        f"{name} was {before.get(name)} and is {now.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]

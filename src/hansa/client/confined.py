"""Computing under limits: in a process of its own that gives way, keeps to some processors, and may use so much memory.

It ends with its answer, or when its time is over, so that a client at rest is as small as before. Below one
processor's share the process is stopped and continued, many times a second.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hansa.client.records import Id
from hansa.core.clock import SystemClock
from hansa.core.errors import CATALOGUE, HansaError, RefusedError

if TYPE_CHECKING:
    from hansa.client.learner import Answer
    from hansa.client.work import Workshop
    from hansa.wire.generated import federation_pb2 as wire

_TURN: Final = 0.1
"""Seconds of one turn of working and resting."""
_NICE: Final = 10
_MEGABYTE: Final = 1_000_000
_ORDER, _CONTENT, _ROWS, _TOLD = "order.json", "content", "rows", "told.json"


def confined_answer(workshop: Workshop, assigned: wire.Assignment, assignment: Id, model: Path) -> Answer:
    """Return an answer that a confined process computed. Raises what it raised, and RefusedError where it died."""
    from hansa.client.learner import Answer  # noqa: PLC0415 - a client at rest needs none of it
    from hansa.core.ring import Ring, Segment  # noqa: PLC0415 - likewise

    data, resources = workshop.data, workshop.policy.resources
    with tempfile.TemporaryDirectory(prefix="work-", dir=workshop.state.path) as name:
        folder = Path(name)
        order = {
            "job": str(workshop.state.job(assigned.job_sha256)),
            "code": [asdict(each) for each in workshop.code],
            "model": str(model),
            "rows": str(rows) if (rows := workshop.state.rows_file(assignment.run)) is not None else None,
            "data": [str(data.source), data.seed.hex(), data.test_fraction],
            "request": [assignment.kind, assignment.round, assigned.number, assigned.population, assigned.cohort_size],
            "memory": resources.memory_mb,
            "processors": _some_processors(resources.cpu_share),
            "room": [str(workshop.state.path), workshop.state.room.most],
        }
        (folder / _ORDER).write_text(json.dumps(order), encoding="utf-8")
        left = assigned.deadline_ms / 1000 - SystemClock().now() if assigned.deadline_ms > 0 else math.inf
        until = time.monotonic() + min(left, resources.seconds or math.inf)
        processors = resources.cpu_share * len(os.sched_getaffinity(0))
        _run(folder, processors, lambda: workshop.stop.is_set() or time.monotonic() > until)
        told = json.loads((folder / _TOLD).read_text(encoding="utf-8"))
        if told.get("code") in CATALOGUE:
            raise RefusedError(told["code"], rule=told["rule"], found=told["found"], action=told["action"])
        rows_read = _load(folder / _ROWS) if told["rows"] else {}
        ring = None if told["ring"] is None else Ring(tuple(Segment(*each) for each in told["ring"]))
        return Answer((folder / _CONTENT).read_bytes(), rows_read, told["own"], ring)


def _some_processors(share: float) -> list[int]:
    """Return which processors a share is, one at least."""
    mine = sorted(os.sched_getaffinity(0))
    return mine[-max(1, int(share * len(mine))) :]


def _run(folder: Path, processors: float, is_over: Callable[[], bool]) -> None:
    """Run the process to its end, resting where it may have less than one processor.

    Raises RefusedError where it died, or was ended because its time is over.
    """
    command = [sys.executable, "-P", "-c", "from hansa.client.confined import main; main()", str(folder)]
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with subprocess.Popen(command, env={**os.environ, **single}, stdin=subprocess.DEVNULL) as process:  # noqa: S603 - this very module
        try:
            while process.poll() is None:
                if is_over():
                    raise _took_too_long()  # noqa: TRY301 - as it is ended for any other reason
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_TURN * min(1.0, processors))
                    break
                if processors < 1:
                    process.send_signal(signal.SIGSTOP)
                    time.sleep(_TURN * (1 - processors))
                    process.send_signal(signal.SIGCONT)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0 or not (folder / _TOLD).exists():
        raise _died(process.returncode)


def main() -> None:
    """Compute what the order in a folder says, under its limits."""
    folder = Path(sys.argv[1])
    order = json.loads((folder / _ORDER).read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    os.sched_setaffinity(0, order["processors"])
    if order["memory"] is not None:
        limit = order["memory"] * _MEGABYTE
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        told = _compute(folder, order)
    except HansaError as error:
        told = _told(error)
    except MemoryError:
        told = _told(_died(-signal.SIGKILL))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - code of the site's own may raise anything
        told = {"code": "HANSA-INTERNAL", "rule": "", "found": f"{type(error).__name__}: {error}", "action": ""}
    (folder / _TOLD).write_text(json.dumps(told), encoding="utf-8")


def _compute(folder: Path, order: Mapping[str, Any]) -> dict[str, Any]:
    import safetensors.numpy  # noqa: PLC0415 - under the limits

    from hansa.client.learner import Learner, Request  # noqa: PLC0415 - likewise
    from hansa.client.room import Room  # noqa: PLC0415 - likewise
    from hansa.client.site_data import SiteData  # noqa: PLC0415 - likewise
    from hansa.core.allowed import Allowance  # noqa: PLC0415 - likewise
    from hansa.wire.jobs import JobDescriptor  # noqa: PLC0415 - likewise
    from hansa.wire.server_models import ServedModel  # noqa: PLC0415 - likewise

    job = JobDescriptor.from_bytes(Path(order["job"]).read_bytes())
    learner = Learner(job, [Allowance(**each) for each in order["code"]])
    source, seed, fraction = order["data"]
    examples = SiteData(Path(source), bytes.fromhex(seed), fraction).examples(learner.plan.features, job.signature)
    model = ServedModel.from_bytes(Path(order["model"]).read_bytes(), learner.layout.size)
    rows = {} if order["rows"] is None else _load(Path(order["rows"]))
    answer = learner.answer(Request(*order["request"]), model, examples, rows)
    kept = safetensors.numpy.save(dict(answer.rows)) if answer.rows else b""
    within, most = order["room"]
    Room(Path(within), most).make(len(answer.content) + len(kept))
    (folder / _CONTENT).write_bytes(answer.content)
    if answer.rows:
        (folder / _ROWS).write_bytes(kept)
    ring = None if answer.ring is None else [astuple(each) for each in answer.ring.segments]
    return {"rows": bool(answer.rows), "own": None if answer.own is None else dict(answer.own), "ring": ring}


def _load(path: Path) -> dict[str, Any]:
    import safetensors.numpy  # noqa: PLC0415 - few plans keep anything with their clients

    return dict(safetensors.numpy.load(path.read_bytes()))


def _told(error: HansaError) -> dict[str, Any]:
    return {"code": error.code, "rule": error.rule, "found": error.found, "action": error.action}


def _took_too_long() -> RefusedError:
    return RefusedError(
        "HANSA-POLICY-REFUSED",
        rule="An answer is computed within the policy's seconds, before its round's deadline, and until told to stop.",
        found="The process that computes it was still at work, and was ended.",
        action="Raise resources.seconds, or ask for fewer epochs or a later deadline.",
    )


def _died(status: int) -> RefusedError:
    return RefusedError(
        "HANSA-POLICY-REFUSED",
        rule="An answer is computed within the policy's memory_mb.",
        found=f"The process that computes it ended early (status {status}).",
        action="Raise resources.memory_mb, or ask for a smaller model.",
    )

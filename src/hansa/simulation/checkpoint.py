"""One checkpoint for each closed round: a file that is renamed into place, all or nothing.

The last closed round is in ``latest.safetensors``, which outlives its process; from time to time it is brought to disk
and becomes ``checkpoint.safetensors``, which outlives the machine's power. So the latest counts only as long as the
machine has not started anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy

from hansa.core.errors import RunError
from hansa.core.layout import Array
from hansa.core.nouns import Scaling, ServerState
from hansa.reporting.run_folder import CHECKPOINT_FILE, bring_to_disk, replace_file, storing

LATEST: Final = "latest.safetensors"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: the server's state, and what the engine remembers.

    ``notes`` is JSON: the offset in metrics.jsonl, norms for the divergence rule, what the stopping rule saw.
    """

    state: ServerState
    notes: Mapping[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to a new file, then rename it over the last one."""
    state = checkpoint.state
    tensors: dict[str, Array] = {"model": state.model}
    if state.features is not None:
        tensors |= {"features.center": state.features.center, "features.scale": state.features.scale}
    for piece, slot in state.slots.items():
        tensors |= {f"slot/{piece}/{name}": array for name, array in slot.items()}
    notes = json.dumps({"round": state.round, "notes": checkpoint.notes, "boot": boot()})
    content = safetensors.numpy.save(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata={"hansa": notes}
    )
    with storing(folder.parent):
        replace_file(folder / LATEST, content, durable=False)


def make_durable(folder: Path) -> None:
    """Bring the latest checkpoint to disk. What it counts on must be there before."""
    bring_to_disk(folder / LATEST)
    (folder / LATEST).replace(folder / CHECKPOINT_FILE)
    bring_to_disk(folder)


@cache
def boot() -> str:
    """Return the machine's name for the time since it started; "" where it has none."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def read_checkpoint(folder: Path, first: ServerState) -> Checkpoint | None:
    """Return the last checkpoint in a folder, on the layout of the run's first state; None if there is none.

    The latest is removed where the machine was started anew since: what it counts on may not have come to disk.
    """
    path = folder / LATEST
    if path.exists():
        try:
            found = _read(path, first)
        except RunError:
            found = None  # a power cut left half of it
        if found is not None and boot() and found.notes["boot"] == boot():
            return found
        path.unlink()
    path = folder / CHECKPOINT_FILE
    return _read(path, first) if path.exists() else None


def _read(path: Path, first: ServerState) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            about = json.loads(file.metadata()["hansa"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise RunError(
            "HANSA-RUN-FOLDER",
            rule="A run goes on from its last checkpoint.",
            found=f"{path.name} cannot be read: {error}.",
            action="Start the run again in another folder.",
        ) from error
    slots: dict[str, dict[str, Array]] = {piece: {} for piece in first.slots}
    for name, array in tensors.items():
        if name.startswith("slot/"):
            _, piece, key = name.split("/")
            slots[piece][key] = array
    features = None
    if "features.center" in tensors:
        features = Scaling(tensors["features.center"], tensors["features.scale"])
    state = replace(first, round=about["round"], model=tensors["model"], features=features, slots=slots)
    return Checkpoint(state, {**about["notes"], "boot": about.get("boot")})

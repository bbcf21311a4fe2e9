"""One checkpoint for each closed round: a file that is renamed into place, all or nothing.

The last closed round is in ``latest-ROUND.safetensors``, which outlives its process; from time to time it is brought to
disk and becomes ``checkpoint.safetensors``, which outlives the machine's power. So the latest counts only as long as
the machine has not started anew. Each has a name of its own, because some file systems (ext4) write a file to disk at
once when it is renamed over another: twenty times slower, and for nothing, as the next round makes it waste.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
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

_LATEST: Final = "latest-*.safetensors"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: the server's state, and what the engine remembers.

    ``notes`` is JSON: the offset in metrics.jsonl, norms for the divergence rule, what the stopping rule saw.
    """

    state: ServerState
    notes: Mapping[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to a new file, rename it into place, then remove the last one that is not on disk."""
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
        replace_file(_name(folder, state.round), content, durable=False)
        _name(folder, state.round - 1).unlink(missing_ok=True)


def latest(folder: Path) -> Path | None:
    """Return the checkpoint that is not on disk yet, or None."""
    return max(folder.glob(_LATEST), default=None)


def make_durable(folder: Path, path: Path) -> None:
    """Bring the latest checkpoint to disk. What it counts on must be there before."""
    bring_to_disk(path)
    path.replace(folder / CHECKPOINT_FILE)
    _drop(folder)
    bring_to_disk(folder)


def _drop(folder: Path) -> None:
    for path in folder.glob(_LATEST):
        path.unlink()


def _name(folder: Path, round_number: int) -> Path:
    return folder / _LATEST.replace("*", f"{round_number:012d}")


@cache
def boot() -> str:
    """Return the machine's name for the time since it started; "" where it has none."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def read_checkpoint(folder: Path, first: ServerState) -> Checkpoint | None:
    """Return the last checkpoint in a folder, on the layout of the run's first state; None if there is none.

    Raises RunError for one that is damaged, if no newer one is whole.

    The latest is removed where the machine was started anew since: what it counts on may not have come to disk.
    """
    path, durable = latest(folder), folder / CHECKPOINT_FILE
    found, damage = None, None
    try:
        found = _read(durable, first) if durable.exists() else None
    except RunError as error:  # a newer one may be whole
        damage = error
    if path is not None:
        with suppress(RunError):  # a power cut may leave half of it
            later = _read(path, first)
            newer = found is None or later.state.round > found.state.round
            if newer and boot() and later.notes["boot"] == boot():
                return later
    if damage is not None:
        raise damage
    if path is not None:
        _drop(folder)
    return found


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

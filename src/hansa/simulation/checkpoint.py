"""One checkpoint for each closed round: a file that is renamed into place, all or nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from hansa.core.errors import RunError
from hansa.core.layout import Array, Int64s
from hansa.core.nouns import Scaling, ServerState
from hansa.reporting.run_folder import CHECKPOINT_FILE, replace_file, storing


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: the server's state, the journal to apply, and what the engine remembers.

    ``notes`` is JSON: the offset in metrics.jsonl, norms for the divergence rule, what the stopping rule saw.
    """

    state: ServerState
    cohort: Int64s
    times: Int64s
    notes: Mapping[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint: to a new file, to disk, then renamed over the last one."""
    state = checkpoint.state
    tensors: dict[str, Array] = {"model": state.model, "cohort": checkpoint.cohort, "times": checkpoint.times}
    if state.features is not None:
        tensors |= {"features.center": state.features.center, "features.scale": state.features.scale}
    for piece, slot in state.slots.items():
        tensors |= {f"slot/{piece}/{name}": array for name, array in slot.items()}
    notes = json.dumps({"round": state.round, "notes": checkpoint.notes})
    content = safetensors.numpy.save(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata={"hansa": notes}
    )
    with storing(folder.parent):
        replace_file(folder / CHECKPOINT_FILE, content)


def read_checkpoint(folder: Path, first: ServerState) -> Checkpoint | None:
    """Return the checkpoint in a folder, on the layout of the run's first state; None if there is none."""
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
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
    return Checkpoint(state, tensors["cohort"], tensors["times"], about["notes"])

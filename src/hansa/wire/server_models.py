"""What a client fetches in a round: the model over all branches with the features' scaling, and the slots beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy

from hansa.core.errors import RefusedError
from hansa.core.layout import Array, Floats
from hansa.core.nouns import Scaling, ServerState

_MODEL: Final = "model"
_CENTER: Final = "features/center"
_SCALE: Final = "features/scale"
_CLIP: Final = "privacy/clip_norm"


@dataclass(frozen=True)
class ServedModel:
    """What a model blob holds: float32 [d] over all branches, the scaling of the features, a round's clip norm."""

    values: Floats
    features: Scaling | None
    clip_norm: float | None = None

    def to_bytes(self) -> bytes:
        """Return the blob; equal models give equal bytes."""
        tensors: dict[str, Array] = {_MODEL: np.ascontiguousarray(self.values, dtype=np.float32)}
        if self.features is not None:
            tensors |= {_CENTER: self.features.center, _SCALE: self.features.scale}
        if self.clip_norm is not None:
            tensors[_CLIP] = np.array([self.clip_norm])
        return safetensors.numpy.save(tensors)

    @classmethod
    def from_bytes(cls, content: bytes, size: int) -> ServedModel:
        """Return the model of ``size`` numbers in a blob. Raises RefusedError for any other."""
        tensors = _tensors(content)
        values = tensors.get(_MODEL)
        if values is None or values.dtype != np.float32 or values.shape != (size,):
            raise unfit(f"It must hold float32 [{size}].")
        if (_CENTER in tensors) != (_SCALE in tensors):
            raise unfit("It holds half of a scaling.")
        scaling = _scaling(tensors[_CENTER], tensors[_SCALE]) if _CENTER in tensors else None
        return cls(values, scaling, _clip_norm(tensors[_CLIP]) if _CLIP in tensors else None)


def _scaling(center: Array, scale: Array) -> Scaling:
    if not (center.ndim == 1 and center.shape == scale.shape and center.dtype == scale.dtype == np.float32):
        raise unfit("Its scaling is not a centre and a scale, float32, for each feature.")
    return Scaling(center, scale)


def _clip_norm(norm: Array) -> float:
    if not (norm.shape == (1,) and norm.dtype == np.float64 and 0 < norm[0] < np.inf):
        raise unfit("Its clip norm is not one number above 0.")
    return float(norm[0])


def slots_bytes(state: ServerState) -> bytes:
    """Return the slots of all pieces as a blob: "PIECE/NAME" -> array."""
    arrays = {
        f"{piece}/{name}": np.ascontiguousarray(array).reshape(array.shape)
        for piece, slot in state.slots.items()
        for name, array in slot.items()
    }
    return safetensors.numpy.save(arrays)


def slots_from_bytes(content: bytes, like: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, Array]]:
    """Return the slots in a blob, for the same pieces as ``like``. Raises RefusedError where one is missing."""
    arrays = _tensors(content)
    missing = [f"{piece}/{name}" for piece, slot in like.items() for name in slot if f"{piece}/{name}" not in arrays]
    if missing:
        raise unfit(f"It lacks {missing[0]}.")
    return {piece: {name: arrays[f"{piece}/{name}"] for name in slot} for piece, slot in like.items()}


def _tensors(content: bytes) -> dict[str, Any]:
    try:
        return safetensors.numpy.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise unfit(f"It is no safetensors file ({type(error).__name__}).") from None


def unfit(found: str) -> RefusedError:
    """Return what to say of a model that is not the plan's."""
    return RefusedError(
        "HANSA-MODEL-UNSUITABLE",
        rule="A model has the layout of its job.",
        found=found,
        action="Submit the job with the model that its plan's factory builds.",
    )

"""From a plan's factory to a torch module that fits the data, or a ModelError that says why not."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hansa.core.errors import HansaError, ModelError
from hansa.core.nouns import Signature
from hansa.core.registry import nearest

_TURN: Final = threading.RLock()
"""A process has one generator of torch's random numbers: one thread at a time draws from it."""


@contextmanager
def isolated_torch(seed: int) -> Iterator[None]:
    """Use torch with seeded generators and one CPU thread, for the block alone, one thread of the process at a time.

    What the process drew before goes on after it.
    """
    with _TURN, torch.random.fork_rng(), one_thread():
        reseed(seed)
        yield


class _OneThread:
    """Counts who needs torch on one CPU thread: the first notes what it was, and the last sets it again."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.before = 1

    def __enter__(self) -> None:
        with self.lock:
            if not self.count:
                self.before = torch.get_num_threads()
            self.count += 1
            torch.set_num_threads(1)  # torch asks each thread for itself how many it may use

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.count -= 1
            if not self.count:
                torch.set_num_threads(self.before)


_ONE_THREAD: Final = _OneThread()


def one_thread() -> AbstractContextManager[None]:
    """Use torch with one CPU thread inside the block; several threads of the process may be in one at once.

    Small matrix products gain nothing from torch's threads, and lose a great deal where processors are busy; with one
    thread, the order of sums does not depend on the processors.
    """
    return _ONE_THREAD


def reseed(seed: int) -> None:
    """Seed torch's generators (on the CPU in 1 microsecond, where torch.manual_seed takes 90)."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def user_code(doing: str) -> Iterator[None]:
    """Turn whatever a user's module raises into a ModelError that names what it was ``doing``."""
    try:
        yield
    except HansaError:
        raise
    except (Exception, SystemExit) as error:  # a module that ends the process must not end a run as if it were done
        raise unsuitable(
            "A model must build, run and train on the plan's data.",
            f"{doing} raised {type(error).__name__}: {error}.",
            "Mend the model, or the arguments in [model].",
        ) from error


def unsuitable(rule: str, found: str, action: str) -> ModelError:
    """Return the error of a model that cannot be trained as the plan asks."""
    return ModelError("HANSA-MODEL-UNSUITABLE", rule=rule, found=found, action=action)


def build_module(factory: Callable[..., Any], name: str, arguments: Mapping[str, Any], seed: int) -> nn.Module:
    """Return what the factory makes of its arguments, with torch's generator at ``seed``.

    Raises ModelError if the arguments do not fit, the factory fails, or its result is no module.
    """
    _check_arguments(factory, name, arguments)
    with isolated_torch(seed), user_code(f"The factory {name!r}"):
        module = factory(**arguments)
    if not isinstance(module, nn.Module):
        raise unsuitable(
            "The torch trainer trains what a factory returns: a torch.nn.Module.",
            f"{name!r} returned {type(module).__name__}.",
            "Return the module itself, or choose the trainer that fits what is returned.",
        )
    return module


def _check_arguments(factory: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> None:
    if not callable(factory):
        raise unsuitable(
            "model.factory names a function or class that returns a torch.nn.Module.",
            f"{name!r} is a {type(factory).__name__}.",
            "Name a function that builds the model.",
        )
    try:
        signature = inspect.signature(factory)
    except ValueError:  # a callable written in C may not tell its parameters
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        known = [key for key, value in signature.parameters.items() if value.kind is not value.VAR_KEYWORD]
        unknown = [f"no argument {key!r} ({nearest(key, known).rstrip('.')})" for key in arguments if key not in known]
        raise unsuitable(
            "model.arguments are the keyword arguments of the factory.",
            f"{name!r} has {'; '.join(unknown)}." if unknown else f"{name!r} says: {error}.",
            f"Its signature is {signature}.",
        ) from error


def dummy_batch(signature: Signature, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return two examples of the data's shape: zeros, and zeros or the largest token: [2, *shape]."""
    if not signature.integer_inputs:
        return torch.zeros((2, *signature.shape), dtype=dtype, device=device)
    tokens = torch.zeros((2, *signature.shape), dtype=torch.int64, device=device)
    tokens[1] = max(signature.vocabulary - 1, 0)
    return tokens


def try_forward(module: nn.Module, name: str, signature: Signature) -> Tensor:
    """Return what the module makes of two dummy examples in eval mode: [2] or [2, outputs].

    Raises ModelError where that fails, or where the result has another shape or does not depend on
    what is trained.
    """
    dtype, device = input_kind(module)
    shape = f"[{', '.join(map(str, ('b', *signature.shape)))}]"
    kind = f"int64 tokens below {signature.vocabulary}" if signature.integer_inputs else str(dtype)
    module.eval()
    with isolated_torch(0), torch.enable_grad(), user_code(f"{name!r}, given a batch {shape} of {kind} (b = 2),"):
        outputs = module(dummy_batch(signature, dtype, device))
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != (2,) or outputs.ndim not in (1, 2):
        what = f"a tensor {list(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise unsuitable(
            "A model must return one row of outputs for each example: [b, outputs].",
            f"{name!r} returned {what} for two examples (b = 2), a batch {shape}.",
            "Return the logits (or the predicted number) of each example, and nothing beside them.",
        )
    if not outputs.requires_grad and any(parameter.requires_grad for parameter in module.parameters()):
        raise unsuitable(
            "The outputs must depend on the parameters that are trained.",
            f"The outputs of {name!r} have no gradient.",
            "Look for .detach(), .data, no_grad() or argmax in the model's forward.",
        )
    return outputs.detach()


def materialise(module: nn.Module, name: str, signature: Signature, seed: int) -> None:
    """Give lazy layers their shapes and first values, by one forward pass over dummy examples."""
    if not any(map(is_lazy, (*module.parameters(), *module.buffers()))):
        return
    module.eval()
    with isolated_torch(seed), torch.no_grad(), user_code(f"{name!r}, given a first batch,"):
        module(dummy_batch(signature, torch.float32, torch.device("cpu")))


def refuse_meta(module: nn.Module, name: str) -> None:
    """Raise ModelError for a module without values: parameters or buffers on the device "meta"."""
    for key, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_meta:
            raise unsuitable(
                "A factory returns a model with values.",
                f"{key!r} of {name!r} is on the device 'meta', which holds shapes only.",
                "Build it on a real device: leave out device='meta', or call .to_empty(...) and initialise it.",
            )


def addresses(module: nn.Module) -> dict[str, tuple[nn.Parameter, int]]:
    """Return every parameter of a module, by name, and where its values lie."""
    return {key: (value, value.data_ptr()) for key, value in module.named_parameters()}


def refuse_changed(module: nn.Module, name: str, first: Mapping[str, tuple[nn.Parameter, int]]) -> None:
    """Raise ModelError where running a module made, replaced or moved what is trained."""
    now = addresses(module)
    for key in {**first, **now}:
        before, after = first.get(key), now.get(key)
        if before is None or after is None or before[0] is not after[0]:
            raise unsuitable(
                "A model has all its parameters when it is built; others are neither trained nor saved.",
                f"Running {name!r} made, replaced or removed the parameter {key!r}.",
                "Create parameters and layers in __init__, not in forward (nn.Lazy... layers find their sizes there).",
            )
        if before[0].requires_grad and before[1] != after[1]:
            raise unsuitable(
                "A parameter keeps its place in memory while it is trained.",
                f"Running {name!r} moved {key!r} (.data = ...), so that training would not reach it.",
                "Change it in place, under torch.no_grad(): parameter.copy_(values).",
            )


def outputs_as(outputs: Any, wanted: tuple[int, int], name: str) -> Tensor:
    """Return a module's outputs in the shape [b, outputs], in float32 or better.

    Raises ModelError for any other shape, where axes of 1 may be squeezed out.
    """
    count, width = wanted
    fitting = {wanted, *([(count,)] if width == 1 else []), *([(width,)] if count == 1 else [])}
    fitting |= {()} if wanted == (1, 1) else set()
    if isinstance(outputs, Tensor) and tuple(outputs.shape) in fitting:
        shaped = outputs.reshape(wanted)
        return shaped.float() if is_half(shaped) else shaped
    what = f"a tensor {list(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
    raise unsuitable(
        "A model must return one row of outputs for each example: [b, outputs], always as many as at first.",
        f"{name!r} returned {what} where {list(wanted)} was expected.",
        "Keep the axis of the examples first, and return the same in training and in evaluation.",
    )


def is_half(tensor: Tensor) -> bool:
    """Return whether a tensor's numbers are shorter than float32."""
    return tensor.element_size() < torch.float32.itemsize


def input_kind(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Return the dtype and device that inputs are cast to: those of the first floating parameter."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.dtype, parameter.device
    return torch.float32, torch.device("cpu")


def extent(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses of a tensor's first byte and the one after its last."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()


def outputs_of(result: Tensor) -> int:
    """Return the number of outputs of a result [b] or [b, outputs]."""
    return math.prod(result.shape[1:])

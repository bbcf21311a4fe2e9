"""Linear, logistic and softmax regression in numpy, every client of a batch at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import isfunction
from typing import Any, ClassVar, Final, Literal

import numpy as np

from hansa.core.errors import ModelError
from hansa.core.layout import Array, Branch, Floats, Layout, Parameter, views_of
from hansa.core.nouns import Batch, ClientContext, ClientStates, InitialModel, Signature
from hansa.core.registry import import_named
from hansa.core.sections import Model
from hansa.core.streams import Stream
from hansa.training.local import LocalBatches, LocalWork, Outcome, bend, hand_back, hook_states, local_batches


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """A generalised linear model: x W (+ b), with the loss of its link."""

    loss: Literal["binary-cross-entropy", "cross-entropy", "squared-error"]
    intercept: bool = True


def logistic(*, intercept: bool = True) -> LinearModel:
    """Return logistic regression for two classes: one output, the log odds of the second class."""
    return LinearModel(loss="binary-cross-entropy", intercept=intercept)


def softmax(*, intercept: bool = True) -> LinearModel:
    """Return softmax regression: one output for each class."""
    return LinearModel(loss="cross-entropy", intercept=intercept)


def regression(*, intercept: bool = True) -> LinearModel:
    """Return linear regression: one output, squared error."""
    return LinearModel(loss="squared-error", intercept=intercept)


_LINEAR_MODEL: Final = ("LinearModel", "linear.LinearModel", "hansa.training.linear.LinearModel")
"""The return annotation of a factory where it is a text, as after ``from __future__ import annotations``."""


@dataclass(frozen=True, kw_only=True)
class LinearTrainer(LocalWork):
    """Trains linear models with batched matrix products over the client axis; needs numpy only.

    A client trained in a batch equals the client trained alone to float32 rounding: the others set the padding,
    and with it the order in which a matrix product adds up.
    """

    bends_gradients: ClassVar[bool] = True

    def initial(self, model: Model, signature: Signature, stream: Stream) -> InitialModel:  # noqa: ARG002 - convex: zeros are a fair start
        """Return weights [features, outputs] and intercept [outputs] of zeros."""
        linear = _linear_model(model)
        features, outputs = int(np.prod(signature.shape)), _outputs(linear, signature)
        parameters = [Parameter("weight", (features, outputs))]
        if linear.intercept:
            parameters.append(Parameter("intercept", (outputs,)))
        layout = Layout((Branch("params", tuple(parameters)),))
        return InitialModel(layout, np.zeros(layout.size, dtype=np.float32))

    def notes(self, model: Model, signature: Signature) -> tuple[str, ...]:  # noqa: ARG002 - the trainer protocol
        """Return nothing: a linear model has no surprises."""
        return ()

    def batching(self, model: Model, signature: Signature) -> tuple[str, str]:  # noqa: ARG002 - the trainer protocol
        """Return "fused": the gradients are derived by hand."""
        return "fused", "a linear model's gradients are batched matrix products"

    def client_rows(self, model: Model, signature: Signature) -> dict[str, Array]:  # noqa: ARG002 - the trainer protocol
        """Return nothing: a linear model has no buffers."""
        return {}

    def train(self, model: Model, context: ClientContext, states: ClientStates) -> tuple[Batch, dict[str, Array]]:
        """Train every client at once; clients with fewer steps stop earlier."""
        linear, clients, layout = _linear_model(model), context.clients, context.layout
        batches = local_batches(
            self, clients.ordinals, clients.sizes, context.streams.of("order", context.assignment.round)
        )
        params = context.assignment.model[..., layout.slices["params"]]
        start = np.broadcast_to(params, (len(clients), params.shape[-1]))
        order = np.argsort(-batches.steps, kind="stable")
        back = np.argsort(order, kind="stable")
        longest_first = LocalBatches(batches.positions[order], batches.steps[order])
        vectors = {name: vector[order] for name, vector in hook_states(self.hooks, context, states).items()}
        x, y = clients.everything()
        with np.errstate(over="ignore", invalid="ignore"):  # the round counts updates that are not finite
            end, loss = self._descend(
                linear,
                layout.branch("params"),
                longest_first,
                start=start[order],
                examples=(x[order], y[order]),
                vectors=vectors,
            )
        outcome = Outcome(start, end[back], batches.steps, loss[back])
        return hand_back(self, context, states, outcome)

    def _descend(  # noqa: PLR0913 - one loop needs them all
        self,
        linear: LinearModel,
        branch: Branch,
        batches: LocalBatches,
        *,
        start: Floats,
        examples: tuple[Array, Array],
        vectors: Mapping[str, Floats],
    ) -> tuple[Floats, Array]:
        """Return the parameters after all steps [n, size] and the mean loss [n]; most steps come first."""
        end = start.copy()
        parameters, starts = views_of(branch, end), views_of(branch, start)
        state = {name: views_of(branch, vector) for name, vector in vectors.items()}
        buffers = {name: self.optimizer.start(parameter) for name, parameter in parameters.items()}
        total = np.zeros(len(start))
        for step in range(batches.positions.shape[1]):
            active = int(np.searchsorted(-batches.steps, -step, side="left"))
            x, y, mask = _take(examples, batches.positions[:active, step])
            here = {name: parameter[:active] for name, parameter in parameters.items()}
            gradients, loss = _gradients(linear, here, x, y, mask)
            total[:active] += loss
            for name, parameter in here.items():
                bent = bend(
                    self.hooks,
                    parameter,
                    gradients[name],
                    starts[name][:active],
                    {key: views[name][:active] for key, views in state.items()},
                )
                kept = {key: buffer[:active] for key, buffer in buffers[name].items()}
                self.optimizer.step(parameter, bent, kept, step + 1)
        return end, total / np.maximum(batches.steps, 1)

    def predict(self, model: Model, signature: Signature, values: Floats, x: Array, states: ClientStates) -> Array:  # noqa: ARG002 - the trainer protocol
        """Return x W + b: float32 [b, outputs]."""
        layout = self.initial(model, signature, Stream(0)).layout
        parameters = views_of(layout.branch("params"), values[: layout.size])
        return _outputs_of(parameters, x.reshape(len(x), -1))


def _linear_model(model: Model) -> LinearModel:
    factory = import_named(model.factory)
    _refuse_others(factory, model.factory)
    try:
        built = factory(**model.arguments)
    except (Exception, SystemExit) as error:
        raise ModelError(
            "HANSA-MODEL-UNSUITABLE",
            rule="model.factory is called with model.arguments.",
            found=f"{model.factory!r} raised {type(error).__name__}: {error}.",
            action="Mend the factory's name or the arguments in [model].",
        ) from error
    if not isinstance(built, LinearModel):
        raise ModelError(
            "HANSA-MODEL-UNSUITABLE",
            rule="The linear trainer trains what hansa.training.linear's factories return.",
            found=f"{model.factory!r} returned {type(built).__name__}.",
            action='Use logistic, softmax or regression, or set trainer.kind = "torch".',
        )
    return built


def _refuse_others(factory: Any, name: str) -> None:
    """Raise ModelError, before anything is called, for what does not say that it returns a linear model."""
    says = getattr(factory, "__annotations__", {}).get("return") if isfunction(factory) else None
    if factory is not LinearModel and says is not LinearModel and says not in _LINEAR_MODEL:
        raise ModelError(
            "HANSA-MODEL-UNSUITABLE",
            rule="The linear trainer calls only functions that are annotated to return a LinearModel.",
            found=f"{name!r} is not one, and was not called.",
            action="Use logistic, softmax or regression of hansa.training.linear, annotate your function with "
            '"-> LinearModel", or set trainer.kind = "torch".',
        )


def _outputs(linear: LinearModel, signature: Signature) -> int:
    wanted = {"binary-cross-entropy": "two classes", "cross-entropy": "classes", "squared-error": "a real-valued label"}
    fits = {
        "binary-cross-entropy": signature.classes == 2,
        "cross-entropy": signature.classes >= 2,
        "squared-error": signature.classes == 0,
    }
    if signature.integer_inputs or not fits[linear.loss]:
        label = f"{signature.classes} classes" if signature.classes else "a real-valued label"
        found = "tokens, which are no numbers to add up" if signature.integer_inputs else label
        raise ModelError(
            "HANSA-MODEL-UNSUITABLE",
            rule=f"This linear model needs numeric features and {wanted[linear.loss]}.",
            found=f"The data have {found}.",
            action="Take logistic for two classes, softmax for more, regression for numbers, or a torch model.",
        )
    return signature.classes if linear.loss == "cross-entropy" else 1


def _take(examples: tuple[Array, Array], positions: Array) -> tuple[Array, Array, Floats]:
    """Return one step's examples: x [n, b, features], y [n, b], and 1 where an example is real [n, b]."""
    x, y = examples
    rows = np.arange(len(positions))[:, None]
    taken = x[rows, positions].reshape(*positions.shape, -1)
    return taken, y[rows, positions], (positions >= 0).astype(np.float32)


def _outputs_of(parameters: Mapping[str, Array], x: Array) -> Array:
    outputs = np.asarray(x, dtype=np.float32) @ parameters["weight"]
    return outputs + parameters["intercept"][..., None, :] if "intercept" in parameters else outputs


def _gradients(
    linear: LinearModel, parameters: Mapping[str, Array], x: Array, y: Array, mask: Floats
) -> tuple[dict[str, Any], Array]:
    """Return the gradients of the mean loss of each client's batch, and that loss [n]."""
    outputs = _outputs_of(parameters, x)
    residual, losses = _residual(linear, outputs, y)
    share = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    residual *= share[..., None]
    gradients = {"weight": np.matmul(x.swapaxes(1, 2), residual)}
    if "intercept" in parameters:
        gradients["intercept"] = residual.sum(axis=1)
    return gradients, np.where(mask > 0, losses * share, 0).sum(axis=1)


def _residual(linear: LinearModel, outputs: Array, y: Array) -> tuple[Array, Array]:
    """Return d loss / d outputs [n, b, outputs] and the loss of each example [n, b]."""
    if linear.loss == "squared-error":
        difference = outputs[..., 0] - y
        return 2 * difference[..., None], difference**2
    if linear.loss == "binary-cross-entropy":
        score = outputs[..., 0]
        probability = 1 / (1 + np.exp(-np.clip(score, -80, 80)))
        return (probability - y)[..., None].astype(np.float32), np.logaddexp(0, score) - y * score
    shifted = outputs - outputs.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=-1, keepdims=True)
    chosen = y[..., None].astype(np.int64)
    losses = np.log(sums[..., 0]) - np.take_along_axis(shifted, chosen, axis=-1)[..., 0]
    residual = exponentials / sums
    np.put_along_axis(residual, chosen, np.take_along_axis(residual, chosen, axis=-1) - 1, axis=-1)
    return residual, losses

"""Linear, logistic and softmax regression in numpy, every client of a batch at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import isfunction
from typing import Any, ClassVar, Final, Literal

import numpy as np

from hansa.core.errors import ModelError
from hansa.core.layout import Array, Branch, Floats, Int64s, Layout, Parameter, views_of
from hansa.core.nouns import Batch, ClientContext, ClientStates, InitialModel, Signature
from hansa.core.registry import import_named
from hansa.core.sections import Model
from hansa.core.streams import Stream
from hansa.training import noised_steps
from hansa.training.fused import Program, train_clients
from hansa.training.fused_layers import Linear, Shape
from hansa.training.local import LocalWork, hand_back
from hansa.training.noised_steps import NOISED


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
    protects_examples: ClassVar[bool] = True

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
        """Return "fused": the gradients are derived by hand; "none" where steps are noised, client by client."""
        if self.example_privacy is not None:
            return NOISED
        return "fused", "a linear model's gradients are batched matrix products"

    def client_rows(self, model: Model, signature: Signature) -> dict[str, Array]:  # noqa: ARG002 - the trainer protocol
        """Return nothing: a linear model has no buffers."""
        return {}

    def train(self, model: Model, context: ClientContext, states: ClientStates) -> tuple[Batch, dict[str, Array]]:
        """Train every client at once; with ``example_privacy`` one after another."""
        linear, branch = _linear_model(model), context.layout.branch("params")
        if self.example_privacy is not None:
            ended = noised_steps.train_clients(self, context, states, _sources(linear, branch, context))
            return hand_back(self, context, states, ended)
        outcome = train_clients(self, _program(linear), branch, context, states)
        return hand_back(self, context, states, outcome)

    def predict(self, model: Model, signature: Signature, values: Floats, x: Array, states: ClientStates) -> Array:  # noqa: ARG002 - the trainer protocol
        """Return x W + b: float32 [b, outputs]."""
        layout = self.initial(model, signature, Stream(0)).layout
        parameters = views_of(layout.branch("params"), values[None, : layout.size])
        examples = np.asarray(x, dtype=np.float32)[None]
        return np.asarray(_program(_linear_model(model)).outputs(parameters, examples)[0])


def _program(linear: LinearModel) -> Program:
    """Return a linear model as a stack of one layer."""
    intercept = "intercept" if linear.intercept else None
    return Program((Shape(), Linear("weight", intercept, transposed=True)), linear.loss)


def _sources(linear: LinearModel, branch: Branch, context: ClientContext) -> Iterator[noised_steps.Gradients]:
    """Yield, for every client in order, what gives the gradient of each of its examples, one example at a time."""
    program, share = _program(linear), np.ones((1, 1), dtype=np.float32)
    for i in range(len(context.clients)):
        x, y = context.clients.of(slice(i, i + 1)).everything()

        def gradients(values: Floats, positions: Int64s, x: Array = x, y: Array = y) -> Floats:
            found = np.zeros((len(positions), branch.size), dtype=np.float32)
            parameters = views_of(branch, values[None])
            for row, position in enumerate(positions.tolist()):
                one, into = x[:, position : position + 1], views_of(branch, found[row : row + 1])
                program.gradients(parameters, into, one, y[:, position : position + 1], share, scale=1.0, draws=None)
            return found

        yield gradients


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

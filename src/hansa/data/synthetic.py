"""A population whose examples are made from numbers: nothing is stored, however many clients there are.

Every number is a function of (seed, client, position) through the streams' hash. The model behind the examples is a
simple one with a known best answer. Of numbers, an example of class c is standard normal noise about
``mean[c] + shift[client]`` (normal features with one covariance: softmax regression is the right model, see Hastie,
Tibshirani, Friedman 2009, "The elements of statistical learning", section 4.4); a real-valued label takes the place of
the class's mean by ``label x direction``. Of tokens, some come from the few that a class prefers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Final

from annotated_types import Ge, Le

from hansa.core.datasets import Examples, FederatedData
from hansa.core.errors import PlanError
from hansa.core.nouns import Signature
from hansa.core.schema import Doc, Unsound, build
from hansa.core.sections import Data, Features
from hansa.core.streams import Streams
from hansa.data.fingerprint import Digest
from hansa.data.made import MadeExamples, Numbered, Parts, Recipe
from hansa.data.partitions import Natural
from hansa.data.refusals import leave_some, plan_problem
from hansa.data.sources import source

_VERSION: Final = "hansa-synthetic-1"
_LARGEST_EXAMPLE: Final = 1 << 22
_NOTE: Final = "every client and example is made up by the source synthetic, from the seed"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the examples of the source ``synthetic`` are like."""

    clients: Annotated[int, Ge(1), Le(10**12), Doc("number of clients, those that are held out included")] = 1000
    features: Annotated[int, Ge(1), Doc("numbers in one example, where no shape is given")] = 64
    shape: Annotated[
        tuple[int, ...], Doc("shape of one example in place of features: [1, 28, 28] is an image, [80] may be tokens")
    ] = ()
    classes: Annotated[int, Ge(0), Doc("classes of the label; 0 makes it a real value")] = 10
    vocabulary: Annotated[int, Ge(0), Le(2**16), Doc("above 0: examples are tokens, so many different ones")] = 0
    mean_size: Annotated[float, Ge(1), Le(10**6), Doc("mean number of a client's examples, all parts together")] = 50.0
    size_sigma: Annotated[
        float, Ge(0), Le(3), Doc("standard deviation of the logarithm of the sizes (log-normal); 0: all are alike")
    ] = 0.0
    heterogeneity: Annotated[
        float,
        Ge(0),
        Le(1),
        Doc(
            "how much clients differ: so large a share of a client's labels are of its own two classes, and so many "
            "times the signal is the length of the shift of its features; 0: not at all"
        ),
    ] = 0.3
    signal: Annotated[
        float,
        Ge(0),
        Le(100),
        Doc(
            "how much of the label shows: the length of a class's mean in standard deviations of the noise; of "
            "tokens, a tenth of it is the share that a class prefers"
        ),
    ] = 3.0
    central_examples: Annotated[
        int, Ge(0), Le(10**7), Doc("the server's own examples, with no client's shift and all classes alike")
    ] = 1000
    seed: Annotated[int | None, Ge(0), Doc("fixes the examples whatever the plan's seed is; default: the plan's")] = (
        None
    )

    def __post_init__(self) -> None:
        if any(side < 1 for side in self.shape) or math.prod(self.example) > _LARGEST_EXAMPLE:
            raise Unsound(f"an example has 1 to {_LARGEST_EXAMPLE:,} numbers; correct shape or features.")
        if self.classes == 1:
            raise Unsound("classes must be 0 (a real-valued label) or at least 2.")
        if self.vocabulary and (not self.classes or len(self.example) != 1):
            raise Unsound("tokens (vocabulary above 0) need classes, and a shape of one number: [80], for one.")

    @property
    def example(self) -> tuple[int, ...]:
        """Return the shape of one example."""
        return self.shape or (self.features,)


@dataclass(frozen=True)
class MadePopulation:
    """A population that arguments and a seed determine."""

    arguments: Arguments

    def federated(self, data: Data, seed: int) -> FederatedData:
        """Return the population: the last ``held_out_clients`` never train; a client's last examples test."""
        arguments = self.arguments
        leave_some(data, arguments.clients)
        number = seed if arguments.seed is None else arguments.seed
        recipe = Recipe.of(
            Streams(number),
            shape=arguments.example,
            classes=arguments.classes,
            vocabulary=arguments.vocabulary,
            mean_size=arguments.mean_size,
            size_sigma=arguments.size_sigma,
            heterogeneity=arguments.heterogeneity,
            signal=arguments.signal,
        )
        parts = Parts(data.test_fraction, data.validation_fraction)
        names = Numbered(range(arguments.clients), width=max(3, len(str(arguments.clients - 1))))
        trains = arguments.clients - data.held_out_clients
        training, strangers = names[:trains], names[trains:]
        return FederatedData(
            train=MadeExamples(training, recipe, parts, "train"),
            validation=MadeExamples(training, recipe, parts, "validation") if data.validation_fraction else None,
            test=MadeExamples(training, recipe, parts, "test") if data.test_fraction else None,
            held_out=MadeExamples(strangers, recipe, parts, "all", first=trains) if len(strangers) else None,
            central=Examples(*recipe.central(arguments.central_examples)) if arguments.central_examples else None,
            signature=Signature(arguments.example, arguments.classes, bool(arguments.vocabulary), arguments.vocabulary),
            features=None,
            class_names=tuple(map(str, range(arguments.classes))),
            notes=(_NOTE,),
            sha256=self._digest(data, number),
        )

    def _digest(self, data: Data, seed: int) -> str:
        """Return the SHA-256 of all that the examples follow from."""
        digest = Digest()
        digest.texts("made by", [_VERSION])
        digest.table("arguments", {**asdict(self.arguments), "shape": list(self.arguments.example), "seed": seed})
        fractions = [data.test_fraction, data.validation_fraction]
        digest.table("split", {"fractions": fractions, "held_out_clients": data.held_out_clients})
        return digest.hexadecimal()


@source(
    "synthetic",
    "any number of clients, made up from their numbers: a million cost no more than a thousand",
    clients="as many as data.arguments.clients says",
    licence="made up as they are read: free of any",
    origin="Hansa",
    arguments=Arguments,
)
def synthetic(data: Data, features: Features | None) -> MadePopulation:  # noqa: ARG001 - a source's form
    """Make the population that data.arguments describe. Raises PlanError with the key path of every problem."""
    arguments, problems = build(Arguments, data.arguments, "data.arguments")
    if problems:
        raise PlanError(problems)
    if not isinstance(data.partition, Natural | None):
        raise plan_problem(
            "data.partition", "clients that are made up have their own examples; set data.arguments.clients."
        )
    return MadePopulation(arguments)

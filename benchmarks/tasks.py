"""The three tasks: sizes of data, models and cohorts, the same for every system."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

Network = Literal["cnn", "mlp", "softmax"]

LEARNING_RATE: Final = 0.05
SEED: Final = 0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. ``sizes`` are the smallest, mean and largest number of examples of a client."""

    name: str
    about: str
    network: Network
    shape: tuple[int, ...]
    classes: int
    clients: int
    sizes: tuple[int, float, int]
    batch: int
    cohort: int
    rounds: int
    few_rounds: int
    """Rounds of a system that needs minutes for all; the others note their model after as many, to be compared."""
    spread: float
    """Distance of a class's mean from the origin, in standard deviations of the noise; sets how hard it is."""

    @property
    def features(self) -> int:
        """Return how many numbers an example has."""
        return _product(self.shape)

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the model's parameters in torch's layout, in the order of its modules."""
        if self.network == "cnn":
            flat = 64 * (self.shape[0] // 4) ** 2
            layers = [(32, 1, 5, 5), (64, 32, 5, 5), (512, flat), (self.classes, 512)]
        else:
            widths = [self.features, *HIDDEN[self.network], self.classes]
            layers = [(after, before) for before, after in pairwise(widths)]
        return {
            name: extent
            for number, layer in enumerate(layers)
            for name, extent in ((f"{number}.weight", layer), (f"{number}.bias", layer[:1]))
        }

    @property
    def flops_of_an_example(self) -> float:
        """Return the operations of one training step for one example: forward, and both gradients of each layer.

        A multiplication and an addition count as two. The gradient with respect to the examples themselves, which
        nobody needs, is left out; so is everything but matrix products and convolutions.
        """
        weights = [shape for name, shape in self.parameters.items() if name.endswith("weight")]
        outputs = [(self.shape[0] >> layer) ** 2 if len(shape) == 4 else 1 for layer, shape in enumerate(weights)]
        forward = [2.0 * places * _product(shape) for places, shape in zip(outputs, weights, strict=True)]
        return 3 * sum(forward) - forward[0]


def _product(extents: tuple[int, ...]) -> int:
    total = 1
    for extent in extents:
        total *= extent
    return total


HIDDEN: Final[dict[str, tuple[int, ...]]] = {"mlp": (128,), "softmax": ()}

TASKS: Final[dict[str, Task]] = {
    "A": Task(
        name="A",
        about="convolutional network, 1,690,046 parameters, 1,000 clients, cohort 50",
        network="cnn",
        shape=(28, 28),
        classes=62,
        clients=1000,
        sizes=(20, 94.0, 200),
        batch=20,
        cohort=50,
        rounds=5,
        few_rounds=5,
        spread=14.0,
    ),
    "B": Task(
        name="B",
        about="MLP 64-128-10, 9,610 parameters, 1,000 clients, cohort 100",
        network="mlp",
        shape=(64,),
        classes=10,
        clients=1000,
        sizes=(30, 50.0, 70),
        batch=10,
        cohort=100,
        rounds=60,
        few_rounds=20,
        spread=2.0,
    ),
    "C": Task(
        name="C",
        about="softmax regression 100-10, 1,010 parameters, 10,000 clients, cohort 1,000",
        network="softmax",
        shape=(100,),
        classes=10,
        clients=10_000,
        sizes=(10, 20.0, 30),
        batch=10,
        cohort=1000,
        rounds=40,
        few_rounds=5,
        spread=2.0,
    ),
}

"""What a pair's gradient becomes: one file for each update, and a row in `UPDATES` below.

Importing this imports nothing heavy, so that a command line can check itself at once.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from smda_jax.errors import InputError


@dataclass(frozen=True)
class Curvature:
    """What an update that looks at curvature is told.

    Attributes:
        tokens: the data that it is taken from; None for the pairs themselves.
        damping: added to it, in units of its mean eigenvalue, block by block.
        fisher: `true`, with answers drawn from the model, or `empirical`, with the data's own.
        seed: of that draw.
        batch: pairs of a training step, of an update that stands for a whole run.
    """

    tokens: Any = None
    damping: float = 0.1
    fisher: str = "true"
    seed: int = 0
    batch: int = 16


@dataclass(frozen=True)
class Preparation:
    """What an update is made from.

    Attributes:
        model: at the base weights.
        tokens: of the pairs.
        learning_rate: η.
        curvature: for updates that look at it.
        moved: the parameters that move; None for all.
    """

    model: Any
    tokens: Any
    learning_rate: float
    curvature: Curvature = Curvature()
    moved: Any = None


@dataclass(frozen=True)
class Offer:
    """An update by the name that `--update` takes.

    Attributes:
        name: of the update.
        module: of this package, which has a function `prepare(on: Preparation)` that returns the
            update.
        along_gradient: whether a step is the pair's own gradient times the update's `rate`, so
            that a first-order change divided by it is a product with the gradient.
        first_order: whether a step is linear in the gradient, as the first-order engines need.
        takes: fields of `Curvature` that say something to it.
    """

    name: str
    module: str
    along_gradient: bool = False
    first_order: bool = True
    takes: tuple[str, ...] = ()

    def prepare(self, on: Preparation) -> Any:
        """The update; see `updates.contract.Update`."""
        return import_module(f"{__name__}.{self.module}").prepare(on)


UPDATES = {
    offer.name: offer
    for offer in (
        Offer("sgd", "plain", along_gradient=True),
        Offer("normalised", "normalised", along_gradient=True),
        Offer("adam", "diagonal", takes=("tokens",)),
        Offer("adamw", "adamw", takes=("tokens", "batch")),
        Offer("ekfac", "kronecker", takes=("tokens", "damping", "fisher")),
    )
}
OPTIMISERS = "optax."  # any optimiser of optax by its name, which need not be linear


def offer(name: str) -> Offer:
    """The update of a name.

    Raises:
        InputError: there is none.
    """
    if name in UPDATES:
        return UPDATES[name]
    if name.startswith(OPTIMISERS):
        return Offer(name, "plain", first_order=False)
    known = ", ".join([*UPDATES, f"{OPTIMISERS}NAME"])
    raise InputError("--update", f"{name} is not known", f"one of {known}")

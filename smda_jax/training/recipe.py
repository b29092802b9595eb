"""How a model is fine-tuned: optimiser, learning rates, and which pairs every step sees."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from smda_jax.data.losses import Dpo, LossName, LossScope, Sft, make_loss
from smda_jax.errors import InputError

Schedule = Literal["linear", "cosine", "constant"]
Average = Literal["pair", "token"]
ABSENT = -1  # in an order of pairs: nothing stands there


@dataclass(frozen=True)
class Recipe:
    """A fine-tuning run; the defaults are those of arXiv 2606.29171's authors.

    Attributes:
        optimiser: of optax, by its name.
        learning_rate: at its highest.
        schedule: linear: to zero over the run; cosine: the same along half a wave; constant.
        warmup: share of the steps over which the rate rises from zero.
        weight_decay: of optimisers that take one.
        epochs: passes over the pairs, each in an order of its own.
        batch: pairs of a step; the last step of an epoch has what is left.
        clip: the gradient's norm is cut to it; 0: it is not.
        average: pair: a batch's loss is the mean of its pairs' losses; token: that of its tokens.
        seed: of the order of the pairs.
        max_length: tokens; a longer pair is cut.
        loss: sft or dpo.
        beta: of dpo.
        loss_scope: all: the whole sequence is scored; response: its answers.
    """

    optimiser: str = "adamw"
    learning_rate: float | int = 2e-5
    schedule: Schedule = "linear"
    warmup: float | int = 0.0
    weight_decay: float | int = 0.0
    epochs: int = 3
    batch: int = 16
    clip: float | int = 1.0
    average: Average = "pair"
    seed: int = 42
    max_length: int = 1024
    loss: LossName = "sft"
    beta: float | int = 0.1
    loss_scope: LossScope = "all"

    def check(self) -> None:
        """Raises InputError for values that no run could use."""
        make_optimiser(self)
        at_least = {"epochs": 1, "batch": 1, "learning_rate": 0, "clip": 0, "max_length": 2}
        for name, low in (at_least | {"weight_decay": 0, "beta": 0}).items():
            if not getattr(self, name) >= low:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(flag, f"{getattr(self, name)} is below {low}")
        if not self.learning_rate:
            raise InputError("--learning-rate", "0 trains nothing", "such as 2e-5")
        if not 0 <= self.warmup < 1:
            raise InputError("--warmup", f"{self.warmup} is not a share", "0 to 1 (exclusive)")

    @property
    def scored(self) -> Sft | Dpo:
        """The loss of a pair."""
        return make_loss(self.loss, self.loss_scope, self.beta)

    def share(self, pairs: int) -> float:
        """`Σ_k η[k] / pairs`: what a pair's loss counts in a run on so many pairs.

        To first order a run of plain steps is the sum over the pairs of `−share · g`: of every
        step, whose weights add up to one, each pair has its share on average. A gradient that is
        clipped counts for less.
        """
        return float(self.learning_rate * rates(self, self.steps(pairs)).sum() / pairs)

    def steps(self, pairs: int) -> int:
        """Optimiser steps of a run on so many pairs."""
        return self.epochs * -(-pairs // self.batch)


def make_optimiser(recipe: Recipe) -> Any:
    """The optimiser, its learning rate a part of its state.

    Raises:
        InputError: optax has none of that name that takes a learning rate.
    """
    import optax

    make: Callable[..., Any] | None = getattr(optax, recipe.optimiser, None)
    known = inspect.signature(make).parameters if callable(make) else {}
    if "learning_rate" not in known or make is None:
        what = f"{recipe.optimiser} is no optimiser of optax with a learning rate"
        raise InputError("--optimiser", what, "such as adamw, sgd, lion or adafactor")
    settings: dict[str, Any] = {}
    if "weight_decay" in known:
        settings["weight_decay"] = recipe.weight_decay
    elif recipe.weight_decay:
        raise InputError("--weight-decay", f"{recipe.optimiser} takes none")
    try:
        fixed = tuple(name for name in known if name != "learning_rate")
        injected = optax.inject_hyperparams(make, static_args=fixed)
        own = injected(learning_rate=recipe.learning_rate, **settings)
    except Exception as error:  # whatever the function thinks of its arguments
        what = f"{recipe.optimiser} cannot be made of a learning rate alone"
        raise InputError("--optimiser", what, "such as adamw, sgd or lion") from error
    return own


class Order(NamedTuple):
    """What every step of a run sees.

    Attributes:
        pair: the pairs of each step, `ABSENT` where a step has fewer.
        weight: of each one's loss in the step's, zero where there is none.
        rate: the learning rate of each step.
    """

    pair: Int[np.ndarray, "step lane"]
    weight: Float[np.ndarray, "step lane"]
    rate: Float[np.ndarray, " step"]


def order_of(
    recipe: Recipe,
    pairs: Sequence[int] | Int[np.ndarray, " pair"],
    scored: Int[np.ndarray, " any_pair"],
    weight: Float[np.ndarray, " any_pair"] | None = None,
) -> Order:
    """The steps of a run on some pairs of a data set.

    Args:
        recipe: of the run.
        pairs: trained on, by their rows in the data set.
        scored: tokens that each pair of the data set is scored on.
        weight: of each pair of the data set; default one. A pair of weight w counts w times in the
            sum of its batch's losses, whose divisor stays as it is.
    """
    rows, steps = np.asarray(pairs), []
    for epoch in range(recipe.epochs):
        drawn = np.random.default_rng((recipe.seed, epoch)).permutation(rows)
        steps += [drawn[i : i + recipe.batch] for i in range(0, len(drawn), recipe.batch)]
    pair = np.full((len(steps), min(recipe.batch, len(rows))), ABSENT)
    for step, own in enumerate(steps):
        pair[step, : len(own)] = own
    present = pair != ABSENT
    share = present.astype(float)
    if recipe.average == "token":
        share = share * scored[pair]
    share = share / share.sum(axis=1, keepdims=True)
    if weight is not None:
        share = share * weight[pair]
    return Order(pair, share, recipe.learning_rate * rates(recipe, len(steps)))


def random_subsets(
    pairs: int, count: int, fraction: float, seed: int
) -> list[Int[np.ndarray, " some"]]:
    """Random subsets of a share of the pairs, at least one pair and never all of several."""
    size = max(1, min(pairs - 1, round(fraction * pairs)))
    draws = (np.random.default_rng((seed, i)).permutation(pairs) for i in range(count))
    return [np.sort(drawn[:size]) for drawn in draws]


def rates(recipe: Recipe, steps: int) -> Float[np.ndarray, " step"]:
    """Learning rate of every step, as a share of the highest.

    Step k of T has `(T − k) / (T − T₀)` when linear, where the first T₀ steps are the warm-up, so
    that the first step behind it has the whole rate (as transformers' Trainer).
    """
    k, first = np.arange(steps), int(np.ceil(recipe.warmup * steps))
    left = (steps - k) / max(1, steps - first)
    shapes = {
        "linear": left,
        "cosine": 0.5 * (1 - np.cos(np.pi * np.clip(left, 0, 1))),
        "constant": np.ones(steps),
    }
    return np.where(k < first, k / max(1, first), shapes[recipe.schedule])


def side_by_side(orders: Sequence[Order]) -> Order:
    """Orders of several runs as one with a run axis first; a run that is over does nothing."""
    steps, lanes = (max(order.pair.shape[axis] for order in orders) for axis in (0, 1))

    def filled(values: np.ndarray, shape: tuple[int, ...], fill: float | int) -> np.ndarray:
        return np.pad(
            values,
            [(0, n - have) for n, have in zip(shape, values.shape, strict=True)],
            constant_values=fill,
        )

    return Order(
        np.stack([filled(o.pair, (steps, lanes), ABSENT) for o in orders]),
        np.stack([filled(o.weight, (steps, lanes), 0) for o in orders]),
        np.stack([filled(o.rate, (steps,), 0) for o in orders]),
    )


PATTERN = re.compile(r"([a-z][a-z0-9_]*)-([0-9.]+(?:e[+-]?[0-9]+)?)x([0-9]+)")


def recipe_named(text: str) -> Recipe:
    """A recipe such as `adamw-2e-5x3`: optimiser, learning rate, epochs; the rest as usual.

    Raises:
        InputError: it is none.
    """
    matched = PATTERN.fullmatch(text)
    if matched is None:
        remedy = "OPTIMISER-RATExEPOCHS such as adamw-2e-5x3, sgd-step, or a finetune.json"
        raise InputError("--recipe", f"{text!r} is not known", remedy)
    found = Recipe(matched[1], float(matched[2]), epochs=int(matched[3]))
    found.check()
    return found

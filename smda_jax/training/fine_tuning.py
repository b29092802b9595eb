"""Fine-tuning: runs side by side from the same weights, step by step.

One run is a fleet of one. Small models train many at a time (`jax.vmap`): what differs between runs
is which pairs a step sees, and with which weights.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from smda_jax.data.batch.batches import PairBatch, pair_batch, scored_in_a_row, scored_in_all
from smda_jax.data.batch.layouts import Padded
from smda_jax.data.batch.widths import padded_length
from smda_jax.data.tokenised import PairTokens
from smda_jax.model.moved import Moved
from smda_jax.model.params import Params
from smda_jax.reading.network import Model, Progress, silent
from smda_jax.runtime.devices import Replicated
from smda_jax.runtime.memory import halving, memory_limit
from smda_jax.runtime.precision import DType, numerics
from smda_jax.runtime.programs import RATE, RATE_ELSEWHERE, program
from smda_jax.steps.losses import scored_sums
from smda_jax.training.recipe import ABSENT, Order, Recipe, make_optimiser, side_by_side

SECONDS_A_CALL = 2.0  # of training before the host looks in again
COPIES = 6  # of a run's parameters: themselves, their gradient, optimiser state, and while moved
TOGETHER = {"cpu": 8}  # runs side by side at most, by platform: a CPU gains nothing from more
TOGETHER_ELSEWHERE = 64  # of any other platform


class State(NamedTuple):
    """Where runs stand; every array has the run axis first.

    Attributes:
        params: their parameters.
        optimiser: the optimiser's state.
    """

    params: Params
    optimiser: Any


class Steps(NamedTuple):
    """Some steps of all runs.

    Attributes:
        batch: of the pairs; leaves `[run, step, part, lane, ...]`.
        weight: of every pair's loss.
        rate: learning rate.
        live: whether there is such a step.
        reference: what the pairs' losses are compared with; see `data.losses.Loss`.
    """

    batch: PairBatch
    weight: Float[Array | np.ndarray, "run step part pair"]
    rate: Float[Array | np.ndarray, "run step"]
    live: Bool[Array | np.ndarray, "run step"]
    reference: Float[Array | np.ndarray, "run step part pair row"]


@dataclass(frozen=True)
class Training:
    """What is trained, and how.

    Attributes:
        model: that all runs start from; its dtype is that of the parameters.
        tokens: of all pairs that runs draw from.
        recipe: of the runs.
        moved: the parameters that move; None for all.
        compute: precision of the passes; None: the parameters' own.
    """

    model: Model
    tokens: Sequence[PairTokens]
    recipe: Recipe
    moved: Moved | None = None
    compute: DType | None = None

    @cached_property
    def scored(self) -> Int[np.ndarray, " pair"]:
        """Tokens that each pair is scored on."""
        return np.array([scored_in_all(t) for t in self.tokens])

    @cached_property
    def reference(self) -> Float[np.ndarray, "pair row"]:
        """Every pair's sums at the base weights, where the loss compares with them; else zeros."""
        loss = self.tokens[0].loss
        found = np.zeros((len(self.tokens), loss.rows))
        if loss.compared:
            params = self.model.params
            if self.compute is not None:  # as the passes of the steps are
                params = self.model.astype(self.compute).params
            for i, pair in enumerate(self.tokens):
                batch = pair_batch([pair], Padded(padded_length(pair.length), 1))
                with numerics(self.model.dtype):
                    found[i] = np.asarray(_sums.run(params, batch))[0]
        return found

    def begin(self, runs: int = 1) -> State:
        """Runs at the base weights."""

        def copies(leaf: Array) -> Array:
            return jnp.repeat(leaf[None], runs, axis=0)

        with numerics(self.model.dtype):
            rule: Any = make_optimiser(self.recipe)
            params = jax.tree.map(copies, self.model.params)
            with jax.numpy_dtype_promotion("standard"):
                return State(params, jax.vmap(rule.init)(params))

    def steps_a_call(self, order: Order) -> int:
        """Steps that take about `SECONDS_A_CALL`, by count."""
        mean = float(np.mean([t.total for t in self.tokens]))
        tokens = order.pair.shape[0] * order.pair.shape[2] * mean
        rate = RATE.get(jax.default_backend(), RATE_ELSEWHERE)
        each = 3 * self.model.config.flop_per_token * tokens / rate
        return int(np.clip(SECONDS_A_CALL / each, 1, order.pair.shape[1]))

    def run(
        self,
        orders: Sequence[Order],
        state: State | None = None,
        *,
        first: int = 0,
        each: Callable[[int, State, Float[np.ndarray, "run step"]], None] = lambda *_: None,
        stops: Sequence[int] = (),
    ) -> State:
        """Trains runs side by side to their ends.

        Args:
            orders: of the runs.
            state: to go on from; default the base weights.
            first: the step to begin with.
            each: told (steps done, state, losses of the latest steps) now and then. The state's
                memory is used again afterwards: copy what is to be kept.
            stops: numbers of steps after which `each` is told in any case.

        Raises:
            TooLargeError: not even one pair at a time fits into memory.
        """
        order = side_by_side(orders)
        at = self.begin(len(orders)) if state is None else state
        most, total = self.steps_a_call(order), order.pair.shape[1]
        size, done = order.pair.shape[2], first
        with numerics(self.model.dtype):
            while done < total:
                ahead = min([s for s in stops if s > done] + [total]) - done
                count = min(most, ahead)
                some = slice(done, done + count)

                def advance(size: int, some: slice = some, at: State = at) -> Any:
                    steps = self._steps(order, some, most, size)
                    return _advance.run(at, steps, **self._static())

                kept = {}

                def smaller(part: int, advance: Any = advance, kept: dict = kept) -> Any:
                    kept["size"] = part
                    return advance(part)

                at, losses = halving(smaller, size)
                size, done = kept["size"], done + count
                each(done, at, np.asarray(losses, np.float64)[:, :count])
        return at

    def _static(self) -> dict[str, Any]:
        same = self.compute is None or jnp.dtype(self.compute) == self.model.dtype
        # What else a recipe says is in the steps: one program serves many recipes.
        r = self.recipe
        rule = Recipe(optimiser=r.optimiser, weight_decay=r.weight_decay, clip=r.clip)
        return {"recipe": rule, "moved": self.moved, "compute": None if same else self.compute}

    def _steps(self, order: Order, some: slice, most: int, size: int) -> Steps:
        """Steps of all runs as arrays; filled up to `most` steps, and cut into parts of a size."""
        pair, weight, rate = (values[:, some] for values in order)
        short, parts = most - pair.shape[1], -(-pair.shape[2] // size)
        fill = parts * size - pair.shape[2]
        pair = np.pad(pair, [(0, 0), (0, short), (0, fill)], constant_values=ABSENT)
        weight = np.pad(weight, [(0, 0), (0, short), (0, fill)])
        rate = np.pad(rate, [(0, 0), (0, short)])
        lead = (*pair.shape[:2], parts)
        chosen = [self.tokens[i] for i in np.maximum(pair, 0).ravel().tolist()]
        # Of one run the longest pairs in sight, of several those of all, so that programs are few.
        seen = chosen if len(pair) == 1 else self.tokens
        width = padded_length(max(t.length for t in seen))
        positions = padded_length(max(scored_in_a_row(t) for t in seen))
        batch = pair_batch(chosen, Padded(width, len(chosen), positions))

        def split(leaf: np.ndarray) -> np.ndarray:
            return leaf.reshape(*lead, -1, *leaf.shape[1:])

        present = (pair != ABSENT).any(axis=2)
        weights = np.where(pair == ABSENT, 0, weight).reshape(*lead, size)
        reference = self.reference[np.maximum(pair, 0)].reshape(*lead, size, -1)
        return Steps(jax.tree.map(split, batch), weights, rate, present, reference)

    def models(self, state: State) -> Iterator[Model]:
        """Every run's model."""
        for run in range(jax.tree.leaves(state.params)[0].shape[0]):
            params = jax.tree.map(lambda leaf, run=run: leaf[run], state.params)
            yield Model(params, self.model.chat)

    @property
    def together(self) -> int:
        """Runs that are trained side by side: as many as take an eighth of the memory, by count."""
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.model.params))
        most = TOGETHER.get(jax.default_backend(), TOGETHER_ELSEWHERE)
        return int(np.clip(memory_limit() // (8 * COPIES * size), 1, most))

    def trained(self, orders: Sequence[Order], progress: Progress = silent) -> Iterator[Model]:
        """The models that runs end in, in order; told the share of the work just done."""
        total = sum(len(order.pair) for order in orders)
        size = -(-len(orders) // -(-len(orders) // self.together))
        for start in range(0, len(orders), size):
            group = orders[start : start + size]
            share = sum(len(order.pair) for order in group) / total
            told = _Told(progress, share / max(len(order.pair) for order in group))
            # Groups of one size share a compiled program: the last run is repeated.
            filled = [*group, *[group[-1]] * (size - len(group))]
            yield from islice(self.models(self.run(filled, each=told)), len(group))


def mean_model(models: Sequence[Model]) -> Model:
    """The mean of some models' weights."""
    count, own = len(models), [model.params for model in models]
    params = jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]) / count, *own)
    return replace(models[0], params=params)


@dataclass
class _Told:
    """Tells a progress of steps.

    Attributes:
        progress: that is told.
        share: of a step in the whole.
        done: steps that it knows of.
    """

    progress: Progress
    share: float
    done: int = 0

    def __call__(self, done: int, *_: Any) -> None:
        """So many steps are done."""
        self.progress((done - self.done) * self.share)
        self.done = done


@program(
    Replicated(),
    Replicated(),
    result=Replicated(),
    static=("recipe", "moved", "compute"),
    donate=(0,),
)
def _advance(
    state: State, steps: Steps, recipe: Recipe, moved: Moved | None, compute: DType | None
) -> tuple[State, Float[Array, "run step"]]:
    """Steps of every run, and its losses before each."""
    rule: Any = make_optimiser(recipe)

    def one_run(state: State, steps: Steps) -> tuple[State, Array]:
        return jax.lax.scan(one_step, state, steps)

    def one_step(state: State, step: Steps) -> tuple[State, Array]:
        def loss(params: Params, part: tuple[PairBatch, Array, Array]) -> Array:
            if compute is not None:
                params = jax.tree.map(lambda leaf: leaf.astype(compute), params)
            batch, weight, reference = part
            losses = batch.loss.value(scored_sums(params, batch)[0], reference)
            return jnp.sum(losses * weight)

        def add(total: Any, part: tuple[PairBatch, Array, Array]) -> tuple[Any, None]:
            own = jax.value_and_grad(loss)(state.params, part)
            return jax.tree.map(jnp.add, total, own), None

        dtype = step.weight.dtype
        nothing = (jnp.zeros((), dtype), jax.tree.map(jnp.zeros_like, state.params))
        parts: Any = (step.batch, step.weight, step.reference)
        (value, g), _ = jax.lax.scan(add, nothing, parts)
        g = g if moved is None else moved.masked(g)
        if recipe.clip:
            cut: Any = optax.clip_by_global_norm(recipe.clip)
            g, _ = cut.update(g, cut.init(g))
        optimiser = state.optimiser
        rates = {"learning_rate": step.rate.astype(optimiser.hyperparams["learning_rate"].dtype)}
        optimiser = optimiser._replace(hyperparams=optimiser.hyperparams | rates)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its counts with floats
            change, after = rule.update(g, optimiser, state.params)
        change = change if moved is None else moved.masked(change)  # a decay would move the others
        params: Any = optax.apply_updates(state.params, change)  # type: ignore[arg-type]
        new = State(params, after)
        # A run that is over stays as it is.
        kept = jax.tree.map(lambda a, b: jnp.where(step.live, a, b), new, state)
        return kept, value

    return jax.vmap(one_run)(state, steps)


@program(Replicated(), Replicated(), result=Replicated())
def _sums(params: Params, batch: PairBatch) -> Float[Array, "pair row"]:
    return scored_sums(params, batch)[0]

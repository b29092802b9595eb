"""What is pushed: steps, and the engines `forward` and `finite`, over whole data sets, batched and put together again."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from smda_jax.data.batches import (
    LengthBlock,
    blocks_by_length,
    padded_length,
    pair_batch,
    prompt_batch,
    scored_positions,
)
from smda_jax.data.chat import LossScope, PairTokens
from smda_jax.data.records import Pairs
from smda_jax.jacobian import programs
from smda_jax.jacobian.evaluation import Evaluation, Model, Progress, silent, tokenise_pairs
from smda_jax.jacobian.factors import Factors, PairStatistics
from smda_jax.jacobian.factors import factors as factor_block
from smda_jax.jacobian.finite import finite as finite_block
from smda_jax.jacobian.forward import forward as forward_block
from smda_jax.jacobian.programs import TooLargeError, for_each
from smda_jax.jacobian.readout import Reading
from smda_jax.model.llama import Params
from smda_jax.model.mesh import fetch, is_spread, rows_of
from smda_jax.model.precision import jit, numerics
from smda_jax.sae.encoder import activation, gate, pre_activation


class Delta(NamedTuple):
    """Change under each pair's step.

    Attributes:
        z: of pre-activations, before the gate; NaN where it was not asked for.
        x: of the activations.
        y: of Y.
        h: of the residual stream at each of the site's layers, where an engine gives that.
    """

    z: Float[np.ndarray, "pair prompt feature"]
    x: Float[np.ndarray, "pair prompt feature"]
    y: Float[np.ndarray, "pair prompt"]
    h: Float[np.ndarray, "pair layer prompt hidden"] | None = None


class Update(NamedTuple):
    """How a step follows from a pair's gradient g: `-η P∘g`, or `-η P∘g / ‖g‖` (the norm that of g itself).

    Attributes:
        learning_rate: η.
        normalised: whether to divide by the norm.
        scaling: the diagonal preconditioner P, shaped like the parameters; None for 1.
    """

    learning_rate: float
    normalised: bool = False
    scaling: Params | None = None

    @property
    def eta(self) -> Float[Array, ""]:
        """η as the passes take it; one that is too large for them is infinite, and its steps are refused by name."""
        with np.errstate(over="ignore"):
            return jnp.asarray(self.learning_rate)


def factors_of(
    model: Model,
    tokens: Sequence[PairTokens],
    update: Update,
    scope: LossScope = "response",
    *,
    width: int = 0,
    rows: int = 0,
    positions: int = 0,
    at_a_time: int = 16,
    limit: int | None = None,
) -> tuple[Factors, PairStatistics]:
    """Factors of one block of tokenised pairs.

    `width`, `rows` and `positions` ask for at least so many padded tokens, pairs (the last is repeated) and scored positions,
    so that blocks share a compiled program. The backward pass takes `at_a_time` pairs, or as many as memory holds.

    Raises:
        TooLargeError: not even one pair at a time fits.
    """
    shape = {"width": width, "rows": rows, "positions": positions, "limit": limit}
    while at_a_time > 1:
        try:
            return _factors_of(model, tokens, update, scope, at_a_time=at_a_time, **shape)
        except TooLargeError:
            at_a_time //= 2
    return _factors_of(model, tokens, update, scope, at_a_time=1, **shape)


def _factors_of(
    model: Model,
    tokens: Sequence[PairTokens],
    update: Update,
    scope: LossScope,
    *,
    width: int,
    rows: int,
    positions: int,
    at_a_time: int,
    limit: int | None,
) -> tuple[Factors, PairStatistics]:
    width = width or padded_length(max(len(t.ids) for t in tokens))
    rows, limit = max(rows, len(tokens)), limit or programs.memory_limit()
    filled = [*tokens, *[tokens[-1]] * (rows - len(tokens))]
    positions = max(positions, *(len(scored_positions(t, scope)) for t in tokens))
    parts = -(-rows // at_a_time)
    size = rows_of(-(-rows // parts))
    filled += [tokens[-1]] * (parts * size - rows)
    with numerics(model.dtype):
        eta = update.eta
        done = []
        out = (Factors(1, 1, 0, 0, 0, 0, 0, -1, model.config), 0)  # type: ignore[arg-type]
        for start in range(0, parts * size, size):
            batch = pair_batch(filled[start : start + size], scope, width, size, positions)
            args = (model.params, batch, eta, update.scaling)
            done.append(
                programs.run(
                    _factors, model.config, *args, limit=limit, axes=(-1, 0, -1, -1), out=out, normalised=update.normalised
                )
            )
        if parts == 1 and size == rows:
            return done[0]
        steps = jax.tree.map(
            lambda axis, *leaves: leaves[0] if axis is None else jnp.concatenate(leaves, axis)[_first(rows, axis)],
            done[0][0].axes(), *[part[0] for part in done], is_leaf=lambda leaf: leaf is None,
        )  # fmt: skip
        return steps, PairStatistics(*(jnp.concatenate(v)[:rows] for v in zip(*(part[1] for part in done), strict=True)))


def in_groups(
    model: Model, tokens: Sequence[PairTokens], update: Update, scope: LossScope = "response"
) -> tuple[tuple[Factors, ...], PairStatistics, Int[np.ndarray, " pair"]]:
    """Factors of pairs in groups of like length, which pad less than one; statistics in the groups' order.

    What an engine makes of the groups has the pairs in their order: its rows `[back]`, the last of what is returned, are those
    of `tokens`.
    """
    # Devices share out every group: several would be told apart on each.
    # Each token of a pair goes some six times through the model: for its factors, and again for every block's matrices.
    worth = np.inf if is_spread() else programs.worth(model.config, 6)
    done, order = [], []
    for rows, width, _ in blocks_by_length([len(t.ids) for t in tokens], len(tokens), worth):
        size = rows_of(len(rows))
        own = [tokens[i] for i in rows]
        done.append(factors_of(model, own, update, scope, width=width, rows=size))
        order.append(np.pad(rows, (0, size - len(rows)), "edge"))
    found = zip(*(one[1] for one in done), strict=True)
    statistics = PairStatistics(*(np.concatenate([fetch(part) for part in parts]) for parts in found))
    back = np.unique(np.concatenate(order), return_index=True)[1]
    return tuple(one[0] for one in done), statistics, back


def _first(count: int, axis: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(count))


def factors(
    model: Model,
    pairs: Pairs,
    *,
    learning_rate: float = 1e-4,
    normalised: bool = False,
    scaling: Params | None = None,
    loss_scope: LossScope = "response",
    max_length: int = 512,
) -> Factors:
    """One step on each pair, in factored form.

    Args:
        model: from `load_model`.
        pairs: from `read_pairs`.
        learning_rate: η of the step.
        normalised: divide each pair's gradient by its norm.
        scaling: diagonal preconditioner, shaped like `model.params`.
        loss_scope: response, or all tokens.
        max_length: tokens; a longer pair is cut.

    Raises:
        InputError: a pair of which nothing of the response is left.
    """
    update = Update(learning_rate, normalised, scaling)
    return factors_of(model, tokenise_pairs(model, pairs, max_length), update, loss_scope)[0]


def forward(
    evaluation: Evaluation,
    steps: Factors,
    *,
    prompts: Int[np.ndarray, " prompt"] | None = None,
    block: int = 64,
    residual: bool = False,
    progress: Progress = silent,
) -> Delta:
    """First-order change of X and Y under each pair's step (engine `forward`); of some prompts, if they are given.

    `residual` asks for the change of the residual stream too.
    """
    return _push(forward_block, _first_order, evaluation, steps, prompts, block, residual, progress)


def finite(
    evaluation: Evaluation,
    steps: Factors,
    *,
    prompts: Int[np.ndarray, " prompt"] | None = None,
    block: int = 64,
    residual: bool = False,
    progress: Progress = silent,
) -> Delta:
    """True change of X and Y after each pair's step (engine `finite`): decompose it with `exact=True`."""
    return _push(finite_block, true_change, evaluation, steps, prompts, block, residual, progress)


def _push(
    engine: Callable[..., Reading],
    encode: Callable[..., tuple[Array, Array]],
    e: Evaluation,
    steps: Factors,
    chosen: np.ndarray | None,
    block: int,
    residual: bool,
    progress: Progress,
) -> Delta:
    chosen = np.arange(len(e.tokens)) if chosen is None else chosen
    pairs, dtype = steps.pairs, e.h.dtype
    dz, dx = (np.zeros((pairs, len(chosen), len(e.feature_ids)), dtype) for _ in range(2))
    dy = np.zeros((pairs, len(chosen)), dtype)
    dh = np.zeros((pairs, len(e.site.layers), len(chosen), e.h.shape[1]), dtype) if residual else None
    shared, tail = e.shared, max(map(len, e.targets.rows))
    # Buckets of what is not shared: the shared tokens are run once per batch.
    lengths = [len(e.tokens[i].ids) - shared + tail for i in chosen.tolist()]
    limit = programs.memory_limit()

    def one(part: LengthBlock) -> None:
        rows, width, size = part.rows, part.width, rows_of(part.size)
        own = chosen[rows]
        batch = prompt_batch([e.tokens[i] for i in own], e.targets, shared + width, shared, size)
        static = {"targets": e.targets, "site": e.site}
        axes = {"axes": (-1, -1, 0), "out": Reading(1, 1, 2)}  # type: ignore[arg-type]
        out = programs.run(engine, e.model.config, e.model.params, steps, batch, limit=limit, **axes, **static)
        out = jax.tree.map(fetch, out) if is_spread() else out
        # Padded like the batch: another shape would be another compilation.
        with numerics(dtype):
            z, x = encode(e.encoder, jnp.asarray(e.h[np.pad(own, (0, size - len(own)), "edge")]), jnp.asarray(out.h))
        dz[:, rows], dx[:, rows] = np.asarray(z)[:, : len(rows)], np.asarray(x)[:, : len(rows)]
        dy[:, rows] = np.asarray(out.y, dtype)[:, : len(rows)]
        if dh is not None:
            both = np.concatenate([np.asarray(out.h, dtype)[None], np.asarray(out.also, dtype)])
            dh[:, :, rows] = np.swapaxes(both, 0, 1)[:, :, : len(rows)]
        progress(len(rows) / len(chosen))

    with numerics(e.model.dtype):
        split = partial(blocks_by_length, worth=programs.worth(e.model.config, 2 * pairs))
        for_each(lengths, block, split, one)
    return Delta(dz, dx, dy, dh)


_factors = jit(factor_block, static_argnames=("config", "normalised"))


@jit
def _first_order(encoder: Any, h: Array, dh: Array) -> tuple[Array, Array]:
    _, linear = jax.linearize(partial(pre_activation, encoder), h)
    dz = jax.vmap(linear)(dh.astype(h.dtype))
    return dz, jnp.where(gate(encoder, h)[None], dz, jnp.zeros_like(dz))


@jit
def true_change(encoder: Any, h: Array, dh: Array) -> tuple[Array, Array]:
    """Change of pre-activations and activations where h changes by dh (pair axis first)."""
    after = h[None] + dh.astype(h.dtype)
    z, x = ((jax.vmap(partial(read, encoder))(after) - read(encoder, h)[None]) for read in (pre_activation, activation))
    return z, x

"""Engine `query` over a data set: functionals are pulled back over all prompts, then asked of block after block of pairs."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from smda_jax.data.batches import padded_length, pair_batch, scored_positions, shared_pair_length
from smda_jax.data.chat import LossScope, PairTokens
from smda_jax.data.lanes import LaneBlock, LaneShape, packed_blocks, packed_pairs, packed_prompts
from smda_jax.jacobian import programs, query
from smda_jax.jacobian.evaluation import Evaluation, Model, Progress, silent
from smda_jax.jacobian.factors import PairStatistics
from smda_jax.jacobian.passes import Update
from smda_jax.jacobian.programs import for_each
from smda_jax.jacobian.query import Query
from smda_jax.model.llama import Params
from smda_jax.model.mesh import fetch, rows_of
from smda_jax.model.precision import numerics


def pull_policy(
    evaluation: Evaluation,
    weight_z: Float[np.ndarray, "functional prompt feature"] | None,
    weight_y: Float[np.ndarray, "functional prompt"] | None,
    *,
    scaling: Params | None = None,
    block: int = 64,
    progress: Progress = silent,
) -> Query:
    """Gradients of functionals `Σ weight_z·ΔZ + Σ weight_y·ΔY` with respect to the parameters (engine `query`).

    Args:
        evaluation: from `activations`.
        weight_z: of the change of each pre-activation (zero where its gate is closed); None if the functionals have none.
        weight_y: of the change of each Y; None if they have none.
        scaling: diagonal preconditioner of the update rule.
        block: prompts at a time.
        progress: told the share of the work just done.
    """
    e, limit = evaluation, programs.memory_limit()
    shared, tail = e.shared, max(map(len, e.targets.rows))
    weights = [w for w in (weight_z, weight_y) if w is not None]
    # A prompt that no functional looks at need not be run.
    chosen = np.flatnonzero(np.any([np.any(w.reshape(*w.shape[:2], -1), axis=(0, 2)) for w in weights], axis=0))
    chosen = chosen if len(chosen) else np.zeros(1, int)  # all are nought: so are their gradients
    total: list[Query] = []

    def own(weight: np.ndarray | None, rows: np.ndarray, laid: np.ndarray) -> np.ndarray | None:
        if weight is None:
            return None
        padding = [(0, 0), (0, len(laid) - len(rows)), *[(0, 0)] * (weight.ndim - 2)]
        return np.pad(weight[:, rows], padding)[:, laid].astype(e.h.dtype)

    def one(part: LaneBlock) -> None:
        rows, laid = chosen[part.rows], part.shape.laid()
        batch = packed_prompts([e.tokens[i] for i in rows], e.targets, part.shape, shared)
        args = (e.model.params, batch, e.encoder, own(weight_z, rows, laid), own(weight_y, rows, laid))
        axes = {"axes": (-1, 0, -1, 1, 1), "out": programs.SUM}
        out = programs.run(query.query, e.model.config, *args, limit=limit, targets=e.targets, site=e.site, **axes)
        total[:] = [query.add(total[0], out) if total else out]
        progress(len(rows) / len(chosen))

    with numerics(e.model.dtype):
        split = partial(packed_blocks, lanes=rows_of(1))
        for_each([len(e.tokens[i].ids) - shared + tail for i in chosen], block, split, one)
        return query.finish(total[0], scaling, e.model.dtype)


def answer(
    model: Model,
    tokens: Sequence[PairTokens],
    queries: tuple[Query, ...],
    update: Update,
    scope: LossScope = "response",
    *,
    width: int = 0,
    rows: int = 0,
    positions: int = 0,
) -> tuple[list[Float[np.ndarray, "functional pair"]], PairStatistics]:
    """Change of every functional under every pair's step, and the pairs' losses and gradient norms.

    Args:
        model: from `load_model`.
        tokens: of the pairs.
        queries: from `pull_policy`.
        update: the step.
        scope: response, or all tokens.
        width: padded tokens; given so that blocks share a compiled program.
        rows: least padded pairs.
        positions: least padded scored positions.
    """
    width, n = width or padded_length(max(len(t.ids) for t in tokens)), len(tokens)
    with numerics(model.dtype):
        batch = pair_batch(tokens, scope, width, rows_of(max(rows, n)), positions)
        args, rest = (model.params, batch, queries, update.eta), {"axes": (-1, 0, -1, -1), "out": (1, 0)}
        limit, normalised = programs.memory_limit(), update.normalised
        out, statistics = programs.run(query.answer, model.config, *args, limit=limit, normalised=normalised, **rest)
    return [fetch(v)[:, :n] for v in out], PairStatistics(*(fetch(v)[:n] for v in statistics))


def pair_blocks(
    tokens: Sequence[PairTokens], most: int, scope: LossScope = "response", shared: int | None = None
) -> list[LaneBlock]:
    """Blocks of pairs for `along`; a pure function of its arguments and the number of devices.

    `shared` are the leading tokens that the pairs have in common, if not only these.
    """
    shared = shared_pair_length(tokens, scope) if shared is None else shared
    scored = [len(scored_positions(t, scope)) for t in tokens]
    return list(packed_blocks([len(t.ids) - shared for t in tokens], most, rows_of(1), scored))


def along(
    model: Model,
    tokens: Sequence[PairTokens],
    asked: Query,
    learning_rate: float,
    scope: LossScope = "response",
    *,
    shape: LaneShape | None = None,
    shared: int | None = None,
) -> tuple[Float[np.ndarray, "functional pair"], PairStatistics]:
    """Change of few functionals under every pair's plain step, and the pairs' losses: `answer` without gradient norms (NaN).

    Args:
        model: from `load_model`.
        tokens: of the pairs; the longest first, if a shape is given.
        asked: from `pull_policy`.
        learning_rate: η.
        scope: response, or all tokens.
        shape: of a block of `pair_blocks`, so that all share a compiled program.
        shared: leading tokens that the pairs have in common, if not only these.
    """
    shared = shared_pair_length(tokens, scope) if shared is None else shared
    if shape is None:
        (block,) = pair_blocks(tokens, len(tokens), scope)
        how = {"shape": block.shape, "shared": shared}
        values, statistics = along(model, [tokens[i] for i in block.rows], asked, learning_rate, scope, **how)
        back = np.argsort(block.rows)
        return values[:, back], PairStatistics(*(np.asarray(v)[back] for v in statistics))
    back = np.argsort(shape.laid())[: len(tokens)]
    with numerics(model.dtype):
        args = (model.params, packed_pairs(tokens, scope, shape, shared), asked, Update(learning_rate).eta)
        rest = {"axes": (-1, 0, -1, -1), "out": (1, 0)}
        out, statistics = programs.run(query.along, model.config, *args, limit=programs.memory_limit(), **rest)
    return fetch(out)[:, back], PairStatistics(*(fetch(v)[back] for v in statistics))

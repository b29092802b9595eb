"""Engine `query` over a data set: readouts are pulled back over all prompts, then asked of
pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from smda_jax.data.batch.batches import (
    pair_batch,
    prompt_batch,
    scored_in_all,
    scored_positions,
    shared_pair_length,
)
from smda_jax.data.batch.chunks import Chunk, packed_chunks
from smda_jax.data.batch.layouts import Layout, Padded
from smda_jax.data.batch.widths import padded_length
from smda_jax.data.tokenised import PairTokens
from smda_jax.engines.query import program
from smda_jax.engines.query.program import Query, Weighted, Weighting
from smda_jax.reading.evaluation import Evaluation
from smda_jax.reading.network import Progress, silent
from smda_jax.runtime.devices import devices, fetch
from smda_jax.runtime.memory import for_each
from smda_jax.runtime.precision import numerics
from smda_jax.steps.dataset import Stepping
from smda_jax.steps.gradient import PairStatistics
from smda_jax.steps.updates.contract import Update

Answers = tuple[list[Float[np.ndarray, "readout pair"]], PairStatistics]


def pull_readouts(
    evaluation: Evaluation,
    weighting: Weighting,
    update: Update | None = None,
    *,
    batch_size: int = 64,
    progress: Progress = silent,
) -> Query:
    """Gradients of linear readouts `Σ weight_z·ΔZ + Σ weight_y·ΔY` with respect to the parameters.

    Args:
        evaluation: from `activations`.
        weighting: of the change of each pre-activation (zero where its gate is closed), and of the
            change of each Y.
        update: what the steps will be; None for plain ones.
        batch_size: prompts at a time.
        progress: told the share of the work just done.
    """
    e, shared = evaluation, evaluation.shared
    moved = None if update is None else update.moved
    weights = [w for w in weighting if w is not None]
    # A prompt that no readout looks at need not be run.
    looked_at = [np.any(w.reshape(*w.shape[:2], -1), axis=(0, 2)) for w in weights]
    chosen = np.flatnonzero(np.any(looked_at, axis=0))
    chosen = chosen if len(chosen) else np.zeros(1, int)  # all are zero: so are their gradients
    total: list[Query] = []

    def visit(chunk: Chunk) -> None:
        rows = chunk.of_rows(chosen[chunk.rows])

        def of_batch(weight: np.ndarray | None) -> np.ndarray | None:
            return None if weight is None else rows.gather(weight, 1).astype(e.h.dtype)

        own = [e.tokens[i] for i in rows.rows]
        batch = prompt_batch(own, chunk.layout, shared)
        weighted = Weighted(e.encoder, Weighting(*map(of_batch, weighting)))
        args = (e.params, batch, weighted)
        found = program.query.run(*args, behaviour=e.behaviour, site=e.site, moved=moved)
        total[:] = [program.add(total[0], found) if total else found]
        progress(len(own) / len(chosen))

    with numerics(e.model.dtype):
        split = partial(packed_chunks, lanes=devices().round_up(1))
        for_each(e.tails(chosen), batch_size, split, visit)
        update = (update or Update(1.0)).ready()
        return program.finish(total[0], update, dtype=e.model.dtype)


@dataclass(frozen=True)
class Asking:
    """How pairs are asked what their steps do to a query.

    Attributes:
        stepping: how they are stepped on.
        shared: leading tokens that all pairs have in common, which are then run once; only where
            readouts are asked along a tangent.
    """

    stepping: Stepping
    shared: int = 0

    @classmethod
    def along(cls, stepping: Stepping, tokens: Sequence[PairTokens]) -> "Asking":
        """For readouts that are asked along a tangent."""
        return cls(stepping, shared_pair_length(tokens))

    def chunks(self, tokens: Sequence[PairTokens], most: int) -> list[Chunk]:
        """Packed chunks of pairs; a pure function of its arguments and the number of devices."""
        scored = [scored_in_all(t) for t in tokens]
        lengths = [t.length - self.shared for t in tokens]
        return list(packed_chunks(lengths, most, devices().round_up(1), scored))


def inner_products(
    stepping: Stepping,
    tokens: Sequence[PairTokens],
    queries: tuple[Query, ...],
    layout: Padded | None = None,
) -> Answers:
    """Change of every readout under every pair's step, and the pairs' losses and gradient norms.

    Args:
        stepping: how pairs are stepped on.
        tokens: of the pairs.
        queries: from `pull_readouts`.
        layout: given so that chunks share a compiled program.
    """
    n = len(tokens)
    layout = layout or Padded(padded_length(max(t.length for t in tokens)), n)
    size = devices().round_up(max(layout.size, n))
    own = Padded(layout.width, size, layout.positions)
    with numerics(stepping.model.dtype):
        batch = pair_batch(tokens, own)
        args = (stepping.model.params, batch, queries, stepping.update.ready())
        values, found = program.inner_products.run(*args)
    statistics = PairStatistics(*(fetch(v)[:n] for v in found))
    return [fetch(v)[:, :n] for v in values], statistics


def directional_derivative(
    asking: Asking, tokens: Sequence[PairTokens], query: Query, layout: Layout | None = None
) -> tuple[Float[np.ndarray, "readout pair"], PairStatistics]:
    """Change of few readouts under every pair's plain step, and the pairs' losses.

    As `inner_products` without gradient norms (NaN).

    Args:
        asking: how.
        tokens: of the pairs; the longest first, if a layout is given.
        query: from `pull_readouts`.
        layout: of a chunk of `Asking.chunks`, so that all share a compiled program.
    """
    stepping = asking.stepping
    if layout is None:
        (chunk,) = asking.chunks(tokens, len(tokens))
        own = [tokens[i] for i in chunk.rows]
        values, found = directional_derivative(asking, own, query, chunk.layout)
        inverse = np.argsort(chunk.rows)
        return values[:, inverse], PairStatistics(*(np.asarray(v)[inverse] for v in found))
    rows = Chunk(np.arange(len(tokens)), layout)
    with numerics(stepping.model.dtype):
        batch = pair_batch(tokens, layout, asking.shared)
        args = (stepping.model.params, batch, query, stepping.update.ready())
        values, found = program.directional_derivative.run(*args)
    statistics = PairStatistics(*(rows.scatter(fetch(v)) for v in found))
    return rows.scatter(fetch(values), 1), statistics


def token_contributions(
    stepping: Stepping,
    tokens: Sequence[PairTokens],
    query: Query,
    norm: Float[np.ndarray, " pair"],
    layout: Padded | None = None,
) -> list[list[Float[np.ndarray, "readout position"]]]:
    """What each scored token of each row of each pair contributes to the change of every readout.

    Args:
        stepping: how pairs are stepped on.
        tokens: of the pairs.
        query: from `pull_readouts`.
        norm: of the pairs' gradients; NaN where no update asks.
        layout: given so that chunks share a compiled program.
    """
    n = len(tokens)
    layout = layout or Padded(padded_length(max(t.length for t in tokens)), n)
    size = devices().round_up(max(layout.size, n))
    with numerics(stepping.model.dtype):
        batch = pair_batch(tokens, Padded(layout.width, size, layout.positions))
        known = np.pad(norm, (0, size - n), "edge").astype(stepping.model.dtype)
        args = (stepping.model.params, batch, query, stepping.update.ready(), known)
        found = fetch(program.token_contributions.run(*args))[:, :, 0]
    rows = found.reshape(len(found), size, tokens[0].loss.rows, -1)
    return [
        [
            rows[:, i, j, : len(scored_positions(row, pair.loss)[0])]
            for j, row in enumerate(pair.rows)
        ]
        for i, pair in enumerate(tokens)
    ]

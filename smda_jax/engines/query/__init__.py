"""Engine `query`: pulls the policy itself back to the parameters, then asks every pair."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from smda_jax.data.batch.chunks import Chunk, padded_chunks
from smda_jax.data.batch.layouts import Padded
from smda_jax.engines.changes import mean_of, with_room
from smda_jax.engines.contract import BlockShifts, Job, Part, refuse_non_finite
from smda_jax.engines.offers import OFFERS, EngineOffer
from smda_jax.engines.query import price as prices
from smda_jax.engines.query.dataset import Asking, directional_derivative, inner_products
from smda_jax.engines.query.program import Query
from smda_jax.engines.query.questions import Questions
from smda_jax.engines.workload import Price, Workload
from smda_jax.reading.network import Progress
from smda_jax.runtime.memory import TooLargeError
from smda_jax.runtime.programs import padding_budget
from smda_jax.steps.gradient import PairStatistics


class QueryEngine:
    """See `Engine`."""

    offer: EngineOffer = OFFERS["query"]
    item: ClassVar[str] = "readout"
    axes: ClassVar[Mapping[str, int]] = {"value": 0}

    def price(self, work: Workload, limit: int) -> Price:
        """See `Engine`."""
        return prices.price(work, limit)

    @staticmethod
    def _along_tangents(job: Job) -> bool:
        """Whether pairs are asked without forming their gradients.

        Only scores are, and not under a step that needs the gradients' norms.
        """
        return not job.keep.coefficients and not job.stepping.update.needs_norm

    @staticmethod
    def _asking(job: Job) -> Asking:
        return Asking(job.stepping, job.shared_pairs)

    def blocks(self, job: Job) -> list[Chunk]:
        """See `Engine`."""
        if self._along_tangents(job):
            return self._asking(job).chunks(job.tokens, job.pair_chunk)
        budget = padding_budget(job.stepping.model.config.flop_per_token, 3)
        lengths = [t.length for t in job.tokens]
        return with_room(job, padded_chunks(lengths, job.pair_chunk, budget))

    def items(self, job: Job) -> int:
        """See `Engine`."""
        return Questions(job).count

    def compute(
        self, job: Job, blocks: list[Chunk], missing: list[np.ndarray], advance: Progress
    ) -> Iterator[Part]:
        """See `Engine`: readouts, a group at a time, against all pairs."""
        questions = Questions(job)
        left = np.unique(np.concatenate(missing)).astype(int)
        for start in range(0, len(left), job.readouts_at_a_time):
            numbers = left[start : start + job.readouts_at_a_time]
            queries = questions.pull(numbers.tolist())
            for block, (chunk, own) in enumerate(zip(blocks, missing, strict=True)):
                if not np.isin(numbers, own).any():
                    continue
                values, found = self._ask(job, chunk, queries)
                fine = np.isfinite(values).all(axis=0) & np.isfinite(found.loss)
                refuse_non_finite(chunk.rows, fine, "its loss, gradient or step")
                yield Part(block, numbers, {"value": values}, found)
                share = len(chunk.rows) / len(job.tokens)
                advance(share * len(numbers) / questions.count)

    def _ask(
        self, job: Job, chunk: Chunk, queries: tuple[Query, ...]
    ) -> tuple[np.ndarray, PairStatistics]:
        """Every readout's change under each pair of a chunk, by halves where it is too large."""
        tokens = [job.tokens[i] for i in chunk.rows]
        try:
            if self._along_tangents(job):
                asking, layout = self._asking(job), chunk.layout
                found = [directional_derivative(asking, tokens, q, layout) for q in queries]
                values, statistics = [v for v, _ in found], found[0][1]
            else:
                assert isinstance(chunk.layout, Padded)
                args = (job.stepping, tokens, queries, chunk.layout)
                values, statistics = inner_products(*args)
            wide = PairStatistics(*(v.astype(np.float64) for v in statistics))
            return np.concatenate(values).astype(np.float64), wide
        except TooLargeError:
            if len(tokens) == 1:
                raise
        half = -(-len(tokens) // 2)
        halves = (chunk.rows[:half], chunk.rows[half:])
        parts = [self._ask(job, self._part(job, chunk, rows), queries) for rows in halves]
        columns = zip(*(statistics for _, statistics in parts), strict=True)
        statistics = PairStatistics(*(np.concatenate(v) for v in columns))
        return np.concatenate([v for v, _ in parts], axis=1), statistics

    def _part(self, job: Job, chunk: Chunk, rows: Sequence[int] | np.ndarray) -> Chunk:
        """Some pairs of a chunk, the longest first, as a chunk of their own."""
        rows = np.asarray(rows)
        if isinstance(chunk.layout, Padded):
            return Chunk(rows, replace(chunk.layout, size=-(-chunk.layout.size // 2)))
        (own,) = self._asking(job).chunks([job.tokens[i] for i in rows], len(rows))
        return own.of_rows(rows[own.rows])

    def shifts(self, job: Job, stored: dict[str, np.ndarray]) -> BlockShifts:
        """See `Engine`."""
        questions, value = Questions(job), stored["value"]
        if questions.scores_only:
            unknown = np.full(value.shape[1], np.nan)
            return BlockShifts(value[: len(job.policies)], None, None, unknown)
        x, y, mean = questions.split(value)
        W = np.stack([p.W for p in job.policies])
        return BlockShifts(np.einsum("qk,qpk->qp", W, x + y), x, y, mean_of(job, mean))

    def compare(
        self, job: Job, stored: dict[str, np.ndarray], rows: np.ndarray
    ) -> dict[str, np.ndarray]:
        """See `Engine`."""
        questions = Questions(job)
        if questions.scores_only:
            return {"score": stored["value"][0, rows]}
        x, y, _ = questions.split(stored["value"][:, rows])
        return {"delta_w": x[0] + y[0]}


ENGINE = QueryEngine()

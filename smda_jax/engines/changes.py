"""What the engines have in common that give changes prompt by prompt."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from smda_jax.data.batch.batches import scored_in_a_row
from smda_jax.data.batch.chunks import Chunk, padded_chunks
from smda_jax.data.batch.layouts import Padded
from smda_jax.engines.contract import BlockShifts, Delta, Job, Part, refuse_non_finite
from smda_jax.engines.offers import EngineOffer
from smda_jax.policy.influence import decompose
from smda_jax.reading.network import Progress
from smda_jax.runtime.devices import fetch
from smda_jax.runtime.memory import TooLargeError
from smda_jax.runtime.programs import padding_budget
from smda_jax.steps.dataset import Steps, steps_of
from smda_jax.steps.gradient import PairStatistics

PART_SECONDS = 60  # of work that a kill may lose, by estimate


class Task(NamedTuple):
    """Some prompts of a job, and whom to tell of progress."""

    job: Job
    prompts: np.ndarray
    advance: Progress


class ChangesEngine:
    """Base of the engines `forward`, `reverse` and `finite`; a subclass pushes steps."""

    offer: EngineOffer
    item: ClassVar[str] = "prompt"
    axes: ClassVar[Mapping[str, int]] = {
        "delta_z": 1,
        "delta_y": 1,
        "delta_x": 1,
        "delta_h": 2,
    }

    def push(self, task: Task, steps: Steps, chunk: Chunk) -> Delta:
        """Changes of the task's prompts under the steps of a chunk of pairs, in its order."""
        raise NotImplementedError

    def items(self, job: Job) -> int:
        """See `Engine`."""
        return len(job.evaluation.tokens)

    def blocks(self, job: Job) -> list[Chunk]:
        """See `Engine`; pairs of one width, so that blocks share a compiled program."""
        config = job.stepping.model.config
        budget = padding_budget(config.flop_per_token, 3)
        return with_room(job, padded_chunks(self._lengths(job), job.pair_chunk, budget))

    @staticmethod
    def _lengths(job: Job) -> list[int]:
        return [t.length for t in job.tokens]

    def steps(self, job: Job, chunk: Chunk) -> Steps:
        """Steps of a chunk of pairs."""
        assert isinstance(chunk.layout, Padded)
        own = [job.tokens[i] for i in chunk.rows]
        steps, found = steps_of(job.stepping, own, chunk.layout)
        count = len(chunk.rows)
        statistics = PairStatistics(*(fetch(v)[:count] for v in found))
        return Steps((steps,), statistics, np.arange(count))

    def _checked_steps(self, job: Job, chunk: Chunk) -> Steps:
        steps = self.steps(job, chunk)
        wide = PairStatistics(*(v.astype(np.float64) for v in steps.statistics))
        fine = np.isfinite(wide.loss) & np.isfinite(wide.gradient_norm)
        refuse_non_finite(chunk.rows, fine, "its loss or gradient")
        return steps._replace(statistics=wide)

    def compute(
        self, job: Job, blocks: list[Chunk], missing: list[np.ndarray], advance: Progress
    ) -> Iterator[Part]:
        """See `Engine`."""
        prompts = len(job.evaluation.tokens)
        lengths = [len(t.ids) for t in job.evaluation.tokens]
        for number, (chunk, left) in enumerate(zip(blocks, missing, strict=True)):
            if not len(left):
                continue
            share = len(chunk.rows) / len(job.tokens)
            steps = self._checked_steps(job, chunk)
            seconds = job.seconds * share * len(left) / prompts
            parts = int(max(1, min(seconds / PART_SECONDS, len(left) / max(job.batch_size, 1))))
            # Prompts of like length together, so that every part has few widths.
            order = left[np.argsort([lengths[i] for i in left], kind="stable")]
            for some in np.array_split(order, parts):
                some = np.sort(some)
                weight = share * len(some) / prompts
                task = Task(job, some, lambda done, weight=weight: advance(done * weight))
                delta = self._push_or_halve(task, steps, chunk)
                arrays = self._stored(job, chunk, some, delta)
                yield Part(number, some, arrays, steps.statistics)

    def _push_or_halve(self, task: Task, steps: Steps, chunk: Chunk) -> Delta:
        """The chunk at once, or its halves where it is too large for memory."""
        assert isinstance(chunk.layout, Padded)
        try:
            return self.push(task, steps, chunk)
        except TooLargeError:
            if chunk.layout.size == 1:
                raise
        # Out of the handler, which would hold on to the arrays of what failed.
        del steps
        half, halves = -(-chunk.layout.size // 2), []
        for start in range(0, len(chunk.rows), half):
            layout = replace(chunk.layout, size=half)
            part = Chunk(chunk.rows[start : start + half], layout)
            own = task._replace(advance=lambda done: task.advance(done / 2))
            halves.append(self._push_or_halve(own, self._checked_steps(task.job, part), part))
        columns = zip(*halves, strict=True)
        joined = (None if v[0] is None else np.concatenate(v) for v in columns)
        return Delta(*joined)  # type: ignore[arg-type]

    def _stored(
        self, job: Job, chunk: Chunk, prompts: np.ndarray, delta: Delta
    ) -> dict[str, np.ndarray]:
        """What is kept of a part: what was asked for, whichever engine found more."""
        dx = delta.z if job.gate_open else delta.x
        both = zip(dx, delta.y, strict=True)
        fine = np.array([bool(np.isfinite(a).all() and np.isfinite(b).all()) for a, b in both])
        refuse_non_finite(chunk.rows, fine, "the step on it")
        dz = delta.z
        if not job.keep.inactive and not job.gate_open:
            active = job.evaluation.active[prompts][None]
            dz = np.where(active, delta.z, np.nan).astype(delta.z.dtype)
        arrays = {"delta_z": dz, "delta_y": delta.y}
        return arrays if delta.h is None else arrays | {"delta_h": delta.h}

    def delta_x(self, job: Job, stored: dict[str, np.ndarray]) -> np.ndarray:
        """ΔX of a stored block under the job's gate."""
        dz = stored["delta_z"]
        return dz if job.gate_open else np.where(job.gate[None], dz, np.zeros_like(dz))

    def shifts(self, job: Job, stored: dict[str, np.ndarray]) -> BlockShifts:
        """See `Engine`."""
        e, exact = job.evaluation, not self.offer.first_order
        X, Y = e.x.astype(np.float64), e.y.astype(np.float64)
        dX, dY = self.delta_x(job, stored), stored["delta_y"]
        found = [
            decompose(X, Y, p.W, dX, dY, p.alpha, exact=exact, rows=p.rows) for p in job.policies
        ]
        return BlockShifts(
            scores=np.stack([i.score for i in found]),
            delta_w_x=np.stack([i.delta_w_x for i in found]),
            delta_w_y=np.stack([i.delta_w_y for i in found]),
            mean_delta_y=mean_of(job, dY.astype(np.float64).mean(axis=1)),
            changes=None if exact else (dX, dY),
        )

    def compare(self, job: Job, stored: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, Any]:
        """See `Engine`."""
        return {"delta_x": self.delta_x(job, stored)[rows], "delta_y": stored["delta_y"][rows]}


def mean_of(job: Job, mean_delta_y: np.ndarray) -> np.ndarray:
    """Mean ΔY; NaN of a behaviour that no step can move."""
    moves = job.evaluation.behaviour.moves
    return mean_delta_y if moves else np.full_like(mean_delta_y, np.nan)


def with_room(job: Job, chunks: Iterator[Chunk]) -> list[Chunk]:
    """Chunks with as many scored positions as any of their width has."""
    found, most = list(chunks), {}
    for chunk in found:
        assert isinstance(chunk.layout, Padded)
        scored = (scored_in_a_row(job.tokens[i]) for i in chunk.rows)
        width = chunk.layout.width
        most[width] = max(most.get(width, 0), *scored)
    layouts = (replace(c.layout, positions=most[c.layout.width]) for c in found)  # type: ignore
    return [Chunk(c.rows, layout) for c, layout in zip(found, layouts, strict=True)]

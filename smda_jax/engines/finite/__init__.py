"""Engine `finite`: the true step, worn as an adapter, or taken by an optimiser of optax."""

import numpy as np

from smda_jax.data.batch.chunks import Chunk
from smda_jax.engines.changes import ChangesEngine, Task
from smda_jax.engines.contract import Delta, Job
from smda_jax.engines.finite.dataset import finite, finite_by_optimiser
from smda_jax.engines.forward import price as prices
from smda_jax.engines.offers import OFFERS
from smda_jax.engines.workload import Price, Workload
from smda_jax.steps.dataset import Steps


class Finite(ChangesEngine):
    """See `Engine`."""

    offer = OFFERS["finite"]

    def price(self, work: Workload, limit: int) -> Price:
        """See `Engine`: as engine forward, but that nothing is linearised."""
        found = prices.price(work, limit)
        flop = {part: count for part, count in found.flop.items() if part != "prompts"}
        return Price(flop, found.pair_chunk, found.batch_size)

    def push(self, task: Task, steps: Steps, chunk: Chunk) -> Delta:
        """See `ChangesEngine`."""
        job = task.job
        if job.optimiser is not None:
            return finite_by_optimiser(
                job.evaluation,
                [job.tokens[i] for i in chunk.rows],
                job.optimiser,
                moved=job.stepping.update.moved,
                prompts=task.prompts,
                residual=job.keep.residual,
                progress=task.advance,
            )
        (own,) = steps.groups
        found = finite(
            job.evaluation,
            own,
            prompts=task.prompts,
            batch_size=job.batch_size,
            residual=job.keep.residual,
            progress=task.advance,
        )
        return found.of_pairs(steps.order)

    def _stored(
        self, job: Job, chunk: Chunk, prompts: np.ndarray, delta: Delta
    ) -> dict[str, np.ndarray]:
        # First-order ΔX is the gate times ΔZ; a true step may also open and close gates.
        return super()._stored(job, chunk, prompts, delta) | {"delta_x": delta.x}

    def delta_x(self, job: Job, stored: dict[str, np.ndarray]) -> np.ndarray:
        """See `ChangesEngine`."""
        return stored["delta_x"]


ENGINE = Finite()

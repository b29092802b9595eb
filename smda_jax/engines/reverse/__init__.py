"""Engine `reverse`: pulls every readout back, and contracts with the steps of all pairs."""

import numpy as np

from smda_jax.data.batch.chunks import Chunk, padded_chunks
from smda_jax.engines.changes import ChangesEngine, Task
from smda_jax.engines.contract import Delta, Job
from smda_jax.engines.offers import OFFERS
from smda_jax.engines.reverse import price as prices
from smda_jax.engines.reverse.dataset import reverse
from smda_jax.engines.workload import Price, Workload
from smda_jax.steps.dataset import Steps, steps_in_groups


class Reverse(ChangesEngine):
    """See `Engine`."""

    offer = OFFERS["reverse"]

    def price(self, work: Workload, limit: int) -> Price:
        """See `Engine`."""
        return prices.price(work, limit)

    def blocks(self, job: Job) -> list[Chunk]:
        """See `Engine`: every prompt is pulled back once per block, so there are few of them."""
        return list(padded_chunks(self._lengths(job), job.pair_chunk, np.inf))

    def steps(self, job: Job, chunk: Chunk) -> Steps:
        """See `ChangesEngine`: pairs are grouped by length within a block."""
        return steps_in_groups(job.stepping, [job.tokens[i] for i in chunk.rows])

    def push(self, task: Task, steps: Steps, chunk: Chunk) -> Delta:
        """See `ChangesEngine`."""
        job = task.job
        found = reverse(
            job.evaluation,
            steps.groups,
            prompts=task.prompts,
            batch_size=job.batch_size,
            # With an open gate every feature is read, whether it is kept or not.
            inactive=job.keep.inactive or job.gate_open,
            progress=task.advance,
        )
        return found.of_pairs(steps.order)


ENGINE = Reverse()

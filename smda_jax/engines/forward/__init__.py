"""Engine `forward`: linearises each block at the prompts once, and pushes all steps through."""

from smda_jax.data.batch.chunks import Chunk
from smda_jax.engines.changes import ChangesEngine, Task
from smda_jax.engines.contract import Delta
from smda_jax.engines.forward import price as prices
from smda_jax.engines.forward.dataset import forward
from smda_jax.engines.offers import OFFERS
from smda_jax.engines.workload import Price, Workload
from smda_jax.steps.dataset import Steps


class Forward(ChangesEngine):
    """See `Engine`."""

    offer = OFFERS["forward"]

    def price(self, work: Workload, limit: int) -> Price:
        """See `Engine`."""
        return prices.price(work, limit)

    def push(self, task: Task, steps: Steps, chunk: Chunk) -> Delta:
        """See `ChangesEngine`."""
        job, (own,) = task.job, steps.groups
        found = forward(
            job.evaluation,
            own,
            prompts=task.prompts,
            batch_size=job.batch_size,
            residual=job.keep.residual,
            progress=task.advance,
        )
        return found.of_pairs(steps.order)


ENGINE = Forward()

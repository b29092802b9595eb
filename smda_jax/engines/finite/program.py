"""The model evaluated at θ + Δθ, the step worn as an adapter; no weight is copied or restored."""

import jax
import jax.numpy as jnp

from smda_jax.data.batch.batches import PromptBatch
from smda_jax.model.params import Params
from smda_jax.reading.behaviours.contract import Behaviour
from smda_jax.reading.readout import Reading, read
from smda_jax.reading.site import Site
from smda_jax.runtime.devices import Replicated, Rows
from smda_jax.runtime.programs import program
from smda_jax.steps.checkpoints import StepCheckpoints

CHANGES = Reading(Rows(1), Rows(1), Rows(2))  # type: ignore[arg-type]


@program(Replicated(), Replicated(), Rows(), result=CHANGES, static=("behaviour", "site"))
def finite(
    params: Params, steps: StepCheckpoints, batch: PromptBatch, behaviour: Behaviour, site: Site
) -> Reading:
    """True change of h and Y of every prompt after every pair's step (pair axis first).

    A difference of two evaluations: its relative error is the precision over the relative size of
    the change, so float64 is the dtype for small learning rates.
    """
    before = read(params, batch, behaviour, site)

    def after(one: StepCheckpoints) -> Reading:
        return read(params, batch, behaviour, site, one.as_taps())

    out: Reading = jax.vmap(after, in_axes=(steps.pair_axes(),))(steps)
    extra = jnp.swapaxes(out.extra - before.extra[None], 0, 1)
    return Reading(out.h - before.h[None], out.y - before.y[None], extra)

"""Engine `finite`: the model evaluated at θ + Δθ, the step worn as an adapter; no weight is copied or restored."""

from functools import partial

import jax
import jax.numpy as jnp

from smda_jax.data.batches import PromptBatch
from smda_jax.data.targets import Targets
from smda_jax.jacobian.factors import Factors
from smda_jax.jacobian.readout import Reading, Site, read
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import Params
from smda_jax.model.precision import jit


@partial(jit, static_argnames=("config", "targets", "site"))
def finite(config: ModelConfig, params: Params, steps: Factors, batch: PromptBatch, targets: Targets, site: Site) -> Reading:
    """True change of h and Y of every prompt after every pair's step (pair axis first).

    A difference of two evaluations: its relative error is the precision over the relative size of the change, so float64
    is the dtype for small learning rates.
    """
    before = read(config, params, batch, targets, site)

    def after(one: Factors) -> Reading:
        return read(config, params, batch, targets, site, one.steps())

    out: Reading = jax.vmap(after, in_axes=(steps.axes(),))(steps)
    return Reading(out.h - before.h[None], out.y - before.y[None], jnp.swapaxes(out.also - before.also[None], 0, 1))

"""Engine `forward` over a data set."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from smda_jax.engines.contract import Delta
from smda_jax.engines.forward.program import forward as forward_program
from smda_jax.engines.push import Pushing, push
from smda_jax.reading.evaluation import Evaluation
from smda_jax.runtime.programs import jit
from smda_jax.sae.encoder import gate, pre_activation
from smda_jax.steps.checkpoints import StepCheckpoints


def forward(evaluation: Evaluation, steps: StepCheckpoints, **options: Any) -> Delta:
    """First-order change of X and Y under each pair's step (engine `forward`).

    Args:
        evaluation: from `activations`.
        steps: from `pair_steps`.
        options: `prompts` (rows; default all), `batch_size`, `residual` (the change of the
            residual stream too) and `progress` of `engines.push.Pushing`.
    """
    return push(evaluation, steps, Pushing(forward_program, first_order, **options))


@jit
def first_order(encoder: Any, h: Array, dh: Array) -> tuple[Array, Array]:
    """Changes of pre-activations and activations where h changes by dh (pair axis first)."""
    _, linear = jax.linearize(partial(pre_activation, encoder), h)
    dz = jax.vmap(linear)(dh.astype(h.dtype))
    return dz, jnp.where(gate(encoder, h)[None], dz, jnp.zeros_like(dz))

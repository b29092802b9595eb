"""What a pass over prompts reads: the residual stream at the SAE's site, and the behaviour."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from smda_jax.data.batch.batches import PromptBatch
from smda_jax.model.forward import (
    NO_TAPS,
    Context,
    Read,
    TapSource,
    Wanted,
    embed,
    run_blocks,
    unembed,
)
from smda_jax.model.params import Params
from smda_jax.reading.behaviours.contract import Behaviour, Seen
from smda_jax.reading.site import Site
from smda_jax.runtime.devices import Replicated, Rows
from smda_jax.runtime.programs import program


class Reading(NamedTuple):
    """h and Y of prompts; `extra` is the stream at the site's further layers."""

    h: Float[Array | np.ndarray, "*pair prompt hidden"]
    y: Float[Array | np.ndarray, "*pair prompt"]
    extra: Float[Array | np.ndarray, "layer *pair prompt hidden"]


READING_OF_PROMPTS = Reading(Rows(), Rows(), Rows(1))  # type: ignore[arg-type]


def read(
    params: Params,
    batch: PromptBatch,
    behaviour: Behaviour,
    site: Site,
    taps: TapSource = NO_TAPS,
) -> Reading:
    """h and Y of a batch, in one pass over prompt and appended histories together.

    The tokens that all prompts share are run once, as a batch of one; the rest attends to their
    keys and values.
    """
    tokens, shared, past = jnp.asarray(batch.tokens), batch.shared, None
    if shared:
        past = run_blocks(params, embed(params, tokens[:1, :shared], taps), taps).past
    x = embed(params, tokens[:, shared:], taps)
    turns = Read(site.stream, site.layers, jnp.asarray(batch.read_at) - shared)
    context = Context(past, batch.packing, jnp.asarray(batch.answers) - shared)
    hidden = run_blocks(params, x, taps, Wanted(read=turns), context)
    logits, _ = unembed(params, hidden.x, taps)
    assert hidden.read is not None
    h = rearrange(hidden.read, "layer lane row hidden -> layer (lane row) hidden")
    h = h[:, :: len(behaviour.histories)]
    logits = logits.reshape(-1, behaviour.positions, logits.shape[-1])
    return Reading(h[0], behaviour.value(Seen(logits, h[0])), h[1:])


@program(Replicated(), Rows(), result=READING_OF_PROMPTS, static=("behaviour", "site"))
def base(params: Params, batch: PromptBatch, behaviour: Behaviour, site: Site) -> Reading:
    """`read` at the base weights."""
    return read(params, batch, behaviour, site)

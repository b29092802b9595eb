"""What a pass over prompts reads: the residual stream at the SAE's site, and the behaviour."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from smda_jax.data.batch.batches import PromptBatch
from smda_jax.errors import InputError
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
    spots = spot_read(behaviour, batch, shared)
    context = Context(past, batch.packing, jnp.asarray(batch.answers) - shared)
    hidden = run_blocks(params, x, taps, Wanted((turns, *spots)), context)

    def of_prompts(found: Array) -> Float[Array, "layer prompt hidden"]:
        rows = rearrange(found, "layer lane row hidden -> layer (lane row) hidden")
        return rows[:, :: batch.copies]

    h, *at_spot = map(of_prompts, hidden.reads)
    logits = answers_of(params, hidden.x, batch, taps)
    seen = at_spot[0][0] if at_spot else jnp.zeros_like(h[0])
    y = behaviour.value(Seen(logits, seen, given_of(batch)))
    if y.shape != h.shape[1:2]:
        what = f"gives shape {list(y.shape)} for {h.shape[1]} prompts"
        raise InputError(f"behaviour {behaviour.name}", what, "one number of each prompt")
    return Reading(h[0], y, h[1:])


def spot_read(behaviour: Behaviour, batch: PromptBatch, shared: int) -> tuple[Read, ...]:
    """What is to be read for the behaviour's spot, if it has one."""
    spot = behaviour.spot
    if spot is None:
        return ()
    at = batch.last if spot.token == "last" else batch.read_at
    return (Read(spot.stream, (spot.layer,), jnp.asarray(at) - shared),)


def given_of(batch: PromptBatch) -> dict[str, Array]:
    """What the behaviour is told of each prompt."""
    return {name: jnp.asarray(value) for name, value in batch.given.items()}


def answers_of(
    params: Params, x: Float[Array, "lane read hidden"], batch: PromptBatch, taps: TapSource
) -> Float[Array, "row position vocab"]:
    """Logits that a behaviour sees, given the last stream at its positions; none if it has none."""
    rows, positions = batch.answer_at.shape[0] * batch.answer_at.shape[1], batch.answer_at.shape[2]
    if not positions:
        return jnp.zeros((rows, 0, 0), x.dtype)
    logits, _ = unembed(params, x, taps)
    return logits.reshape(rows, positions, logits.shape[-1])


@program(Replicated(), Rows(), result=READING_OF_PROMPTS, static=("behaviour", "site"))
def base(params: Params, batch: PromptBatch, behaviour: Behaviour, site: Site) -> Reading:
    """`read` at the base weights."""
    return read(params, batch, behaviour, site)

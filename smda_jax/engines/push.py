"""Pushing steps over a data set: what the engines `forward` and `finite` share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from smda_jax.data.batch.batches import PromptBatch, prompt_batch
from smda_jax.data.batch.chunks import Chunk, padded_chunks
from smda_jax.data.batch.layouts import Padded
from smda_jax.engines.contract import Delta
from smda_jax.reading.evaluation import Evaluation
from smda_jax.reading.network import Progress, silent
from smda_jax.runtime.devices import devices, fetch
from smda_jax.runtime.memory import for_each
from smda_jax.runtime.precision import numerics
from smda_jax.runtime.programs import Program, padding_budget
from smda_jax.steps.checkpoints import StepCheckpoints


@dataclass(frozen=True)
class Pushing:
    """How steps are pushed.

    Attributes:
        program: of a batch of prompts → `Reading` of changes, pair axis first.
        encode: (encoder, h, Δh) → changes of pre-activations and activations.
        prompts: rows to push to; None for all.
        batch_size: prompts at a time.
        residual: whether the change of the residual stream is returned too.
        progress: told the share of the work just done.
    """

    program: Program
    encode: Callable[..., tuple[Array, Array]]
    prompts: Int[np.ndarray, " prompt"] | None = None
    batch_size: int = 64
    residual: bool = False
    progress: Progress = silent


def push(e: Evaluation, steps: StepCheckpoints, how: Pushing) -> Delta:
    """Changes of the prompts under every pair's step."""
    chosen = np.arange(len(e.tokens)) if how.prompts is None else how.prompts
    pairs, dtype, count = steps.pairs, e.h.dtype, len(chosen)
    dz, dx = (np.zeros((pairs, count, len(e.feature_ids)), dtype) for _ in range(2))
    dy, dh = np.zeros((pairs, count), dtype), None
    if how.residual:
        dh = np.zeros((pairs, len(e.site.layers), count, e.h.shape[1]), dtype)

    def visit(chunk: Chunk) -> None:
        batch, size = batch_of(e, chosen[chunk.rows], chunk)
        args = (e.params, steps, batch)
        found = how.program.run(*args, behaviour=e.behaviour, site=e.site)
        found = jax.tree.map(fetch, found) if devices().several else found
        own = chosen[chunk.rows]
        # Padded like the batch: another shape would be another compilation.
        h = e.h[np.pad(own, (0, size - len(own)), "edge")]
        with numerics(dtype):
            z, x = how.encode(e.encoder, jnp.asarray(h), jnp.asarray(found.h))
        some, rows = len(own), chunk.rows
        dz[:, rows], dx[:, rows] = np.asarray(z)[:, :some], np.asarray(x)[:, :some]
        dy[:, rows] = np.asarray(found.y, dtype)[:, :some]
        if dh is not None:
            extra = np.asarray(found.extra, dtype)
            layers = np.concatenate([np.asarray(found.h, dtype)[None], extra])
            dh[:, :, rows] = np.swapaxes(layers, 0, 1)[:, :, :some]
        how.progress(some / count)

    with numerics(e.model.dtype):
        budget = padding_budget(e.model.config.flop_per_token, 2 * pairs)
        split = partial(padded_chunks, padding_budget=budget)
        # Widths are of what is not shared: the shared tokens are run once per batch.
        for_each(e.tails(chosen), how.batch_size, split, visit)
    return Delta(dz, dx, dy, dh)


def batch_of(
    e: Evaluation, rows: np.ndarray, chunk: Chunk, shared: int | None = None
) -> tuple[PromptBatch, int]:
    """A padded batch of prompts that the devices can share out, and how many it holds."""
    assert isinstance(chunk.layout, Padded)
    shared = e.shared if shared is None else shared
    layout = Padded(chunk.layout.width, devices().round_up(chunk.layout.size))
    own = [e.tokens[i] for i in rows.tolist()]
    return prompt_batch(own, layout, shared), layout.size

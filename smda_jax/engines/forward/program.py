"""Every pair's step pushed through the linearised model, layer by layer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from smda_jax.data.batch.batches import PromptBatch
from smda_jax.model.attention import Past
from smda_jax.model.config import ModelConfig
from smda_jax.model.forward import (
    BlockTaps,
    Context,
    TapSource,
    at_token,
    at_tokens,
    block,
    block_zeros,
    embed,
    head_zeros,
    scale_embedding,
    unembed,
)
from smda_jax.model.params import Layer, Params
from smda_jax.reading.behaviours.contract import Behaviour, Seen
from smda_jax.reading.readout import Reading
from smda_jax.reading.site import Site
from smda_jax.runtime.devices import Replicated, Rows
from smda_jax.runtime.programs import program
from smda_jax.steps.checkpoints import LAYER_AXES, StepCheckpoints
from smda_jax.steps.injection import OperationStep, inject

CHANGES = Reading(Rows(1), Rows(1), Rows(2))  # type: ignore[arg-type]


@program(Replicated(), Replicated(), Rows(), result=CHANGES, static=("behaviour", "site"))
def forward(
    params: Params, steps: StepCheckpoints, batch: PromptBatch, behaviour: Behaviour, site: Site
) -> Reading:
    """First-order change of h and Y of every prompt under every pair's step (pair axis first).

    Each block is linearised at the prompts once, and the linear map is applied to all pairs: the
    primal is never batched over pairs. The tokens that all prompts share are run once, as a batch
    of one, and the rest attends to their keys and values, in the primal and in the tangents alike.
    """
    config, pairs, taps = params.config, steps.pairs, steps.as_taps()
    tokens, shared = jnp.asarray(batch.tokens), batch.shared
    read_at = jnp.asarray(batch.read_at)[:, 0] - shared
    answers = jnp.asarray(batch.answers) - shared
    rows, dtype = tokens.shape[0], params.embed.dtype

    def start(ids: Array) -> "Moving":
        change = scale_embedding(config, inject(taps.tree["embed"], ids))
        return Moving(embed(params, ids), change)

    def body(carry: Any, xs: Any) -> tuple[Any, None]:
        first, rest, found = carry
        index, layer, kept = xs
        own = jax.vmap(taps.layer, LAYER_AXES)(layer, kept)
        advance = Advance(config, layer, own, site.stream)
        past = dpast = None
        if shared:
            first, (past, dpast), _ = advance.run(first, None, jnp.zeros(1, jnp.int32))
        rest, _, read = advance.run(rest, (past, dpast), read_at)

        def chosen(kept: Array, now: Array) -> Array:
            at_layer = (index == layers).reshape(-1, *[1] * now.ndim)
            return jnp.where(at_layer, now[None], kept)

        return (first, rest, Moving(*map(chosen, found, read))), None

    layers = jnp.asarray(site.layers)
    several = len(site.layers)
    shape = (several, rows, config.hidden)
    found = Moving(jnp.zeros(shape, dtype), jnp.zeros((several, pairs, *shape[1:]), dtype))
    header = start(tokens[:1, :shared]) if shared else None
    stack = Layer(params.blocks, jnp.asarray(params.kinds))
    xs = (jnp.arange(config.layers), stack, taps.tree["blocks"])
    (_, last, found), _ = jax.lax.scan(body, (header, start(tokens[:, shared:]), found), xs)
    h, dh = (v[..., :: len(behaviour.histories), :] for v in found)

    def behaviour_of(x: Array, tree: dict[str, Array], h: Array) -> tuple[Array, dict[str, Array]]:
        logits, inputs = unembed(params, x, TapSource(tree))
        return behaviour.value(Seen(logits, h)), inputs

    zeros = head_zeros(config, *answers.shape, dtype=dtype)
    primal = at_tokens(last.x, answers)
    _, linear, inputs = jax.linearize(behaviour_of, primal, zeros, h[0], has_aux=True)
    injected = {
        "final_norm": inject(taps.tree["final_norm"], inputs["final_unit"]),
        "unembed": inject(taps.tree["unembed"], inputs["final_in"]),
    }
    dx = jax.vmap(at_tokens, (0, None))(last.change, answers)
    return Reading(dh[0], jax.vmap(linear)(dx, injected, dh[0]), dh[1:])


class Moving(NamedTuple):
    """A residual stream, and its change under every pair's step (pair axis first)."""

    x: Array
    change: Array


class Advance(NamedTuple):
    """How all pairs' changes go through one block.

    Attributes:
        config: of the model.
        layer: the block's parameters, and its number.
        steps: the pairs' steps of its operations, by name.
        stream: the stream that the SAE reads, if the SAE reads this block.
    """

    config: ModelConfig
    layer: Layer
    steps: dict[str, OperationStep]
    stream: str

    def run(
        self, moving: Moving, past: tuple[Past | None, Past | None] | None, at: Array
    ) -> tuple[Moving, tuple[Past, Past], Moving]:
        """The block, linearised once.

        Returns:
            the stream after it, keys and values of row 0 with their changes, and the stream that
            is read at the tokens `at`.
        """
        before, dbefore = past or (None, None)

        def primal(
            x: Array, taps: dict[str, Array], past: Past | None
        ) -> tuple[tuple[Array, Past, Array], dict[str, Array]]:
            out = block(self.config, self.layer, x, BlockTaps(taps), Context(past))
            assert out.past is not None
            read = at_token(out.streams[self.stream], at)
            return (out.streams["resid_post"], out.past, read), out.inputs

        x, dx = moving
        zeros = block_zeros(self.config, *x.shape[:2], dtype=x.dtype)
        (y, kv, h), linear, inputs = jax.linearize(primal, x, zeros, before, has_aux=True)
        reads = {op.name: op.reads for op in self.config.table}
        injected = {name: inject(step, inputs[reads[name]]) for name, step in self.steps.items()}
        dy, dkv, dh = jax.vmap(linear)(dx, injected, dbefore)
        return Moving(y, dy), (kv, dkv), Moving(h, dh)

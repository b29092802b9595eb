"""Every pair's step pushed through the linearised model, layer by layer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from smda_jax.data.batch.batches import PromptBatch
from smda_jax.model.attention import Past
from smda_jax.model.config import ModelConfig
from smda_jax.model.forward import (
    NO_TAPS,
    BlockTaps,
    Context,
    Read,
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
from smda_jax.reading.readout import Reading, given_of, spot_read
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
    reads = (Read(site.stream, site.layers, jnp.asarray(batch.read_at) - shared),)
    reads += spot_read(behaviour, batch, shared)
    answers = jnp.asarray(batch.answers) - shared
    dtype, depth = params.embed.dtype, params.depth

    def start(ids: Array) -> "Moving":
        x, table = embed(params, ids), taps.tree["embed"]
        still = jnp.zeros((pairs, *x.shape), dtype)
        return Moving(x, still if table is None else scale_embedding(config, inject(table, ids)))

    def body(carry: Any, xs: Any) -> tuple[Any, None]:
        first, rest, found = carry
        index, layer, kept = xs
        own = jax.vmap(taps.layer, LAYER_AXES)(layer, kept)
        advance = Advance(config, layer, own)
        past = dpast = None
        if shared:
            first, (past, dpast), _ = advance.run(first, None, ())
        rest, _, now = advance.run(rest, (past, dpast), reads)

        def chosen(kept: Array, now: Array, layers: tuple[int, ...]) -> Array:
            at_layer = (index == jnp.asarray(layers)).reshape(-1, *[1] * now.ndim)
            return jnp.where(at_layer, now[None], kept)

        both = zip(found, now, reads, strict=True)
        found = tuple(
            Moving(chosen(kept.x, one.x, read.layers), chosen(kept.change, one.change, read.layers))
            for kept, one, read in both
        )
        return (first, rest, found), None

    whole = start(tokens[:, shared:])

    def nothing(read: Read) -> Moving:
        x = read.nothing(whole.x)[:, :, 0]
        return Moving(x, jnp.zeros((x.shape[0], pairs, *x.shape[1:]), dtype))

    found = tuple(map(nothing, reads))
    header = start(tokens[:1, :shared]) if shared else None
    stack = Layer(params.blocks, jnp.asarray(params.kinds))
    kept = jax.tree.map(lambda leaf: leaf[:depth], taps.tree["blocks"])
    xs = (jnp.arange(depth), stack, kept)
    (_, last, found), _ = jax.lax.scan(body, (header, whole, found), xs)
    at_site, *at_spot = (Moving(*(v[..., :: batch.copies, :] for v in one)) for one in found)
    dh = at_site.change
    h, dh_seen = (
        (v[0] for v in at_spot[0]) if at_spot else map(jnp.zeros_like, (at_site.x[0], dh[0]))
    )
    given, shape = given_of(batch), (*batch.answer_at.shape[:2], batch.answer_at.shape[2])
    if not shape[2]:  # no logits are read: nothing above the layers that are run

        def of_stream(h: Array) -> Array:
            return behaviour.value(Seen(jnp.zeros((shape[0] * shape[1], 0, 0), dtype), h, given))

        _, linear = jax.linearize(of_stream, h)
        return Reading(dh[0], jax.vmap(linear)(dh_seen), dh[1:])

    def behaviour_of(x: Array, tree: dict[str, Array], h: Array) -> tuple[Array, dict[str, Array]]:
        logits, inputs = unembed(params, x, TapSource(NO_TAPS.tree | tree))
        return behaviour.value(Seen(logits, h, given)), inputs

    reads_of = {"final_norm": "final_unit", "unembed": "final_in"}
    moving = {name: taps.tree[name] for name in reads_of if taps.tree[name] is not None}
    every = head_zeros(config, *answers.shape, dtype=dtype)
    zeros, primal = {name: every[name] for name in moving}, at_tokens(last.x, answers)
    _, linear, inputs = jax.linearize(behaviour_of, primal, zeros, h, has_aux=True)
    injected = {name: inject(step, inputs[reads_of[name]]) for name, step in moving.items()}
    dx = jax.vmap(at_tokens, (0, None))(last.change, answers)
    return Reading(dh[0], jax.vmap(linear)(dx, injected, dh_seen), dh[1:])


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
    """

    config: ModelConfig
    layer: Layer
    steps: dict[str, OperationStep]

    def run(
        self,
        moving: Moving,
        past: tuple[Past | None, Past | None] | None,
        reads: tuple[Read, ...],
    ) -> tuple[Moving, tuple[Past, Past], tuple[Moving, ...]]:
        """The block, linearised once.

        Returns:
            the stream after it, keys and values of row 0 with their changes, and the streams that
            would be read here.
        """
        before, dbefore = past or (None, None)

        def primal(
            x: Array, taps: dict[str, Array], past: Past | None
        ) -> tuple[tuple[Array, Past, tuple[Array, ...]], dict[str, Array]]:
            out = block(self.config, self.layer, x, BlockTaps(taps), Context(past))
            assert isinstance(out.past, Past)
            found = tuple(at_token(out.streams[read.stream], read.at[:, 0]) for read in reads)
            return (out.streams["resid_post"], out.past, found), out.inputs

        x, dx = moving
        every = block_zeros(self.config, *x.shape[:2], dtype=x.dtype)
        zeros = {name: every[name] for name in self.steps}
        (y, kv, h), linear, inputs = jax.linearize(primal, x, zeros, before, has_aux=True)
        of = {op.name: op.reads for op in self.config.table}
        injected = {name: inject(step, inputs[of[name]]) for name, step in self.steps.items()}
        dy, dkv, dh = jax.vmap(linear)(dx, injected, dbefore)
        return Moving(y, dy), (kv, dkv), tuple(map(Moving, h, dh))

"""The forward pass of every family, with a tap on every parameterised operation.

A *tap* is a term added to the output of an operation. With taps of zeros, `jax.grad` gives the
loss gradient at every operation's output and `jax.linearize` the model's response to any change of
them. With taps computed from the operation's own input, the same forward pass evaluates the model
under changed parameters without touching one of them. `TapSource` says which; nothing else in the
package re-states the model.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from smda_jax.kernels.packing import Packing
from smda_jax.model.attention import Cache, Heads, Past, mix
from smda_jax.model.config import ModelConfig
from smda_jax.model.norms import along_rows, normalise
from smda_jax.model.operations import Linear, Scale
from smda_jax.model.params import Layer, Params, Weights

# Streams that an SAE or a behaviour may read. `*_out` is what is added to the residual stream,
# `*_module` what the sub-layer gives before a norm after it and the residual factor.
SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post", "attn_module", "mlp_module")
RESIDUAL = "resid_pre"  # name under which the input of the block itself is kept
OUTPUT = "resid_post"  # name of a tap at the output of the block itself

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu": partial(jax.nn.gelu, approximate=False),
}

# (element of the tap tree, operation's input) -> what is added to the operation's output
TapRule = Callable[[Any, Array], Array]


class TapSource(NamedTuple):
    """Where the taps of all operations come from.

    Attributes:
        tree: entries `embed`, `blocks` (by operation, layer axis first), `final_norm`, `unembed`.
        rule: see `TapRule`.
        layer: turns a block and what `lax.scan` slices from `tree["blocks"]` into the taps of the
            block's operations by name.
    """

    tree: dict[str, Any]
    rule: TapRule = lambda tap, _: tap
    layer: Callable[[Layer, Any], dict[str, Any]] = lambda _, blocks: blocks

    def of_layer(self, layer: Layer, blocks: Any) -> "BlockTaps":
        """Taps of one block."""
        return BlockTaps(self.layer(layer, blocks), self.rule)


class BlockTaps(NamedTuple):
    """Taps of one block's operations by name, and how they are added."""

    values: dict[str, Any]
    rule: TapRule = lambda tap, _: tap

    def add(self, name: str, y: Array, x: Array) -> Array:
        """`y` plus the operation's tap, where it has one; `x` is the operation's input."""
        tap = self.values.get(name)
        return y if tap is None else y + self.rule(tap, x)


NO_TAPS = TapSource({"embed": None, "blocks": {}, "final_norm": None, "unembed": None})


class Context(NamedTuple):
    """What surrounds the rows of a block.

    Attributes:
        past: keys and values of tokens that come before every row; or of each row's own.
        packing: of rows that are packed into lanes.
        ends: the only tokens of each row that the block's output is asked for: what mixes no
            tokens is done at these alone.
    """

    past: Past | Cache | None = None
    packing: Packing | None = None
    ends: Int[Array, "row position"] | None = None


class BlockOutput(NamedTuple):
    """What a block gives.

    Attributes:
        streams: by the names in `SITES`.
        past: keys and values of row 0, or of all rows that have a cache; None where rows are
            packed.
        inputs: of every operation, by the name of the input.
    """

    streams: dict[str, Array]
    past: Past | Cache | None
    inputs: dict[str, Array]


def block_zeros(config: ModelConfig, *lead: int, dtype: Any) -> dict[str, Array]:
    """Zero taps for the operations of a block (or, with a layer axis in `lead`, of all)."""
    return {op.name: jnp.zeros((*lead, op.outputs), dtype) for op in config.table}


def head_zeros(config: ModelConfig, *lead: int, dtype: Any) -> dict[str, Array]:
    """Zero taps for final norm and unembedding."""
    widths = {"final_norm": config.hidden, "unembed": config.vocab}
    return {name: jnp.zeros((*lead, width), dtype) for name, width in widths.items()}


def block(
    config: ModelConfig,
    layer: Layer,
    x: Float[Array, "row token hidden"],
    taps: BlockTaps,
    context: Context = Context(),  # noqa: B008 (immutable)
) -> BlockOutput:
    """One transformer block: attention, then a gated MLP, each with norms before and after.

    Which norms there are, the table of the family says; an absent one is left out.
    """
    inputs: dict[str, Array] = {}

    def norm(name: str, x: Array) -> Array:
        if name not in config.table:
            return x
        op = config.table[name]
        assert isinstance(op, Scale)
        inputs[op.reads], y = normalise(config, op, layer.weights[name].w, x)
        return taps.add(name, y, inputs[op.reads])

    low: dict[str, Array] = {}  # what adapters give between their two operations

    def linear(name: str, x: Array) -> Array:
        op = config.table[name]
        inputs[op.reads] = x
        p: Weights = layer.weights[name]
        # Rows and tokens as one axis: with two, XLA transposes a copy of the gradient for the
        # weight's gradient, slowly.
        y = jnp.einsum("ti,oi->to", x.reshape(-1, x.shape[-1]), p.w).reshape(*x.shape[:-1], -1)
        y = y if p.b is None else y + along_rows(p.b, y)
        y = taps.add(name, y, x)
        assert isinstance(op, Linear)
        if op.adapter is None:
            return y
        if op.adapter.a not in low:  # operations of a fused matrix share it
            low[op.adapter.a] = linear(op.adapter.a, x)
        return y + op.adapter.factor * linear(op.adapter.b, low[op.adapter.a])

    def heads(x: Array) -> Array:
        spec = "row token (head dim) -> row token head dim"
        return rearrange(x, spec, dim=config.attention.head_dim)

    def added(x: Array) -> Array:
        return x if config.residual_scale == 1 else x * config.residual_scale

    a = norm("attn_norm", x)
    q, k, v = norm("q_norm", linear("q", a)), norm("k_norm", linear("k", a)), linear("v", a)
    own = Heads(heads(q), heads(k), heads(v))
    mixed, past = mix(config, layer.kind, own, context.past, context.packing)
    if context.ends is not None:
        x, mixed = at_tokens(x, context.ends), at_tokens(mixed, context.ends)
    attn_module = linear("o", mixed)
    attn_out = added(norm("attn_post_norm", attn_module))
    middle = x + attn_out
    m = norm("mlp_norm", middle)
    activation = ACTIVATIONS[config.activation]
    mlp_module = linear("down", activation(linear("gate", m)) * linear("up", m))
    mlp_out = added(norm("mlp_post_norm", mlp_module))
    output = taps.add(OUTPUT, middle + mlp_out, x)
    streams = (x, attn_out, mlp_out, output, attn_module, mlp_module)
    return BlockOutput(dict(zip(SITES, streams, strict=True)), past, inputs)


def embed(
    params: Params, tokens: Int[Array, "row token"], taps: TapSource = NO_TAPS
) -> Float[Array, "row token hidden"]:
    """Residual stream before the first block.

    The tap is added to the row that is looked up, before the embedding's factor; its input is the
    token ids.
    """
    x = BlockTaps(taps.tree, taps.rule).add("embed", params.embed[tokens], tokens)
    return scale_embedding(params.config, x)


def scale_embedding(config: ModelConfig, x: Array) -> Array:
    """The embedding's factor, rounded to the precision of what it multiplies (as Gemma does)."""
    return x if config.embed_scale == 1 else x * jnp.asarray(config.embed_scale, x.dtype)


def unembed(
    params: Params, x: Float[Array, "row position hidden"], taps: TapSource = NO_TAPS
) -> tuple[Float[Array, "row position vocab"], dict[str, Array]]:
    """Final norm and unembedding → logits, and the inputs of both operations.

    The unembedding's tap is added before the logits' factor and cap.
    """
    config, outside = params.config, BlockTaps(taps.tree, taps.rule)
    unit, n = normalise(config, config.final_norm, params.final_norm, x)
    n = outside.add("final_norm", n, unit)
    table = params.embed if params.unembed is None else params.unembed
    logits = outside.add("unembed", jnp.einsum("...i,vi->...v", n, table), n)
    logits = logits if config.logit_scale == 1 else logits * config.logit_scale
    if config.logit_cap is not None:
        logits = config.logit_cap * jnp.tanh(logits / config.logit_cap)
    return logits, {"final_unit": unit, "final_in": n}


class Read(NamedTuple):
    """What to read on the way: a stream of `SITES`, at some layers, at some tokens of rows."""

    stream: str
    layers: tuple[int, ...]
    at: Int[Array, "row position"]

    def nothing(self, like: Float[Array, "row token hidden"]) -> Array:
        """What is read of nothing, to be filled in layer by layer."""
        return jnp.zeros((len(self.layers), *self.at.shape, like.shape[-1]), like.dtype)

    def fill(self, found: Array, index: Array, streams: dict[str, Array]) -> Array:
        """`found` with what a layer's streams say."""
        own = at_tokens(streams[self.stream], self.at)[None]
        here = jnp.asarray(self.layers) == index
        return jnp.where(here[:, None, None, None], own, found)


class Wanted(NamedTuple):
    """What a pass through the blocks is asked for besides its end.

    Attributes:
        reads: streams at some tokens.
        keep: names of inputs of operations to return, and `RESIDUAL`, the input of the block.
    """

    reads: tuple[Read, ...] = ()
    keep: tuple[str, ...] = ()


class Hidden(NamedTuple):
    """What `run_blocks` returns.

    Attributes:
        x: the last residual stream, at the tokens asked for.
        reads: the streams asked for, each at its layers.
        kept: what was asked to be kept, layer axis first.
        past: keys and values of row 0, or of all rows that have a cache; None where rows are
            packed.
    """

    x: Float[Array, "row token_or_position hidden"]
    reads: tuple[Float[Array, "layer row position hidden"], ...]
    kept: dict[str, Float[Array, "layer row token _"]]
    past: Past | Cache | None


def run_blocks(
    params: Params,
    x: Float[Array, "row token hidden"],
    taps: TapSource = NO_TAPS,
    wanted: Wanted = Wanted(),  # noqa: B008 (immutable)
    context: Context = Context(),  # noqa: B008 (immutable)
) -> Hidden:
    """All blocks of `params` under `lax.scan`.

    Args:
        params: of the model, or of its first few layers; of the taps as many are taken.
        x: residual stream before the first block.
        taps: added to the operations' outputs.
        wanted: what to return besides the end.
        context: `past` has a layer axis first; `ends` are the tokens at which alone the last
            stream is asked for.
    """
    count, reads, ends = params.depth, wanted.reads, context.ends

    def body(carry: Any, xs: tuple[Any, ...], ends: Array | None = None) -> tuple[Any, Any]:
        x, found = carry
        index, layer, tap, past = xs
        own = taps.of_layer(layer, tap)
        out = block(params.config, layer, x, own, context._replace(past=past, ends=ends))
        both = zip(reads, found, strict=True)
        found = tuple(read.fill(own, index, out.streams) for read, own in both)
        kept = {name: (out.inputs | {RESIDUAL: x})[name] for name in wanted.keep}
        return (out.streams["resid_post"], found), (kept, out.past)

    found = tuple(read.nothing(x) for read in reads)
    stack, own = Layer(params.blocks, jnp.asarray(params.kinds)), taps.tree["blocks"]
    if count < params.config.layers:
        own = jax.tree.map(lambda leaf: leaf[:count], own)
    xs = (jnp.arange(count), stack, own, context.past)
    # Backwards, what lies between products is computed again: that is less to keep by half, and
    # faster than keeping it.
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    cheap = jax.checkpoint(body, prevent_cse=False, policy=policy)
    if ends is None or wanted.keep or any(count - 1 in read.layers for read in reads):
        (x, found), (kept, past) = jax.lax.scan(cheap, (x, found), xs)
        return Hidden(x if ends is None else at_tokens(x, ends), found, kept, past)
    most, last = (jax.tree.map(lambda leaf, at=at: leaf[at], xs) for at in (slice(-1), -1))
    carry, _ = jax.lax.scan(cheap, (x, found), most)
    (x, found), _ = cheap(carry, last, ends)
    return Hidden(x, found, {}, None)


def at_token(
    x: Float[Array, "row token hidden"], at: Int[Array, " row"]
) -> Float[Array, "row hidden"]:
    """Each row's vector at its own token."""
    return jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]


def at_tokens(
    x: Float[Array, "row token hidden"], at: Int[Array, "row position"]
) -> Float[Array, "row position hidden"]:
    """Each row's vectors at several tokens."""
    return jnp.take_along_axis(x, at[:, :, None], axis=1)


def logits(params: Params, tokens: Int[Array, "row token"]) -> Float[Array, "row token vocab"]:
    """Logits at every token: the plain forward pass."""
    return unembed(params, run_blocks(params, embed(params, tokens)).x)[0]

"""The Llama forward pass, with a tap on every parameterised operation.

A *tap* is a term added to the output of an operation. With taps of zeros, `jax.grad` gives the loss gradient at every
operation's output and `jax.linearize` the model's response to any change of them; with taps computed from the operation's
own input, the same forward pass evaluates the model under changed parameters without touching one of them. `TapSource`
says which; nothing else in the package re-states the model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from smda_jax.model.attention import Packing, Past, mix
from smda_jax.model.config import ModelConfig
from smda_jax.model.precision import wide
from smda_jax.pytree import pytree

# Operation of a block -> the input it reads. Operations that share an input are listed under one name.
LINEAR = {
    "q": "attn_in",
    "k": "attn_in",
    "v": "attn_in",
    "o": "attn_mix",
    "gate": "mlp_in",
    "up": "mlp_in",
    "down": "mlp_act",
}
SCALE = {"attn_norm": "attn_unit", "mlp_norm": "mlp_unit"}

SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")


@pytree
class Linear:
    """A linear operation, in the checkpoint's own orientation: `y = x @ w.T + b`."""

    w: Float[Array, "*layer out in"]
    b: Float[Array, "*layer out"] | None = None


@pytree
class Block:
    """Parameters of one transformer block; stacked, every leaf has the layer axis first."""

    attn_norm: Float[Array, "*layer hidden"]
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    mlp_norm: Float[Array, "*layer hidden"]
    gate: Linear
    up: Linear
    down: Linear


@pytree
class Params:
    """All parameters. `unembed` is None where the embedding is tied to it."""

    embed: Float[Array, "vocab hidden"]
    blocks: Block
    final_norm: Float[Array, " hidden"]
    unembed: Float[Array, "vocab hidden"] | None


# (element of the tap tree, operation's input) -> what is added to the operation's output
TapRule = Callable[[Any, Array], Array]


class TapSource(NamedTuple):
    """`tree` has entries `embed`, `blocks` (per operation, layer axis first), `final_norm`, `unembed`; see `TapRule`.

    `layer` turns a block's parameters and what `lax.scan` slices from `tree["blocks"]` into the taps of the layer's
    operations by name.
    """

    tree: dict[str, Any]
    rule: TapRule = lambda tap, _: tap
    layer: Callable[[Block, Any], dict[str, Any]] = lambda _, blocks: blocks


NO_TAPS = TapSource({"embed": None, "blocks": {}, "final_norm": None, "unembed": None})


def add_tap(y: Array, rule: TapRule, tap: Any, x: Array) -> Array:
    """`y` plus the operation's tap, where it has one."""
    return y if tap is None else y + rule(tap, x)


def _along_rows(vector: Float[Array, " out"], x: Float[Array, "... out"]) -> Float[Array, "... out"]:
    return jnp.expand_dims(vector, range(x.ndim - 1))


def output_sizes(config: ModelConfig) -> dict[str, int]:
    """Width of the output of every operation of a block."""
    kv = config.kv_heads * config.head_dim
    mlp, hidden = config.intermediate, config.hidden
    return {
        "attn_norm": hidden, "q": config.heads * config.head_dim, "k": kv, "v": kv, "o": hidden,
        "mlp_norm": hidden, "gate": mlp, "up": mlp, "down": hidden,
    }  # fmt: skip


def linear_sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Width of the (input, output) of every linear operation of a block."""
    width = {"attn_in": config.hidden, "attn_mix": config.heads * config.head_dim}
    width |= {"mlp_in": config.hidden, "mlp_act": config.intermediate}
    out = output_sizes(config)
    return {name: (width[source], out[name]) for name, source in LINEAR.items()}


def block_zeros(config: ModelConfig, *lead: int, dtype: Any) -> dict[str, Array]:
    """Zero taps for the operations of a block (or, with a layer axis in `lead`, of all)."""
    return {name: jnp.zeros((*lead, size), dtype) for name, size in output_sizes(config).items()}


def head_zeros(config: ModelConfig, *lead: int, dtype: Any) -> dict[str, Array]:
    """Zero taps for final norm and unembedding."""
    widths = {"final_norm": config.hidden, "unembed": config.vocab}
    return {name: jnp.zeros((*lead, width), dtype) for name, width in widths.items()}


def unit_rms(x: Float[Array, "... hidden"], eps: float) -> Float[Array, "... hidden"]:
    """RMSNorm without its scale, computed in at least float32 and cast back (as transformers does)."""
    x_wide = x.astype(wide(x.dtype))
    return (x_wide * jax.lax.rsqrt(jnp.mean(x_wide**2, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def block(
    config: ModelConfig,
    params: Block,
    x: Float[Array, "row token hidden"],
    taps: dict[str, Any],
    rule: TapRule = NO_TAPS.rule,
    past: Past | None = None,
    packing: Packing | None = None,
    ends: Int[Array, "row position"] | None = None,
) -> tuple[dict[str, Array], Past | None, dict[str, Array]]:
    """One transformer block.

    `ends` are the only tokens of each row that its output is asked for: what mixes no tokens is done at these alone.

    Returns:
        the streams a reader can ask for, by the names in `SITES`; keys and values of row 0 (None where rows are packed); and
        the input of every operation (`LINEAR` and `SCALE` say which operation reads which).
    """
    inputs: dict[str, Array] = {}

    def scale(name: str, x: Array) -> Array:
        inputs[SCALE[name]] = x
        return add_tap(x * _along_rows(getattr(params, name), x), rule, taps.get(name), x)

    def linear(name: str, x: Array) -> Array:
        inputs[LINEAR[name]] = x
        p: Linear = getattr(params, name)
        # Rows and tokens as one axis: with two, XLA transposes a copy of the gradient for the weight's gradient, slowly.
        y = jnp.einsum("ti,oi->to", x.reshape(-1, x.shape[-1]), p.w).reshape(*x.shape[:-1], -1)
        y = y if p.b is None else y + _along_rows(p.b, y)
        return add_tap(y, rule, taps.get(name), x)

    def heads(x: Array) -> Array:
        return rearrange(x, "row token (head head_dim) -> row token head head_dim", head_dim=config.head_dim)

    a = scale("attn_norm", unit_rms(x, config.norm_eps))
    q, k, v = (heads(linear(name, a)) for name in ("q", "k", "v"))
    mixed, own = mix(config, q, k, v, past, packing)
    if ends is not None:
        x, mixed = at_tokens(x, ends), at_tokens(mixed, ends)
    attn_out = linear("o", mixed)
    middle = x + attn_out
    m = scale("mlp_norm", unit_rms(middle, config.norm_eps))
    mlp_out = linear("down", jax.nn.silu(linear("gate", m)) * linear("up", m))
    streams = {"resid_pre": x, "attn_out": attn_out, "mlp_out": mlp_out, "resid_post": middle + mlp_out}
    return streams, own, inputs


def embed(params: Params, tokens: Int[Array, "row token"], taps: TapSource = NO_TAPS) -> Float[Array, "row token hidden"]:
    """Residual stream before the first block. The tap's input is the token ids."""
    return add_tap(params.embed[tokens], taps.rule, taps.tree["embed"], tokens)


def unembed(
    config: ModelConfig, params: Params, x: Float[Array, "row position hidden"], taps: TapSource = NO_TAPS
) -> tuple[Float[Array, "row position vocab"], dict[str, Array]]:
    """Final norm and unembedding → logits, and the inputs of both operations."""
    unit = unit_rms(x, config.norm_eps)
    n = add_tap(unit * _along_rows(params.final_norm, unit), taps.rule, taps.tree["final_norm"], unit)
    table = params.embed if params.unembed is None else params.unembed
    logits = jnp.einsum("...i,vi->...v", n, table)
    return add_tap(logits, taps.rule, taps.tree["unembed"], n), {"final_unit": unit, "final_in": n}


class Hidden(NamedTuple):
    """What `run_blocks` returns.

    Attributes:
        x: the last residual stream, at the tokens asked for.
        read: the stream asked for, at each layer asked for.
        kept: inputs of operations that were asked for, and `resid_pre`, the input of the block itself.
        past: keys and values of row 0; None where rows are packed.
    """

    x: Float[Array, "row token_or_position hidden"]
    read: Float[Array, "layer row position hidden"] | None
    kept: dict[str, Float[Array, "layer row token _"]]
    past: Past | None


class Read(NamedTuple):
    """What to read on the way: a stream of `SITES`, after some layers, at some tokens of each row."""

    stream: str
    layers: tuple[int, ...]
    at: Int[Array, "row position"]


EVERY_INPUT = (*SCALE.values(), *dict.fromkeys(LINEAR.values()))


def run_blocks(
    config: ModelConfig,
    params: Params,
    x: Float[Array, "row token hidden"],
    taps: TapSource = NO_TAPS,
    *,
    read: Read | None = None,
    keep: tuple[str, ...] = (),
    past: Past | None = None,
    packing: Packing | None = None,
    ends: Int[Array, "row position"] | None = None,
) -> Hidden:
    """All blocks of `params` under `lax.scan`.

    Args:
        config: of the model.
        params: of the model; `params.blocks` may hold the first few layers only.
        x: residual stream before the first block.
        taps: added to the operations' outputs.
        read: asks for a stream at some tokens.
        keep: inputs of operations to return, from `EVERY_INPUT`, and `resid_pre`.
        past: keys and values, layer axis first, of tokens that come before every row.
        packing: of `x`, whose rows then are lanes.
        ends: tokens of each row at which alone the last stream is asked for; default all.
    """
    count = params.blocks.attn_norm.shape[0]
    layers = None if read is None else jnp.asarray(read.layers)

    def body(
        carry: tuple[Array, Array | None], xs: tuple[Any, ...], ends: Array | None = None
    ) -> tuple[tuple[Array, Array | None], Any]:
        x, h = carry
        index, p, tap, before = xs
        streams, own, inputs = block(config, p, x, taps.layer(p, tap), taps.rule, before, packing, ends)
        if read is not None and h is not None and layers is not None:
            h = jnp.where((layers == index)[:, None, None, None], at_tokens(streams[read.stream], read.at)[None], h)
        kept = {name: (inputs | {"resid_pre": x})[name] for name in keep}
        return (streams["resid_post"], h), (kept, own)

    h = None if read is None else jnp.zeros((len(read.layers), *read.at.shape, x.shape[-1]), x.dtype)
    xs = (jnp.arange(count), params.blocks, taps.tree["blocks"], past)
    # Backwards, what lies between products is computed again: that is less to keep by half, and faster than keeping it.
    cheap = jax.checkpoint(body, prevent_cse=False, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    if ends is None or keep or (read is not None and count - 1 in read.layers):
        (x, h), (kept, own) = jax.lax.scan(cheap, (x, h), xs)
        return Hidden(x if ends is None else at_tokens(x, ends), h, kept, own)
    most, last = (jax.tree.map(lambda leaf, part=part: leaf[part], xs) for part in (slice(-1), -1))
    carry, _ = jax.lax.scan(cheap, (x, h), most)
    (x, h), _ = cheap(carry, last, ends)
    return Hidden(x, h, {}, None)


def up_to(params: Params, layer: int) -> Params:
    """The parameters with the blocks up to `layer` only: all that a stream read there depends on."""
    return params.replace(blocks=jax.tree.map(lambda leaf: leaf[: layer + 1], params.blocks))  # type: ignore[attr-defined]


def at_token(x: Float[Array, "row token hidden"], at: Int[Array, " row"]) -> Float[Array, "row hidden"]:
    """Each row's vector at its own token."""
    return jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]


def at_tokens(x: Float[Array, "row token hidden"], at: Int[Array, "row position"]) -> Float[Array, "row position hidden"]:
    """Each row's vectors at several tokens."""
    return jnp.take_along_axis(x, at[:, :, None], axis=1)


def logits(config: ModelConfig, params: Params, tokens: Int[Array, "row token"]) -> Float[Array, "row token vocab"]:
    """Logits at every token: the plain forward pass."""
    return unembed(config, params, run_blocks(config, params, embed(params, tokens)).x)[0]

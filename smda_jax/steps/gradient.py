"""Per-pair loss gradients in factored form: inputs of operations, and the gradient at outputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from smda_jax.data.batch.batches import PairBatch
from smda_jax.model.config import ModelConfig
from smda_jax.model.forward import OUTPUT, RESIDUAL, TapSource, block_zeros, head_zeros
from smda_jax.model.moved import Moved, everything
from smda_jax.model.norms import fold_scale
from smda_jax.model.operations import Linear, Operation, Scale
from smda_jax.model.params import Params, Weights
from smda_jax.pytree import pytree
from smda_jax.runtime.precision import wide
from smda_jax.steps.losses import scored_losses


@pytree
class Gradient:
    """Loss gradients of a batch of pairs with respect to every parameter, in factored form.

    Attributes:
        inputs: of the blocks' operations, by the input's name; and the block's own (`RESIDUAL`).
            The tokens of a pair's rows follow each other, here and in all that follows.
        deltas: loss gradient at the outputs of the blocks' operations.
        output: loss gradient at the blocks' own outputs.
        tokens: the pairs' token ids.
        embed: loss gradient at the row that the embedding looks up.
        final_unit: the final norm's input, before its scale, at the scored positions.
        final_norm: loss gradient at the final norm's output there.
        head_in: the unembedding's input there.
        head: loss gradient at the unembedding's output there.
    """

    inputs: dict[str, Float[Array, "layer pair token _"]]
    deltas: dict[str, Float[Array, "layer pair token _"]]
    output: Float[Array, "layer pair token hidden"]
    tokens: Int[Array, "pair token"]
    embed: Float[Array, "pair token hidden"]
    final_unit: Float[Array, "pair position hidden"]
    final_norm: Float[Array, "pair position hidden"]
    head_in: Float[Array, "pair position hidden"]
    head: Float[Array, "pair position vocab"]


class PairStatistics(NamedTuple):
    """Loss and the norm of its gradient over all parameters, per pair."""

    loss: Float[Array | np.ndarray, " pair"]
    gradient_norm: Float[Array | np.ndarray, " pair"]


def gradient(params: Params, batch: PairBatch) -> tuple[Float[Array, " pair"], Gradient]:
    """One forward and one backward pass → losses, factored gradients.

    Taps of zeros sit at every operation's output; the gradient with respect to them is δ. A
    batch's rows do not interact, so one gradient of the summed losses gives every pair its own.
    """
    config, dtype, shape = params.config, params.embed.dtype, batch.tokens.shape
    keep = (*config.table.inputs, RESIDUAL)

    def total(tree: dict[str, Any]) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        losses, inputs = scored_losses(params, batch, TapSource(tree), keep)
        return losses.sum(), (losses, inputs)

    zeros = head_zeros(config, *batch.at.shape, dtype=dtype) | {
        "embed": jnp.zeros((*shape, config.hidden), dtype),
        "blocks": block_zeros(config, config.layers, *shape, dtype=dtype),
    }
    if not config.adds_plainly:
        zeros["blocks"][OUTPUT] = jnp.zeros((config.layers, *shape, config.hidden), dtype)
    delta, (losses, inputs) = jax.grad(total, has_aux=True)(zeros)
    # Where the last operation's output is added as it is, its gradient is the block's.
    output = delta["blocks"]["down"] if config.adds_plainly else delta["blocks"].pop(OUTPUT)
    final_unit, head_in = inputs.pop("final_unit"), inputs.pop("final_in")
    whole = Gradient(
        inputs=inputs,
        deltas=delta["blocks"],
        output=output,
        tokens=jnp.asarray(batch.tokens),
        embed=delta["embed"],
        final_unit=final_unit,
        final_norm=delta["final_norm"],
        head_in=head_in,
        head=delta["unembed"],
    )
    return losses, whole if batch.loss.rows == 1 else _of_pairs(whole, batch.pairs)


def _of_pairs(g: Gradient, pairs: int) -> Gradient:
    """A pair's rows, one behind the other: its gradient is the sum over the tokens of all."""

    def outside(x: Array) -> Array:
        return x.reshape(pairs, -1, *x.shape[2:])

    def inside(x: Array) -> Array:
        return x.reshape(x.shape[0], pairs, -1, x.shape[-1])

    blocks = {
        name: jax.tree.map(inside, getattr(g, name)) for name in ("inputs", "deltas", "output")
    }
    rest: Any = g.replace(**dict.fromkeys(blocks))  # type: ignore[attr-defined]
    return jax.tree.map(outside, rest).replace(**blocks)


def scale_gradient(
    op: Scale, x: Float[Array, "pair token _"], delta: Float[Array, "pair token _"]
) -> Float[Array, "pair width"]:
    """Of a norm scale: `Σ_t x_t ⊙ δ_t`, over the heads too where it acts per head."""
    return fold_scale(op, jnp.sum(x * delta, axis=1))


def squared_norm(
    g: Gradient, config: ModelConfig, moved: Moved | None = None
) -> Float[Array, " pair"]:
    """‖∂L/∂θ‖² per pair over the parameters that move, a tied table once; None for all."""
    moved = moved or everything(config)

    def layer(total: Array, xs: tuple[dict[str, Array], ...]) -> tuple[Array, None]:
        inputs, deltas, masks = xs
        total = total + squares_of_small(config, inputs, deltas, masks)
        # ‖aᵀd‖² = Σ_{s,t} (a_s·a_t)(d_s·d_t): no gradient is formed.
        chosen = [op for op in config.table.linears if op.name in masks]
        grams = {op.reads: _gram(inputs[op.reads]) for op in chosen}
        for op in chosen:
            own = jnp.sum(grams[op.reads] * _gram(deltas[op.name]), axis=(1, 2))
            total = total + own * masks[op.name][0].astype(own.dtype)
        return total, None

    xs = (g.inputs, g.deltas, masks_of(moved))
    return jax.lax.scan(layer, squares_outside(g, config, moved), xs)[0]


def masks_of(moved: Moved) -> dict[str, Float[Array, "layer part"]]:
    """In which layers operations move, as arrays to be scanned over."""
    return {name: jnp.asarray(mask, jnp.float32) for name, mask in moved.masks.items()}


def squares_of_small(
    config: ModelConfig,
    inputs: dict[str, Array],
    deltas: dict[str, Array],
    masks: dict[str, Float[Array, " part"]],
) -> Float[Array, " pair"]:
    """Of one block's biases and norm scales that move."""
    total = [jnp.zeros(next(iter(deltas.values())).shape[0])]
    total = [total[0].astype(wide(next(iter(deltas.values())).dtype))]
    for op in config.table:
        if op.name not in masks:
            continue
        delta, mask = _widen(deltas[op.name]), masks[op.name]
        if isinstance(op, Scale):
            own = _square(scale_gradient(op, _widen(inputs[op.reads]), delta))
            total.append(own * mask[0].astype(own.dtype))
        elif op.biased:
            own = _square(jnp.sum(delta, axis=1))
            total.append(own * mask[1].astype(own.dtype))
    return jnp.stack(total).sum(axis=0)


def squares_outside(g: Gradient, config: ModelConfig, moved: Moved) -> Float[Array, " pair"]:
    """Of what lies outside the blocks and moves: embedding, final norm, unembedding."""
    total = jnp.zeros(g.tokens.shape[0], wide(g.embed.dtype))
    if moved.final_norm:
        total = total + _square(_dot("pth,pth->ph", g.final_unit, g.final_norm))
    if moved.unembed:
        total = total + jnp.sum(_gram(g.head_in) * _gram(g.head), axis=(1, 2))
    if not moved.embed:
        return total
    same = (g.tokens[:, :, None] == g.tokens[:, None]).astype(g.embed.dtype)
    rows = _dot("pst,pth->psh", same, g.embed)
    total = total + jnp.sum(rows * g.embed.astype(total.dtype), axis=(1, 2))
    if config.tied:  # the cross term of the table's two uses
        looked_up = jnp.take_along_axis(g.head, g.tokens[:, None], axis=2)
        cross = _dot("pas,psh->pah", looked_up, g.embed)
        total = total + 2 * jnp.sum(cross * g.head_in.astype(total.dtype), axis=(1, 2))
    return total


def squares(
    g: Gradient,
    weight: Float[Array, " pair"],
    like: Params,
    read_by: Callable[[Operation], str] = lambda op: op.reads,
) -> Params:
    """`Σ_i weight[i] g[i]²`, entry by entry, shaped like the parameters.

    `read_by` names the input of an operation among `g.inputs`.
    """
    return power_sums(g, weight, like, read_by, (2,))[0]


def power_sums(
    g: Gradient,
    weight: Float[Array, " pair"],
    like: Params,
    read_by: Callable[[Operation], str] = lambda op: op.reads,
    powers: tuple[int, ...] = (1, 2),
) -> tuple[Params, ...]:
    """`Σ_i weight[i] g[i]^k` for some powers k, entry by entry, shaped like the parameters."""
    config, dtype = like.config, wide(g.embed.dtype)

    def totals(x: Array) -> tuple[Array, ...]:
        own, x = weight.astype(dtype), x.astype(dtype)
        return tuple(jnp.einsum("p,p...->...", own, x**k) for k in powers)

    def one_operation(op: Linear | Scale, x: Array, delta: Array) -> tuple[Weights, ...]:
        if isinstance(op, Scale):
            return tuple(Weights(w) for w in totals(scale_gradient(op, x, delta)))
        biases = totals(delta.sum(axis=1)) if op.biased else (None,) * len(powers)
        weights = totals(jnp.einsum("pso,psi->poi", delta, x))
        return tuple(Weights(w, b) for w, b in zip(weights, biases, strict=True))

    def layer(_: None, xs: tuple[dict[str, Array], dict[str, Array]]) -> tuple[None, Any]:
        inputs, deltas = xs
        parts = {
            op.name: one_operation(op, inputs[read_by(op)], deltas[op.name]) for op in config.table
        }
        return None, tuple({k: v[i] for k, v in parts.items()} for i in range(len(powers)))

    def tables(sums: Any, one: tuple[Array, ...]) -> tuple[Any, None]:
        w, tokens, d, head_in, head = one
        up = jnp.einsum("sv,sh->vh", head, head_in)
        down = (up if config.tied else jnp.zeros_like(up)).at[tokens].add(d)
        parts = (down,) if config.tied else (down, up)
        own = ((w.astype(dtype) * part.astype(dtype) ** k for part in parts) for k in powers)
        return jax.tree.map(jnp.add, sums, tuple(map(tuple, own))), None

    zero = jnp.zeros(like.embed.shape, dtype)
    zeros = ((zero,) * (1 if config.tied else 2),) * len(powers)
    rows = (weight, g.tokens, g.embed, g.head_in, g.head)
    embeds, _ = jax.lax.scan(tables, zeros, rows)
    _, blocks = jax.lax.scan(layer, None, (g.inputs, g.deltas))
    finals = totals(jnp.sum(g.final_unit * g.final_norm, axis=1))
    both = zip(embeds, blocks, finals, strict=True)
    return tuple(Params(e[0], b, f, None if config.tied else e[1], config) for e, b, f in both)


def _widen(x: Array) -> Array:
    return x.astype(wide(x.dtype))


def _dot(spec: str, *x: Array) -> Array:
    return jnp.einsum(spec, *(_widen(v) for v in x))


def _gram(x: Float[Array, "pair token _"]) -> Float[Array, "pair token token"]:
    return _dot("psi,pti->pst", x, x)


def _square(x: Array) -> Array:
    return jnp.sum(_widen(x) ** 2, axis=-1)

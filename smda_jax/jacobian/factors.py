"""Per-pair loss gradients in factored form: operation inputs and the loss gradient at operation outputs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from smda_jax.data.batches import PairBatch
from smda_jax.jacobian.injection import EmbedStep, LinearStep, MergedStep, ScaleStep, UnembedStep
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import (
    LINEAR,
    SCALE,
    Params,
    TapSource,
    at_tokens,
    embed,
    run_blocks,
    unembed,
    wide,
    zero_taps,
)
from smda_jax.pytree import pytree


@pytree
class Factors:
    """SGD steps of a block of pairs, from the same base weights; deltas carry -η.

    A linear operation is kept as two factors where they are smaller than its matrix, and merged where they are not: with s
    tokens, both storage and the work of an injection are s·(in + out) factored and in·out merged. Real models are factored
    throughout; models narrower than the pairs are long are not.

    Attributes:
        inputs: of the factored linear operations, by the input's name.
        deltas: of the factored linear operations, at their outputs.
        merged: whole steps of the other linear operations (weight, and bias where they have one).
        scales: whole steps of the norms' scales in the blocks.
        tokens: the pairs' token ids.
        embed: deltas at the embedding's output.
        final_scale: whole step of the final norm's scale.
        head_in: the unembedding's input at the scored positions.
        head: deltas at the logits there.
        config: of the model.
    """

    inputs: dict[str, Float[Array, "layer pair token _"]]
    deltas: dict[str, Float[Array, "layer pair token _"]]
    merged: dict[str, tuple[Float[Array, "layer pair _ _"], Float[Array, "layer pair _"] | None]]
    scales: dict[str, Float[Array, "layer pair hidden"]]
    tokens: Int[Array, "pair token"]
    embed: Float[Array, "pair token hidden"]
    final_scale: Float[Array, "pair hidden"]
    head_in: Float[Array, "pair position hidden"]
    head: Float[Array, "pair position vocab"]
    config: ModelConfig = struct.field(pytree_node=False)

    @property
    def pairs(self) -> int:
        """How many pairs."""
        return self.tokens.shape[0]

    def axes(self) -> Any:
        """The pair axis of every leaf, for `vmap`."""
        first = jax.tree.map(lambda _: 0, self)
        return first.replace(**{k: jax.tree.map(lambda _: 1, getattr(self, k)) for k in _STACKED})

    def steps(self) -> TapSource:
        """The steps as taps: what each adds at every operation, given the operation's input.

        Leaves keep the pair axis; `vmap` over it before calling one.
        """
        head = LinearStep(self.head_in, self.head)
        table = EmbedStep(self.tokens, self.embed, None)
        tied = self.config.tied
        tree = {
            "embed": table.replace(head=head if tied else None),  # type: ignore[attr-defined]
            "blocks": {k: getattr(self, k) for k in _STACKED},
            "final_norm": ScaleStep(self.final_scale),
            "unembed": UnembedStep(head, table if tied else None),
        }
        return TapSource(tree, rule=lambda step, x: step(x), layer=self._layer)

    def _layer(self, blocks: dict[str, Any]) -> dict[str, Any]:
        inputs, biased = blocks["inputs"], self.config.biased
        factored = {name: LinearStep(inputs[LINEAR[name]], d, name in biased) for name, d in blocks["deltas"].items()}
        merged = {name: MergedStep(w, b) for name, (w, b) in blocks["merged"].items()}
        return factored | merged | {name: ScaleStep(g) for name, g in blocks["scales"].items()}


_STACKED = ("inputs", "deltas", "merged", "scales")  # fields whose leaves have the layer axis first


class PairStatistics(NamedTuple):
    """Loss (nats per scored token) and the norm of its gradient over all parameters, per pair."""

    loss: Float[Array, " pair"]
    gradient_norm: Float[Array, " pair"]


def factors(
    config: ModelConfig, params: Params, batch: PairBatch, learning_rate: float | Array
) -> tuple[Factors, PairStatistics]:
    """One backward pass over the pairs: factors of `-η ∂L[i]/∂θ` of each pair i, without forming a gradient.

    Taps of zeros sit at every operation's output; the gradient with respect to them is δ. A batch's rows do not interact,
    so one gradient of the summed losses gives every pair its own.
    """
    rows, tokens = batch.tokens.shape
    dtype = params.embed.dtype
    ids, at = jnp.asarray(batch.tokens), jnp.asarray(batch.at)

    def total(tree: dict[str, Any]) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        taps = TapSource(tree)
        hidden = run_blocks(config, params, embed(params, ids, taps), taps, keep_inputs=True)
        logits, head = unembed(config, params, at_tokens(hidden.x, at), taps)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(wide(dtype)), jnp.asarray(batch.target))
        losses = jnp.sum(losses * jnp.asarray(batch.weight, losses.dtype), axis=1)
        return losses.sum(), (losses, hidden.inputs | head)

    zeros = zero_taps(config, rows, tokens, at.shape[1], dtype)
    delta, (losses, inputs) = jax.grad(total, has_aux=True)(zeros)
    own = delta["blocks"]
    factored = {name: own[name] for name, source in LINEAR.items() if _is_thin(inputs[source], own[name])}
    gradient = Factors(
        inputs={LINEAR[name]: inputs[LINEAR[name]] for name in factored},
        deltas=factored,
        merged={
            name: (
                jnp.einsum("lpsi,lpso->lpio", inputs[source], own[name]),
                own[name].sum(axis=2) if name in config.biased else None,
            )
            for name, source in LINEAR.items()
            if name not in factored
        },
        scales={name: jnp.einsum("lpth,lpth->lph", inputs[SCALE[name]], own[name]) for name in SCALE},
        tokens=ids,
        embed=delta["embed"],
        final_scale=jnp.einsum("pth,pth->ph", inputs["final_unit"], delta["final_norm"]),
        head_in=inputs["final_in"],
        head=delta["unembed"],
        config=config,
    )
    norm = jnp.sqrt(_squared_norm(gradient))
    # In bfloat16 the rate itself would round, the same way for every pair: scale in float32, then round what is scaled.
    eta = jnp.asarray(-learning_rate, wide(dtype))
    linear_in_gradient = ("deltas", "merged", "scales", "embed", "final_scale", "head")
    step = gradient.replace(  # type: ignore[attr-defined]
        **{
            k: jax.tree.map(lambda d: (eta * d.astype(eta.dtype)).astype(dtype), getattr(gradient, k))
            for k in linear_in_gradient
        }
    )
    return step, PairStatistics(losses, norm)


def _is_thin(a: Float[Array, "layer pair token in"], d: Float[Array, "layer pair token out"]) -> bool:
    """Whether the factors are smaller than their product."""
    return a.shape[2] * (a.shape[3] + d.shape[3]) < a.shape[3] * d.shape[3]


def _squared_norm(g: Factors) -> Float[Array, " pair"]:
    """‖∂L/∂θ‖² per pair over all parameters, a tied table once: `‖aᵀd‖² = Σ_{s,t} (a_s·a_t)(d_s·d_t)`."""
    dtype = wide(g.embed.dtype)

    def dot(spec: str, *x: Array) -> Array:
        return jnp.einsum(spec, *(v.astype(dtype) for v in x))

    def product(a: Array, d: Array) -> Array:
        return jnp.sum(dot("psi,pti->pst", a, a) * dot("pso,pto->pst", d, d), axis=(1, 2))

    def square(x: Array) -> Array:
        return jnp.sum(x.astype(dtype) ** 2, axis=-1)

    def layer(total: Array, blocks: dict[str, Any]) -> tuple[Array, None]:
        for name, d in blocks["deltas"].items():
            total = total + product(blocks["inputs"][LINEAR[name]], d)
            if name in g.config.biased:
                total = total + square(jnp.sum(d.astype(dtype), axis=1))
        for w, b in blocks["merged"].values():
            total = total + square(w.reshape(w.shape[0], -1)) + (0 if b is None else square(b))
        for scale in blocks["scales"].values():
            total = total + square(scale)
        return total, None

    total = square(g.final_scale) + product(g.head_in, g.head)
    same = (g.tokens[:, :, None] == g.tokens[:, None]).astype(g.embed.dtype)
    total = total + jnp.sum(dot("pst,pth->psh", same, g.embed) * g.embed.astype(dtype), axis=(1, 2))
    if g.config.tied:  # the cross term of the table's two uses
        looked_up = jnp.take_along_axis(g.head, g.tokens[:, None], axis=2)
        cross = dot("pas,psh->pah", looked_up, g.embed)
        total = total + 2 * jnp.sum(cross * g.head_in.astype(dtype), axis=(1, 2))
    return jax.lax.scan(layer, total.astype(dtype), {k: getattr(g, k) for k in _STACKED})[0]

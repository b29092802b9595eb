"""Engine `query`: linear functionals of (ΔZ, ΔY) pulled back to the parameters over all prompts, then asked of every pair.

A functional is given by its weights, `f = Σ_{n,k} weight_z[n,k] ΔZ[n,k] + Σ_n weight_y[n] ΔY[n]`: the policy's score is one,
each of its coefficients' pathways another (`policy.influence.functionals`).
"""

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smda_jax.data.batches import PairBatch, PromptBatch
from smda_jax.data.targets import Targets
from smda_jax.jacobian.factors import (
    Gradient,
    PairStatistics,
    gradient,
    scored_losses,
    squares_of_small,
    squares_outside,
    step_size,
)
from smda_jax.jacobian.readout import Site, read
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import LINEAR, SCALE, Params, up_to
from smda_jax.model.precision import jit, wide
from smda_jax.pytree import pytree
from smda_jax.sae.encoder import Encoder, pre_activation


@pytree
class Query:
    """Gradients of several functionals with respect to the parameters, with a functional axis first (second in the blocks).

    Of functionals of z alone only the blocks up to the site's layer are held.
    """

    gradient: Params


_AXES = Params(embed=0, blocks=1, final_norm=0, unembed=0)  # type: ignore[arg-type]


@partial(jit, static_argnames=("config", "targets", "site"))
def query(
    config: ModelConfig,
    params: Params,
    batch: PromptBatch,
    encoder: Encoder,
    weight_z: Float[Array, "functional prompt feature"] | None,
    weight_y: Float[Array, "functional prompt"] | None,
    targets: Targets,
    site: Site,
) -> Query:
    """A batch's part of each functional's gradient; parts add up. Either weight may be absent.

    The tokens that all prompts share are run once forwards, and once backwards: a sum over prompts is what is pulled back.
    """
    own = params if weight_y is not None else up_to(params, site.layer)

    def readouts(params: Params) -> tuple[Array | None, Array | None]:
        reading = read(config, params, batch, targets, site)
        z = None if weight_z is None else pre_activation(encoder, jnp.asarray(reading.h).astype(encoder.b.dtype))
        return z, None if weight_y is None else jnp.asarray(reading.y)

    values, pull = jax.vjp(readouts, own)
    weights = jax.tree.map(lambda weight, value: jnp.asarray(weight).astype(value.dtype), (weight_z, weight_y), values)
    # One functional after the other: beside an axis of functionals, weights' gradients are products of transposed copies.
    g = jax.lax.map(lambda weight: pull(weight)[0], weights)
    g = g.replace(blocks=jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), g.blocks))
    return Query(jax.tree.map(lambda leaf: leaf.astype(wide(leaf.dtype)), g))


@partial(jit, donate_argnums=0)
def add(total: Query, part: Query) -> Query:
    """Sum of two parts; the first gives its memory."""
    return jax.tree.map(jnp.add, total, part)


@partial(jit, static_argnames="dtype", donate_argnums=0)
def finish(total: Query, scaling: Params | None, dtype: Any) -> Query:
    """The sum under a diagonal preconditioner, in the precision of the passes."""
    g = total.gradient
    if scaling is not None:
        held = jax.tree.map(lambda p, leaf: p[: leaf.shape[0], None], scaling.blocks, g.blocks)
        factor = jax.tree.map(lambda p: p[None], scaling).replace(blocks=held)
        g = jax.tree.map(lambda leaf, p: leaf * p.astype(leaf.dtype), g, factor)
    return Query(jax.tree.map(lambda leaf: leaf.astype(dtype), g))


@jit
def norms(query: Query) -> Float[Array, " functional"]:
    """Length of every functional's gradient."""

    def squares(leaf: Array, axis: int) -> Array:
        flat = jnp.moveaxis(leaf, axis, 0).reshape(leaf.shape[axis], -1)
        return jnp.einsum("mx,mx->m", flat, flat, preferred_element_type=wide(flat.dtype))

    g = query.gradient
    rest = g.replace(blocks=None)  # type: ignore[attr-defined]
    total = [squares(leaf, 0) for leaf in jax.tree.leaves(rest)] + [squares(leaf, 1) for leaf in jax.tree.leaves(g.blocks)]
    return jnp.sqrt(sum(total[1:], total[0]))


@partial(jit, static_argnames="config")
def along(
    config: ModelConfig, params: Params, batch: PairBatch, query: Query, learning_rate: Float[Array, ""]
) -> tuple[Float[Array, "functional pair"], PairStatistics]:
    """Change of a few functionals of every layer under every pair's step, `-η dL[i]/dε` at `θ + ε ∂f/∂θ`: a tangent.

    It goes forwards, so that nothing of a pair is kept from layer to layer, and the tokens that all pairs share move the same
    way for all of them. Each functional takes two thirds of a gradient; the gradient's norm stays unknown (NaN).
    """

    def change(q: Params) -> tuple[Array, Array]:
        return jax.jvp(lambda params: scored_losses(config, params, batch)[0], (params,), (q,))

    g = query.gradient
    if len(g.embed) == 1:  # without an axis of one, XLA moves less about
        only = g.replace(blocks=jax.tree.map(lambda leaf: leaf[None, :, 0], g.blocks))  # type: ignore[attr-defined]
        losses, slope = change(jax.tree.map(lambda leaf: leaf[0], only))
        slope = slope[None]
    else:
        losses, slope = jax.vmap(change, (_AXES,), (None, 0))(g)
    return -learning_rate.astype(slope.dtype) * slope, PairStatistics(losses, jnp.full_like(losses, jnp.nan))


@partial(jit, static_argnames=("config", "normalised"))
def answer(
    config: ModelConfig,
    params: Params,
    batch: PairBatch,
    queries: tuple[Query, ...],
    learning_rate: Float[Array, ""],
    *,
    normalised: bool = False,
) -> tuple[tuple[Float[Array, "functional pair"], ...], PairStatistics]:
    """Change of every functional under every pair's step: `-η ⟨∂f/∂θ, ∂L[i]/∂θ⟩` (pair axis last)."""
    losses, g = gradient(config, params, batch)
    products, squares = dot(g, tuple(q.gradient for q in queries))
    norm = jnp.sqrt(squares)
    size = step_size(learning_rate, norm, normalised)
    return tuple(size[None] * product for product in products), PairStatistics(losses, norm)


def dot(g: Gradient, queries: tuple[Params, ...]) -> tuple[tuple[Float[Array, "functional pair"], ...], Float[Array, " pair"]]:
    """`Σ_θ q[m,θ] g[i,θ]` of every query, and `‖g[i]‖²`: each pair's gradient is formed, one operation at a time."""
    config, dtype = g.config, wide(g.embed.dtype)

    def total(spec: str, a: Array, b: Array) -> Array:
        return jnp.einsum(spec, a, b, preferred_element_type=dtype)

    def layer(sums: tuple[tuple[Array, ...], Array], xs: tuple[Any, ...]) -> tuple[tuple[tuple[Array, ...], Array], None]:
        (products, squares), (inputs, deltas, blocks) = (list(sums[0]), sums[1]), xs
        for name, source in LINEAR.items():
            a, d = inputs[source], deltas[name]
            own = jnp.einsum("pso,psi->poi", d, a).reshape(d.shape[0], -1)
            squares = squares + total("px,px->p", own, own)
            for i, block in enumerate(blocks):
                q = getattr(block, name)
                products[i] = products[i] + total("mx,px->mp", q.w.reshape(q.w.shape[0], -1), own)
                if q.b is not None:
                    products[i] = products[i] + total("mo,po->mp", q.b, d.sum(axis=1))
        for name, source in SCALE.items():
            own = jnp.sum(inputs[source] * deltas[name], axis=1)
            for i, block in enumerate(blocks):
                products[i] = products[i] + total("mh,ph->mp", getattr(block, name), own)
        return (tuple(products), squares + squares_of_small(config, inputs, deltas)), None

    # Queries of z alone reach up to the site's layer: the deepest first, so that those that reach a layer are the first few.
    depth = [q.blocks.attn_norm.shape[0] for q in queries]
    order = sorted(range(len(queries)), key=lambda i: -depth[i])
    zeros = [jnp.zeros((queries[i].embed.shape[0], g.tokens.shape[0]), dtype) for i in order]
    products, squares = zeros, squares_outside(g).astype(dtype)
    for start, stop in pairwise([0, *sorted({*depth, config.layers})]):
        reach = [queries[i].blocks for i in order if depth[i] >= stop]
        inputs, deltas = jax.tree.map(lambda leaf, a=start, b=stop: leaf[a:b], (g.inputs, g.deltas))
        blocks = [jax.tree.map(lambda leaf, a=start, b=stop: leaf[a:b], block) for block in reach]
        (some, squares), _ = jax.lax.scan(layer, (tuple(products[: len(reach)]), squares), (inputs, deltas, blocks))
        products = [*some, *products[len(reach) :]]
    rest = [tables(g, queries[i]) for i in order]
    by_query = dict(zip(order, (a + b for a, b in zip(products, rest, strict=True)), strict=True))
    return tuple(by_query[i] for i in range(len(queries))), squares


def tables(g: Gradient, q: Params) -> Float[Array, "functional pair"]:
    """The part of `dot` in the embedding, the final norm and the unembedding."""
    dtype = wide(g.embed.dtype)

    def total(spec: str, a: Array, b: Array) -> Array:
        return jnp.einsum(spec, a, b, preferred_element_type=dtype)

    sum_ = total("mh,ph->mp", q.final_norm, jnp.sum(g.final_unit * g.final_norm, axis=1))

    def one(pair: tuple[Array, ...]) -> Array:
        # One pair at a time: its table is as large as the model's own.
        tokens, d, head_in, head = pair
        up = jnp.einsum("sv,sh->vh", head, head_in)
        down = jnp.zeros_like(up) if q.unembed is not None else up
        both = total("mvh,vh->m", q.embed, down.at[tokens].add(d))
        return both if q.unembed is None else both + total("mvh,vh->m", q.unembed, up)

    return sum_ + jax.lax.map(one, (g.tokens, g.embed, g.head_in, g.head)).T

"""Engine `query`: linear functionals of (ΔZ, ΔY) pulled back to the parameters over all prompts, then one dot product per pair.

A functional is given by its weights, `f = Σ_{n,k} weight_z[n,k] ΔZ[n,k] + Σ_n weight_y[n] ΔY[n]`: the policy's score is one,
each of its coefficients' pathways another (`policy.influence.functionals`).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smda_jax.data.batches import PairBatch, PromptBatch
from smda_jax.data.targets import Targets
from smda_jax.jacobian.factors import Gradient, PairStatistics, gradient, over_layers, squared_norm, step_size
from smda_jax.jacobian.readout import Site, read
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import LINEAR, SCALE, Params, up_to, wide
from smda_jax.model.precision import jit
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

    def functional(params: Params, weight_z: Array | None, weight_y: Array | None) -> Array:
        reading = read(config, params, batch, targets, site)
        dtype = encoder.b.dtype
        total = jnp.zeros((), dtype)
        if weight_z is not None:
            total = total + jnp.sum(weight_z.astype(dtype) * pre_activation(encoder, jnp.asarray(reading.h).astype(dtype)))
        if weight_y is not None:
            total = total + jnp.sum(weight_y.astype(dtype) * jnp.asarray(reading.y).astype(dtype))
        return total

    g = jax.vmap(jax.grad(functional), (None, 0, 0), _AXES)(own, weight_z, weight_y)
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
    statistics = PairStatistics(losses, jnp.sqrt(squared_norm(g)))
    size = step_size(learning_rate, statistics.gradient_norm, normalised)
    return tuple(size[None] * dot(g, q.gradient) for q in queries), statistics


def dot(g: Gradient, q: Params) -> Float[Array, "functional pair"]:
    """`Σ_θ q[m,θ] g[i,θ]`, with g in factored form.

    Per linear operation either `Σ_s δ_s · (q a_s)`, or the pair's own gradient formed and multiplied, by which is less work.
    """
    dtype = wide(g.embed.dtype)
    functionals = q.embed.shape[0]

    def total(spec: str, a: Array, b: Array) -> Array:
        return jnp.einsum(spec, a, b, preferred_element_type=dtype)

    def linear(a: Array, d: Array, w: Array) -> Array:
        if _thin(functionals, a.shape[1]):
            y = jnp.einsum("psi,moi->mpso", a, w)
            return jnp.sum(y.astype(dtype) * d[None].astype(dtype), axis=(2, 3))
        own = jnp.einsum("pso,psi->poi", d, a)
        return total("mx,px->mp", w.reshape(functionals, -1), own.reshape(own.shape[0], -1))

    def layer(sum_: Array, inputs: dict[str, Array], deltas: dict[str, Array], q: Any) -> Array:
        for name, source in LINEAR.items():
            own = getattr(q, name)
            sum_ = sum_ + linear(inputs[source], deltas[name], own.w)
            if own.b is not None:
                sum_ = sum_ + total("mo,po->mp", own.b, deltas[name].sum(axis=1))
        for name, source in SCALE.items():
            sum_ = sum_ + total("mh,ph->mp", getattr(q, name), jnp.sum(inputs[source] * deltas[name], axis=1))
        return sum_

    sum_ = jnp.zeros((functionals, g.tokens.shape[0]), dtype)
    sum_ = over_layers(g, sum_, layer, q.blocks)
    sum_ = sum_ + total("mh,ph->mp", q.final_norm, jnp.sum(g.final_unit * g.final_norm, axis=1))
    top = q.embed if q.unembed is None else q.unembed
    if _thin(functionals, g.head.shape[1]):
        looked_up = jnp.sum(q.embed[:, g.tokens].astype(dtype) * g.embed[None].astype(dtype), axis=(2, 3))
        return sum_ + looked_up + linear(g.head_in, g.head, top)

    def tables(one: tuple[Array, ...]) -> Array:
        # One pair at a time: its table is as large as the model's own.
        tokens, d, head_in, head = one
        up = jnp.einsum("sv,sh->vh", head, head_in)
        down = jnp.zeros_like(up) if q.unembed is not None else up
        down = down.at[tokens].add(d)
        both = total("mvh,vh->m", q.embed, down)
        return both if q.unembed is None else both + total("mvh,vh->m", q.unembed, up)

    return sum_ + jax.lax.map(tables, (g.tokens, g.embed, g.head_in, g.head)).T


def _thin(functionals: int, tokens: int) -> bool:
    return functionals * tokens <= tokens + functionals

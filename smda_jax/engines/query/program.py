"""Linear readouts of (ΔZ, ΔY) pulled back to the parameters over all prompts, and asked of pairs.

A linear readout is given by its weights, `f = Σ_{n,k} weight_z[n,k] ΔZ[n,k] + Σ_n weight_y[n]
ΔY[n]`: the policy's score is one, each of its coefficients' pathways another
(`policy.influence.linear_readouts`).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smda_jax.data.batch.batches import PairBatch, PromptBatch
from smda_jax.model.moved import Moved, everything
from smda_jax.model.operations import Linear
from smda_jax.model.params import Params
from smda_jax.pytree import pytree
from smda_jax.reading.behaviours.contract import Behaviour
from smda_jax.reading.readout import read
from smda_jax.reading.site import Site
from smda_jax.runtime.devices import Replicated, Rows, Summed
from smda_jax.runtime.precision import wide
from smda_jax.runtime.programs import jit, program
from smda_jax.sae.encoder import Encoder, pre_activation
from smda_jax.steps.gradient import (
    Gradient,
    PairStatistics,
    gradient,
    masks_of,
    scale_gradient,
    squares_of_small,
    squares_outside,
)
from smda_jax.steps.losses import scored_losses, scored_tokens
from smda_jax.steps.updates.contract import Update


@pytree
class Query:
    """Gradients of several linear readouts with respect to the parameters.

    The readout axis is first, in the blocks second. Of readouts of z alone only the blocks up to
    the site's layer are held.
    """

    gradient: Params

    @property
    def readouts(self) -> int:
        """How many there are."""
        return self.gradient.embed.shape[0]


class Weighting(NamedTuple):
    """Weights of linear readouts of a batch's prompts; either may be absent."""

    z: Float[Any, "readout prompt feature"] | None
    y: Float[Any, "readout prompt"] | None


class Weighted(NamedTuple):
    """Linear readouts of a batch: weights, and the encoder of the features they look at."""

    encoder: Encoder
    weighting: Weighting


_OF_PROMPTS = Weighting(Rows(1), Rows(1))  # type: ignore[arg-type]


@program(
    Replicated(),
    Rows(),
    Weighted(Replicated(), _OF_PROMPTS),  # type: ignore[arg-type]
    result=Summed(),
    static=("behaviour", "site", "moved"),
)
def query(
    params: Params,
    batch: PromptBatch,
    weighted: Weighted,
    behaviour: Behaviour,
    site: Site,
    moved: Moved | None = None,
) -> Query:
    """A batch's part of each readout's gradient; parts add up. What does not move has none.

    The tokens that all prompts share are run once forwards, and once backwards: a sum over prompts
    is what is pulled back.
    """
    encoder, weighting = weighted
    through_y = weighting.y is not None and behaviour.moves
    needed = params if through_y else params.up_to(site.layer)

    def pick(params: Params) -> Params:
        return params if moved is None else moved.pick(params)

    def merge(params: Params, own: Params) -> Params:
        return own if moved is None else moved.merge(params, own)

    def readouts(own: Params) -> Weighting:
        reading = read(merge(needed, own), batch, behaviour, site)
        h = jnp.asarray(reading.h).astype(encoder.b.dtype)
        z = None if weighting.z is None else pre_activation(encoder, h)
        return Weighting(z, None if weighting.y is None else jnp.asarray(reading.y))

    values, pull = jax.vjp(readouts, pick(needed))
    still = jax.tree.map(jnp.zeros_like, needed)
    cast = jax.tree.map(lambda w, v: jnp.asarray(w).astype(v.dtype), weighting, values)
    # One readout after the other: beside an axis of readouts, weights' gradients are products of
    # transposed copies.
    g = jax.lax.map(lambda weight: merge(still, pull(weight)[0]), cast)
    g = g.map_parts(lambda leaf: leaf, lambda leaf: jnp.moveaxis(leaf, 0, 1))
    return Query(jax.tree.map(lambda leaf: leaf.astype(wide(leaf.dtype)), g))


@program(donate=(0,))
def add(total: Query, part: Query) -> Query:
    """Sum of two parts; the first gives its memory."""
    return jax.tree.map(jnp.add, total, part)


@program(static=("dtype",), donate=(0,))
def finish(total: Query, update: Update, dtype: Any) -> Query:
    """What the update makes of the sum, in the precision of the passes."""
    g = update.pulled(total.gradient)
    return Query(jax.tree.map(lambda leaf: leaf.astype(dtype), g))


@jit
def norms(query: Query) -> Float[Array, " readout"]:
    """Length of every readout's gradient."""

    def squares(leaf: Array, axis: int) -> Array:
        flat = jnp.moveaxis(leaf, axis, 0).reshape(leaf.shape[axis], -1)
        return jnp.einsum("mx,mx->m", flat, flat, preferred_element_type=wide(flat.dtype))

    parts = query.gradient.map_parts(lambda x: squares(x, 0), lambda x: squares(x, 1))
    total = jax.tree.leaves(parts)
    return jnp.sqrt(sum(total[1:], total[0]))


@program(Replicated(), Rows(), Replicated(), Replicated(), result=(Rows(1), Rows(0)))
def directional_derivative(
    params: Params, batch: PairBatch, query: Query, update: Update
) -> tuple[Float[Array, "readout pair"], PairStatistics]:
    """Change of a few readouts of every layer under every pair's step.

    It is the step's rate times `dL[i]/dε` at `θ + ε ∂f/∂θ`, a tangent, which goes forwards: nothing
    of a pair is kept from layer to layer, and the tokens that all pairs share move the same way for
    all of them. Each readout takes two thirds of a gradient; the gradient's norm stays unknown
    (NaN), so that the rate may not depend on it.
    """

    losses, slope = along(lambda p: scored_losses(p, batch)[0], params, query, update)
    statistics = PairStatistics(losses, jnp.full_like(losses, jnp.nan))
    rate = update.rate(jnp.full_like(losses, jnp.nan))  # the norm is not known
    return rate.astype(slope.dtype)[None] * slope, statistics


def along(
    function: Callable[[Params], Array], params: Params, query: Query, update: Update
) -> tuple[Array, Array]:
    """A function of the parameters, and its derivative along every readout's gradient (readout
    axis first)."""

    def change(q: Params) -> tuple[Array, Array]:
        only = update.moved
        if only is None:
            return jax.jvp(function, (params,), (q,))
        # What stays has no tangent, and costs none.
        own, tangent = only.pick(params), only.pick(q)
        return jax.jvp(lambda own: function(only.merge(params, own)), (own,), (tangent,))

    g = query.gradient
    missing = params.config.layers - g.depth
    if missing:  # what is read lies below: the layers above have no part in it

        def fill(leaf: Array) -> Array:
            return jnp.concatenate([leaf, jnp.zeros((missing, *leaf.shape[1:]), leaf.dtype)])

        g = g.map_parts(lambda leaf: leaf, fill)
    if query.readouts == 1:  # without an axis of one, XLA moves less about
        value, slope = change(g.map_parts(lambda leaf: leaf[0], lambda leaf: leaf[:, 0]))
        return value, slope[None]
    axes = g.map_parts(lambda _: 0, lambda _: 1)
    return jax.vmap(change, (axes,), (None, 0))(g)


@program(Replicated(), Rows(), Replicated(), Replicated(), Rows(), result=Rows(1))
def token_contributions(
    params: Params, batch: PairBatch, query: Query, update: Update, norm: Float[Array, " pair"]
) -> Float[Array, "readout lane row position"]:
    """Change of every readout by each scored token: the pair's step is a sum over its tokens'.

    `rate · ∂L/∂s · w[t] d(cross-entropy of t)/dε` at `θ + ε ∂f/∂θ`, s being the row's weighted sum.
    `norm` is that of the pair's gradient, which some updates' rates depend on.
    """
    weighted, slope = along(lambda p: scored_tokens(p, batch)[0], params, query, update)
    sums = jnp.sum(weighted, axis=-1).reshape(batch.pairs, batch.loss.rows)
    value, pull = jax.vjp(batch.loss.value, sums)
    (outer,) = pull(jnp.ones_like(value))
    rate = update.rate(norm).astype(slope.dtype)
    factor = (rate[:, None] * outer).reshape(slope.shape[1:3])
    return slope * factor[None, :, :, None]


@program(Replicated(), Rows(), Replicated(), Replicated(), result=(Rows(1), Rows(0)))
def inner_products(
    params: Params, batch: PairBatch, queries: tuple[Query, ...], update: Update
) -> tuple[tuple[Float[Array, "readout pair"], ...], PairStatistics]:
    """Change of every readout under every pair's step: `-η ⟨∂f/∂θ, ∂L[i]/∂θ⟩` (pair axis last)."""
    losses, g = gradient(params, batch)
    products, squares = _products(g, tuple(q.gradient for q in queries), update.moved)
    norm = jnp.sqrt(jnp.maximum(squares, 0))
    rate = update.rate(norm)
    return tuple(rate[None] * product for product in products), PairStatistics(losses, norm)


def _total(dtype: Any, spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, preferred_element_type=dtype)


def _products(
    g: Gradient, queries: tuple[Params, ...], moved: Moved | None
) -> tuple[tuple[Float[Array, "readout pair"], ...], Float[Array, " pair"]]:
    """`Σ_θ q[m,θ] g[i,θ]` of every query, and `‖g[i]‖²`.

    Each pair's gradient is formed, one operation at a time.
    """
    dtype, config = wide(g.embed.dtype), queries[0].config
    moved = moved or everything(config)

    def layer(sums: Any, xs: tuple[Any, ...]) -> tuple[Any, None]:
        (products, squares), (inputs, deltas, masks, blocks) = (list(sums[0]), sums[1]), xs
        for op in config.table:
            if op.name not in masks:
                continue
            x, delta = inputs[op.reads], deltas[op.name]
            if isinstance(op, Linear):
                formed = jnp.einsum("pso,psi->poi", delta, x).reshape(delta.shape[0], -1)
                own = _total(dtype, "px,px->p", formed, formed)
                squares = squares + own * masks[op.name][0].astype(dtype)
            else:
                formed = scale_gradient(op, x, delta)
            for i, block in enumerate(blocks):
                q = block[op.name]
                flat = q.w.reshape(q.w.shape[0], -1)
                products[i] = products[i] + _total(dtype, "mx,px->mp", flat, formed)
                if q.b is not None:
                    bias = delta.sum(axis=1)
                    products[i] = products[i] + _total(dtype, "mo,po->mp", q.b, bias)
        small = squares_of_small(config, inputs, deltas, masks).astype(dtype)
        return (tuple(products), squares + small), None

    # Queries of z alone reach up to the site's layer: the deepest first, so that those that reach
    # a layer are the first few.
    depth = [q.depth for q in queries]
    order = sorted(range(len(queries)), key=lambda i: -depth[i])
    pairs = g.tokens.shape[0]
    products = [jnp.zeros((queries[i].embed.shape[0], pairs), dtype) for i in order]
    squares = squares_outside(g, config, moved).astype(dtype)
    masks = masks_of(moved)
    for start, stop in pairwise([0, *sorted({*depth, config.layers})]):
        reach = [queries[i].blocks for i in order if depth[i] >= stop]

        def some(leaf: Array, start: int = start, stop: int = stop) -> Array:
            return leaf[start:stop]

        xs = jax.tree.map(some, (g.inputs, g.deltas, masks, reach))
        carry = (tuple(products[: len(reach)]), squares)
        (found, squares), _ = jax.lax.scan(layer, carry, xs)
        products = [*found, *products[len(reach) :]]
    whole = [p + _outside(g, queries[i], moved) for i, p in zip(order, products, strict=True)]
    by_query = dict(zip(order, whole, strict=True))
    return tuple(by_query[i] for i in range(len(queries))), squares


def _outside(g: Gradient, q: Params, moved: Moved) -> Float[Array, "readout pair"]:
    """The part of `_products` in the embedding, the final norm and the unembedding."""
    dtype = wide(g.embed.dtype)
    final = jnp.sum(g.final_unit * g.final_norm, axis=1)
    of_norm = _total(dtype, "mh,ph->mp", q.final_norm, final)
    if not moved.embed and not moved.unembed:
        return of_norm

    def one(pair: tuple[Array, ...]) -> Array:
        # One pair at a time: its table is as large as the model's own.
        tokens, d, head_in, head = pair
        up = jnp.einsum("sv,sh->vh", head, head_in)
        down = jnp.zeros_like(up) if q.unembed is not None else up
        both = _total(dtype, "mvh,vh->m", q.embed, down.at[tokens].add(d))
        return both if q.unembed is None else both + _total(dtype, "mvh,vh->m", q.unembed, up)

    tables = jax.lax.map(one, (g.tokens, g.embed, g.head_in, g.head)).T
    return of_norm + tables

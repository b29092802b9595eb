"""What a parameter step adds to the output of each operation.

A plain SGD step changes a linear layer's weight by `ΔW = -η Σ_s δ[s] ⊗ a[s]`, s over the pair's tokens. On another input x the
layer's output then changes by `ΔW x`, which needs the factors only. Each class below is one such change, for one pair;
called with the input that an operation reads, it returns what the step adds to the operation's output. Deltas carry the
factor -η already. Under a diagonal preconditioner every entry of the step is multiplied by `scaling`, and the step is no
longer of low rank.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float, Int

from smda_jax.kernels.low_rank import low_rank_product
from smda_jax.model.precision import wide
from smda_jax.pytree import pytree


@pytree
class LinearStep:
    """Step of a linear operation: `(x aᵀ) d`, plus `Σ_s d[s]` where it has a bias."""

    a: Float[Array, "token in"]
    d: Float[Array, "token out"]
    biased: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, x: Float[Array, "row position in"]) -> Float[Array, "row position out"]:
        """See the class."""
        y = low_rank_product(x, self.a, self.d)
        return y + self.d.sum(axis=0)[None, None] if self.biased else y

    def merged(self) -> "MergedStep":
        """The same step as one matrix."""
        return MergedStep(jnp.einsum("si,so->io", self.a, self.d), self.d.sum(axis=0) if self.biased else None)


@pytree
class MergedStep:
    """Step of a linear operation as a matrix: `x w`, plus `b`."""

    w: Float[Array, "in out"]
    b: Float[Array, " out"] | None

    def __call__(self, x: Float[Array, "row position in"]) -> Float[Array, "row position out"]:
        """See the class."""
        y = x @ self.w
        return y if self.b is None else y + self.b[None, None]

    def merged(self) -> "MergedStep":
        """Itself."""
        return self


@pytree
class ScaleStep:
    """Step of a norm's scale: `x ⊙ Δscale`."""

    g: Float[Array, " hidden"]

    def __call__(self, x: Float[Array, "row position hidden"]) -> Float[Array, "row position hidden"]:
        """See the class."""
        return x * self.g[None, None]


@pytree
class EmbedStep:
    """Step of the embedding table, looked up at token ids.

    The table moves by `d[s]` in the row of each of the pair's tokens; where it is also the unembedding, by
    `Σ_s head.d[s] ⊗ head.a[s]` besides.
    """

    tokens: Int[Array, " token"]
    d: Float[Array, "token hidden"]
    head: LinearStep | None
    scaling: Float[Array, "vocab hidden"] | None = None

    def __call__(self, x: Int[Array, "row token"]) -> Float[Array, "row token hidden"]:
        """See the class."""
        same = (x[:, :, None] == self.tokens[None, None]).astype(self.d.dtype)
        y = same @ self.d
        y = y if self.head is None else y + self.head.d.T[x] @ self.head.a
        return y if self.scaling is None else y * self.scaling[x]


@pytree
class UnembedStep:
    """Step of the unembedding; where it is also the embedding table, `looked_up` holds the other half of its step."""

    head: LinearStep
    looked_up: EmbedStep | None
    scaling: Float[Array, "vocab hidden"] | None = None

    def __call__(self, x: Float[Array, "row position hidden"]) -> Float[Array, "row position vocab"]:
        """See the class."""
        if self.scaling is not None:
            return _scaled_unembedding(self, x)
        y = self.head(x)
        if self.looked_up is None:
            return y
        return y.at[:, :, self.looked_up.tokens].add(x @ self.looked_up.d.T)


def weigh_unembedding(
    step: UnembedStep, x: Float[Array, "row position hidden"], g: Float[Array, "row position vocab"]
) -> Float[Array, "pair row"]:
    """`⟨what each pair's step adds to the unembedding's output, g⟩`; what it adds, as wide as the vocabulary, is not formed.

    With `y = Σ_s (x·a_s) d_s` it is `Σ_s (x·a_s) (d_s·g)`: two products for all pairs, a few rows at a time.
    """
    total = partial(jnp.einsum, preferred_element_type=wide(x.dtype))

    def some(both: tuple[Array, Array]) -> Array:
        x, g = both
        if step.scaling is not None:
            return total("ptv,tv->p", inject(step, x[None])[:, 0], g)
        out = jnp.einsum("tps,tps->p", total("th,psh->tps", x, step.head.a), total("tv,psv->tps", g, step.head.d))
        if step.looked_up is None:
            return out
        at, d = step.looked_up.tokens, step.looked_up.d
        return out + jnp.einsum("tps,tps->p", total("th,psh->tps", x, d), g[:, at].astype(out.dtype))

    return jax.lax.map(some, (x, g), batch_size=None if step.scaling is not None else min(16, len(x))).T


@sequential_vmap
def _scaled_unembedding(step: UnembedStep, x: Float[Array, "row position hidden"]) -> Float[Array, "row position vocab"]:
    """One pair's whole table at a time: it is as large as the model's own."""
    table = jnp.einsum("sv,sh->vh", step.head.d, step.head.a)
    if step.looked_up is not None:
        table = table.at[step.looked_up.tokens].add(step.looked_up.d)
    assert step.scaling is not None
    return jnp.einsum("rph,vh->rpv", x, table * step.scaling)


def inject(step: object, x: Array) -> Array:
    """What each pair's step adds to an operation that reads x (pair axis first)."""
    return jax.vmap(lambda one: one(x), (pair_axes(step),))(step)  # type: ignore[operator]


def pair_axes(step: object) -> object:
    """The pair axis of the leaves of a step: first, but for `scaling`, which pairs share."""
    shared = [leaf for leaf in (getattr(step, "scaling", None),) if leaf is not None]
    axes = jax.tree.map(lambda _: 0, step)
    return axes.replace(scaling=None) if shared else axes  # type: ignore[attr-defined]

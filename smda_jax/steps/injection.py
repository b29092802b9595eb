"""What a parameter step adds to the output of each operation.

A plain SGD step changes a linear layer's weight by `ΔW = -η Σ_s δ[s] ⊗ a[s]`, s over the pair's
tokens. On another input x the layer's output then changes by `ΔW x`, which needs the factors only.
Each class below is one such change, for one pair; called with the input that an operation reads, it
returns what the step adds to the operation's output. Deltas carry the factor -η already.
"""

from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float, Int

from smda_jax.kernels.low_rank import low_rank_product
from smda_jax.pytree import pytree
from smda_jax.runtime.precision import wide


@runtime_checkable
class OperationStep(Protocol):
    """The step of one operation: of one pair, or of several with a pair axis first."""

    def __call__(self, x: Any) -> Array:
        """What one pair's step adds where the operation reads x."""
        ...

    def pair_axes(self) -> Any:
        """The pair axis of every leaf, for `vmap`: 0, or None for what pairs share."""
        ...


class _EveryLeaf:
    """Steps whose leaves all have the pair axis first."""

    def pair_axes(self) -> Any:
        """See `OperationStep`."""
        return jax.tree.map(lambda _: 0, self)


@pytree
class LinearStep(_EveryLeaf):
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
        bias = self.d.sum(axis=0) if self.biased else None
        return MergedStep(jnp.einsum("si,so->io", self.a, self.d), bias)

    def masked(self, mask: Float[Array, " part"]) -> "LinearStep | MergedStep":
        """The same step times `mask`: of its weight, and of its bias."""
        if self.biased:
            return self.merged().masked(mask)
        return LinearStep(self.a, self.d * mask[0])

    def smaller(self) -> "LinearStep | MergedStep":
        """The same step, in whichever form is less to keep and to apply.

        With s tokens, both storage and the work of an injection are s·(in + out) as factors and
        in·out as a matrix. Steps of real models are kept as factors throughout; those of models
        narrower than the pairs are long are not.
        """
        tokens, width_in, width_out = *self.a.shape, self.d.shape[1]
        as_factors = tokens * (width_in + width_out)
        return self if as_factors < width_in * width_out else self.merged()


@pytree
class MergedStep(_EveryLeaf):
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

    def masked(self, mask: Float[Array, " part"]) -> "MergedStep":
        """See `LinearStep`."""
        return MergedStep(self.w * mask[0], None if self.b is None else self.b * mask[1])


@pytree
class ScaleStep(_EveryLeaf):
    """Step of a norm's scale, as it lies along the input: `x ⊙ Δscale`."""

    g: Float[Array, " hidden"]

    def __call__(self, x: Float[Array, "row position _"]) -> Float[Array, "row position _"]:
        """See the class."""
        return x * self.g[None, None]


@pytree
class EmbedStep(_EveryLeaf):
    """Step of the embedding table, looked up at token ids.

    The table moves by `d[s]` in the row of each of the pair's tokens; where it is also the
    unembedding, by `Σ_s head.d[s] ⊗ head.a[s]` besides.
    """

    tokens: Int[Array, " token"]
    d: Float[Array, "token hidden"]
    head: LinearStep | None

    def __call__(self, x: Int[Array, "row token"]) -> Float[Array, "row token hidden"]:
        """See the class."""
        same = (x[:, :, None] == self.tokens[None, None]).astype(self.d.dtype)
        y = same @ self.d
        return y if self.head is None else y + self.head.d.T[x] @ self.head.a


@pytree
class UnembedStep(_EveryLeaf):
    """Step of the unembedding; `looked_up` holds the other half where the table is tied."""

    head: LinearStep
    looked_up: EmbedStep | None

    def __call__(
        self, x: Float[Array, "row position hidden"]
    ) -> Float[Array, "row position vocab"]:
        """See the class."""
        y = self.head(x)
        if self.looked_up is None:
            return y
        return y.at[:, :, self.looked_up.tokens].add(x @ self.looked_up.d.T)

    def table(self) -> Float[Array, "vocab hidden"]:
        """The whole step; it is as large as the model's own table."""
        table = jnp.einsum("sv,sh->vh", self.head.d, self.head.a)
        if self.looked_up is not None:
            table = table.at[self.looked_up.tokens].add(self.looked_up.d)
        return table

    def inner_products(
        self, x: Float[Array, "row position hidden"], g: Float[Array, "row position vocab"]
    ) -> Float[Array, "pair row"]:
        """`⟨what each pair's step adds to the unembedding's output, g⟩`, with a pair axis first.

        What a step adds, as wide as the vocabulary, is not formed: with `y = Σ_s (x·a_s) d_s` it
        is `Σ_s (x·a_s) (d_s·g)`, two products for all pairs, a few rows at a time.
        """
        total = partial(jnp.einsum, preferred_element_type=wide(x.dtype))

        def of_row(both: tuple[Array, Array]) -> Array:
            x, g = both
            a, d = self.head.a, self.head.d
            along_a, along_d = total("th,psh->tps", x, a), total("tv,psv->tps", g, d)
            out = jnp.einsum("tps,tps->p", along_a, along_d)
            if self.looked_up is None:
                return out
            rows = g[:, self.looked_up.tokens].astype(out.dtype)
            looked_up = total("th,psh->tps", x, self.looked_up.d)
            return out + jnp.einsum("tps,tps->p", looked_up, rows)

        return jax.lax.map(of_row, (x, g), batch_size=min(16, len(x))).T


@pytree
class ScaledEmbedStep:
    """An embedding's step whose every entry is multiplied by `factor`, which pairs share.

    With a basis, its entries are those of its rows written in that basis.
    """

    step: EmbedStep
    factor: Float[Array, "vocab hidden"]
    basis: Float[Array, "hidden hidden2"] | None = None

    def __call__(self, x: Int[Array, "row token"]) -> Float[Array, "row token hidden"]:
        """See `EmbedStep`."""
        return times_in_basis(self.step(x), self.factor[x], self.basis)

    def pair_axes(self) -> "ScaledEmbedStep":
        """See `OperationStep`."""
        return ScaledEmbedStep(self.step.pair_axes(), None)  # type: ignore[arg-type]


@pytree
class ScaledUnembedStep:
    """An unembedding's step whose every entry is multiplied by `factor`, which pairs share; see
    `ScaledEmbedStep`."""

    step: UnembedStep
    factor: Float[Array, "vocab hidden"]
    basis: Float[Array, "hidden hidden2"] | None = None

    def __call__(
        self, x: Float[Array, "row position hidden"]
    ) -> Float[Array, "row position vocab"]:
        """See `UnembedStep`."""
        return _scaled_unembedding(self, x)

    def pair_axes(self) -> "ScaledUnembedStep":
        """See `OperationStep`."""
        return ScaledUnembedStep(self.step.pair_axes(), None)  # type: ignore[arg-type]

    def inner_products(
        self, x: Float[Array, "row position hidden"], g: Float[Array, "row position vocab"]
    ) -> Float[Array, "pair row"]:
        """See `UnembedStep`; every pair's table is made once, and asked by all rows."""
        total = partial(jnp.einsum, preferred_element_type=wide(x.dtype))

        def of_pair(step: UnembedStep) -> Array:
            one = ScaledUnembedStep(step, self.factor, self.basis)
            return total("rpv,rpv->r", _scaled_unembedding(one, x), g)

        return jax.lax.map(of_pair, self.step)


@sequential_vmap
def _scaled_unembedding(
    step: ScaledUnembedStep, x: Float[Array, "row position hidden"]
) -> Float[Array, "row position vocab"]:
    """One pair's whole table at a time: it is as large as the model's own."""
    table = times_in_basis(step.step.table(), step.factor, step.basis)
    return jnp.einsum("rph,vh->rpv", x, table)


def times_in_basis(
    rows: Float[Array, "*row hidden"],
    factor: Float[Array, "*row hidden"],
    basis: Float[Array, "hidden hidden2"] | None,
) -> Float[Array, "*row hidden"]:
    """`factor ⊙ rows`, entry by entry, written in a basis."""
    if basis is None:
        return rows * factor
    return ((rows @ basis) * factor) @ basis.T


def inject(step: OperationStep, x: Array) -> Array:
    """What each pair's step adds to an operation that reads x (pair axis first)."""
    return jax.vmap(lambda one: one(x), (step.pair_axes(),))(step)

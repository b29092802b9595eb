"""Rows of different lengths one behind the other in lanes, and how they become rows for attention.

Every operation but attention sees a lane as one row of tokens without padding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from smda_jax.pytree import pytree


@pytree
class Packing:
    """Where the rows of each lane lie.

    Attributes:
        unpack: for every token of a row, its place in the lane. Rows of like length form a group,
            and each group is padded to its own width. What pads a row is a token of its own, which
            causal attention keeps out of all others.
        pack: for every token of a lane, its place among the lane's rows as `unpack` lays them out,
            group after group.
    """

    unpack: tuple[Int[Array | np.ndarray, "lane row token"], ...]
    pack: Int[Array | np.ndarray, "lane token"]

    def attend(
        self,
        attention: Callable[..., Float[Array, "row token mixed"]],
        *lanes: Float[Array, "lane token _ head_dim"],
    ) -> Float[Array, "lane token mixed"]:
        """Unpacks lanes into rows, applies `attention` to each group of rows, and packs again."""
        groups = []
        for places in self.unpack:
            own = (take(x, places) for x in lanes)
            spec = "lane row token head head_dim -> (lane row) token head head_dim"
            mixed = attention(*(rearrange(x, spec) for x in own))
            groups.append(mixed.reshape(len(places), -1, mixed.shape[-1]))
        return take(jnp.concatenate(groups, axis=1), self.pack)


def take(
    x: Float[Array, "lane from *rest"], index: Int[Array | np.ndarray, "lane *to"]
) -> Float[Array, "lane *to_and_rest"]:
    """Tokens of each lane by their places, which are in bounds."""

    def of_lane(x: Array, index: Array) -> Array:
        return x.at[index].get(mode="promise_in_bounds")

    return jax.vmap(of_lane)(x, jnp.asarray(index))

"""Losses of pairs: which rows of tokens a pair is made of, and what is made of their sums."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LossName = Literal["sft", "dpo"]
LossScope = Literal["response", "all"]


@runtime_checkable
class Loss(Protocol):
    """A pair's loss as a function of `Σ_t weight_t · cross-entropy_t` of each of its rows.

    Hashable: it is a static part of the programs that take gradients.

    Attributes:
        rows: of a pair: its response, or the chosen and the rejected one.
        scope: whether tokens of responses count, or all.
        averaged: whether the weights of a row's tokens add up to one, or are one each.
        compared: whether it compares with the base weights.
    """

    @property
    def rows(self) -> int:
        """See the class."""
        ...

    @property
    def scope(self) -> LossScope:
        """See the class."""
        ...

    @property
    def averaged(self) -> bool:
        """See the class."""
        ...

    @property
    def compared(self) -> bool:
        """See the class."""
        ...

    def value(
        self, sums: Float[Array, "pair row"], reference: Float[Array, "pair row"] | None = None
    ) -> Float[Array, " pair"]:
        """The loss of every pair; `reference`: sums at the base weights, by default these."""
        ...


@dataclass(frozen=True)
class Sft:
    """Mean cross-entropy of the scored tokens, nats per token."""

    scope: LossScope = "response"
    rows = 1
    averaged = True
    compared = False

    def value(
        self, sums: Float[Array, "pair row"], reference: Float[Array, "pair row"] | None = None
    ) -> Float[Array, " pair"]:
        """See `Loss`."""
        return sums[:, 0]


@dataclass(frozen=True)
class Dpo:
    """`−log σ(β (m − m_ref))`, m = log p(chosen) − log p(rejected) (arXiv 2305.18290).

    The reference is the base weights. Of a step from these m_ref is m itself, the loss is log 2,
    and its gradient `−β/2 ∂m`.
    """

    beta: float = 0.1
    scope: LossScope = "response"
    rows = 2
    averaged = False
    compared = True

    def value(
        self, sums: Float[Array, "pair row"], reference: Float[Array, "pair row"] | None = None
    ) -> Float[Array, " pair"]:
        """See `Loss`."""
        change = sums - jax.lax.stop_gradient(sums if reference is None else reference)
        beta = jnp.asarray(self.beta, sums.dtype)
        return -jax.nn.log_sigmoid(beta * (change[:, 1] - change[:, 0]))


def make_loss(name: LossName, scope: LossScope = "response", beta: float = 0.1) -> Sft | Dpo:
    """The loss of a name."""
    return Sft(scope) if name == "sft" else Dpo(beta, scope)

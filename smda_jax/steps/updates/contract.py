"""The contract of updates; its base is the plain step."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smda_jax.model.operations import Linear, Scale
from smda_jax.model.params import Params
from smda_jax.pytree import pytree
from smda_jax.steps.injection import (
    EmbedStep,
    LinearStep,
    MergedStep,
    OperationStep,
    UnembedStep,
)


@pytree
class Update:
    """What a pair's loss gradient g becomes: here the plain step `-η g`.

    An update is asked in three ways, which have to agree: for the factor of each pair's gradient
    (`rate`), for what becomes of each operation's step in factored or merged form (`linear`,
    `scale`, `final_norm`, `embed`, `unembed`), and for what becomes of a query that is pulled back
    to the parameters (`pull`: the transpose of the others, `⟨P(g), q⟩ = ⟨g, pull(q)⟩`).

    Attributes:
        learning_rate: η. One that is too large for the passes is infinite there, and its steps
            are refused by name.
    """

    learning_rate: Float[Array, ""] | float

    # Whether `rate` depends on the gradient's norm, so that it has to be known.
    needs_norm: ClassVar[bool] = False
    # Whether gradients are formed, so that a query is not asked along a tangent.
    preconditions: ClassVar[bool] = False

    @property
    def eta(self) -> Float[Array, ""]:
        """η as an array of the precision in use."""
        with np.errstate(over="ignore"):
            return jnp.asarray(self.learning_rate)

    def ready(self) -> "Update":
        """With η as an array, so that all rates share one compiled program."""
        return self.replace(learning_rate=self.eta)  # type: ignore[attr-defined]

    def rate(self, norm: Float[Array, " pair"]) -> Float[Array, " pair"]:
        """What each pair's gradient is multiplied by; `norm` is the gradient's own."""
        return jnp.broadcast_to(-jnp.asarray(self.learning_rate, norm.dtype), norm.shape)

    def blocks(self) -> Any:
        """What `linear` and `scale` need of every block, layer axis first; None for nothing."""
        return None

    def linear(self, part: Any, op: Linear, step: LinearStep) -> LinearStep | MergedStep:
        """A linear operation's step; `part` is the block's slice of `blocks()`."""
        return step.smaller()

    def scale(self, part: Any, op: Scale, g: Float[Array, " width"]) -> Float[Array, " width"]:
        """A norm scale's step."""
        return g

    def final_norm(self, g: Float[Array, "*pair hidden"]) -> Float[Array, "*pair hidden"]:
        """The final norm's step."""
        return g

    def embed(self, step: EmbedStep) -> OperationStep:
        """The embedding's step."""
        return step

    def unembed(self, step: UnembedStep) -> OperationStep:
        """The unembedding's step."""
        return step

    def pull(self, query: Params) -> Params:
        """A query's gradient; of leaves with a functional axis first, second in the blocks."""
        return query

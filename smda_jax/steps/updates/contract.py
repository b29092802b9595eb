"""The contract of updates; its base is the plain step."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from smda_jax.model.moved import Moved
from smda_jax.model.operations import Linear, Scale
from smda_jax.model.params import Params
from smda_jax.pytree import pytree
from smda_jax.steps.gradient import masks_of
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

    An update is a factor for each pair (`rate`) and one linear map P of gradients, which is
    written twice: operation by operation, on steps in factored form (`linear`, `scale`,
    `final_norm`, `embed`, `unembed`), and transposed, on a gradient in full (`pull`:
    `⟨P(g), q⟩ = ⟨g, pull(q)⟩`). Engines forward, reverse and finite use the first, query the
    second; tests hold them together.

    Attributes:
        learning_rate: η. One that is too large for the passes is infinite there, and its steps
            are refused by name.
        moved: the parameters that move; None for all. Who uses an update leaves the others out,
            an update need not; static.
    """

    learning_rate: Float[Array, ""] | float
    moved: Moved | None = struct.field(pytree_node=False, kw_only=True, default=None)

    # Whether `rate` depends on the gradient's norm; if not it may be given NaN.
    needs_norm: ClassVar[bool] = False

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

    def moves(self, name: str) -> bool:
        """Whether an operation of a block, `embed`, `final_norm` or `unembed` moves at all."""
        if self.moved is None:
            return True
        outside = {"embed": self.moved.embed, "final_norm": self.moved.final_norm}
        if name == "unembed":  # a tied table moves in both its uses
            return self.moved.unembed
        return outside.get(name, name in self.moved.masks)

    def masks(self) -> dict[str, Float[Array, "layer part"]] | None:
        """In which layers an operation's weight and its bias move; None for all."""
        if self.moved is None:
            return None
        return masks_of(self.moved)

    def pulled(self, query: Params) -> Params:
        """`pull`, zero where nothing moves."""
        found = self.pull(query)
        return found if self.moved is None else self.moved.masked(found)

    def pull(self, query: Params) -> Params:
        """Pᵀ of a query's gradient.

        Leaves have the readout axis first; in the blocks the layer axis is first and the readout
        axis second.
        """
        return query

"""The parameters of a model as a pytree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from smda_jax.model.config import ModelConfig
from smda_jax.model.operations import Linear
from smda_jax.pytree import pytree


@pytree
class Weights:
    """Parameters of one operation; stacked over the blocks, every leaf has the layer axis first.

    Attributes:
        w: a linear weight `[out, in]`, in the checkpoint's orientation, or a scale.
        b: the bias of a linear operation, where it has one.
    """

    w: Float[Array, "*layer_and_shape"]
    b: Float[Array, "*layer out"] | None = None


@pytree
class Params:
    """All parameters of a model.

    Attributes:
        embed: the embedding table.
        blocks: of every operation of the table, layer axis first.
        final_norm: scale of the norm before the unembedding.
        unembed: None where the embedding is tied to it.
        config: of the model; static.
    """

    embed: Float[Array, "vocab hidden"]
    blocks: dict[str, Weights]
    final_norm: Float[Array, " hidden"]
    unembed: Float[Array, "vocab hidden"] | None
    config: ModelConfig = struct.field(pytree_node=False)

    @property
    def depth(self) -> int:
        """How many blocks are held: all, or the first few (`up_to`)."""
        return jax.tree.leaves(self.blocks)[0].shape[0]

    @property
    def kinds(self) -> Int[Any, " layer"]:
        """Which kind each of the blocks held is."""
        return self.config.layer_kinds[: self.depth]

    def layer(self, index: int) -> "Layer":
        """One block."""
        kind = jnp.asarray(self.config.kind_of_layer[index], jnp.int32)
        return Layer(jax.tree.map(lambda leaf: leaf[index], self.blocks), kind)

    def up_to(self, layer: int) -> "Params":
        """With the blocks up to `layer` only: all that a stream read there depends on."""
        blocks = jax.tree.map(lambda leaf: leaf[: layer + 1], self.blocks)
        return self.replace(blocks=blocks)  # type: ignore[attr-defined]

    def map_parts(self, outside: Any, inside: Any) -> "Params":
        """`inside` applied to every leaf of the blocks, `outside` to every other leaf."""
        rest = self.replace(blocks=None)  # type: ignore[attr-defined]
        blocks = jax.tree.map(inside, self.blocks)
        return jax.tree.map(outside, rest).replace(blocks=blocks)


class Layer(NamedTuple):
    """One block: the parameters of its operations, and which kind of layer it is."""

    weights: dict[str, Weights]
    kind: Int[Array, "*layer"]


def parameter_path(key: tuple[Any, ...]) -> str:
    """Name of a parameter, such as `embed` or `q.w`, from its path in the pytree."""
    names = [str(getattr(k, "name", getattr(k, "key", None))) for k in key]
    return ".".join(name for name in names if name != "blocks")


def abstract_params(config: ModelConfig, dtype: Any) -> Params:
    """Shapes of the parameters, without values."""

    def leaf(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    blocks = {}
    for op in config.table:
        biased = isinstance(op, Linear) and op.biased
        bias = leaf(config.layers, op.outputs) if biased else None
        blocks[op.name] = Weights(leaf(config.layers, *op.shape), bias)
    table = leaf(config.vocab, config.hidden)
    unembed = None if config.tied else table
    return Params(table, blocks, leaf(config.hidden), unembed, config)

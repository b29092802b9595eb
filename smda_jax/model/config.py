"""Static shape of a model; a family reads it from a Hugging Face `config.json`."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from smda_jax.model.operations import Scale, Stored, Table
from smda_jax.model.rope import Rope


@dataclass(frozen=True)
class LayerKind:
    """What differs between layers.

    Attributes:
        window: tokens that a token attends to, itself included; None for all before it.
        rope: its rotary embedding; None for none.
    """

    window: int | None = None
    rope: Rope | None = None


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention.

    Attributes:
        heads: of the queries.
        kv_heads: of keys and values.
        head_dim: width of a head.
        scale: of the scores.
        cap: scores become `cap · tanh(score / cap)`; None for none (Gemma 2).
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    cap: float | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model; hashable, since it is a static part of every program.

    Attributes:
        family: as `model_type` names it.
        vocab: rows of the embedding table.
        hidden: width of the residual stream.
        layers: number of blocks.
        attention: its heads.
        table: the operations of a block.
        final_norm: the norm before the unembedding.
        kinds: the kinds of layers that occur.
        kind_of_layer: which of them every layer is.
        activation: of the MLP, a key of `model.forward.ACTIVATIONS`.
        norm_eps: added to the mean square of what is normalised.
        tied: whether the unembedding is the embedding table.
        embed_scale: factor of the embedding's output.
        residual_scale: factor of what a sub-layer adds to the residual stream.
        logit_scale: factor of the logits.
        logit_cap: logits become `cap · tanh(logit / cap)`; None for none.
    """

    family: str
    vocab: int
    hidden: int
    layers: int
    attention: Attention
    table: Table
    final_norm: Scale
    kinds: tuple[LayerKind, ...]
    kind_of_layer: tuple[int, ...]
    activation: str
    norm_eps: float
    tied: bool
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None

    @property
    def flop_per_token(self) -> float:
        """Operations of the weights' products of one token's way through all blocks."""
        return self.layers * 2.0 * sum(op.size for op in self.table.linears)

    @property
    def adds_plainly(self) -> bool:
        """Whether the MLP's output is added to the residual stream as it is."""
        return self.residual_scale == 1 and "mlp_post_norm" not in self.table

    @property
    def layer_kinds(self) -> Int[np.ndarray, " layer"]:
        """`kind_of_layer` as an array, to be scanned over."""
        return np.asarray(self.kind_of_layer, np.int32)

    @property
    def longest(self) -> int | None:
        """Tokens up to which every rotary embedding holds; None for no limit."""
        limits = [k.rope.longest for k in self.kinds if k.rope and k.rope.longest]
        return min(limits, default=None)


# Tensors outside the blocks, as every family that is read names them.
EMBED, FINAL_NORM, UNEMBED = Stored("model.embed_tokens"), Stored("model.norm"), Stored("lm_head")
BLOCKS = "model.layers"

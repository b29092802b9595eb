"""Shapes of a run, and what an engine costs for them.

Counted in floating-point operations of matrix products, two per multiplication.
"""

from dataclasses import dataclass
from typing import Any

from smda_jax.engines.offers import Keep
from smda_jax.model.config import ModelConfig
from smda_jax.model.moved import Moved
from smda_jax.model.operations import Linear


@dataclass(frozen=True)
class Workload:
    """Shapes of a run; lengths are means.

    Attributes:
        config: of the model.
        pairs: how many.
        prompts: how many.
        prompt_tokens: of a prompt with a history.
        shared: leading tokens that all prompts have in common.
        pair_tokens: of a pair.
        shared_pairs: leading tokens that all pairs have in common.
        scored: tokens of a pair that its loss scores.
        features: that the policy reads.
        active: of them, per prompt.
        layer: that the SAE reads.
        depth: layers that prompts are run through.
        depth_of_y: layers that Y depends on; 0 where no step moves it.
        positions: read per prompt for Y.
        policies: how many policies are asked about.
        keep: what is kept.
        itemsize: bytes of a number.
        moved: the parameters that move; None for all.
    """

    config: ModelConfig
    pairs: int
    prompts: int
    prompt_tokens: float
    shared: int
    pair_tokens: float
    shared_pairs: int
    scored: float
    features: int
    active: float
    layer: int
    depth: int
    depth_of_y: int
    positions: int
    policies: int
    keep: Keep
    itemsize: int
    moved: Moved | None = None

    @property
    def moving(self) -> list[tuple[Linear, float]]:
        """Linear operations that move, and in which share of the layers."""
        both = (
            (op, 1.0 if self.moved is None else self.moved.share(op))
            for op in self.config.table.linears
        )
        return [(op, share) for op, share in both if share]


@dataclass(frozen=True)
class Price:
    """What an engine costs.

    Attributes:
        flop: operations, by part.
        pair_chunk: pairs of a block.
        batch_size: prompts at a time (readouts for reverse).
    """

    flop: dict[str, Any]
    pair_chunk: int
    batch_size: int

    @property
    def total(self) -> float | int:
        """Operations in all."""
        return sum(self.flop.values())


def layer_flop(config: ModelConfig, tokens: float | int) -> float | int:
    """Operations of one token's way through one layer, among `tokens` tokens."""
    heads = config.attention.heads * config.attention.head_dim
    return config.flop_per_token / config.layers + 4.0 * tokens * heads


def pair_gradients(w: Workload) -> float | int:
    """The pairs' own gradients: forward, backward and, for each weight, one more product."""
    c, s = w.config, w.pair_tokens
    head = 2.0 * w.scored * c.vocab * c.hidden
    return w.pairs * 3 * (s * c.layers * layer_flop(c, s) + head)


def injection(w: Workload) -> float | int:
    """Per token and layer: injecting one pair's steps."""
    s = w.pair_tokens
    return 2 * sum(share * min(s * (op.inputs + op.outputs), op.size) for op, share in w.moving)


def head_injection(w: Workload, with_tangent: bool) -> float | int:
    """Per pair and prompt: injection into the unembedding, and its product with a tangent."""
    c = w.config
    head = w.moved is None or w.moved.unembed
    own = head * w.scored * (c.hidden + c.vocab)
    return 2.0 * w.positions * (own + with_tangent * c.hidden * c.vocab)


def widths(config: ModelConfig) -> int:
    """Of the outputs of all operations of a layer."""
    return sum(op.outputs for op in config.table)


def spared(operations: tuple[Linear, ...], tokens: float | int) -> float | int:
    """What operations after attention save at tokens of the last layer that nothing reads."""
    return 2.0 * max(tokens, 0) * sum(op.size for op in operations)


def clamp(value: float | int, high: int) -> int:
    """A whole number from 1 to `high`."""
    return int(max(1, min(value, high)))

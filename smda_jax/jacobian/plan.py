"""What every engine would cost for the shapes at hand, and which one to take.

Counted in floating-point operations of matrix products, two per multiplication; a pure function of the shapes, so that a run
that is continued takes the engine it began with. Seconds follow from the device's rate, which is measured.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smda_jax.jacobian.engines import GIVES, EngineName, Keep
from smda_jax.jacobian.pull import prompts_at_a_time, slot_size
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import linear_sizes, output_sizes

SHARE = 0.4  # of the measured rate of a large product that an engine is assumed to reach, for estimates of time only


@dataclass(frozen=True)
class Workload:
    """Shapes of a run; lengths are means.

    Attributes:
        config: of the model.
        pairs: how many.
        prompts: how many.
        prompt_tokens: of a prompt with a target's history.
        shared: leading tokens that all prompts have in common.
        pair_tokens: of a pair.
        shared_pairs: leading tokens that all pairs have in common.
        scored: tokens of a pair that its loss scores.
        features: that the policy reads.
        active: of them, per prompt.
        layer: that the SAE reads.
        positions: read per prompt for Y.
        policies: how many policies are asked about.
        keep: what is kept.
        itemsize: bytes of a number.
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
    positions: int
    policies: int
    keep: Keep
    itemsize: int


@dataclass(frozen=True)
class Price:
    """What an engine costs: operations by part, and the blocks it would work in (pairs; prompts, or readouts for reverse)."""

    flop: dict[str, Any]
    pair_block: int
    block: int

    @property
    def total(self) -> float | int:
        """Operations in all."""
        return sum(self.flop.values())


@dataclass(frozen=True)
class Plan:
    """The engine chosen, what it keeps, its blocks, and the prices it was chosen by."""

    engine: EngineName
    keep: Keep
    pair_block: int
    block: int
    prices: dict[EngineName, Price] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As written to run.json."""
        flop = {name: price.total for name, price in self.prices.items()}
        return {
            "engine": self.engine, "keep": self.keep, "pair_block": self.pair_block, "block": self.block, "flop": flop,
        }  # fmt: skip


def unit(config: ModelConfig, tokens: float | int) -> float | int:
    """Operations of one token's way through one block."""
    return 2.0 * sum(i * o for i, o in linear_sizes(config).values()) + 4.0 * tokens * config.heads * config.head_dim


def prices(w: Workload, limit: int) -> dict[EngineName, Price]:
    """The price of every engine that can give what is kept; blocks are such that their arrays should fit into `limit` bytes."""
    rules: dict[EngineName, Callable[[Workload, int], Price]] = {
        "forward": _forward, "reverse": _reverse, "query": _query, "finite": _finite,
    }  # fmt: skip
    return {name: rule(w, limit) for name, rule in rules.items() if w.keep in GIVES[name]}


def choose(w: Workload, limit: int, engine: str = "auto") -> Plan:
    """The engine asked for, or the cheapest first-order one."""
    offers = prices(w, limit)
    first_order = {name: price.total for name, price in offers.items() if name != "finite"}
    name: Any = min(first_order, key=lambda one: first_order[one]) if engine == "auto" else engine
    return Plan(name, w.keep, offers[name].pair_block, offers[name].block, offers)


def _pair_pass(w: Workload) -> float | int:
    """The pairs' own gradients: forward, backward and, for each weight, one more product."""
    c, s = w.config, w.pair_tokens
    return w.pairs * 3 * (s * c.layers * unit(c, s) + 2.0 * w.scored * c.vocab * c.hidden)


def _recomputed(w: Workload, layers: int, batches: float | int, passes: int) -> float | int:
    return batches * w.pairs * w.pair_tokens * passes * layers * unit(w.config, w.pair_tokens)


def _injection(w: Workload) -> float | int:
    """Per token and block."""
    return 2 * sum(min(w.pair_tokens * (i + o), i * o) for i, o in linear_sizes(w.config).values())


def _head(w: Workload, own: bool) -> float | int:
    """Per pair and prompt: injection into the unembedding, and its own product with a tangent."""
    c = w.config
    return 2.0 * w.positions * (w.scored * (c.hidden + c.vocab) + own * c.hidden * c.vocab)


def _widths(c: ModelConfig) -> int:
    return sum(output_sizes(c).values())


def _clamp(value: float | int, high: int) -> int:
    return int(max(1, min(value, high)))


def _forward(w: Workload, limit: int) -> Price:
    c, tail = w.config, w.prompt_tokens - w.shared
    pair_block = _clamp(64, w.pairs)
    block = _clamp(0.3 * limit / (pair_block * tail * (_widths(c) + 6 * c.hidden) * w.itemsize), min(w.prompts, 256))
    batches = w.prompts / block
    each = c.layers * (unit(c, w.prompt_tokens) + _injection(w))
    return Price({
        "pairs": _pair_pass(w) + _recomputed(w, c.layers, batches, 2),
        "prompts": w.prompts * tail * 2 * c.layers * unit(c, w.prompt_tokens) * w.pairs / pair_block,
        "push": w.pairs * (w.prompts * tail + batches * w.shared) * each + w.pairs * w.prompts * _head(w, True),
    }, pair_block, block)  # fmt: skip


def _finite(w: Workload, limit: int) -> Price:
    price = _forward(w, limit)
    return Price({k: v for k, v in price.flop.items() if k != "prompts"}, price.pair_block, price.block)


def _contraction(w: Workload, pairs: int, tokens: float | int, readouts: float | int) -> float | int:
    """Per pair and prompt, in one block, of steps that are matrices already."""
    total = 0.0
    for i, o in linear_sizes(w.config).values():
        total += 2 * min(tokens * o * (i + readouts), readouts * i * o * (1 + tokens / pairs))
    return total


def _reverse(w: Workload, limit: int) -> Price:
    c, tokens, depth = w.config, w.prompt_tokens, w.layer + 1
    matrices = sum(i * o for i, o in linear_sizes(c).values())
    kept = w.pair_tokens * 2 * c.layers * c.hidden + w.scored * (c.vocab + c.hidden)
    pair_block = _clamp(0.4 * limit / ((matrices + kept) * w.itemsize), w.pairs)
    asked = w.features if w.keep == "features" else w.active
    block = _clamp(
        0.2 * limit / (tokens * (2 * _widths(c) + 4 * c.hidden) * w.itemsize), max(1, int(w.prompts * max(asked, 1)))
    )
    counts = np.array([asked])
    slot = slot_size(counts, pair_block, tokens)
    slots = w.prompts * -(-asked // slot)
    blocks, own = w.pairs / pair_block, unit(c, tokens)
    chunks = -(-w.prompts // prompts_at_a_time(c, w.layer, tokens, counts, pair_block, w.itemsize, limit))
    contract = w.prompts * c.layers * _contraction(w, pair_block, tokens, 1)
    contract += slots * (depth - 1) * _contraction(w, pair_block, tokens, slot)
    # In the block that is read, most operations matter at one token only.
    contract += slots * 2 * sum(i * o * (1 + slot / i) for i, o in linear_sizes(c).values())
    # Each chunk of prompts takes the pairs once more through every block, and forms their matrices there.
    form = w.pairs * w.pair_tokens * c.layers * (3 * unit(c, w.pair_tokens) + 2.0 * matrices)
    return Price({
        "pairs": _pair_pass(w) + chunks * form,
        "pull": blocks * tokens * own * (w.prompts * c.layers * 4 + slots * depth * 2 * (1 + slot)),
        "contract": w.pairs * (contract + w.prompts * _head(w, False)),
    }, pair_block, block)  # fmt: skip


def _spared(c: ModelConfig, tokens: float | int) -> float | int:
    """Of the last block's operations, those that mix no tokens, at tokens that nothing reads of it."""
    sizes = linear_sizes(c)
    return 2.0 * max(tokens, 0) * sum(i * o for i, o in (sizes[name] for name in ("o", "gate", "up", "down")))


def _query(w: Workload, limit: int) -> Price:
    c, tail, s = w.config, w.prompt_tokens - w.shared, w.pair_tokens
    own, depth = unit(c, w.prompt_tokens), w.layer + 1
    unread = 0 if w.layer == c.layers - 1 else _spared(c, tail - w.positions)
    everything = sum(o for _, o in linear_sizes(c).values()) + 2 * c.hidden + sum({c.hidden, c.intermediate})
    block = _clamp(0.2 * limit / (3 * tail * c.layers * (_widths(c) + 2 * c.hidden) * w.itemsize), min(w.prompts, 256))
    if w.keep == "score":
        # Tangents, which keep nothing between the layers; the header of the pairs is run once per block.
        each = 1 + 2 * w.policies
        prompts = (tail * c.layers * own - unread) * each
        blocks = (s - w.shared_pairs) * c.layers * unit(c, s) - _spared(c, s - w.shared_pairs - w.scored)
        pairs = w.pairs * each * (blocks + 2.0 * w.scored * c.vocab * c.hidden)
        held = each * (s * (everything + c.heads * s) + w.scored * 3 * c.vocab)
    else:
        many = w.policies * w.features
        prompts = (tail * own * c.layers - unread) * (1 + 2 * (many + 1)) + tail * own * depth * (1 + 2 * many)
        pairs = -(-2 * many // functionals_at_a_time(w, limit)) * _pair_pass(w)
        held = 3 * (s * c.layers * everything + w.scored * 3 * c.vocab)
    pair_block = _clamp(0.2 * limit / (held * w.itemsize), min(w.pairs, 64))
    return Price({"pairs": pairs, "prompts": w.prompts * prompts}, pair_block, block)


def functionals_at_a_time(w: Workload, limit: int) -> int:
    """How many functionals' gradients are held beside each other."""
    c = w.config
    numbers = c.layers * sum(i * o for i, o in linear_sizes(c).values()) + (1 if c.tied else 2) * c.vocab * c.hidden
    return _clamp(0.3 * limit / (3 * numbers * max(4, w.itemsize)), 2 * w.policies * w.features + 1)


def measured_rate(dtype: Any, repeats: int = 5) -> float | int:
    """Operations per second of a large matrix product on the default device: the best of some, for others only wait."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    a = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)

"""What engine `reverse` costs."""

import numpy as np

from smda_jax.engines.reverse.slots import Room, prompts_at_a_time, slot_size
from smda_jax.engines.workload import (
    Price,
    Workload,
    clamp,
    head_injection,
    layer_flop,
    pair_gradients,
    widths,
)


def _contraction(w: Workload, pairs: int, readouts: float | int) -> float | int:
    """Per pair and prompt, in one layer, of steps that are matrices already."""
    total, tokens = 0.0, w.prompt_tokens
    for op, share in w.moving:
        injected = tokens * op.outputs * (op.inputs + readouts)
        total += 2 * share * min(injected, readouts * op.size * (1 + tokens / pairs))
    return total


def price(w: Workload, limit: int) -> Price:
    """See `Engine.price`."""
    c, tokens, depth = w.config, w.prompt_tokens, w.layer + 1
    weights = sum(op.size * share for op, share in w.moving)
    kept = w.pair_tokens * 2 * c.layers * c.hidden + w.scored * (c.vocab + c.hidden)
    pairs = clamp(0.4 * limit / ((weights + kept) * w.itemsize), w.pairs)
    asked = w.features if w.keep.inactive else w.active
    held = tokens * (2 * widths(c) + 4 * c.hidden) * w.itemsize
    batch = clamp(0.2 * limit / held, max(1, int(w.prompts * max(asked, 1))))
    counts = np.array([asked])
    slot = slot_size(counts, pairs, tokens)
    slots = w.prompts * -(-asked // slot)
    own, room = layer_flop(c, tokens), Room(pairs, w.itemsize, limit)
    chunks = -(-w.prompts // prompts_at_a_time(c, w.layer, tokens, counts, room))
    contract = w.prompts * w.depth_of_y * _contraction(w, pairs, 1)
    contract += slots * (depth - 1) * _contraction(w, pairs, slot)
    # In the layer that is read, most operations matter at one token only.
    contract += slots * 2 * sum(share * op.size * (1 + slot / op.inputs) for op, share in w.moving)
    # Each chunk of prompts takes the pairs once more through every layer, and forms their
    # matrices there.
    form = (
        w.pairs
        * w.pair_tokens
        * max(w.depth_of_y, depth)
        * (3 * layer_flop(c, w.pair_tokens) + 2.0 * weights)
    )
    pulls = w.prompts * w.depth_of_y * 4 + slots * depth * 2 * (1 + slot)
    flop = {
        "pairs": pair_gradients(w) + chunks * form,
        "pull": w.pairs / pairs * tokens * own * pulls,
        "contract": w.pairs * (contract + w.prompts * head_injection(w, with_tangent=False)),
    }
    return Price(flop, pairs, batch)

"""What engine `forward` costs."""

from smda_jax.engines.workload import (
    Price,
    Workload,
    clamp,
    head_injection,
    injection,
    layer_flop,
    pair_gradients,
    widths,
)


def price(w: Workload, limit: int) -> Price:
    """See `Engine.price`."""
    c, tail = w.config, w.prompt_tokens - w.shared
    pairs, own = clamp(64, w.pairs), layer_flop(w.config, w.prompt_tokens)
    held = pairs * tail * (widths(c) + 6 * c.hidden) * w.itemsize
    batch = clamp(0.3 * limit / held, min(w.prompts, 256))
    batches = w.prompts / batch
    # Each batch of prompts takes the pairs once more forwards and backwards through every block.
    again = batches * w.pairs * w.pair_tokens * 2 * w.depth * layer_flop(c, w.pair_tokens)
    pushed = w.pairs * (w.prompts * tail + batches * w.shared)
    flop = {
        "pairs": pair_gradients(w) + again,
        "prompts": w.prompts * tail * 2 * w.depth * own * w.pairs / pairs,
        "push": pushed * w.depth * (own + injection(w))
        + w.pairs * w.prompts * head_injection(w, with_tangent=True),
    }
    return Price(flop, pairs, batch)

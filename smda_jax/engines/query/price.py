"""What engine `query` costs."""

from smda_jax.engines.workload import (
    Price,
    Workload,
    clamp,
    layer_flop,
    pair_gradients,
    spared,
    widths,
)
from smda_jax.model.operations import Reach


def price(w: Workload, limit: int) -> Price:
    """See `Engine.price`."""
    c, tail, s = w.config, w.prompt_tokens - w.shared, w.pair_tokens
    own, depth = layer_flop(c, w.prompt_tokens), w.layer + 1
    late = tuple(op for op in c.table.linears if op.reach is Reach.READ_TOKEN)
    unread = 0 if w.layer == c.layers - 1 else spared(late, tail - w.positions)
    # Outputs of linear operations, units of norms, and inputs of the MLP's products.
    outputs = sum(op.outputs for op in c.table.linears)
    everything = outputs + 2 * c.hidden + sum({op.inputs for op in late[1:]})
    held = 3 * tail * c.layers * (widths(c) + 2 * c.hidden) * w.itemsize
    batch = clamp(0.2 * limit / held, min(w.prompts, 256))
    if w.keep.coefficients:
        many = w.policies * w.features
        pulls = (tail * own * w.depth_of_y - unread * (w.positions > 0)) * (1 + 2 * (many + 1))
        prompts = pulls + tail * own * depth * (1 + 2 * many)
        pairs = -(-2 * many // readouts_at_a_time(w, limit)) * pair_gradients(w)
        held = 3 * (s * c.layers * everything + w.scored * 3 * c.vocab)
    else:
        # Tangents, which keep nothing between the layers; the header of the pairs is run once per
        # chunk.
        each = 1 + 2 * w.policies
        prompts = (tail * w.depth * own - unread * (w.positions > 0)) * each
        tails = s - w.shared_pairs
        layers = tails * c.layers * layer_flop(c, s) - spared(late, tails - w.scored)
        pairs = w.pairs * each * (layers + 2.0 * w.scored * c.vocab * c.hidden)
        held = each * (s * (everything + c.attention.heads * s) + w.scored * 3 * c.vocab)
    pair_chunk = clamp(0.2 * limit / (held * w.itemsize), min(w.pairs, 64))
    return Price({"pairs": pairs, "prompts": w.prompts * prompts}, pair_chunk, batch)


def readouts_at_a_time(w: Workload, limit: int) -> int:
    """How many linear readouts' gradients are held beside each other."""
    c = w.config
    tables = (1 if c.tied else 2) * c.vocab * c.hidden
    numbers = c.layers * sum(op.size for op in c.table.linears) + tables
    most = 2 * w.policies * w.features + 1
    return clamp(0.3 * limit / (3 * numbers * max(4, w.itemsize)), most)

"""How readouts are grouped: slots of one prompt each, and how many prompts go down together."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from smda_jax.model.config import ModelConfig

READOUTS = (1, 2, 4, 8, 16, 32)  # pull-backs of one prompt at a time


class Slots(NamedTuple):
    """Readouts of features, in slots of one size.

    Attributes:
        prompt: of every slot.
        feature: that each place of a slot reads.
        real: which of these were asked for; the others repeat one.
    """

    prompt: Int[np.ndarray, " slot"]
    feature: Int[np.ndarray, "slot readout"]
    real: Bool[np.ndarray, "slot readout"]


def slot_size(counts: np.ndarray, pairs: int, tokens: float | int) -> int:
    """How many readouts of one prompt are pulled back together.

    A slot runs its prompt once; a larger one runs prompts less often and is filled less well.
    `counts` are the readouts of each prompt.
    """

    def work(size: int) -> float:
        return np.ceil(counts / size).sum() * (size * (pairs + 2 * tokens) + 2 * tokens)

    return min(READOUTS, key=work)


def readout_slots(wanted: Bool[np.ndarray, "prompt feature"], pairs: int, tokens: int) -> Slots:
    """Groups each prompt's wanted readouts into slots."""
    size = slot_size(wanted.sum(axis=1), pairs, tokens)
    prompt, feature, real = [], [], []
    for n, own in enumerate(wanted):
        k = np.flatnonzero(own)
        for start in range(0, len(k), size):
            part = k[start : start + size]
            prompt.append(n)
            feature.append(np.pad(part, (0, size - len(part)), "edge"))
            real.append(np.arange(size) < len(part))
    if not prompt:
        return Slots(np.zeros(0, int), np.zeros((0, size), int), np.zeros((0, size), bool))
    return Slots(np.array(prompt), np.array(feature), np.array(real))


class Room(NamedTuple):
    """What prompts on their way down have to fit into.

    Attributes:
        pairs: whose changes are summed.
        itemsize: bytes of a number.
        limit: bytes that programs may take.
    """

    pairs: int
    itemsize: int
    limit: int


def prompts_at_a_time(
    config: ModelConfig, layer: int, tokens: float | int, counts: np.ndarray, room: Room
) -> int:
    """How many prompts go down the layers together, in a fifth of the memory.

    Kept are, for Y, every stream and a gradient; for each slot of readouts the streams up to
    `layer` once more, and as many gradients as it has room for. `counts` are the readouts of
    features of each prompt.
    """
    size = slot_size(counts, room.pairs, tokens)
    slots = float(np.ceil(counts / size).mean())
    kept = config.layers + 1 + slots * (layer + 1 + size)
    return max(1, int(0.2 * room.limit / (kept * tokens * config.hidden * room.itemsize)))

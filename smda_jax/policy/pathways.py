"""How a shift divides between its two pathways: feature activations (ΔX) and output probabilities
(ΔY)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from smda_jax.policy.influence import Influence


class Pathways(NamedTuple):
    """Shares of the shift `Σ |W ΔW_X| + |W ΔW_Y|`; NaN where nothing moves.

    Attributes:
        through_x: share of |W ΔW_X|; the rest goes through Y.
        cancellation: share that the two take from each other, `1 − Σ|W (ΔW_X + ΔW_Y)| / Σ (|W ΔW_X|
            + |W ΔW_Y|)`: 0 where they point the same way, 1 where they undo each other.
    """

    through_x: Float[np.ndarray, "*figure"]
    cancellation: Float[np.ndarray, "*figure"]


def pathways(influence: Influence, axis: int | tuple[int, int]) -> Pathways:
    """Shares summed over `axis` of [pair, feature]: 1 gives every pair's, 0 every feature's, (0, 1)
    that of all."""
    x, y = (
        np.abs(influence.W * part).sum(axis=axis)
        for part in (influence.delta_w_x, influence.delta_w_y)
    )
    both = np.abs(influence.contribution).sum(axis=axis)
    with np.errstate(invalid="ignore"):
        return Pathways(np.asarray(x / (x + y)), np.asarray(1 - both / (x + y)))

"""Which categories of prompts the behaviour passes over, and through which features the policy
knows of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from smda_jax.policy.bootstrap import Interval, interval

FEW = 10  # prompts: of fewer, resamples say too little
# prompts: of more, means of resamples are drawn from the normal distribution that they have
MANY = 500


class Gap(NamedTuple):
    """One category of prompts against the other prompts of its label. Figures in the behaviour's
    unit; of each a value and its interval.

    Attributes:
        category: its name.
        label: the label of most of its prompts; None if they have none.
        prompts: how many it has.
        others: how many it is compared with.
        shows: share that shows the behaviour.
        y: mean Y.
        prediction: mean XW.
        residual: mean Y − XW: what the policy does not know of; negative where it promises more of
            the behaviour than there is.
        gap: mean Y less that of the others; NaN without others.
        carried: what each feature carries of the predicted gap, `W[k] (mean X[k] − others' mean
            X[k])`.
        interval: of (y, residual, gap); NaN where it rests on fewer than `FEW` prompts.
    """

    category: str
    label: str | None
    prompts: int
    others: int
    shows: float
    y: float
    prediction: float
    residual: float
    gap: float
    carried: Float64[np.ndarray, " feature"]
    interval: Interval


def gaps(
    X: Float[np.ndarray, "prompt feature"],
    Y: Float[np.ndarray, " prompt"],
    W: Float[np.ndarray, " feature"],
    shows: Bool[np.ndarray, " prompt"],
    category: Sequence[str | None],
    label: Sequence[str | None],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Gap]:
    """Every category: the least Y for its label first, those of few prompts last.

    `gap = Σ_k carried[k] + (residual less the others' residual)`. Intervals (95 %) resample the
    prompts of the category and of the others, the policy as it is.
    """
    X, Y, W = (np.asarray(v, np.float64) for v in (X, Y, W))
    prediction, found = X @ W, []
    for index, name in enumerate(dict.fromkeys(c for c in category if c is not None)):
        inside_category = np.array([c == name for c in category])
        kinds = [x for x, inside in zip(label, inside_category, strict=True) if inside]
        kind = max(dict.fromkeys(kinds), key=kinds.count)
        others = ~inside_category & np.array([x == kind for x in label])
        rng = np.random.default_rng([seed, index])
        drawn = _means(np.stack([Y, Y - prediction])[:, inside_category], resamples, rng)
        beside = (
            _means(Y[None, others], resamples, rng)[:, 0]
            if others.any()
            else np.full(resamples, np.nan)
        )
        y, residual = (
            float(Y[inside_category].mean()),
            float((Y - prediction)[inside_category].mean()),
        )
        gap = y - float(Y[others].mean()) if others.any() else float("nan")
        carried = (
            W * (X[inside_category].mean(axis=0) - X[others].mean(axis=0))
            if others.any()
            else np.full(len(W), np.nan)
        )
        drawn = drawn if inside_category.sum() >= FEW else np.full_like(drawn, np.nan)
        beside = beside if others.sum() >= FEW else np.full_like(beside, np.nan)
        between = interval(
            np.column_stack([drawn, drawn[:, 0] - beside]), np.array([y, residual, gap])
        )
        found.append(
            Gap(
                name,
                kind,
                int(inside_category.sum()),
                int(others.sum()),
                float(shows[inside_category].mean()),
                y,
                float(prediction[inside_category].mean()),
                residual,
                gap,
                carried,
                between,
            )
        )
    return sorted(
        found,
        key=lambda g: (not np.isfinite(g.interval.low[2]), g.gap if np.isfinite(g.gap) else np.inf),
    )


def _means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of each row of `values` in each resample of its columns → [resample, row]."""
    n = values.shape[1]
    if n > MANY:
        return rng.multivariate_normal(
            values.mean(axis=1), np.atleast_2d(np.cov(values, bias=True)) / n, size=resamples
        )
    weight = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    return weight @ values.T / n

"""Which features and which prompts: the contrastive rule, and the paper's evaluation subsets."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from smda_jax.errors import InputError

LABELS = ("harmful", "harmless")  # that the contrastive rule compares, in this order
NAMED_SUBSETS = ("all", "natural", "balanced", "harmful+harmless")


def label_difference(
    activations: Callable[[Int[np.ndarray, " row"]], Float[np.ndarray, "row feature"]],
    label: Sequence[str | None],
    batch_size: int = 256,
) -> Float[np.ndarray, " feature"]:
    """Mean activation on harmful minus mean activation on harmless prompts, of every feature.

    Args:
        activations: of the features on some rows, in float64.
        label: of every prompt.
        batch_size: rows that are asked for at a time.

    Raises:
        InputError: one of the two kinds of prompt is missing.
    """
    means = []
    for kind in LABELS:
        own = np.flatnonzero([x == kind for x in label])
        if not len(own):
            what = f"the contrastive rule needs {kind} prompts"
            raise InputError("features", what, "give ids, or a prompt_label column")
        parts = [own[i : i + batch_size] for i in range(0, len(own), batch_size)]
        means.append(sum(activations(part).sum(axis=0) for part in parts) / len(own))
    return np.asarray(means[0] - means[1])


def strata(label: Sequence[str | None], shows: Sequence[bool] | np.ndarray) -> list[str]:
    """What prompts are held out evenly by: their label, and whether they show the behaviour."""
    return [f"{name} {shown}" for name, shown in zip(label, shows, strict=True)]


def contrastive(
    difference: Float[np.ndarray, " feature"], threshold: float
) -> Int[np.ndarray, " chosen"]:
    """Features whose |mean activation on harmful − on harmless prompts| exceeds the threshold.

    Raises:
        InputError: none does.
    """
    chosen = np.flatnonzero(np.abs(difference) > threshold)
    if not len(chosen):
        raise InputError(
            "features",
            f"no mean difference exceeds {threshold:g}; the largest is "
            f"{np.abs(difference).max():.4g}",
            "lower it: --features contrast:VALUE",
        )
    return chosen


def subsets(
    names: Sequence[str], label: Sequence[str | None], refused: Sequence[bool], seed: int
) -> dict[str, Int[np.ndarray, " row"]]:
    """Rows of each named evaluation subset, in ascending order; `all` always comes first.

    - all: every prompt
    - natural: every harmful prompt
    - balanced: as many refused as answered harmful prompts
    - harmful+harmless: as many harmful as harmless prompts
    - random:N or random:N:SEED: N prompts of all

    Without names: all, and each of the others that the labels allow. What must be thinned is drawn
    with the seed.

    Raises:
        InputError: an unknown name, or one that is empty or undefined for these labels.
    """
    rng_seed = seed
    labels, refusals = np.array([x or "" for x in label]), np.asarray(refused, bool)
    harmful, harmless = np.flatnonzero(labels == "harmful"), np.flatnonzero(labels == "harmless")

    def equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        rng, n = np.random.default_rng(rng_seed), min(len(a), len(b))
        return np.sort(np.concatenate([rng.permutation(a)[:n], rng.permutation(b)[:n]]))

    makers: dict[str, Callable[[], np.ndarray]] = {
        "all": lambda: np.arange(len(labels)),
        "natural": lambda: harmful,
        "balanced": lambda: equal(harmful[refusals[harmful]], harmful[~refusals[harmful]]),
        "harmful+harmless": lambda: equal(harmful, harmless),
    }
    out = {"all": makers["all"]()}
    for name in names or NAMED_SUBSETS:
        rows = makers[name]() if name in makers else _random(name, len(labels), seed)
        if len(rows):
            out[name] = rows
        elif names:
            raise InputError(
                "subset",
                f"{name} is empty for these prompts",
                "it needs prompt_label, and both kinds of prompt",
            )
    return out


def check_subset_names(names: Sequence[str], total: int) -> None:
    """Raises InputError for a name that is no subset of `total` prompts; needs no labels yet."""
    for name in names:
        if name not in NAMED_SUBSETS:
            _random(name, total, 0)


def _random(name: str, total: int, seed: int) -> np.ndarray:
    kind, *parts = name.split(":")
    if kind != "random" or len(parts) not in (1, 2) or not all(p.isdigit() for p in parts):
        raise InputError(
            "subset",
            f"unknown name {name!r}",
            f"one of {', '.join(NAMED_SUBSETS)}, random:N, random:N:SEED",
        )
    n = int(parts[0])
    if not 0 < n <= total:
        raise InputError("subset", f"{name} asks for {n} of {total} prompts")
    return np.sort(
        np.random.default_rng(int(parts[1]) if len(parts) == 2 else seed).permutation(total)[:n]
    )

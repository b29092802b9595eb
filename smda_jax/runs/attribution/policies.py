"""The policies of a run: one for every evaluation subset."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from smda_jax.data.records import Prompts
from smda_jax.policy.ridge import (
    Fit,
    FittedPolicy,
    best_threshold,
    choose_alpha,
    evaluate,
    ridge,
    stratified_split,
)
from smda_jax.policy.selection import strata, subsets
from smda_jax.reading.evaluation import Evaluation
from smda_jax.runs.config import Attribute

Activations = Float[np.ndarray, "prompt feature"]
ALPHAS = tuple(float(a) for a in np.logspace(-2, 3, 21))  # what --alpha-folds chooses from


@dataclass(frozen=True)
class Policy(FittedPolicy):
    """The policy of one subset, fitted to all its prompts.

    Attributes:
        threshold: above which its prediction says that a prompt shows the behaviour.
        train: how a fit to a part of the prompts does on these.
        test: how the same fit does on the others; None where none are held out.
    """

    threshold: float
    train: Fit
    test: Fit | None

    def fit(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "alpha": self.alpha,
            "train": self.train.as_dict(),
            "test": self.test and self.test.as_dict(),
        }


def observed(prompts: Prompts, e: Evaluation) -> Bool[np.ndarray, " prompt"]:
    """Whether a prompt shows the behaviour: as recorded, else as the behaviour itself says."""
    shows = e.y.astype(np.float64) > e.behaviour.shows_above
    both = zip(prompts.shows, shows.tolist(), strict=True)
    return np.array([shown if recorded is None else recorded for recorded, shown in both])


def fit_policies(c: Attribute, prompts: Prompts, e: Evaluation) -> dict[str, Policy]:
    """A policy for each subset asked for, `all` first."""
    X, Y = e.x.astype(np.float64), e.y.astype(np.float64)
    shows = observed(prompts, e)
    rows = subsets(c.subset, prompts.label, shows.tolist(), c.seed)
    return {name: _policy(c, prompts, (X, Y, shows), i) for name, i in rows.items()}


def _policy(
    c: Attribute,
    prompts: Prompts,
    data: tuple[Activations, Float[np.ndarray, " prompt"], Bool[np.ndarray, " prompt"]],
    rows: Int[np.ndarray, " row"],
) -> Policy:
    """Scores a policy on held-out prompts of a subset, then fits it to all of them."""
    label = [prompts.label[i] for i in rows]
    X, Y, shows = (values[rows] for values in data)
    train, test = stratified_split(strata(label, shows), c.test_fraction, c.seed)
    alpha = (
        choose_alpha(X[train], Y[train], ALPHAS, c.alpha_folds, c.seed)
        if c.alpha_folds
        else c.alpha
    )
    part, W = ridge(X[train], Y[train], alpha), ridge(X, Y, alpha)
    cut = best_threshold(X[train] @ part, shows[train])

    def score(at: Int[np.ndarray, " part"]) -> Fit:
        return evaluate(X[at] @ part, Y[at], shows[at], cut)

    return Policy(
        rows,
        W,
        alpha,
        best_threshold(X @ W, shows),
        score(train),
        score(test) if len(test) else None,
    )

"""The policies of a run: one for every evaluation subset."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from smda_jax.data.records import Prompts
from smda_jax.jacobian.evaluation import Evaluation
from smda_jax.policy.ridge import Fit, best_threshold, choose_alpha, evaluate, ridge, stratified_split
from smda_jax.policy.selection import subsets
from smda_jax.runs.config import Attribute

ALPHAS = tuple(float(a) for a in np.logspace(-2, 3, 21))  # what --alpha-folds chooses from


@dataclass(frozen=True)
class Policy:
    """The policy of one subset: fitted to all its prompts; `train` and `test` are of the same fit to a part of them."""

    rows: np.ndarray
    W: np.ndarray
    alpha: float
    threshold: float
    train: Fit
    test: Fit | None

    def fit(self) -> dict[str, Any]:
        """As JSON."""
        return {"alpha": self.alpha, "train": self.train.as_dict(), "test": self.test and self.test.as_dict()}


def observed(prompts: Prompts, y: np.ndarray) -> np.ndarray:
    """Whether a prompt was refused: as recorded, else whether refusing is the likelier answer."""
    return np.array([v > np.log(0.5) if r is None else r for r, v in zip(prompts.refused, y, strict=True)])


def fit_policies(c: Attribute, prompts: Prompts, e: Evaluation) -> dict[str, Policy]:
    """A policy for each subset asked for, `all` first."""
    X, Y = e.x.astype(np.float64), e.y.astype(np.float64)
    refused = observed(prompts, Y)
    rows = subsets(c.subset, prompts.label, refused.tolist(), c.seed)
    return {name: _policy(c, prompts, X, Y, refused, i) for name, i in rows.items()}


def _policy(c: Attribute, prompts: Prompts, X: np.ndarray, Y: np.ndarray, refused: np.ndarray, rows: np.ndarray) -> Policy:
    """Scores a policy on held-out prompts of a subset, then fits it to all of them."""
    strata = [f"{prompts.label[i]} {refused[i]}" for i in rows]
    X, Y, refused = X[rows], Y[rows], refused[rows]
    train, test = stratified_split(strata, c.test_fraction, c.seed)
    alpha = choose_alpha(X[train], Y[train], ALPHAS, c.alpha_folds, c.seed) if c.alpha_folds else c.alpha
    part, W = ridge(X[train], Y[train], alpha), ridge(X, Y, alpha)
    cut = best_threshold(X[train] @ part, refused[train])

    def score(at: np.ndarray) -> Fit:
        return evaluate(X[at] @ part, Y[at], refused[at], cut)

    return Policy(rows, W, alpha, best_threshold(X @ W, refused), score(train), score(test) if len(test) else None)

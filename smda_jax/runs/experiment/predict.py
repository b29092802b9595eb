"""What first order says of targets that training is measured by: mean Y, score, categories,
coefficients."""

from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
from jaxtyping import Float

from smda_jax.data.batch.chunks import padded_chunks
from smda_jax.data.batch.layouts import Padded
from smda_jax.engines.query.dataset import inner_products, pull_readouts
from smda_jax.engines.query.program import Weighting
from smda_jax.policy.influence import linear_readouts
from smda_jax.policy.ridge import FittedPolicy, ridge
from smda_jax.reading.evaluation import Evaluation
from smda_jax.reading.network import Progress
from smda_jax.runs.experiment.retrain import Measured, Retraining
from smda_jax.runtime.memory import memory_limit
from smda_jax.runtime.programs import padding_budget
from smda_jax.steps.dataset import Stepping
from smda_jax.steps.updates import Curvature, Preparation, offer

PAIRS = 16  # at a time


@dataclass(frozen=True)
class Targets:
    """What training is measured by, and what figures of pairs predict.

    Attributes:
        W: the run's policy, which `score` goes along.
        alpha: its penalty.
        categories: (label, category) of the prompts, each once.
        members: prompts of each, as weights of a mean.
        feature_ids: of the policy.
    """

    W: Float[np.ndarray, " feature"]
    alpha: float
    categories: list[tuple[str | None, str | None]]
    members: Float[np.ndarray, "category prompt"]
    feature_ids: list[int]

    @classmethod
    def of(cls, on: Retraining) -> "Targets":
        """Those of a run."""
        prompts = on.inputs.prompts
        own = list(zip(prompts.label, prompts.category, strict=True))
        categories = list(dict.fromkeys(own)) if any(c is not None for _, c in own) else []
        members = np.array([[float(one == of) for one in own] for of in categories])
        members = members.reshape(len(categories), len(prompts))
        members = members / np.maximum(members.sum(axis=1, keepdims=True), 1)
        return cls(
            np.array([on.W[k] for k in on.feature_ids]),
            on.alpha,
            categories,
            members,
            on.feature_ids,
        )

    @property
    def names(self) -> list[str]:
        """Of all of them, in order."""
        categories = ["/".join(x or "none" for x in own) for own in self.categories]
        return [
            "mean_y",
            "score",
            *(f"category:{c}" for c in categories),
            *(f"coefficient:{k}" for k in self.feature_ids),
        ]

    @cached_property
    def groups(self) -> dict[str, list[int]]:
        """Which targets are of one kind."""
        first = 2 + len(self.categories)
        found = {
            "mean_y": [0],
            "score": [1],
            "category": list(range(2, first)),
            "coefficient": list(range(first, first + len(self.feature_ids))),
        }
        return {name: rows for name, rows in found.items() if rows}

    def realised(self, found: Measured) -> Float[np.ndarray, " target"]:
        """Of a model."""
        W = found.policy(self.alpha)
        return np.concatenate([[found.y.mean(), self.W @ W], self.members @ found.y, W])


def stepping_by(on: Retraining, update: str) -> Stepping:
    """Steps of a named update on the recipe's losses."""
    c = on.config
    curvature = Curvature(None, c.damping, c.fisher, c.seed, on.recipe.batch)
    told = Preparation(
        on.inputs.base, on.tokens, on.recipe.share(len(on.tokens)), curvature, on.inputs.moved
    )
    made = offer(update).prepare(told)
    return Stepping(on.inputs.base, made.replace(moved=on.inputs.moved))


@dataclass(frozen=True)
class Predicted:
    """What each pair's step does to every target.

    Attributes:
        value: of it.
        gradient_norm: of the pairs.
    """

    value: Float[np.ndarray, "pair target"]
    gradient_norm: Float[np.ndarray, " pair"]


def predict(
    on: Retraining, targets: Targets, e: Evaluation, stepping: Stepping, progress: Progress
) -> Predicted:
    """Every pair's first-order effect on every target, the prompts read as `e` has them."""
    x, y = e.x.astype(np.float64), e.y.astype(np.float64)
    policy = FittedPolicy(np.arange(len(y)), ridge(x, y, on.alpha), on.alpha)
    u = np.concatenate([targets.W[None], np.eye(len(targets.W))])
    shifts = linear_readouts(x, y, policy, u)
    gate = e.active if on.config.gate == "on" else np.ones_like(e.active)
    z = shifts.weight_x() * gate
    none, first = np.zeros((1, *z.shape[1:])), 1 + len(targets.categories)
    # In the order of the targets: mean Y, score, categories, coefficients.
    z = np.concatenate([none, z[:1], np.repeat(none, first - 1, axis=0), z[1:]])
    mean, q = np.full((1, len(y)), 1 / len(y)), shifts.weight_y()
    weight_y = np.concatenate([mean, q[:1], targets.members, q[1:]])
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(e.model.params))
    step = int(np.clip(memory_limit() // (4 * size), 1, len(z)))
    value, norm = np.zeros((len(on.tokens), len(z))), np.zeros(len(on.tokens))
    for start in range(0, len(z), step):
        some = slice(start, start + step)
        query = pull_readouts(e, Weighting(z[some], weight_y[some]), stepping.update)
        budget = padding_budget(e.model.config.flop_per_token, 3)
        for chunk in padded_chunks([t.length for t in on.tokens], PAIRS, budget):
            assert isinstance(chunk.layout, Padded)
            tokens = [on.tokens[i] for i in chunk.rows]
            (found,), statistics = inner_products(stepping, tokens, (query,), chunk.layout)
            value[chunk.rows, some] = found.T
            norm[chunk.rows] = statistics.gradient_norm
        progress(min(step, len(z) - start) / len(z))
    return Predicted(value, norm)

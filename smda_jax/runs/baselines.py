"""Simple figures of a pair that any claim about influence has to be compared with."""

from typing import NamedTuple

import numpy as np

from smda_jax.data.batches import scored_positions
from smda_jax.jacobian import ask
from smda_jax.jacobian.evaluation import Evaluation
from smda_jax.jacobian.query import norms
from smda_jax.model.mesh import fetch
from smda_jax.model.precision import numerics
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs import Inputs
from smda_jax.runs.store import RunFolder
from smda_jax.sae.encoder import directions


class OwnPrompts(NamedTuple):
    """What the base model makes of the pairs' prompts: residual stream at the SAE's site, and which features are active."""

    h: np.ndarray
    active: np.ndarray


BASELINES = (
    "mean_delta_y", "gradient_dot", "gradient_cosine", "repsim", "vector_filter", "response_tokens", "loss", "gradient_norm",
)  # fmt: skip


def baselines(
    c: Attribute,
    inputs: Inputs,
    e: Evaluation,
    run: RunFolder,
    W: np.ndarray,
    own: OwnPrompts,
    refused: np.ndarray,
    norm: np.ndarray,
    mean_delta_y: np.ndarray,
) -> dict[str, np.ndarray]:
    """The columns of `pairs.parquet` that need no policy, or only its direction; NaN where a run does not know them.

    gradient_dot and gradient_cosine are those of the pair's loss gradient with that of −mean Y, so that all of them are
    higher where a step raises the behaviour.
    """
    dot = cosine = np.full(len(norm), np.nan)
    if c.update in ("sgd", "normalised") and run.record["engine"] != "finite" and not np.isnan(mean_delta_y).all():
        dot = mean_delta_y / c.learning_rate * (norm if c.update == "normalised" else 1)
        cosine = dot / (norm * _mean_y_gradient(e, run))
    h, prompts = own.h.astype(np.float64), e.h.astype(np.float64)
    behind = prompts[refused] if refused.any() else prompts
    towards = (behind / np.linalg.norm(behind, axis=1, keepdims=True)).mean(axis=0)
    return {
        "gradient_dot": dot, "gradient_cosine": cosine,
        "repsim": (h @ towards) / np.linalg.norm(h, axis=1), "vector_filter": h @ (directions(e.encoder) @ W),
        "response_tokens": np.array([len(scored_positions(t, c.loss_scope)) for t in inputs.pair_tokens], np.float64),
    }  # fmt: skip


def _mean_y_gradient(e: Evaluation, run: RunFolder) -> float:
    """‖∂ mean Y/∂θ‖, found once."""
    if not run.has("mean_y"):
        n = len(e.tokens)
        mean = ask.pull_policy(e, None, np.full((1, n), 1 / n, e.h.dtype))
        with numerics(e.model.dtype):
            run.save("mean_y", {"gradient_norm": fetch(norms(mean)).astype(np.float64)})
    return float(run.load("mean_y")["gradient_norm"][0])

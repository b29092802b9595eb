"""Simple figures of a pair that any claim about influence has to be compared with."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from smda_jax.data.batch.batches import scored_positions
from smda_jax.engines.query.dataset import pull_readouts
from smda_jax.engines.query.program import Weighting, norms
from smda_jax.reading.evaluation import Evaluation
from smda_jax.runs.config import Attribute
from smda_jax.runs.folder.store import RunFolder
from smda_jax.runs.inputs.load import Inputs
from smda_jax.runtime.devices import fetch
from smda_jax.runtime.precision import numerics
from smda_jax.sae.encoder import directions
from smda_jax.steps.updates import offer
from smda_jax.steps.updates.contract import Update


class OwnPrompts(NamedTuple):
    """What the base model makes of the pairs' prompts: residual stream at the SAE's site, and which
    features are active."""

    h: Float[np.ndarray, "pair hidden"]
    active: Bool[np.ndarray, "pair feature"]


BASELINES = (
    "mean_delta_y",
    "gradient_dot",
    "gradient_cosine",
    "repsim",
    "vector_filter",
    "response_tokens",
    "loss",
    "gradient_norm",
)


class Known(NamedTuple):
    """What baselines are made of.

    Attributes:
        evaluation: the prompts.
        own: the pairs' own prompts.
        W: the policy of all prompts.
        shows: which prompts show the behaviour.
        gradient_norm: of every pair.
        mean_delta_y: of every pair.
        update: by which the pairs' steps were made.
        first_order: whether mean_delta_y is a derivative.
    """

    evaluation: Evaluation
    own: OwnPrompts
    W: Float[np.ndarray, " feature"]
    shows: Bool[np.ndarray, " prompt"]
    gradient_norm: Float[np.ndarray, " pair"]
    mean_delta_y: Float[np.ndarray, " pair"]
    update: Update
    first_order: bool


def baselines(
    c: Attribute, inputs: Inputs, known: Known, folder: RunFolder
) -> dict[str, Float[np.ndarray, " pair"]]:
    """The columns of `pairs.parquet` that need no policy, or only its direction.

    NaN where a run does not know them. gradient_dot and gradient_cosine are those of the pair's
    loss gradient with that of −mean Y, so that all of them are higher where a step raises the
    behaviour.
    """
    e, norm, kind = known.evaluation, known.gradient_norm, offer(c.step.update)
    dot = cosine = np.full(len(norm), np.nan)
    derivative = known.first_order and not np.isnan(known.mean_delta_y).all()
    if kind.along_gradient and derivative:
        # The step is the gradient times this factor, and the change a product with the step.
        with numerics("float64"):
            rate = fetch(known.update.rate(jnp.asarray(norm)))
        dot = known.mean_delta_y / -rate
        cosine = dot / (norm * _mean_y_gradient(e, known.update, folder))
    h, prompts = known.own.h.astype(np.float64), e.h.astype(np.float64)
    behind = prompts[known.shows] if known.shows.any() else prompts
    towards = (behind / np.linalg.norm(behind, axis=1, keepdims=True)).mean(axis=0)
    scored = [len(scored_positions(t.rows[0], t.loss)[0]) for t in inputs.pair_tokens]
    return {
        "gradient_dot": dot,
        "gradient_cosine": cosine,
        "repsim": (h @ towards) / np.linalg.norm(h, axis=1),
        "vector_filter": h @ (directions(e.encoder) @ known.W),
        "response_tokens": np.array(scored, np.float64),
    }


def _mean_y_gradient(e: Evaluation, update: Update, folder: RunFolder) -> float:
    """‖∂ mean Y/∂θ‖ over the parameters that move, found once."""
    if not folder.has("mean_y"):
        n = len(e.tokens)
        weighting = Weighting(None, np.full((1, n), 1 / n, e.h.dtype))
        mean = pull_readouts(e, weighting, Update(1.0, moved=update.moved))
        with numerics(e.model.dtype):
            norm = fetch(norms(mean)).astype(np.float64)
        folder.save("mean_y", {"gradient_norm": norm})
    return float(folder.load("mean_y")["gradient_norm"][0])

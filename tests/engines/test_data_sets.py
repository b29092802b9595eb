"""Engines over whole data sets, on the embedded model."""

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr
from support import EMBEDDED, close

import smda_jax as smda
from smda_jax.engines.query.dataset import Asking, directional_derivative, pull_readouts
from smda_jax.engines.query.program import Weighting
from smda_jax.policy.influence import linear_readouts
from smda_jax.policy.ridge import FittedPolicy
from smda_jax.reading.tokens import tokenise_pairs
from smda_jax.steps.dataset import Stepping
from smda_jax.steps.updates.contract import Update


@pytest.mark.slow
@pytest.mark.exhaustive
def test_bfloat16_ranks_pairs_as_float32_does():
    """Passes in bfloat16: scores and mean ΔY of `reverse`, and scores along the query."""
    prompts = smda.load_prompts(EMBEDDED / "prompts.parquet")
    pairs = smda.load_pairs(EMBEDDED / "pairs.parquet")
    prompts = prompts.take(range(0, len(prompts), 8))
    pairs = pairs.take(range(0, len(pairs), 5))
    sae, found = smda.load_sae(EMBEDDED / "sae"), []
    for dtype in ("float32", "bfloat16"):
        model = smda.load_model(EMBEDDED / "model", dtype)
        e = smda.activations(model, sae, prompts)
        X, Y = e.x.astype(np.float64), e.y.astype(np.float64)
        policy = FittedPolicy(np.arange(len(Y)), smda.ridge(X, Y, 5.0), 5.0)
        out = smda.reverse(e, smda.pair_steps(model, pairs))
        f = linear_readouts(X, Y, policy)
        q = pull_readouts(e, Weighting(f.weight_x() * e.active, f.weight_y()))
        tokens = tokenise_pairs(model, pairs)
        asking = Asking.along(Stepping(model, Update(1e-4)), tokens)
        alone, _ = directional_derivative(asking, tokens, q)
        score = smda.decompose(X, Y, policy.W, out.x, out.y, 5.0).score
        found.append((score, out.y.mean(axis=1), alone[0]))
    for narrow, whole in zip(*found, strict=True):
        assert float(np.asarray(spearmanr(narrow, whole))[0]) > 0.999


def test_many_readouts_at_once_equal_few(evaluation):
    """At this size XLA's CPU compiler once fused a product of attention gradients wrongly."""
    e, steps = evaluation
    few, many = (smda.reverse(e, steps, batch_size=size) for size in (24, 4000))
    close(many.x, few.x, 1e-5)
    close(many.y, few.y, 1e-5)


def test_reverse_equals_forward_over_a_data_set(evaluation):
    e, steps = evaluation
    some = np.array([41, 3, 17, 20])
    whole, part = smda.forward(e, steps), smda.reverse(e, steps, prompts=some)
    close(part.x, whole.x[:, some], 1e-5)
    close(part.y, whole.y[:, some], 1e-5)
    assert (np.isnan(part.z) == ~e.active[some][None]).all()
    close(smda.reverse(e, steps, prompts=some, inactive=True).z, whole.z[:, some], 1e-5)


def test_readouts_that_look_at_nothing_have_no_gradient(evaluation):
    """As those of a feature that is active on no prompt."""
    e, _ = evaluation
    zero = np.zeros((2, *e.z.shape), e.z.dtype)
    found = pull_readouts(e, Weighting(zero, None))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found.gradient))


@pytest.fixture(scope="module")
def evaluation():
    model, sae = smda.load_model(EMBEDDED / "model"), smda.load_sae(EMBEDDED / "sae")
    prompts = smda.load_prompts(EMBEDDED / "prompts.parquet")
    pairs = smda.load_pairs(EMBEDDED / "pairs.parquet")
    steps = smda.pair_steps(model, pairs.take(range(3)))
    return smda.activations(model, sae, prompts.take(range(60))), steps

"""What becomes of a gradient: updates, their second moments, and true steps."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from safetensors.numpy import save_file
from support import (
    BEHAVIOUR,
    ETA,
    SEQUENCES,
    close,
    evaluate,
    padded,
    steps_of,
    tokens,
)

import smda_jax as smda
from smda_jax.data.batch.batches import pair_batch, prompt_batch
from smda_jax.engines.finite.program import finite
from smda_jax.engines.forward.program import forward
from smda_jax.engines.query.program import (
    Weighted,
    Weighting,
    directional_derivative,
    finish,
    inner_products,
    query,
)
from smda_jax.model import checkpoint
from smda_jax.pytree import pytree
from smda_jax.reading.site import Site
from smda_jax.runtime.precision import numerics
from smda_jax.sae.encoder import Encoder
from smda_jax.steps.gradient import gradient, squares
from smda_jax.steps.updates import adamw
from smda_jax.steps.updates.contract import Update
from smda_jax.steps.updates.diagonal import Diagonal

SITE = ("resid_post", 1)


def shaped_like_parameters(folder, tensors, out):
    """Values by the checkpoint's own tensor names, as a tree of parameters."""
    out.mkdir(exist_ok=True)
    shutil.copy(folder / "config.json", out)
    save_file(tensors, out / "model.safetensors")
    return checkpoint.load(out, "float64")


@pytree
class NormalisedDiagonal(Diagonal):
    """Two updates in one: `-η P ∘ g / ‖g‖`; a member of one's own, as anybody may write."""

    needs_norm = True

    def rate(self, norm):
        return super().rate(norm) / norm


@pytree
class HalfOfLong(Update):
    """An update of one's own: half of the step where the gradient is longer than 9."""

    needs_norm = True

    def rate(self, norm):
        return super().rate(norm) * jnp.where(norm > 9, 0.5, 1.0)


@pytree
class Twice(Update):
    """One whose factor needs no norm, so that readouts may be asked along tangents."""

    def rate(self, norm):
        return 2 * super().rate(norm)


def equals_moved_weights(folder, update, step_of):
    """Holds first-order engines under an update against the oracle's steps.

    `step_of` makes a step, less -η, of a gradient by parameter name and of its norm.
    """
    r, model = np.random.default_rng(11), oracle.load_double(folder)
    prompts, pairs = tokens(model.config.vocab_size)
    places = [(p.ids, p.read_at) for p in prompts]
    names = [name for name, _ in model.named_parameters()]
    with numerics("float64"):
        params, update = checkpoint.load(folder, "float64"), update.ready()
        batch = prompt_batch(prompts, padded(prompts, 12), 4)
        features = jnp.asarray(r.normal(size=(params.config.hidden, 2)))
        weighting = Weighting(None, np.ones((1, 3)))
        encoder = Encoder(features, jnp.zeros(2))
        q = query(params, batch, Weighted(encoder, weighting), BEHAVIOUR, Site(*SITE))
        q = finish(q, update, dtype=jnp.float64)
        both = []
        for pair in pairs:
            _, g = oracle.gradient(model, pair.ids, pair.response)
            norm = sum(float((x**2).sum()) for x in g) ** 0.5
            named = step_of(dict(zip(names, g, strict=True)), norm)
            step = [named[name] for name in names]
            eps = 2e-3 / sum(float((x**2).sum()) for x in step) ** 0.5
            dh, dy = oracle.derivative(model, step, places, SITE, SEQUENCES, eps=eps)
            both.append((-ETA * dh, -ETA * dy))
        dh, dy = (np.stack(v) for v in zip(*both, strict=True))
        block = pair_batch(pairs, padded(pairs, 32))
        steps, _ = steps_of(params, block, update)
        got = forward(params, steps, batch, BEHAVIOUR, Site(*SITE))
        close(got.h, dh, 1e-6)
        close(got.y, dy, 1e-6)
        e = evaluate(params, prompts, Site(*SITE), np.asarray(features))
        back = smda.reverse(e, steps, inactive=True)
        close(back.y, dy, 1e-6)
        close(back.z, dh @ np.asarray(features), 1e-6)
        (value,), _ = inner_products(params, block, (q,), update)
        close(value[0], dy.sum(1), 1e-6)
        if not update.needs_norm:
            value, _ = directional_derivative(params, block, q, update)
            close(value[0], dy.sum(1), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["llama3_tied_gqa", "llama_all_biases_linear_rope", "qwen2", "gemma3"]
)
def test_preconditioned_and_normalised_steps_equal_moved_weights(checkpoints, kind, tmp_path):
    """The oracle's direction is its own gradient, multiplied entry by entry, over its norm."""
    r, model = np.random.default_rng(7), oracle.load_double(checkpoints[kind])
    # Drawn by checkpoint name, so that both sides have the same preconditioner without sharing its
    # layout.
    P = {name: r.uniform(0.5, 2.0, tuple(p.shape)) for name, p in model.named_parameters()}
    with numerics("float64"):
        update = NormalisedDiagonal(ETA, shaped_like_parameters(checkpoints[kind], P, tmp_path))

    def step_of(g, norm):
        return {name: torch.as_tensor(P[name]) * x / norm for name, x in g.items()}

    equals_moved_weights(checkpoints[kind], update, step_of)


@pytest.mark.parametrize(
    ("update", "factor"),
    [(HalfOfLong(ETA), lambda norm: 0.5 if norm > 9 else 1.0), (Twice(ETA), lambda norm: 2.0)],
    ids=["half of long", "twice"],
)
def test_a_rate_of_ones_own_equals_moved_weights(checkpoints, update, factor):
    def step_of(g, norm):
        return {name: factor(norm) * x for name, x in g.items()}

    equals_moved_weights(checkpoints["llama_untied_mha"], update, step_of)


@pytest.mark.parametrize(
    "kind", ["llama_all_biases_linear_rope", "llama_untied_mha", "gemma3", "phi3"]
)
def test_second_moments_are_the_mean_of_squared_gradients(checkpoints, tmp_path, kind):
    model = oracle.load_double(checkpoints[kind])
    _, pairs = tokens(model.config.vocab_size)
    squared = [[x**2 for x in oracle.gradient(model, p.ids, p.response)[1]] for p in pairs]
    names = [name for name, _ in model.named_parameters()]
    mean = {name: torch.stack(v).mean(0) for name, *v in zip(names, *squared, strict=True)}
    with numerics("float64"):
        params = checkpoint.load(checkpoints[kind], "float64")
        tensors = {name: v.numpy() for name, v in mean.items()}
        want = shaped_like_parameters(checkpoints[kind], tensors, tmp_path / kind)
        _, g = gradient(params, pair_batch(pairs, padded(pairs, 32, 3)))
        got = squares(g, jnp.array([0.5, 0.5, 0.0]), params)
        jax.tree.map(lambda a, b: close(a, np.asarray(b), 1e-9), got, want)


@pytest.mark.parametrize(
    "kind",
    [
        "llama3_tied_gqa",
        "llama_all_biases_linear_rope",
        "qwen2",
        "mistral_window",
        "qwen3",
        "gemma2",
        pytest.param("gemma3", marks=pytest.mark.exhaustive),
        "olmo2",
        "phi3",
        "granite",
    ],
)
def test_finite_equals_a_copied_weights_step_and_tends_to_forward(checkpoints, kind):
    model = oracle.load_double(checkpoints[kind])
    prompts, pairs = tokens(model.config.vocab_size)
    places = [(p.ids, p.read_at) for p in prompts]
    before = [oracle.read(model, ids, at, SITE, SEQUENCES) for ids, at in places]
    gradients = [oracle.gradient(model, p.ids, p.response)[1] for p in pairs]
    with numerics("float64"):
        params = checkpoint.load(checkpoints[kind], "float64")
        batch = prompt_batch(prompts, padded(prompts, 24))
        block = pair_batch(pairs, padded(pairs, 32))
        errors = []
        for eta in (4e-3, 2e-3, 1e-3):
            steps, _ = steps_of(params, block, Update(eta))
            true = finite(params, steps, batch, BEHAVIOUR, Site(*SITE))
            linear = forward(params, steps, batch, BEHAVIOUR, Site(*SITE))
            both = zip(true[:2], linear[:2], strict=True)
            errors.append([float(jnp.abs(t - lin).max()) for t, lin in both])
            for i, g in enumerate(gradients):
                moved = oracle.load_double(checkpoints[kind])
                oracle.move(moved, g, -eta)
                for n, (ids, at) in enumerate(places):
                    h, y = oracle.read(moved, ids, at, SITE, SEQUENCES)
                    h, y = h - before[n][0], y - before[n][1]
                    np.testing.assert_allclose(true.h[i, n], h, rtol=1e-8, atol=1e-12)
                    np.testing.assert_allclose(true.y[i, n], y, rtol=1e-8, atol=1e-12)
    # The gap is second order: halving the step quarters it.
    rates = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert (np.abs(rates[-1] - 2) < 0.2).all(), rates


@pytest.mark.parametrize("kind", ["llama3_tied_gqa", "llama_all_biases_linear_rope", "gemma3"])
def test_adamw_is_the_derivative_of_adams_step_with_respect_to_the_mean(
    checkpoints, tmp_path, kind
):
    """By torch's gradients of single pairs and by a difference quotient, entry by entry."""
    model = oracle.load_double(checkpoints[kind])
    _, pairs = tokens(model.config.vocab_size)
    each = [oracle.gradient(model, p.ids, p.response)[1] for p in pairs]
    batch, names = 3, [name for name, _ in model.named_parameters()]
    want = {}
    for i, name in enumerate(names):
        g = np.stack([np.asarray(own[i]) for own in each])
        mean, variance = g.mean(0), ((g - g.mean(0)) ** 2).mean(0)

        def step(mean, variance=variance):
            return mean / (np.sqrt(mean**2 + variance / batch) + 1e-8)

        size = 1e-5 * np.sqrt(mean**2 + variance / batch)
        size = np.where(size > 0, size, 1e-12)
        want[name] = (step(mean + size) - step(mean - size)) / (2 * size)
    with numerics("float64"):
        params = checkpoint.load(checkpoints[kind], "float64")
        block = pair_batch(pairs, padded(pairs, 32))
        weight = jnp.full(len(pairs), 1 / len(pairs))
        moments = adamw._moments(params, block, weight)
        found = adamw.derivative_of_step(moments, batch, jnp.float64)
        other = shaped_like_parameters(checkpoints[kind], want, tmp_path / kind)
        # What rounding leaves of a difference is large where P is.
        for a, b in zip(*map(jax.tree.leaves, (found, other)), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * np.median(np.abs(b)))

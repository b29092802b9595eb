"""Factors and engines against the oracle: weights really moved, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from smda_jax.data import batches
from smda_jax.data.chat import PairTokens, PromptTokens
from smda_jax.data.targets import Targets
from smda_jax.jacobian.factors import factors
from smda_jax.jacobian.finite import finite
from smda_jax.jacobian.forward import forward
from smda_jax.jacobian.readout import Site, base
from smda_jax.model import hf
from smda_jax.model.precision import numerics

SEQUENCES = [[3, 5], [3, 6], [7], [4, 1, 2]]  # a shared history, a single token, and a row of its own
TARGETS = Targets.of(SEQUENCES)
ETA = 1e-3
_factors = jax.jit(factors, static_argnums=0)


def tokens(vocab: int) -> tuple[list[PromptTokens], list[PairTokens]]:
    """Prompts with a common header; one short pair (kept in factors) and one long one (merged)."""
    r = np.random.default_rng(1)
    head = r.integers(0, vocab, 4).tolist()
    prompts = [PromptTokens(head + r.integers(0, vocab, n).tolist(), n + 1) for n in (3, 5, 9)]
    pairs = [PairTokens(r.integers(0, vocab, n).tolist(), first, n) for n, first in ((7, 4), (26, 3))]
    return prompts, pairs


@functools.cache
def truth(folder, site: tuple[str, int], scope: str):
    """Oracle: (loss, gradient norm, dh, dy) of every pair under the SGD step of size ETA, and (h, y)."""
    model = oracle.load_double(folder)
    prompts, pairs = tokens(model.config.vocab_size)
    out = []
    for pair in pairs:
        value, g = oracle.gradient(model, pair.ids, pair.response if scope == "response" else 1)
        norm = sum(float((x**2).sum()) for x in g) ** 0.5
        dh, dy = oracle.derivative(model, g, [(p.ids, p.eot) for p in prompts], site, SEQUENCES, eps=2e-3 / norm)
        out.append((value, norm, -ETA * dh, -ETA * dy))
    return out, [oracle.read(model, p.ids, p.eot, site, SEQUENCES) for p in prompts]


def close(got, expected, tolerance: float) -> None:
    assert np.abs(np.asarray(got) - expected).max() <= tolerance * np.abs(expected).max()


CASES = [(kind, "float64", ("resid_post", 1), "response") for kind in oracle.KINDS] + [
    ("llama3_tied_gqa", "float32", ("resid_post", 1), "response"),
    ("llama_untied_mha", "float32", ("resid_post", 1), "response"),
    ("llama_all_biases_linear_rope", "float64", ("mlp_out", 0), "all"),
    ("mistral_window", "float64", ("attn_out", 2), "all"),
]


@pytest.mark.parametrize(("kind", "dtype", "site", "scope"), CASES)
def test_forward_equals_moved_weights(checkpoints, kind, dtype, site, scope):
    tolerance = 1e-6 if dtype == "float64" else 1e-4
    expected, read = truth(checkpoints[kind], site, scope)
    with numerics(dtype):
        config, params = hf.load(checkpoints[kind], dtype)
        prompts, pairs = tokens(config.vocab)
        batch = batches.prompt_batch(prompts, TARGETS, 24, batches.shared_length(prompts), 3)
        start = base(config, params, batch, TARGETS, Site(*site))
        for n, (h, y) in enumerate(read):
            close(start.h[n], h, 1e-9 if dtype == "float64" else 1e-4)
            close(start.y[n], np.float64(y), 1e-9 if dtype == "float64" else 1e-4)
        for pair, (loss, norm, dh, dy) in zip(pairs, expected, strict=True):
            block = batches.pair_batch([pair], scope, batches.padded_length(len(pair.ids)), 1)
            steps, statistics = _factors(config, params, block, ETA)
            assert bool(steps.deltas) == (len(pair.ids) == 7)
            close(statistics.loss[0], loss, tolerance)
            close(statistics.gradient_norm[0], norm, tolerance)
            got = forward(config, params, steps, batch, TARGETS, Site(*site))
            for n in range(3):
                close(got.h[0, n], dh[n], tolerance)
            close(got.y[0], dy, tolerance)


@pytest.mark.parametrize("kind", ["llama3_tied_gqa", "llama_all_biases_linear_rope", "qwen2"])
def test_finite_equals_a_copied_weights_step_and_tends_to_forward(checkpoints, kind):
    site = ("resid_post", 1)
    model = oracle.load_double(checkpoints[kind])
    prompts, pairs = tokens(model.config.vocab_size)
    before = [oracle.read(model, p.ids, p.eot, site, SEQUENCES) for p in prompts]
    gradients = [oracle.gradient(model, p.ids, p.response)[1] for p in pairs]
    with numerics("float64"):
        config, params = hf.load(checkpoints[kind], "float64")
        batch = batches.prompt_batch(prompts, TARGETS, 24, 0, 3)
        block = batches.pair_batch(pairs, "response", 32, 2)
        errors = []
        for eta in (4e-3, 2e-3, 1e-3):
            steps, _ = _factors(config, params, block, eta)
            true = finite(config, params, steps, batch, TARGETS, Site(*site))
            linear = forward(config, params, steps, batch, TARGETS, Site(*site))
            errors.append([float(jnp.abs(t - lin).max()) for t, lin in zip(true, linear, strict=True)])
            for i, g in enumerate(gradients):
                moved = oracle.load_double(checkpoints[kind])
                oracle.move(moved, g, -eta)
                for n, p in enumerate(prompts):
                    h, y = oracle.read(moved, p.ids, p.eot, site, SEQUENCES)
                    np.testing.assert_allclose(true.h[i, n], h - before[n][0], rtol=1e-8, atol=1e-12)
                    np.testing.assert_allclose(true.y[i, n], y - before[n][1], rtol=1e-8, atol=1e-12)
    # The gap is second order: halving the step quarters it.
    rates = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert (np.abs(rates[-1] - 2) < 0.2).all(), rates


def test_results_do_not_depend_on_what_they_travel_with(checkpoints):
    """Padding, batch size, order, company, shared header and pair block change rounding only."""
    site = Site("resid_post", 1)
    with numerics("float64"):
        config, params = hf.load(checkpoints["llama3_tied_gqa"], "float64")
        prompts, pairs = tokens(config.vocab)

        def run(ps, qs, width, pair_width, shared, rows):
            steps, statistics = _factors(config, params, batches.pair_batch(qs, "response", pair_width, len(qs)), ETA)
            batch = batches.prompt_batch(ps, TARGETS, width, shared, rows)
            out = forward(config, params, steps, batch, TARGETS, site)
            return out.h[:, : len(ps)], out.y[:, : len(ps)], statistics.gradient_norm

        h, y, norm = run(prompts, pairs, 16, 32, 4, 3)
        variants = {
            "padding": run(prompts, pairs, 40, 64, 4, 3),
            "no shared header": run(prompts, pairs, 16, 32, 0, 3),
            "shorter shared header": run(prompts, pairs, 16, 32, 2, 3),
            "larger batch": run(prompts, pairs, 16, 32, 4, 7),
        }
        for name, got in variants.items():
            for a, b in zip(got, (h, y, norm), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14, err_msg=name)
        other = run(prompts[::-1], pairs[::-1], 16, 32, 4, 3)
        np.testing.assert_allclose(other[0][::-1, ::-1], h, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(other[1][::-1, ::-1], y, rtol=1e-10, atol=1e-14)
        alone = run(prompts[1:2], pairs[:1], 24, 8, 4, 1)
        np.testing.assert_allclose(alone[0][0, 0], h[0, 1], rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(alone[1][0, 0], y[0, 1], rtol=1e-10, atol=1e-14)


def test_bfloat16_tangents_rank_pairs_as_float32_does(checkpoints):
    site = Site("resid_post", 1)
    results = {}
    for dtype in ("float32", "bfloat16"):
        with numerics(dtype):
            config, params = hf.load(checkpoints["llama3_tied_gqa"], dtype)
            prompts, _ = tokens(config.vocab)
            r = np.random.default_rng(5)
            pairs = [PairTokens(r.integers(0, config.vocab, 12).tolist(), 5, 12) for _ in range(12)]
            steps, _ = _factors(config, params, batches.pair_batch(pairs, "response", 16, 12), ETA)
            batch = batches.prompt_batch(prompts, TARGETS, 16, 4, 3)
            results[dtype] = np.asarray(forward(config, params, steps, batch, TARGETS, site).y, np.float32).mean(1)
    assert np.corrcoef(results["float32"], results["bfloat16"])[0, 1] > 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_forward_in_float32_on_the_device_equals_moved_weights(checkpoints, kind):
    """TF32 products would miss this by two digits."""
    test_forward_equals_moved_weights(checkpoints, kind, "float32", ("resid_post", 1), "response")

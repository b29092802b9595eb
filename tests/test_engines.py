"""Factors and engines against the oracle: weights really moved, in float64."""

import functools
import inspect
import itertools
import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from conftest import EMBEDDED
from safetensors.numpy import save_file
from scipy.stats import spearmanr

import smda_jax as smda
from smda_jax.data import batches
from smda_jax.data import lanes as lanes_
from smda_jax.data.chat import Chat, PairTokens, PromptTokens
from smda_jax.data.targets import Targets
from smda_jax.jacobian import ask
from smda_jax.jacobian.evaluation import Evaluation, Model, encode, read_prompts, tokenise_pairs
from smda_jax.jacobian.factors import factors, gradient, squares
from smda_jax.jacobian.finite import finite
from smda_jax.jacobian.forward import forward
from smda_jax.jacobian.query import along, answer, finish, query
from smda_jax.jacobian.readout import Site, base
from smda_jax.model import hf
from smda_jax.model.precision import numerics
from smda_jax.policy.influence import functionals
from smda_jax.sae.encoder import Encoder

SEQUENCES = [[3, 5], [3, 6], [7], [4, 1, 2]]  # a shared history, a single token, and a row of its own
TARGETS = Targets.of(SEQUENCES)
ETA = 1e-3
_factors = jax.jit(factors, static_argnums=0, static_argnames="normalised")


def tokens(vocab: int) -> tuple[list[PromptTokens], list[PairTokens]]:
    """Prompts with a common header; one short pair (kept in factors) and one long one (merged)."""
    r = np.random.default_rng(1)
    head = r.integers(0, vocab, 4).tolist()
    prompts = [PromptTokens(head + r.integers(0, vocab, n).tolist(), n + 1) for n in (3, 5, 9)]
    lead = r.integers(0, vocab, 2).tolist()
    pairs = [PairTokens(lead + r.integers(0, vocab, n - 2).tolist(), first, n) for n, first in ((7, 4), (26, 3))]
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


def shaped_like_parameters(checkpoint, tensors, folder):
    """Values by the checkpoint's own tensor names, as a tree of parameters."""
    folder.mkdir(exist_ok=True)
    shutil.copy(checkpoint / "config.json", folder)
    save_file(tensors, folder / "model.safetensors")
    return hf.load(folder, "float64")[1]


def evaluate(config, params, prompts, site, W) -> Evaluation:
    """Prompts as token ids, read; the chat template is not asked."""
    model = Model(config, params, Chat(EMBEDDED / "model"))
    h, y, also = (np.asarray(v) for v in read_prompts(model, prompts, TARGETS, site))
    encoder = Encoder(jnp.asarray(W, h.dtype), jnp.zeros(W.shape[1], h.dtype))
    z, active = encode(encoder, h)
    return Evaluation(model, prompts, TARGETS, site, encoder, list(range(W.shape[1])), h, also, z, active, y)


def each(got, expected, tolerance: float) -> None:
    """Close, pair by pair: a small one does not hide behind a large one."""
    for one, other in zip(got, expected, strict=True):
        close(one, other, tolerance)


def close(got, expected, tolerance: float) -> None:
    assert np.abs(np.asarray(got) - expected).max() <= tolerance * np.abs(expected).max()


# Padded to 8 tokens a pair's step is kept in factors at these sizes, padded to 32 it is merged.
CASES = [
    ("llama3_tied_gqa", "float64", ("resid_post", 1), "response", 8),
    ("llama3_tied_gqa", "float32", ("resid_post", 1), "response", 32),
    ("llama_untied_mha", "float64", ("resid_post", 1), "response", 32),
    ("llama_untied_mha", "float32", ("resid_pre", 1), "response", 8),
    ("llama_all_biases_linear_rope", "float64", ("mlp_out", 2), "all", 32),
    ("llama_all_biases_linear_rope", "float64", ("resid_post", 1), "response", 8),
    ("qwen2", "float64", ("resid_post", 1), "response", 8),
    ("mistral_window", "float64", ("attn_out", 2), "all", 32),
]


@pytest.mark.parametrize(("kind", "dtype", "site", "scope", "width"), CASES)
def test_first_order_engines_equal_moved_weights(checkpoints, kind, dtype, site, scope, width):
    tolerance = 1e-6 if dtype == "float64" else 1e-4
    expected, read = truth(checkpoints[kind], site, scope)
    r = np.random.default_rng(3)
    with numerics(dtype):
        config, params = hf.load(checkpoints[kind], dtype)
        prompts, pairs = tokens(config.vocab)
        pairs = [pair for pair in pairs if len(pair.ids) <= width]
        batch = batches.prompt_batch(prompts, TARGETS, 24, batches.shared_length(prompts), 3)
        start = base(config, params, batch, TARGETS, Site(*site))
        for n, (h, y) in enumerate(read):
            close(start.h[n], h, 1e-9 if dtype == "float64" else 1e-4)
            close(start.y[n], np.float64(y), 1e-9 if dtype == "float64" else 1e-4)
        loss, norm, dh, dy = (np.stack(v) for v in zip(*expected[: len(pairs)], strict=True))
        block = batches.pair_batch(pairs, scope, width, len(pairs))
        steps, statistics = _factors(config, params, block, ETA)
        close(statistics.loss, loss, tolerance)
        close(statistics.gradient_norm, norm, tolerance)
        got = forward(config, params, steps, batch, TARGETS, Site(*site))
        each(got.h, dh, tolerance)
        each(got.y, dy, tolerance)
        W = r.normal(size=(config.hidden, 4))
        back = smda.reverse(evaluate(config, params, prompts, Site(*site), W), steps, inactive=True)
        each(back.y, dy, tolerance)
        each(back.z, dh @ W, tolerance)


@pytest.mark.parametrize(("kind", "dtype", "site", "scope", "width"), CASES[1:5])
def test_query_equals_moved_weights(checkpoints, kind, dtype, site, scope, width):
    """With pairs' gradients formed, and along the query, where the tokens that pairs share are run once or not."""
    tolerance = 1e-6 if dtype == "float64" else 1e-4
    expected, _ = truth(checkpoints[kind], site, scope)
    r = np.random.default_rng(3)
    with numerics(dtype):
        config, params = hf.load(checkpoints[kind], dtype)
        prompts, pairs = tokens(config.vocab)
        pairs = [pair for pair in pairs if len(pair.ids) <= width]
        loss, norm, dh, dy = (np.stack(v) for v in zip(*expected[: len(pairs)], strict=True))
        batch = batches.prompt_batch(prompts, TARGETS, 24, batches.shared_length(prompts), 3)
        block = batches.pair_batch(pairs, scope, width, len(pairs))
        W = r.normal(size=(config.hidden, 4))
        encoder = Encoder(jnp.asarray(W, dtype), jnp.zeros(4, dtype))
        shared = batches.shared_pair_length(pairs, scope)
        assert shared == (0 if scope == "all" else min(pair.response for pair in pairs) - 1)
        for m in (1, 40):
            z, y = r.normal(size=(m, 3, 4)), r.normal(size=(m, 3))
            through_x, through_y = np.einsum("mnk,inh,hk->mi", z, dh, W), y @ dy.T
            scale = np.abs(z).sum() / m * np.abs(dh @ W).max() + np.abs(y).sum() / m * np.abs(dy).max()
            ways = [(z, y, through_x + through_y)] + [(z, None, through_x), (None, y, through_y)] * (kind == "llama_untied_mha")
            queries = tuple(query(config, params, batch, encoder, a, b, TARGETS, Site(*site)) for a, b, _ in ways)
            answers, found = jax.jit(partial(inspect.unwrap(answer), config))(params, block, queries, jnp.asarray(ETA))
            close(found.loss, loss, tolerance)
            close(found.gradient_norm, norm, tolerance)
            for value, (_, _, want) in zip(answers, ways, strict=True):
                assert np.abs(value - want).max() <= tolerance * scale
            for lead, lanes in itertools.product({0, shared}, (0, 1, 2)):
                some, back = replace(block, shared=lead), slice(None)
                if lanes:
                    rows, shape = packed(
                        [len(p.ids) - lead for p in pairs], lanes, [len(batches.scored_positions(p, scope)) for p in pairs]
                    )
                    some = lanes_.packed_pairs([pairs[i] for i in rows], scope, shape, lead)
                    back = np.argsort(shape.laid())[: len(rows)][np.argsort(rows)]
                value, found = along(config, params, some, queries[0], jnp.asarray(ETA))
                close(found.loss[back], loss, tolerance)
                assert np.abs(value[:, back] - ways[0][2]).max() <= tolerance * scale


def packed(lengths, lanes, scored=None):
    """All items in one block."""
    (block,) = lanes_.packed_blocks(lengths, len(lengths), lanes, scored)
    return block


def test_forward_reads_several_layers_in_one_pass(checkpoints):
    with numerics("float64"):
        config, params = hf.load(checkpoints["llama_all_biases_linear_rope"], "float64")
        prompts, pairs = tokens(config.vocab)
        batch = batches.prompt_batch(prompts, TARGETS, 16, 4, 3)
        steps, _ = _factors(config, params, batches.pair_batch(pairs, "response", 32, 2), ETA)
        together = forward(config, params, steps, batch, TARGETS, Site("resid_post", 1, (3, 0)))
        read = base(config, params, batch, TARGETS, Site("resid_post", 1, (3, 0)))
        for i, layer in enumerate((3, 0)):
            alone = forward(config, params, steps, batch, TARGETS, Site("resid_post", layer))
            close(together.also[i], alone.h, 1e-12)
            close(read.also[i], base(config, params, batch, TARGETS, Site("resid_post", layer)).h, 1e-12)


@pytest.mark.parametrize("kind", ["llama3_tied_gqa", "llama_all_biases_linear_rope", "qwen2"])
def test_preconditioned_and_normalised_steps_equal_moved_weights(checkpoints, kind, tmp_path):
    """The oracle's direction is its own gradient, multiplied entry by entry, or divided by its norm."""
    site, r = ("resid_post", 1), np.random.default_rng(7)
    model = oracle.load_double(checkpoints[kind])
    prompts, pairs = tokens(model.config.vocab_size)
    # Drawn by checkpoint name, so that both sides have the same preconditioner without sharing its layout.
    names = [name for name, _ in model.named_parameters()]
    P = {name: r.uniform(0.5, 2.0, tuple(p.shape)) for name, p in model.named_parameters()}
    with numerics("float64"):
        config, params = hf.load(checkpoints[kind], "float64")
        scaling = shaped_like_parameters(checkpoints[kind], P, tmp_path)
        batch = batches.prompt_batch(prompts, TARGETS, 16, 4, 3)
        features = jnp.asarray(r.normal(size=(config.hidden, 2)))
        y = np.ones((1, 3))
        q = query(config, params, batch, Encoder(features, jnp.zeros(2)), None, y, TARGETS, Site(*site))
        q = finish(q, scaling, jnp.float64)
        both = []
        for pair in pairs:
            _, g = oracle.gradient(model, pair.ids, pair.response)
            norm = sum(float((x**2).sum()) for x in g) ** 0.5
            step = [torch.as_tensor(P[name]) * x / norm for name, x in zip(names, g, strict=True)]
            eps = 2e-3 / sum(float((x**2).sum()) for x in step) ** 0.5
            dh, dy = oracle.derivative(model, step, [(p.ids, p.eot) for p in prompts], site, SEQUENCES, eps=eps)
            both.append((-ETA * dh, -ETA * dy))
        dh, dy = (np.stack(v) for v in zip(*both, strict=True))
        block = batches.pair_batch(pairs, "response", 32, 2)
        steps, _ = _factors(config, params, block, ETA, scaling, normalised=True)
        got = forward(config, params, steps, batch, TARGETS, Site(*site))
        close(got.h, dh, 1e-6)
        close(got.y, dy, 1e-6)
        back = smda.reverse(evaluate(config, params, prompts, Site(*site), features), steps, inactive=True)
        close(back.y, dy, 1e-6)
        close(back.z, dh @ np.asarray(features), 1e-6)
        (value,), _ = answer(config, params, block, (q,), jnp.asarray(ETA), normalised=True)
        close(value[0], dy.sum(1), 1e-6)


def test_second_moments_are_the_mean_of_squared_gradients(checkpoints, tmp_path):
    for kind in ("llama_all_biases_linear_rope", "llama_untied_mha"):
        model = oracle.load_double(checkpoints[kind])
        _, pairs = tokens(model.config.vocab_size)
        squared = [[x**2 for x in oracle.gradient(model, p.ids, p.response)[1]] for p in pairs]
        names = [name for name, _ in model.named_parameters()]
        mean = {name: torch.stack(v).mean(0) for name, *v in zip(names, *squared, strict=True)}
        with numerics("float64"):
            config, params = hf.load(checkpoints[kind], "float64")
            want = shaped_like_parameters(checkpoints[kind], {name: v.numpy() for name, v in mean.items()}, tmp_path / kind)
            _, g = gradient(config, params, batches.pair_batch(pairs, "response", 32, 3))
            got = squares(g, jnp.array([0.5, 0.5, 0.0]), params)
            jax.tree.map(lambda a, b: close(a, np.asarray(b), 1e-9), got, want)


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
            errors.append([float(jnp.abs(t - lin).max()) for t, lin in zip(true[:2], linear[:2], strict=True)])
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


def test_bfloat16_ranks_pairs_as_float32_does():
    """Passes in bfloat16, on the embedded model: scores and mean ΔY of `reverse`, and scores along the query."""
    prompts, pairs = smda.read_prompts(EMBEDDED / "prompts.parquet"), smda.read_pairs(EMBEDDED / "pairs.parquet")
    prompts, pairs = prompts.take(range(0, len(prompts), 8)), pairs.take(range(0, len(pairs), 5))
    sae, found = smda.load_sae(EMBEDDED / "sae"), []
    for dtype in ("float32", "bfloat16"):
        model = smda.load_model(EMBEDDED / "model", dtype)
        e = smda.activations(model, sae, prompts)
        X, Y = e.x.astype(np.float64), e.y.astype(np.float64)
        W = smda.ridge(X, Y, 5.0)
        out = smda.reverse(e, smda.factors(model, pairs))
        f = functionals(X, Y, W, 5.0, W[None])
        q = ask.pull_policy(e, f.weight_x() * e.active, f.weight_y())
        alone, _ = ask.along(model, tokenise_pairs(model, pairs), q, 1e-4)
        found.append((smda.decompose(X, Y, W, out.x, out.y, 5.0).score, out.y.mean(axis=1), alone[0]))
    for narrow, whole in zip(*found, strict=True):
        assert float(np.asarray(spearmanr(narrow, whole))[0]) > 0.999


def test_many_readouts_at_once_equal_few(evaluation):
    """At this size XLA's CPU compiler once fused a product of attention gradients wrongly."""
    e, steps = evaluation
    few, many = smda.reverse(e, steps, block=24), smda.reverse(e, steps, block=4000)
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


def test_functionals_that_read_nothing_have_no_gradient(evaluation):
    """As those of a feature that is active on no prompt."""
    e, _ = evaluation
    nought = np.zeros((2, *e.z.shape), e.z.dtype)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(ask.pull_policy(e, nought, None).gradient))


@pytest.fixture(scope="module")
def evaluation():
    model, sae = smda.load_model(EMBEDDED / "model"), smda.load_sae(EMBEDDED / "sae")
    prompts, pairs = smda.read_prompts(EMBEDDED / "prompts.parquet"), smda.read_pairs(EMBEDDED / "pairs.parquet")
    steps = smda.factors(model, pairs.take(range(3)))
    return smda.activations(model, sae, prompts.take(range(60))), steps


@pytest.mark.gpu
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_engines_in_float32_on_the_device_equal_moved_weights(checkpoints, kind):
    """TF32 products would miss this by two digits."""
    case = (kind, "float32", ("resid_post", 1), "response", 32)
    test_first_order_engines_equal_moved_weights(checkpoints, *case)
    test_query_equals_moved_weights(checkpoints, *case)

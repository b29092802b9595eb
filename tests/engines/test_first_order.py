"""Steps and first-order engines against the oracle: weights really moved, in float64."""

import inspect
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle_kinds import KINDS
from support import (
    BEHAVIOUR,
    ETA,
    close,
    each,
    evaluate,
    padded,
    steps_of,
    tokens,
    truth,
)

import smda_jax as smda
from smda_jax.data.batch.batches import (
    pair_batch,
    prompt_batch,
    scored_in_all,
    shared_length,
    shared_pair_length,
)
from smda_jax.data.batch.chunks import packed_chunks
from smda_jax.data.batch.layouts import scatter
from smda_jax.data.losses import Sft
from smda_jax.engines.forward.program import forward
from smda_jax.engines.query.program import (
    Weighted,
    Weighting,
    directional_derivative,
    inner_products,
    query,
)
from smda_jax.model import checkpoint
from smda_jax.reading.readout import base
from smda_jax.reading.site import Site
from smda_jax.runtime.precision import numerics
from smda_jax.sae.encoder import Encoder
from smda_jax.steps.updates.contract import Update

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
# Every family, at the site where its own operations matter most.
FAMILY_CASES = [
    ("qwen3", "float64", ("resid_post", 1), "response", 32),
    ("gemma2", "float64", ("mlp_out", 1), "response", 32),
    ("gemma3", "float64", ("attn_module", 1), "all", 32),
    ("olmo2", "float64", ("attn_out", 1), "response", 32),
    ("phi3", "float64", ("resid_post", 0), "response", 8),
    ("granite", "float64", ("mlp_out", 1), "response", 32),
    ("llama_yarn", "float64", ("mlp_module", 0), "response", 8),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype", "site", "scope", "width"), CASES + FAMILY_CASES)
def test_first_order_engines_equal_moved_weights(checkpoints, kind, dtype, site, scope, width):
    tolerance = 1e-6 if dtype == "float64" else 1e-4
    wanted, read = truth(checkpoints[kind], site, scope)
    r = np.random.default_rng(3)
    with numerics(dtype):
        params = checkpoint.load(checkpoints[kind], dtype)
        prompts, pairs = tokens(params.config.vocab)
        pairs = [pair._replace(loss=Sft(scope)) for pair in pairs if len(pair.ids) <= width]
        shared = shared_length(prompts)
        layout = padded(prompts, 24 - shared)
        batch = prompt_batch(prompts, layout, shared)
        start = base(params, batch, BEHAVIOUR, Site(*site))
        for n, (h, y) in enumerate(read):
            close(start.h[n], h, 1e-9 if dtype == "float64" else 1e-4)
            close(start.y[n], np.float64(y), 1e-9 if dtype == "float64" else 1e-4)
        loss, norm, dh, dy = (np.stack(v) for v in zip(*wanted[: len(pairs)], strict=True))
        steps, statistics = steps_of(params, pair_batch(pairs, padded(pairs, width)))
        close(statistics.loss, loss, tolerance)
        close(statistics.gradient_norm, norm, tolerance)
        got = forward(params, steps, batch, BEHAVIOUR, Site(*site))
        each(got.h, dh, tolerance)
        each(got.y, dy, tolerance)
        W = r.normal(size=(params.config.hidden, 4))
        back = smda.reverse(evaluate(params, prompts, Site(*site), W), steps, inactive=True)
        each(back.y, dy, tolerance)
        each(back.z, dh @ W, tolerance)


@pytest.mark.parametrize(
    ("kind", "dtype", "site", "scope", "width"),
    [
        *CASES[1:3],
        *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in CASES[3:5]),
        *CASES[6:],
        *FAMILY_CASES,
    ],
)
def test_query_equals_moved_weights(checkpoints, kind, dtype, site, scope, width):
    """With pairs' gradients formed, and along the query, with shared tokens run once or not."""
    tolerance = 1e-6 if dtype == "float64" else 1e-4
    wanted, _ = truth(checkpoints[kind], site, scope)
    r, place = np.random.default_rng(3), Site(*site)
    with numerics(dtype):
        params = checkpoint.load(checkpoints[kind], dtype)
        prompts, pairs = tokens(params.config.vocab)
        pairs = [pair._replace(loss=Sft(scope)) for pair in pairs if len(pair.ids) <= width]
        loss, norm, dh, dy = (np.stack(v) for v in zip(*wanted[: len(pairs)], strict=True))
        head = shared_length(prompts)
        layout = padded(prompts, 24 - head)
        batch = prompt_batch(prompts, layout, head)
        block = pair_batch(pairs, padded(pairs, width))
        W = r.normal(size=(params.config.hidden, 4))
        encoder = Encoder(jnp.asarray(W, dtype), jnp.zeros(4, dtype))
        shared = shared_pair_length(pairs)
        assert shared == (0 if scope == "all" else min(pair.response for pair in pairs) - 1)
        for m in (1, 40) if kind == "llama_untied_mha" else (2,):
            z, y = r.normal(size=(m, 3, 4)), r.normal(size=(m, 3))
            through_x, through_y = np.einsum("mnk,inh,hk->mi", z, dh, W), y @ dy.T
            scale = np.abs(z).sum() / m * np.abs(dh @ W).max()
            scale += np.abs(y).sum() / m * np.abs(dy).max()
            ways = [(z, y, through_x + through_y), (z, None, through_x), (None, y, through_y)]
            # What does not depend on the family is tried on one.
            whole = kind == "llama_untied_mha"
            ways = ways if whole else ways[:1]
            queries = tuple(
                query(params, batch, Weighted(encoder, Weighting(a, b)), BEHAVIOUR, place)
                for a, b, _ in ways
            )
            ask = jax.jit(partial(inspect.unwrap(inner_products.function)))
            answers, found = ask(params, block, queries, Update(ETA).ready())
            close(found.loss, loss, tolerance)
            close(found.gradient_norm, norm, tolerance)
            for value, (_, _, want) in zip(answers, ways, strict=True):
                assert np.abs(value - want).max() <= tolerance * scale
            update = Update(ETA).ready()
            for lead, lanes in (
                itertools.product({0, shared}, (0, 1, 2)) if whole else [(shared, 2)]
            ):
                rows, own = np.arange(len(pairs)), padded(pairs, width - lead)
                if lanes:
                    scored = [scored_in_all(p) for p in pairs]
                    lengths = [len(p.ids) - lead for p in pairs]
                    ((rows, own),) = packed_chunks(lengths, len(pairs), lanes, scored)
                some = pair_batch([pairs[i] for i in rows], own, lead)
                value, found = directional_derivative(params, some, queries[0], update)
                inverse = np.argsort(rows)
                got = scatter(own, np.asarray(value), len(pairs), 1)[:, inverse]
                close(scatter(own, np.asarray(found.loss), len(pairs))[inverse], loss, tolerance)
                assert np.abs(got - ways[0][2]).max() <= tolerance * scale


def test_forward_reads_several_layers_in_one_pass(checkpoints):
    with numerics("float64"):
        params = checkpoint.load(checkpoints["llama_all_biases_linear_rope"], "float64")
        prompts, pairs = tokens(params.config.vocab)
        batch = prompt_batch(prompts, padded(prompts, 12), 4)
        steps, _ = steps_of(params, pair_batch(pairs, padded(pairs, 32)))
        several = Site("resid_post", 1, (3, 0))
        together = forward(params, steps, batch, BEHAVIOUR, several)
        read = base(params, batch, BEHAVIOUR, several)
        for i, layer in enumerate((3, 0)):
            one = Site("resid_post", layer)
            close(together.extra[i], forward(params, steps, batch, BEHAVIOUR, one).h, 1e-12)
            close(read.extra[i], base(params, batch, BEHAVIOUR, one).h, 1e-12)


def test_results_do_not_depend_on_what_they_travel_with(checkpoints):
    """Padding, batch size, order, company, shared header and pair block change rounding only."""
    site = Site("resid_post", 1)
    with numerics("float64"):
        params = checkpoint.load(checkpoints["llama3_tied_gqa"], "float64")
        prompts, pairs = tokens(params.config.vocab)

        def run(ps, qs, width=16, pair_width=32, shared=4, rows=3):
            steps, found = steps_of(params, pair_batch(qs, padded(qs, pair_width)))
            layout = padded(ps, width - shared, rows)
            batch = prompt_batch(ps, layout, shared)
            out = forward(params, steps, batch, BEHAVIOUR, site)
            return out.h[:, : len(ps)], out.y[:, : len(ps)], found.gradient_norm

        h, y, norm = run(prompts, pairs)
        variants = {
            "padding": run(prompts, pairs, width=40, pair_width=64),
            "no shared header": run(prompts, pairs, shared=0),
            "shorter shared header": run(prompts, pairs, shared=2),
            "larger batch": run(prompts, pairs, rows=7),
        }
        for name, got in variants.items():
            for a, b in zip(got, (h, y, norm), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14, err_msg=name)
        other = run(prompts[::-1], pairs[::-1])
        np.testing.assert_allclose(other[0][::-1, ::-1], h, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(other[1][::-1, ::-1], y, rtol=1e-10, atol=1e-14)
        alone = run(prompts[1:2], pairs[:1], width=24, pair_width=8, rows=1)
        np.testing.assert_allclose(alone[0][0, 0], h[0, 1], rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(alone[1][0, 0], y[0, 1], rtol=1e-10, atol=1e-14)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_engines_in_float32_on_the_device_equal_moved_weights(checkpoints, kind):
    """TF32 products would miss this by two digits."""
    case = (kind, "float32", ("resid_post", 1), "response", 32)
    test_first_order_engines_equal_moved_weights(checkpoints, *case)
    test_query_equals_moved_weights(checkpoints, *case)

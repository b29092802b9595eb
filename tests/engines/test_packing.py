"""Rows packed into lanes against padded ones."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import BEHAVIOUR, ETA, close, padded, tokens

from smda_jax.data.batch.batches import (
    pair_batch,
    prompt_batch,
    scored_in_all,
    shared_length,
)
from smda_jax.data.batch.chunks import packed_chunks
from smda_jax.engines.query.program import Weighted, Weighting, directional_derivative, query
from smda_jax.model import checkpoint
from smda_jax.reading.readout import base
from smda_jax.reading.site import Site
from smda_jax.runtime.precision import numerics
from smda_jax.sae.encoder import Encoder
from smda_jax.steps.updates.contract import Update


@pytest.mark.parametrize(
    ("kind", "site", "lanes"),
    [
        ("mistral_window", ("attn_out", 2), 1),
        ("mistral_window", ("attn_out", 2), 4),
        ("llama_all_biases_linear_rope", ("mlp_out", 3), 2),
        ("gemma3", ("resid_post", 1), 2),
    ],
)
def test_packed_prompts_are_read_as_padded_ones(checkpoints, kind, site, lanes):
    """Readings and gradients; in more lanes than prompts, with a shared header or none."""
    with numerics("float64"):
        params = checkpoint.load(checkpoints[kind], "float64")
        prompts, _ = tokens(params.config.vocab)
        r, where = np.random.default_rng(0), Site(*site)
        encoder = Encoder(jnp.asarray(r.normal(size=(params.config.hidden, 2))), jnp.zeros(2))
        z, y = r.normal(size=(2, 3, 2)), r.normal(size=(2, 3))
        for shared in (0, shared_length(prompts)):
            layout = padded(prompts, 24 - shared)
            plain = prompt_batch(prompts, layout, shared)
            whole = base(params, plain, BEHAVIOUR, where)
            (chunk,) = packed_chunks([len(p.ids) - shared + 2 for p in prompts], 3, lanes)
            own = [prompts[i] for i in chunk.rows]
            batch = prompt_batch(own, chunk.layout, shared)
            found = base(params, batch, BEHAVIOUR, where)
            close(chunk.scatter(np.asarray(found.h)), np.asarray(whole.h)[chunk.rows], 1e-12)
            close(chunk.scatter(np.asarray(found.y)), np.asarray(whole.y)[chunk.rows], 1e-12)
            weights = Weighting(chunk.gather(z, 1), chunk.gather(y, 1))
            one = query(params, batch, Weighted(encoder, weights), BEHAVIOUR, where)
            other = query(params, plain, Weighted(encoder, Weighting(z, y)), BEHAVIOUR, where)
            jax.tree.map(lambda a, b: close(a, np.asarray(b), 1e-10), one, other)


def test_a_pair_that_is_not_finite_does_not_spoil_those_beside_it(checkpoints):
    """Packed into one lane, losses are weighed with zeros: zero times infinity is not zero."""
    with numerics("float32"):
        params = checkpoint.load(checkpoints["llama_untied_mha"], "float32")
        prompts, pairs = tokens(params.config.vocab)
        scored = [scored_in_all(p) for p in pairs]
        (chunk,) = packed_chunks([len(p.ids) for p in pairs], 2, 1, scored)
        batch = pair_batch([pairs[i] for i in chunk.rows], chunk.layout)
        encoder = Encoder(jnp.ones((params.config.hidden, 1)), jnp.zeros(1))
        plain = prompt_batch(prompts, padded(prompts, 24))
        weighting, site = Weighting(None, np.ones((1, 3))), Site("resid_post", 1)
        asked = query(params, plain, Weighted(encoder, weighting), BEHAVIOUR, site)
        rare = next(t for t in pairs[1].ids if t not in pairs[0].ids)
        spoilt = replace(params, embed=params.embed.at[rare].set(jnp.inf))
        value, found = directional_derivative(spoilt, batch, asked, Update(ETA).ready())
        assert np.isfinite(np.asarray(found.loss)).tolist() == (chunk.rows == 0).tolist()
        assert np.isfinite(np.asarray(value[0])).tolist() == (chunk.rows == 0).tolist()

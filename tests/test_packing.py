"""Rows packed into lanes against padded ones."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_engines import ETA, TARGETS, close, packed, tokens

from smda_jax.data import batches
from smda_jax.data import lanes as lanes_
from smda_jax.jacobian.query import along, query
from smda_jax.jacobian.readout import Site, base
from smda_jax.model import hf
from smda_jax.model.precision import numerics
from smda_jax.sae.encoder import Encoder


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize(
    ("kind", "site"), [("mistral_window", ("attn_out", 2)), ("llama_all_biases_linear_rope", ("mlp_out", 3))]
)
def test_packed_prompts_are_read_as_padded_ones(checkpoints, kind, site, lanes):
    """Readings and gradients; in more lanes than prompts, after a shared header or none, at the last layer and before it."""
    with numerics("float64"):
        config, params = hf.load(checkpoints[kind], "float64")
        prompts, _ = tokens(config.vocab)
        r, where = np.random.default_rng(0), Site(*site)
        encoder = Encoder(jnp.asarray(r.normal(size=(config.hidden, 2))), jnp.zeros(2))
        z, y = r.normal(size=(2, 3, 2)), r.normal(size=(2, 3))
        for shared in (0, batches.shared_length(prompts)):
            padded = batches.prompt_batch(prompts, TARGETS, 24, shared, 3)
            rows, shape = packed([len(p.ids) - shared + 2 for p in prompts], lanes)
            batch, laid = lanes_.packed_prompts([prompts[i] for i in rows], TARGETS, shape, shared), shape.laid()
            own, back = base(config, params, batch, TARGETS, where), np.argsort(laid)[: len(rows)][np.argsort(rows)]
            whole = base(config, params, padded, TARGETS, where)
            close(own.h[back], np.asarray(whole.h), 1e-12)
            close(own.y[back], np.asarray(whole.y), 1e-12)
            spare = [(0, 0), (0, len(laid) - 3)]
            weights = np.pad(z[:, rows], [*spare, (0, 0)])[:, laid], np.pad(y[:, rows], spare)[:, laid]
            one = query(config, params, batch, encoder, *weights, TARGETS, where)
            other = query(config, params, padded, encoder, z, y, TARGETS, where)
            jax.tree.map(lambda a, b: close(a, np.asarray(b), 1e-10), one, other)


def test_a_pair_that_is_not_finite_does_not_spoil_those_beside_it(checkpoints):
    """Packed into one lane, losses are weighed with noughts, which times what is not finite is not nought."""
    with numerics("float32"):
        config, params = hf.load(checkpoints["llama_untied_mha"], "float32")
        prompts, pairs = tokens(config.vocab)
        rows, shape = packed([len(p.ids) for p in pairs], 1, [len(batches.scored_positions(p, "response")) for p in pairs])
        batch = lanes_.packed_pairs([pairs[i] for i in rows], "response", shape, 0)
        encoder, y = Encoder(jnp.ones((config.hidden, 1)), jnp.zeros(1)), np.ones((1, 3))
        asked = query(
            config, params, batches.prompt_batch(prompts, TARGETS, 24, 0, 3), encoder, None, y, TARGETS, Site("resid_post", 1)
        )
        rare = next(t for t in pairs[1].ids if t not in pairs[0].ids)
        spoilt = replace(params, embed=params.embed.at[rare].set(jnp.inf))
        value, found = along(config, spoilt, batch, asked, jnp.asarray(ETA))
        assert np.isfinite(np.asarray(found.loss)).tolist() == (rows == 0).tolist()
        assert np.isfinite(np.asarray(value[0])).tolist() == (rows == 0).tolist()

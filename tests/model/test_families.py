"""Every family against transformers: logits, and every stream that an SAE may read."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch

from smda_jax.model import checkpoint
from smda_jax.model.forward import SITES, Read, Wanted, embed, logits, run_blocks

IDS = np.random.default_rng(3).integers(0, 43, (2, 19))


@pytest.mark.parametrize("kind", oracle.EVERY)
def test_logits_and_every_stream_equal_transformers_in_float64(checkpoints, kind):
    reference = oracle.load_double(checkpoints[kind])
    with jax.enable_x64(True):
        params = checkpoint.load(checkpoints[kind], jnp.float64)
        got = jax.jit(logits)(params, jnp.asarray(IDS))
        at, layers = jnp.array([17, 4]), tuple(range(params.config.layers))

        @jax.jit
        def read(params, tokens):
            x = embed(params, tokens)
            wanted = {site: Wanted((Read(site, layers, at[:, None]),)) for site in SITES}
            return {
                site: run_blocks(params, x, wanted=own).reads[0] for site, own in wanted.items()
            }

        reads = read(params, jnp.asarray(IDS))
        for row, ids in enumerate(IDS.tolist()):
            streams, expected = oracle.streams(reference, ids)
            np.testing.assert_allclose(got[row], expected.detach(), rtol=1e-9, atol=1e-9)
            for site, layer in itertools.product(SITES, layers):
                want = streams[site, layer][int(at[row])].detach()
                value = reads[site][layer, row, 0]
                np.testing.assert_allclose(value, want, rtol=1e-9, atol=1e-9)


# float16 where nothing overflows; every family in the dtype that its checkpoints have.
OWN_DTYPES = [("llama3_tied_gqa", "float16"), ("qwen2", "float16")]
OWN_DTYPES += [(kind, dtype) for kind in oracle.EVERY for dtype in ("float32", "bfloat16")]


@pytest.mark.parametrize(("kind", "dtype"), OWN_DTYPES)
def test_logits_equal_unpatched_transformers_in_the_checkpoints_own_dtype(tmp_path, kind, dtype):
    from transformers import AutoModelForCausalLM

    own = getattr(torch, dtype)
    oracle.make_checkpoint(tmp_path, kind, own)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=own, attn_implementation="eager")
    expected = model(torch.tensor(IDS)).logits.detach().float().numpy()
    params = checkpoint.load(tmp_path, None)
    assert params.embed.dtype == dtype
    got = np.asarray(jax.jit(logits)(params, jnp.asarray(IDS)), np.float32)
    tolerance = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1.5e-1}[dtype]
    assert np.abs(got - expected).max() < tolerance * np.abs(expected).max()

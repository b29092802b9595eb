"""The model against transformers, and checkpoints in and out."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from safetensors.numpy import load_file, save_file

from smda_jax.errors import InputError
from smda_jax.model import hf
from smda_jax.model.config import from_hf
from smda_jax.model.llama import SITES, Read, embed, logits, run_blocks

IDS = np.random.default_rng(3).integers(0, 43, (2, 19))


@pytest.mark.parametrize("kind", oracle.KINDS)
def test_logits_and_every_stream_equal_transformers_in_float64(checkpoints, kind):
    reference = oracle.load_double(checkpoints[kind])
    with jax.enable_x64(True):
        config, params = hf.load(checkpoints[kind], jnp.float64)
        got = jax.jit(logits, static_argnums=0)(config, params, jnp.asarray(IDS))
        at = jnp.array([17, 4])

        @jax.jit
        def read(params, tokens):
            places = itertools.product(SITES, range(config.layers))
            return {
                place: run_blocks(config, params, embed(params, tokens), read=Read(place[0], (place[1],), at[:, None])).read
                for place in places
            }

        reads = read(params, jnp.asarray(IDS))
        for row, ids in enumerate(IDS.tolist()):
            streams, expected = oracle.streams(reference, ids)
            np.testing.assert_allclose(got[row], expected.detach(), rtol=1e-9, atol=1e-9)
            for place, value in reads.items():
                np.testing.assert_allclose(value[0, row, 0], streams[place][int(at[row])].detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", oracle.KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_logits_equal_unpatched_transformers_in_the_checkpoints_own_dtype(tmp_path, kind, dtype):
    from transformers import AutoModelForCausalLM

    own = getattr(torch, dtype)
    oracle.make_checkpoint(tmp_path, kind, own)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=own, attn_implementation="eager")
    expected = model(torch.tensor(IDS)).logits.detach().float().numpy()
    config, params = hf.load(tmp_path, None)
    assert params.embed.dtype == dtype
    got = np.asarray(jax.jit(logits, static_argnums=0)(config, params, jnp.asarray(IDS)), np.float32)
    tolerance = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1.5e-1}[dtype]
    assert np.abs(got - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("kind", oracle.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_export_round_trips_bit_for_bit_sharded_or_not(tmp_path, kind, dtype):
    source = oracle.make_checkpoint(tmp_path / "in", kind, dtype)
    _, params = hf.load(source, None)
    expected = load_file(source / "model.safetensors")
    for limit in (10**9, 4000):
        out = tmp_path / f"out{limit}"
        hf.save(out, hf.read_config(source), params, limit)
        files = list(out.glob("*.safetensors"))
        assert (len(files) > 1) == (limit == 4000)
        written = {name: value for file in files for name, value in load_file(file).items()}
        assert written.keys() == expected.keys()
        for name, value in written.items():
            assert value.dtype == expected[name].dtype
            assert value.tobytes() == expected[name].tobytes(), name
        _, again = hf.load(out, None)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), params, again))


def test_the_cached_copy_is_the_checkpoint_and_is_what_later_loads_read(tmp_path, checkpoints):
    source = tmp_path / "model"
    shutil.copytree(checkpoints["qwen2"], source)
    _, plain = hf.load(source, jnp.bfloat16)
    hf.load(source, jnp.bfloat16, cache=tmp_path / "cache")
    (copy,) = (tmp_path / "cache").iterdir()
    before = copy.stat().st_mtime_ns
    _, cached = hf.load(source, jnp.bfloat16, cache=tmp_path / "cache")
    assert copy.stat().st_mtime_ns == before
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)) and a.dtype == b.dtype, plain, cached))
    other = oracle.make_checkpoint(tmp_path / "other", "qwen2", seed=1)
    _, changed = hf.load(other, jnp.bfloat16, cache=tmp_path / "cache")
    assert not jnp.array_equal(changed.embed, plain.embed)


def test_tensors_go_straight_to_the_asked_for_sharding(checkpoints):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P())
    asked: list[str] = []
    _, params = hf.load(checkpoints["llama_untied_mha"], sharding=lambda path: asked.append(path) or sharding)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(params))
    assert {"embed", "q.w", "attn_norm", "final_norm", "unembed"} <= set(asked)


RAW = {
    "model_type": "llama", "vocab_size": 8, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 4, "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip
LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def test_config_spellings_of_transformers_4_and_5_are_the_same_model():
    four = from_hf(RAW | {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}, "torch_dtype": "bfloat16"})
    five = from_hf(RAW | {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5}, "dtype": "bfloat16"})
    assert four == five
    assert from_hf(RAW | {"rope_theta": 7.0}) == from_hf(RAW | {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}})
    assert from_hf(RAW | {"rope_scaling": {"type": "linear", "factor": 2.0}}).rope.factor == 2.0
    assert from_hf(RAW).kv_heads == 4
    assert from_hf(RAW | {"num_key_value_heads": None, "head_dim": None}).head_dim == 4
    assert from_hf(RAW | {"unsloth_version": "2025.1", "_name_or_path": "x", "eos_token_id": [1, 2]}) == from_hf(RAW)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gemma2"}, "gemma2"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "rope_parameters"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 128}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_what_the_config_asks_for_and_is_not_implemented_is_refused_by_name(change, named):
    with pytest.raises(InputError, match=named):
        from_hf(RAW | change)


def _damage(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight is missing"),
        (lambda t: t.update({"model.extra.weight": np.zeros(2, np.float32)}), "model.extra.weight"),
        (lambda t: t.update({"model.norm.weight": np.zeros(3, np.float32)}), r"model.norm.weight has shape \(3,\)"),
        (lambda t: t["model.layers.1.self_attn.q_proj.weight"].__setitem__((0, 0), np.nan), "layers.1.self_attn.q_proj.*NaN"),
        (lambda t: t.update({"model.norm.weight": np.zeros(20, np.int8)}), "stored as I8"),
    ],
)
def test_a_damaged_checkpoint_names_the_tensor(tmp_path, checkpoints, change, message):
    shutil.copytree(checkpoints["llama_untied_mha"], tmp_path, dirs_exist_ok=True)
    _damage(tmp_path, change)
    with pytest.raises(InputError, match=message):
        hf.load(tmp_path)


def test_a_tied_checkpoint_may_hold_the_copy_but_not_another_table(tmp_path, checkpoints):
    shutil.copytree(checkpoints["llama3_tied_gqa"], tmp_path, dirs_exist_ok=True)
    _damage(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    hf.load(tmp_path)
    _damage(tmp_path, lambda t: t["lm_head.weight"].__setitem__((0, 0), 7.0))
    with pytest.raises(InputError, match="differs"):
        hf.load(tmp_path)


def test_unreadable_checkpoints_say_what_is_wrong(tmp_path, checkpoints):
    with pytest.raises(InputError, match="no such folder"):
        hf.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no config\.json"):
        hf.load(tmp_path)
    with pytest.raises(InputError, match="not fetched from the Hub"):
        hf.load("nobody/nothing")
    shutil.copytree(checkpoints["qwen2"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        hf.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hf.read_config(checkpoints["qwen2"])))
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        hf.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="only safetensors"):
        hf.load(tmp_path)

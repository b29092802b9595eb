"""Checkpoints in and out."""

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
from smda_jax.model import checkpoint

# Every dtype, and every family.
EXPORTS = [("llama3_tied_gqa", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
EXPORTS += [(kind, torch.bfloat16) for kind in oracle.EVERY if kind != "llama3_tied_gqa"]


@pytest.mark.parametrize(("kind", "dtype"), EXPORTS)
def test_export_round_trips_bit_for_bit_sharded_or_not(tmp_path, kind, dtype):
    source = oracle.make_checkpoint(tmp_path / "in", kind, dtype)
    params = checkpoint.load(source, None)
    expected = load_file(source / "model.safetensors")
    for limit in (10**9, 4000):
        out = tmp_path / f"out{limit}"
        checkpoint.save(out, checkpoint.read_raw_config(source), params, limit)
        files = list(out.glob("*.safetensors"))
        assert (len(files) > 1) == (limit == 4000)
        written = {name: value for file in files for name, value in load_file(file).items()}
        assert written.keys() == expected.keys()
        for name, value in written.items():
            assert value.dtype == expected[name].dtype
            assert value.tobytes() == expected[name].tobytes(), name
        again = checkpoint.load(out, None)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), params, again))


def test_the_cached_copy_is_the_checkpoint_and_is_what_later_loads_read(tmp_path, checkpoints):
    source = tmp_path / "model"
    shutil.copytree(checkpoints["qwen2"], source)
    plain = checkpoint.load(source, jnp.bfloat16)
    checkpoint.load(source, jnp.bfloat16, cache=tmp_path / "cache")
    (copy,) = (tmp_path / "cache").iterdir()
    before = copy.stat().st_mtime_ns
    cached = checkpoint.load(source, jnp.bfloat16, cache=tmp_path / "cache")
    assert copy.stat().st_mtime_ns == before
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)) and a.dtype == b.dtype, plain, cached)
    )
    other = oracle.make_checkpoint(tmp_path / "other", "qwen2", seed=1)
    changed = checkpoint.load(other, jnp.bfloat16, cache=tmp_path / "cache")
    assert not jnp.array_equal(changed.embed, plain.embed)


def test_tensors_go_straight_to_the_asked_for_sharding(checkpoints):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P())
    asked: list[str] = []
    params = checkpoint.load(
        checkpoints["llama_untied_mha"], placing=lambda path: asked.append(path) or sharding
    )
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(params))
    assert {"embed", "q.w", "attn_norm.w", "final_norm", "unembed"} <= set(asked)


def _damage(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            "model.layers.1.mlp.up_proj.weight is missing",
        ),
        (lambda t: t.update({"model.extra.weight": np.zeros(2, np.float32)}), "model.extra.weight"),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(3, np.float32)}),
            r"model.norm.weight has shape \(3,\)",
        ),
        (
            lambda t: t["model.layers.1.self_attn.q_proj.weight"].__setitem__((0, 0), np.nan),
            "layers.1.self_attn.q_proj.*NaN",
        ),
        (lambda t: t.update({"model.norm.weight": np.zeros(20, np.int8)}), "stored as I8"),
    ],
)
def test_a_damaged_checkpoint_names_the_tensor(tmp_path, checkpoints, change, message):
    shutil.copytree(checkpoints["llama_untied_mha"], tmp_path, dirs_exist_ok=True)
    _damage(tmp_path, change)
    with pytest.raises(InputError, match=message):
        checkpoint.load(tmp_path)


def test_a_tied_checkpoint_may_hold_the_copy_but_not_another_table(tmp_path, checkpoints):
    shutil.copytree(checkpoints["llama3_tied_gqa"], tmp_path, dirs_exist_ok=True)
    _damage(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    checkpoint.load(tmp_path)
    _damage(tmp_path, lambda t: t["lm_head.weight"].__setitem__((0, 0), 7.0))
    with pytest.raises(InputError, match="differs"):
        checkpoint.load(tmp_path)


def test_unreadable_checkpoints_say_what_is_wrong(tmp_path, checkpoints):
    with pytest.raises(InputError, match="no such folder"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no config\.json"):
        checkpoint.load(tmp_path)
    with pytest.raises(InputError, match="not fetched from the Hub"):
        checkpoint.load("nobody/nothing")
    shutil.copytree(checkpoints["qwen2"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(checkpoint.read_raw_config(checkpoints["qwen2"]))
    )
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        checkpoint.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="only safetensors"):
        checkpoint.load(tmp_path)

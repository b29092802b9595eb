"""Steps that move some parameters, and adapters: against torch and peft, in float64."""

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from support import BEHAVIOUR, ETA, SEQUENCES, close, each, evaluate, padded, steps_of, tokens

import smda_jax as smda
from smda_jax.data.batch.batches import pair_batch, prompt_batch, shared_length
from smda_jax.engines.finite.program import finite
from smda_jax.engines.forward.program import forward
from smda_jax.engines.query.dataset import pull_readouts
from smda_jax.engines.query.program import Weighting, directional_derivative, inner_products
from smda_jax.errors import InputError
from smda_jax.model import checkpoint
from smda_jax.model.adapters import wear
from smda_jax.model.forward import logits
from smda_jax.model.moved import count, everything, moved_by
from smda_jax.model.params import Params
from smda_jax.reading.site import Site
from smda_jax.runtime.precision import numerics
from smda_jax.steps.updates.contract import Update
from smda_jax.steps.updates.normalised import Normalised


def hold(model: Any, params: Params, patterns: tuple[str, ...], keep: str) -> None:
    """Every engine against moved weights, of the parameters whose torch name matches `keep`."""
    site, moved = Site("resid_post", 1), moved_by(params.config, patterns)
    prompts, pairs = tokens(params.config.vocab)
    places, found = [(p.ids, p.read_at) for p in prompts], []
    kept = [re.fullmatch(keep, name) is not None for name in oracle.names_of(model)]
    sizes = [p.numel() for p in model.parameters()]
    assert any(kept)
    assert count(params.config, moved) == sum(s for s, own in zip(sizes, kept, strict=True) if own)
    for pair in pairs:
        _, g = oracle.gradient(model, list(pair.ids), pair.response)
        g = [x if own else 0 * x for x, own in zip(g, kept, strict=True)]
        norm = sum(float((x**2).sum()) for x in g) ** 0.5
        dh, dy = oracle.derivative(model, g, places, ("resid_post", 1), SEQUENCES, eps=1e-3 / norm)
        found.append((norm, -ETA * dh, -ETA * dy))
    norm, dh, dy = (np.stack(v) for v in zip(*found, strict=True))
    head = shared_length(prompts)
    batch = prompt_batch(prompts, padded(prompts, 24 - head), head)
    block, update = pair_batch(pairs, padded(pairs, 32)), Update(ETA, moved=moved)
    steps, statistics = steps_of(params, block, update)
    close(statistics.gradient_norm, norm, 1e-6)
    got = forward(params, steps, batch, BEHAVIOUR, site)
    scale = np.abs(dh).max()
    assert np.abs(np.asarray(got.h) - dh).max() <= 1e-6 * max(scale, 1e-8)
    each(got.y, dy, 1e-6)
    W = np.random.default_rng(3).normal(size=(params.config.hidden, 4))
    e = evaluate(params, prompts, site, W)
    back = smda.reverse(e, steps, inactive=True)
    each(back.y, dy, 1e-6)
    assert np.abs(back.z - dh @ W).max() <= 1e-6 * max(np.abs(dh @ W).max(), 1e-8)
    asked = pull_readouts(e, Weighting(np.ones((1, 3, 4)), np.ones((1, 3))), update)
    total = (dh @ W).sum((1, 2)) + dy.sum(1)
    (value,), statistics = inner_products(params, block, (asked,), update.ready())
    close(value[0], total, 1e-6)
    close(statistics.gradient_norm, norm, 1e-6)
    value, _ = directional_derivative(params, block, asked, update.ready())
    close(value[0], total, 1e-6)
    unit, _ = steps_of(params, block, Normalised(ETA, moved=moved))
    each(forward(params, unit, batch, BEHAVIOUR, site).y, dy / norm[:, None], 1e-6)
    small, _ = steps_of(params, block, Update(1e-6, moved=moved))
    close(np.asarray(finite(params, small, batch, BEHAVIOUR, site).y) / 1e-6 * ETA, dy, 2e-3)


BIASES = r".*\.bias|layers\.0\..*o_proj\.weight"
HEAD = r"lm_head.*|layers\.1\.input_layernorm.*"
CASES = [
    ("llama3_tied_gqa", ("*.mlp.*",), r".*\.mlp\..*"),
    ("llama3_tied_gqa", ("layers.1-2.self_attn.*", "norm"), r"layers\.[12]\.self_attn\..*|norm.*"),
    ("llama_all_biases_linear_rope", ("*.bias", "layers.0.*.o_proj.weight"), BIASES),
    ("llama_untied_mha", ("lm_head", "layers.1.input_layernorm"), HEAD),
    pytest.param(
        "gemma3",
        ("model.layers.2.*", "embed_tokens"),
        r"layers\.2\..*|embed_tokens.*",
        marks=pytest.mark.exhaustive,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "patterns", "keep"), CASES)
def test_steps_of_some_parameters_equal_moved_weights(checkpoints, kind, patterns, keep):
    with numerics("float64"):
        params = checkpoint.load(checkpoints[kind], "float64")
        hold(oracle.load_double(checkpoints[kind]), params, patterns, keep)


ADAPTERS = [
    ("llama3_tied_gqa", {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]}),
    (
        "llama_untied_mha",
        {
            "r": 2,
            "lora_alpha": 7,
            "target_modules": "all-linear",
            "use_rslora": True,
            "rank_pattern": {"down_proj": 4, "layers.0.self_attn.q_proj": 5},
            "alpha_pattern": {"down_proj": 3, "layers.0.self_attn.q_proj": 7 * 2.5**0.5},
        },
    ),
    (
        "phi3",
        {"r": 2, "lora_alpha": 3, "target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]},
    ),
    (
        "gemma3",
        {
            "r": 3,
            "target_modules": ["o_proj", "k_proj", "gate_proj"],
            "layers_to_transform": [0, 2],
        },
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param(*case, id=case[0], marks=[pytest.mark.exhaustive] * (case[0] == "gemma3"))
        for case in ADAPTERS
    ],
)
def test_adapters_equal_peft(checkpoints, tmp_path, kind, settings):
    folder = oracle.make_adapter(tmp_path / "adapter", checkpoints[kind], **settings)
    model = oracle.load_adapted(checkpoints[kind], folder)
    with numerics("float64"):
        params = wear(checkpoint.load(checkpoints[kind], "float64"), folder)
        prompts, _ = tokens(params.config.vocab)
        ids = jnp.asarray([prompts[2].ids])
        close(logits(params, ids)[0], oracle.streams(model, prompts[2].ids)[1].detach(), 1e-9)
        assert count(params.config, everything(params.config)) > count(
            params.config, moved_by(params.config, ("lora",))
        )
        hold(model, params, ("lora",), r".*\.lora_[AB]\.weight")


def test_patterns_name_parameters_or_are_refused(checkpoints):
    config = checkpoint.read_config(checkpoints["llama3_tied_gqa"])
    assert moved_by(config, ("all",)) == everything(config)
    assert moved_by(config, ("*",)) == everything(config)
    one = moved_by(config, ("layers.1.mlp.up_proj",))
    assert one.names() == one.names(1) == ("up",)
    assert one.names(0) == ()
    assert one.lowest == 1
    assert moved_by(config, ("layers.0-1.*", "layers.2-99.*", "norm")).lowest == 0
    for pattern in ("layers.9.*", "mlp", "layers.2-1.*", "lm_head"):  # the table is tied
        with pytest.raises(InputError, match=re.escape(f"{pattern} names nothing")):
            moved_by(config, (pattern,))
    with pytest.raises(InputError, match="lora needs an adapter"):
        moved_by(config, ("lora",))


def test_adapters_that_cannot_be_worn_are_refused(checkpoints, tmp_path):
    import json

    from safetensors.numpy import load_file, save_file

    base = checkpoints["llama3_tied_gqa"]
    made = oracle.make_adapter(tmp_path / "made", base, r=2, target_modules=["q_proj"])
    weights, config = "adapter_model.safetensors", "adapter_config.json"
    tensors, raw = load_file(made / weights), json.loads((made / config).read_text())
    first = next(iter(tensors))

    def attempt(message: str, changes: dict[str, Any], held: dict[str, Any] | None = None) -> None:
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        (folder / config).write_text(json.dumps(raw | changes))
        save_file(tensors if held is None else held, folder / weights)
        with pytest.raises(InputError, match=message):
            wear(params, folder)

    with numerics("float32"):
        params = checkpoint.load(base, "float32")
        wear(params, made)
        attempt("use_dora is True", {"use_dora": True})
        attempt("is a IA3 adapter", {"peft_type": "IA3"})
        attempt("bias is 'all'", {"bias": "all"})
        attempt("modules_to_save", {"modules_to_save": ["lm_head"]})
        attempt("has rank 2, the config says 3", {"r": 3})
        attempt("lacks .*lora_", {}, {first: tensors[first]})
        attempt("NaN", {}, tensors | {first: np.full_like(tensors[first], np.nan)})
        other = tensors | {first.replace("q_proj", "z"): tensors[first]}
        attempt("adapts what is not adapted", {}, other)
        moved = {k.replace("layers.0", "layers.9"): v for k, v in tensors.items()}
        attempt("the model has 3 layers", {}, moved)
        other = checkpoint.load(checkpoints["llama_untied_mha"], "float32")
        with pytest.raises(InputError, match="another base"):
            wear(other, made)
        with pytest.raises(InputError, match="has no adapter_config"):
            wear(params, Path(base))
        (tmp_path / "changed" / weights).write_bytes(b"no")
        with pytest.raises(InputError, match="not a readable safetensors file"):
            wear(params, tmp_path / "changed")

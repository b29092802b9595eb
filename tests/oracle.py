"""The oracle: torch, transformers and NumPy in float64, weights really moved.

Shares no code with the package.
"""

import math
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

KINDS: dict[str, dict[str, Any]] = {
    "llama3_tied_gqa": dict(
        model_type="llama",
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        tie_word_embeddings=True,
        rope_parameters=dict(
            rope_type="llama3",
            rope_theta=500.0,
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    "llama_untied_mha": dict(
        model_type="llama",
        vocab_size=53,
        hidden_size=20,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=5,
        tie_word_embeddings=False,
        rope_parameters=dict(rope_type="default", rope_theta=100.0),
    ),
    "llama_all_biases_linear_rope": dict(
        model_type="llama",
        vocab_size=47,
        hidden_size=16,
        intermediate_size=28,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters=dict(rope_type="linear", rope_theta=50.0, factor=3.0),
    ),
    "qwen2": dict(
        model_type="qwen2",
        vocab_size=59,
        hidden_size=18,
        intermediate_size=30,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        tie_word_embeddings=False,
        rope_parameters=dict(rope_type="default", rope_theta=1000.0),
    ),
    "mistral_window": dict(
        model_type="mistral",
        vocab_size=43,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        tie_word_embeddings=True,
        sliding_window=7,
        rope_parameters=dict(rope_type="default", rope_theta=1000.0),
    ),
}
# Families beyond Llama's own shape, with what each has that others lack.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": dict(  # norms of each head, windows from the second layer on
        model_type="qwen3",
        vocab_size=51,
        hidden_size=18,
        intermediate_size=26,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=8,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=1,
        rope_parameters=dict(rope_type="default", rope_theta=200.0),
    ),
    "gemma2": dict(
        model_type="gemma2",
        vocab_size=57,
        hidden_size=20,
        intermediate_size=34,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        query_pre_attn_scalar=7,
        sliding_window=4,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0,
        tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=300.0),
    ),
    "gemma3": dict(  # two ropes
        model_type="gemma3_text",
        vocab_size=49,
        hidden_size=28,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=9,
        sliding_window=6,
        tie_word_embeddings=True,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=900.0, factor=2.0),
            sliding_attention=dict(rope_type="default", rope_theta=60.0),
        ),
    ),
    "olmo2": dict(  # norms after sub-layers only, norms of whole projections
        model_type="olmo2",
        vocab_size=44,
        hidden_size=24,
        intermediate_size=38,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        rope_parameters=dict(rope_type="default", rope_theta=400.0),
    ),
    "phi3": dict(  # fused matrices, half of each head rotated, long rope
        model_type="phi3",
        vocab_size=54,
        hidden_size=32,
        intermediate_size=42,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        sliding_window=9,
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        rope_parameters=dict(
            rope_type="longrope",
            rope_theta=700.0,
            short_factor=[1.0, 1.5],
            partial_rotary_factor=0.5,
            long_factor=[2.0, 3.0],
        ),
    ),
    "llama_yarn": dict(
        model_type="llama",
        vocab_size=45,
        hidden_size=16,
        intermediate_size=22,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        max_position_embeddings=128,
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=90.0,
            factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama_dynamic": dict(
        model_type="llama",
        vocab_size=46,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=64,
        rope_parameters=dict(rope_type="dynamic", rope_theta=80.0, factor=2.0),
    ),
}
EVERY = KINDS | FAMILIES
POST_NORM = ("gemma2", "gemma3_text", "olmo2")  # what is added to the stream has been normed last


def make_checkpoint(
    folder: Path, kind: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> Path:
    """A tiny random checkpoint in the Hugging Face layout, written by transformers."""
    settings = EVERY[kind] | changes
    torch.manual_seed(seed)
    # A padding token's row takes no gradient where it is looked up: here every token is a token.
    settings["pad_token_id"] = None
    config = AutoConfig.for_model(str(settings.pop("model_type")), **settings)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            # Norm scales away from one, biases away from zero, weights large enough for every path
            # to matter. Gemma stores scales less one.
            around = 0.0 if "norm" not in name or "gemma" in kind else 1.0
            size = 0.2 if p.ndim == 1 else p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape) * size + around)
    model.save_pretrained(folder)
    return folder


def load_double(folder: Path) -> Any:
    """The checkpoint in float64, with the float32 islands of transformers lifted to float64.

    These are norms, rotary angles, Gemma's embedding factor, and the softmax of eager attention.
    """
    config = AutoConfig.from_pretrained(folder)
    eager = config.model_type == "gemma2"  # whose soft cap other attention refuses
    how = "eager" if eager else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation=how
    ).eval()

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        eps = getattr(self, "variance_epsilon", None) or self.eps
        scale = self.weight + 1 if "Gemma" in type(self).__name__ else self.weight
        return scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))

    def rotary(self, x: torch.Tensor, position_ids: torch.Tensor, layer_type=None, **_: Any):
        f, scaling = _frequencies(config, layer_type)
        angle = position_ids[:, :, None].double() * torch.tensor(f, dtype=torch.float64)
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos() * scaling, angle.sin() * scaling

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(norm, module)
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = types.MethodType(rotary, module)
        if hasattr(module, "embed_scale"):
            module.embed_scale = torch.tensor(config.hidden_size**0.5, dtype=torch.float64)
    if eager:
        vars(sys.modules[type(model).__module__])["eager_attention_forward"] = _eager
    return model


def _eager(module, q, k, v, mask, *, scaling: float, softcap: float, **_: Any):
    """Gemma 2's attention, softmax in whatever precision it is given."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scaling
    scores = torch.tanh(scores / softcap) * softcap
    weights = (scores + mask[:, :, :, : k.shape[2]]).softmax(-1)
    return (weights @ v).transpose(1, 2).contiguous(), weights


def _frequencies(config, layer_type: str | None = None) -> tuple[list[float], float]:
    """Frequencies, one pair of dimensions at a time; and the factor of cosines and sines."""
    rope = config.rope_parameters
    rope = rope[layer_type] if layer_type and layer_type in rope else rope
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dim, kind = int(dim * rope.get("partial_rotary_factor", 1.0)), rope["rope_type"]
    theta, factor, result, scaling = rope["rope_theta"], rope.get("factor"), [], 1.0
    if kind == "yarn":
        scaling = 0.1 * math.log(factor) + 1
    if kind == "longrope":
        original = config.original_max_position_embeddings
        ratio = config.max_position_embeddings / original
        scaling = math.sqrt(1 + math.log(ratio) / math.log(original))
    for i in range(dim // 2):
        f = 1 / theta ** (2 * i / dim)
        if kind == "linear":
            f /= factor
        if kind == "longrope":
            f /= rope["short_factor"][i]
        if kind == "yarn":
            ends = [
                dim
                * math.log(rope["original_max_position_embeddings"] / (turns * 2 * math.pi))
                / (2 * math.log(theta))
                for turns in (32, 1)
            ]
            low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), dim - 1)
            keep = 1 - min(max((i - low) / (high - low), 0), 1)
            f = f * keep + f / factor * (1 - keep)
        if kind == "llama3":
            w, original = 2 * math.pi / f, rope["original_max_position_embeddings"]
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            if w > original / low:
                f = f / factor
            elif w >= original / high:
                sigma = (original / w - low) / (high - low)
                f = (1 - sigma) * f / factor + sigma * f
        result.append(f)
    return result, scaling


def streams(model: Any, ids: list[int]) -> tuple[dict[tuple[str, int], torch.Tensor], torch.Tensor]:
    """Every stream an SAE may read, by (site, layer), at every token; and the logits."""
    seen, hooks = {}, []
    post = model.config.model_type in POST_NORM

    def keep(site: str, i: int) -> Any:
        def hook(module, args, out=None):
            value = args if out is None else out
            seen[site, i] = value[0] if isinstance(value, tuple) else value

        return hook

    for i, layer in enumerate(model.model.layers):
        attn = layer.post_attention_layernorm if post else layer.self_attn
        mlp = layer.post_feedforward_layernorm if post else layer.mlp
        hooks += [
            layer.register_forward_pre_hook(keep("resid_pre", i)),
            layer.register_forward_hook(keep("resid_post", i)),
            layer.self_attn.register_forward_hook(keep("attn_module", i)),
            layer.mlp.register_forward_hook(keep("mlp_module", i)),
            attn.register_forward_hook(keep("attn_out", i)),
            mlp.register_forward_hook(keep("mlp_out", i)),
        ]
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    return {key: value[0] for key, value in seen.items()}, logits


def loss(model: Any, ids: Sequence[int], first: int) -> torch.Tensor:
    """Mean cross-entropy of the tokens from `first` on."""
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    logp = logits.log_softmax(-1)
    return -torch.stack([logp[t - 1, ids[t]] for t in range(first, len(ids))]).mean()


def gradient(model: Any, ids: Sequence[int], first: int) -> tuple[float, list[torch.Tensor]]:
    """Loss and its gradient with respect to every parameter (a tied table appears once)."""
    model.zero_grad()
    value = loss(model, ids, first)
    value.backward()
    return value.item(), [p.grad.clone() for p in model.parameters()]


@torch.no_grad()
def move(model: Any, direction: list[torch.Tensor], scale: float) -> None:
    """Adds `scale * direction` to the weights."""
    for p, d in zip(model.parameters(), direction, strict=True):
        p.add_(d, alpha=scale)


@torch.no_grad()
def read(
    model: Any, ids: list[int], eot: int, site: tuple[str, int], sequences: list[list[int]]
) -> tuple[np.ndarray, float]:
    """h at `eot`, and Y with every target sequence run on its own."""
    h = streams(model, ids)[0][site][eot].numpy().copy()
    scores = []
    for q in sequences:
        logp = model(torch.tensor([ids + q]), use_cache=False).logits[0].log_softmax(-1)
        scores.append(sum(float(logp[len(ids) - 1 + t, token]) for t, token in enumerate(q)))
    return h, float(np.logaddexp.reduce(scores))


def derivative(model, direction, prompts, site, sequences, eps: float = 2e-3):
    """d/dε of (h, Y) of every prompt at θ + ε·direction: Richardson's five-point difference of
    moved weights."""
    saved = [p.detach().clone() for p in model.parameters()]
    values = {}
    for k in (-2, -1, 1, 2):
        move(model, direction, k * eps)
        values[k] = [read(model, ids, eot, site, sequences) for ids, eot in prompts]
        with torch.no_grad():
            for p, s in zip(model.parameters(), saved, strict=True):
                p.copy_(s)
    weights = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
    dh = np.stack(
        [sum(w * values[k][n][0] for k, w in weights.items()) / eps for n in range(len(prompts))]
    )
    dy = np.array(
        [sum(w * values[k][n][1] for k, w in weights.items()) / eps for n in range(len(prompts))]
    )
    return dh, dy


def ridge(X: np.ndarray, Y: np.ndarray, alpha: float) -> np.ndarray:
    """The closed-form policy, through the normal equations of an augmented least-squares
    problem."""
    d = X.shape[1]
    return np.linalg.lstsq(
        np.vstack([X, np.sqrt(alpha) * np.eye(d)]), np.concatenate([Y, np.zeros(d)]), rcond=None
    )[0]

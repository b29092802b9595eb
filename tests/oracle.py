"""The oracle: torch, transformers and NumPy in float64, weights really moved. Shares no code with the package."""

import math
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

KINDS = {  # every checkpoint differs on every axis, and in one thing each
    "llama3_tied_gqa": dict(
        model_type="llama", vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=10, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                             original_max_position_embeddings=16),
    ),
    "llama_untied_mha": dict(
        model_type="llama", vocab_size=53, hidden_size=20, intermediate_size=36, num_hidden_layers=2, num_attention_heads=5,
        num_key_value_heads=5, tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=100.0),
    ),
    "llama_all_biases_linear_rope": dict(
        model_type="llama", vocab_size=47, hidden_size=16, intermediate_size=28, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
        rope_parameters=dict(rope_type="linear", rope_theta=50.0, factor=3.0),
    ),
    "qwen2": dict(
        model_type="qwen2", vocab_size=59, hidden_size=18, intermediate_size=30, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=3, tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=1000.0),
    ),
    "mistral_window": dict(
        model_type="mistral", vocab_size=43, hidden_size=32, intermediate_size=44, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, tie_word_embeddings=True, sliding_window=7,
        rope_parameters=dict(rope_type="default", rope_theta=1000.0),
    ),
}  # fmt: skip


def make_checkpoint(folder: Path, kind: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Path:
    """A tiny random checkpoint in the Hugging Face layout, written by transformers."""
    from transformers import AutoConfig

    settings = KINDS[kind] | changes
    torch.manual_seed(seed)
    config = AutoConfig.for_model(str(settings.pop("model_type")), **settings)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            # Norm scales away from one, biases away from zero, weights large enough for every path to matter.
            p.copy_(torch.randn(p.shape) * (0.2 if p.ndim == 1 else p.shape[-1] ** -0.5) + (1.0 if "norm" in name else 0.0))
    model.save_pretrained(folder)
    return folder


def load_double(folder: Path) -> Any:
    """The checkpoint in float64, with the float32 islands of transformers (norms, rotary angles) lifted to float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()
    config = model.config

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    frequencies = torch.tensor(_frequencies(config), dtype=torch.float64)

    def rotary(self, x: torch.Tensor, position_ids: torch.Tensor, *_, **__) -> tuple[torch.Tensor, torch.Tensor]:
        angle = position_ids[:, :, None].double() * frequencies
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos(), angle.sin()

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(norm, module)
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = types.MethodType(rotary, module)
    return model


def _frequencies(config) -> list[float]:
    """FACTS of the llama3 and linear scalings, one pair of dimensions at a time."""
    rope = config.rope_parameters
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    result = []
    for i in range(dim // 2):
        f = 1 / rope["rope_theta"] ** (2 * i / dim)
        if rope["rope_type"] == "linear":
            f /= rope["factor"]
        if rope["rope_type"] == "llama3":
            w, original = 2 * math.pi / f, rope["original_max_position_embeddings"]
            low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
            if w > original / low:
                f = f / factor
            elif w >= original / high:
                sigma = (original / w - low) / (high - low)
                f = (1 - sigma) * f / factor + sigma * f
        result.append(f)
    return result


def streams(model: Any, ids: list[int]) -> tuple[dict[tuple[str, int], torch.Tensor], torch.Tensor]:
    """Every stream an SAE may read, by (site, layer), at every token; and the logits."""
    seen, hooks = {}, []
    for i, layer in enumerate(model.model.layers):
        hooks += [
            layer.register_forward_pre_hook(lambda m, a, i=i: seen.__setitem__(("resid_pre", i), a[0])),
            layer.self_attn.register_forward_hook(lambda m, a, o, i=i: seen.__setitem__(("attn_out", i), o[0])),
            layer.mlp.register_forward_hook(lambda m, a, o, i=i: seen.__setitem__(("mlp_out", i), o)),
            layer.register_forward_hook(
                lambda m, a, o, i=i: seen.__setitem__(("resid_post", i), o[0] if isinstance(o, tuple) else o)
            ),
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
def read(model: Any, ids: list[int], eot: int, site: tuple[str, int], sequences: list[list[int]]) -> tuple[np.ndarray, float]:
    """h at `eot`, and Y with every target sequence run on its own."""
    h = streams(model, ids)[0][site][eot].numpy().copy()
    scores = []
    for q in sequences:
        logp = model(torch.tensor([ids + q]), use_cache=False).logits[0].log_softmax(-1)
        scores.append(sum(float(logp[len(ids) - 1 + t, token]) for t, token in enumerate(q)))
    return h, float(np.logaddexp.reduce(scores))


def derivative(model, direction, prompts, site, sequences, eps: float = 2e-3):
    """d/dε of (h, Y) of every prompt at θ + ε·direction: Richardson's five-point difference of moved weights."""
    saved = [p.detach().clone() for p in model.parameters()]
    values = {}
    for k in (-2, -1, 1, 2):
        move(model, direction, k * eps)
        values[k] = [read(model, ids, eot, site, sequences) for ids, eot in prompts]
        with torch.no_grad():
            for p, s in zip(model.parameters(), saved, strict=True):
                p.copy_(s)
    weights = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
    dh = np.stack([sum(w * values[k][n][0] for k, w in weights.items()) / eps for n in range(len(prompts))])
    dy = np.array([sum(w * values[k][n][1] for k, w in weights.items()) / eps for n in range(len(prompts))])
    return dh, dy


def ridge(X: np.ndarray, Y: np.ndarray, alpha: float) -> np.ndarray:
    """The closed-form policy, through the normal equations of an augmented least-squares problem."""
    d = X.shape[1]
    return np.linalg.lstsq(np.vstack([X, np.sqrt(alpha) * np.eye(d)]), np.concatenate([Y, np.zeros(d)]), rcond=None)[0]

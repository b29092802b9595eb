"""The oracle: torch, transformers and NumPy in float64, weights really moved.

Shares no code with the package.
"""

import math
import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from oracle_kinds import EVERY
from transformers import AutoConfig, AutoModelForCausalLM

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
    factor = getattr(model.config, "residual_multiplier", 1.0)  # of what is added to the stream

    def keep(site: str, i: int) -> Any:
        def hook(module, args, out=None):
            value = args if out is None else out
            value = value[0] if isinstance(value, tuple) else value
            seen[site, i] = value * factor if site in ("attn_out", "mlp_out") else value

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


def log_probability(model: Any, ids: list[int], answer: Sequence[int]) -> torch.Tensor:
    """Of an answer after a prompt, run on its own."""
    logp = model(torch.tensor([[*ids, *answer]]), use_cache=False).logits[0].log_softmax(-1)
    return torch.stack([logp[len(ids) - 1 + t, token] for t, token in enumerate(answer)]).sum()


def along(model: Any, value: torch.Tensor, g: list[torch.Tensor]) -> float:
    """`⟨∇value, g⟩` over every parameter, by autograd."""
    own = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return sum(float((a * b).sum()) for a, b in zip(own, g, strict=True) if a is not None)


def make_adapter(folder: Path, base: Path, seed: int = 3, **settings: Any) -> Path:
    """A LoRA adapter of random numbers on a checkpoint, written by peft."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers for what that will rename
        worn = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, p in worn.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape) * 0.3)
    worn.save_pretrained(str(folder))
    return folder


def load_adapted(base: Path, adapter: Path) -> Any:
    """The checkpoint in float64 with an adapter on, every parameter of which has a gradient."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        worn = PeftModel.from_pretrained(load_double(base), str(adapter)).double()
    model = worn.get_base_model()
    for p in model.parameters():
        p.requires_grad_(True)
    return model


def names_of(model: Any) -> list[str]:
    """Of the parameters, as checkpoints of model and adapter name them."""
    names = (name for name, _ in model.named_parameters())
    return [
        name.removeprefix("model.").replace(".base_layer", "").replace(".default", "")
        for name in names
    ]

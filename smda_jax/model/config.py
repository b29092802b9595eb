"""Static shape of a Llama-family model, read from a Hugging Face `config.json`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from smda_jax.errors import InputError


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: `kind` is default, linear or llama3; the last three belong to llama3."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def frequencies(self, head_dim: int) -> Float64[np.ndarray, " half_head"]:
        """Angle per position of each rotated pair, in radians.

        llama3 (Llama 3.1 report; transformers `_compute_llama3_parameters`): wavelengths beyond `original/low` are
        stretched by `factor`, those under `original/high` are kept, and those between are blended.
        """
        f = self.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        if self.kind == "default":
            return f
        if self.kind == "linear":
            return f / self.factor
        wavelength = 2 * math.pi / f
        blend = (self.original_length / wavelength - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)
        return (1 - blend) * f / self.factor + blend * f


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the model; hashable, so that it can be a static argument of `jit`."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    tied: bool
    biased: frozenset[str] = frozenset()  # linear operations of a block that carry a bias
    window: int | None = None  # sliding-window attention: a token sees itself and window - 1 before it


_ARCHITECTURES = {"llama", "mistral", "qwen2"}

# Keys that change nothing of what is computed here (training, generation, bookkeeping). Anything that is neither here nor
# read below is refused by name: an unknown key may change the forward pass.
_WITHOUT_EFFECT = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "return_dict", "output_hidden_states",
    "output_attentions", "torchscript", "id2label", "label2id", "problem_type", "is_encoder_decoder",
    "is_decoder", "chunk_size_feed_forward", "name_or_path", "use_return_dict", "task_specific_params", "vocab_file",
    "finetuning_task", "prefix", "tokenizer_class", "max_window_layers", "add_cross_attention", "cross_attention_hidden_size",
}  # fmt: skip
_READ = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings", "attention_bias",
    "mlp_bias", "sliding_window", "use_sliding_window", "layer_types", "hidden_act", "attention_dropout", "pretraining_tp",
}  # fmt: skip


def from_hf(raw: Mapping[str, Any], where: object = "config.json") -> ModelConfig:
    """Reads a transformers-4 or -5 `config.json`.

    Raises:
        InputError: a required key is missing, or a key asks for something that is not implemented.
    """

    def refuse(key: str) -> InputError:
        return InputError(
            where, f"{key} = {raw.get(key)!r} is not implemented", "use a plain Llama, Mistral or Qwen2 checkpoint"
        )

    kind = raw.get("model_type")
    if kind not in _ARCHITECTURES:
        raise refuse("model_type")
    for key, value in raw.items():
        unknown = key not in _READ | _WITHOUT_EFFECT and not key.startswith(("_", "unsloth"))
        if unknown and value not in (None, False, 0, {}, []):
            raise refuse(key)
    if raw.get("hidden_act", "silu") != "silu":
        raise refuse("hidden_act")
    if raw.get("attention_dropout", 0) or raw.get("pretraining_tp", 1) != 1:
        raise refuse("attention_dropout" if raw.get("attention_dropout", 0) else "pretraining_tp")

    def need(key: str) -> Any:
        if raw.get(key) is None:
            raise InputError(where, f"{key} is missing", "the checkpoint's own config.json has it")
        return raw[key]

    hidden, heads = int(need("hidden_size")), int(need("num_attention_heads"))
    kv_heads = int(raw.get("num_key_value_heads") or heads)
    if heads % kv_heads:
        raise InputError(where, f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    biased = {"q", "k", "v"} if kind == "qwen2" else set("qkvo") if raw.get("attention_bias") else set()
    if kind == "qwen2" and raw.get("attention_bias") is False:
        raise refuse("attention_bias")
    if raw.get("mlp_bias"):
        biased |= {"gate", "up", "down"}
    return ModelConfig(
        vocab=int(need("vocab_size")),
        hidden=hidden,
        intermediate=int(need("intermediate_size")),
        layers=int(need("num_hidden_layers")),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=int(raw.get("head_dim") or hidden // heads),
        norm_eps=float(need("rms_norm_eps")),
        rope=_rope(raw, refuse),
        tied=bool(raw.get("tie_word_embeddings", False)),
        biased=frozenset(biased),
        window=_window(raw, kind, refuse),
    )


def _rope(raw: Mapping[str, Any], refuse: Any) -> Rope:
    # transformers 5 keeps everything in rope_parameters, transformers 4 in rope_theta and rope_scaling.
    key = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    p = dict(raw.get(key) or {})
    theta = p.pop("rope_theta", raw.get("rope_theta", 10000.0))
    kind = p.pop("rope_type", p.pop("type", "default"))
    p.pop("type", None)
    names = {"linear": {"factor"}, "default": set()}
    names["llama3"] = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    if kind not in names or set(p) - names[kind] - {"factor", "original_max_position_embeddings"}:
        raise refuse(key)
    if kind != "default" and names[kind] - set(p):
        raise refuse(key)
    return Rope(
        theta=float(theta),
        kind=kind,
        factor=float(p.get("factor", 1.0)),
        low_freq_factor=float(p.get("low_freq_factor", 1.0)),
        high_freq_factor=float(p.get("high_freq_factor", 4.0)),
        original_length=int(p.get("original_max_position_embeddings", 8192)),
    )


def _window(raw: Mapping[str, Any], kind: str, refuse: Any) -> int | None:
    types = set(raw.get("layer_types") or ())
    if len(types) > 1 or types - {"full_attention", "sliding_attention"}:
        raise refuse("layer_types")
    if kind == "qwen2":  # a window there acts only when switched on, and then only from some layer upwards
        if raw.get("use_sliding_window"):
            raise refuse("use_sliding_window")
        return None
    if types == {"full_attention"} or raw.get("sliding_window") is None:
        return None
    if kind != "mistral":
        raise refuse("sliding_window")
    return int(raw["sliding_window"])

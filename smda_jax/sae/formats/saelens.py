"""SAELens, v6 and older, and how an SAE is written as SAELens reads it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors.numpy import save_file

from smda_jax.errors import InputError
from smda_jax.sae.encoder import Encoder
from smda_jax.sae.formats.common import SAE, Tensors, own_site, read_config, sizes

_FOLDED_BY_SIGN = 1e-8  # SAELens clamps decoder norms from below before it folds them
_NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")


def read(folder: Path, dtype: Any) -> SAE:
    """Raises InputError: see `formats.load`."""
    raw = read_config(folder)
    path = folder / "cfg.json"
    meta = raw.get("metadata") or {}
    kind, k = raw.get("architecture", "standard"), int(raw.get("k") or 0)
    old = raw.get("activation_fn", raw.get("activation_fn_str"))
    if old == "topk":
        kind, k = "topk", int((raw.get("activation_fn_kwargs") or {}).get("k") or k)
    elif old not in (None, "relu") and kind == "standard":
        raise InputError(path, f"activation_fn {old!r} is not implemented")
    if raw.get("hook_head_index") is not None or raw.get("reshape_activations", "none") != "none":
        raise InputError(path, "reads single attention heads, which is not implemented")
    if raw.get("finetuning_scaling_factor"):
        raise InputError(path, "finetuning_scaling_factor is not implemented")
    norm = raw.get("normalize_activations") or "none"
    if norm not in _NORMALISATIONS:
        raise InputError(
            path,
            f"normalize_activations {norm!r} needs a factor that the file does not hold",
            "fold it in before saving",
        )
    hook = meta.get("hook_name") or raw.get("hook_name") or raw.get("hook_point") or ""
    t = Tensors.read(folder / "sae_weights.safetensors", dtype)
    d, s = sizes(raw, path, "d_in", "d_sae")
    W, W_dec, b_dec = t.take("W_enc", (d, s)), t.take("W_dec", (s, d)), t.take("b_dec", (d,))
    common = {
        "normalisation": norm,
        "shift": b_dec if raw.get("apply_b_dec_to_input", True) else None,
    }
    # Scaling pre-activations by the decoder's norm is the same as scaling the encoder's columns.
    fold = (
        np.maximum(np.linalg.norm(W_dec, axis=1), _FOLDED_BY_SIGN)
        if raw.get("rescale_acts_by_decoder_norm")
        else 1.0
    )

    def bias() -> np.ndarray:
        return t.take("b_enc", (s,))

    def standard() -> Encoder:
        return t.encoder(W, bias(), "relu", **common)

    def topk() -> Encoder:
        if not 0 < k <= s:
            raise InputError(path, f"k = {k} is not between 1 and d_sae = {s}")
        return t.encoder(W * fold, bias() * fold, "top_k", k=k, **common)

    def jumprelu() -> Encoder:
        logged = "log_threshold" in t.values  # training files of older versions
        threshold = np.exp(t.take("log_threshold", (s,))) if logged else t.take("threshold", (s,))
        return t.encoder(W, bias(), "threshold", threshold=threshold, **common)

    def batchtopk() -> Encoder:
        threshold = np.full(s, float(t.take("topk_threshold", ())))
        return t.encoder(W * fold, bias() * fold, "threshold", threshold=threshold, **common)

    def gated() -> Encoder:
        scale = np.exp(t.take("r_mag", (s,)))
        gate = {"gate_W": W, "gate_b": t.take("b_gate", (s,))}
        return t.encoder(W * scale, t.take("b_mag", (s,)), "gated", **gate, **common)

    readers: dict[str, Callable[[], Encoder]] = {
        "standard": standard,
        "topk": topk,
        "jumprelu": jumprelu,
        "gated": gated,
        "batchtopk": batchtopk,
        "matryoshka_batchtopk": batchtopk,
    }
    if kind not in readers:
        raise InputError(
            path, f"architecture {kind!r} is not implemented", f"{', '.join(readers)} are"
        )
    return SAE(
        readers[kind](),
        kind,
        str(folder),
        hook,
        *own_site(hook, path, raw.get("hook_layer", raw.get("hook_point_layer"))),
    )


def save_saelens(
    folder: Path,
    tensors: Mapping[str, Array],
    *,
    threshold: float,
    hook: str,
    model: str,
) -> None:
    """Writes a trained BatchTopK SAE as SAELens saves one for inference: JumpReLU, everything that
    can be folded folded in.

    Args:
        folder: to write.
        tensors: W_enc [hidden, feature], b_enc, W_dec [feature, hidden] and b_dec.
        threshold: above which a feature is active, the same for all.
        hook: where it reads, such as `blocks.10.hook_resid_post`.
        model: the name of the model.
    """
    W_enc = tensors["W_enc"]
    tensors = {**tensors, "threshold": jnp.full_like(tensors["b_enc"], threshold)}
    config = {
        "architecture": "jumprelu",
        "d_in": W_enc.shape[0],
        "d_sae": W_enc.shape[1],
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "model_name": model,
            "hook_name": hook,
            "prepend_bos": True,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "sae_weights.safetensors"
    )

"""SAE files: SAELens (v6 and older), EleutherAI sparsify, dictionary_learning."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (registers bfloat16, which safetensors needs to read it into NumPy)
import numpy as np
from jaxtyping import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from smda_jax.errors import InputError
from smda_jax.sae.encoder import Encoder, Rule

_FOLDED_BY_SIGN = 1e-8  # SAELens clamps decoder norms from below before it folds them
_NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")


@dataclass(frozen=True)
class SAE:
    """An SAE's encoder, and where in the model it reads.

    Attributes:
        encoder: all its features.
        architecture: as the file names it.
        source: the file's own folder.
        hook: the site as the file names it.
        site: resid_pre, resid_post, attn_out or mlp_out; None where the file does not say.
        layer: zero-based block; None where the file does not say.
    """

    encoder: Encoder
    architecture: str
    source: str
    hook: str
    site: str | None
    layer: int | None

    @property
    def hidden(self) -> int:
        """Width of the activations it reads."""
        return self.encoder.W.shape[0]

    @property
    def features(self) -> int:
        """How many features it has."""
        return self.encoder.W.shape[1]


def load(source: str | Path, dtype: Any = jnp.float32, *, allow_pickle: bool = False) -> SAE:
    """Reads an SAE from a folder, or from the Hub as `owner/name` or `owner/name:folder`.

    Args:
        source: where.
        dtype: of the encoder; stored precision may differ from tensor to tensor.
        allow_pickle: read dictionary_learning's `ae.pt` (through torch, weights only).

    Raises:
        InputError: not an SAE, a missing or extra tensor, a wrong shape, or an architecture, site or normalisation that is
            not implemented.
    """
    folder = _fetch(str(source))
    if (folder / "sae_weights.safetensors").exists():
        return _saelens(folder, dtype)
    if (folder / "sae.safetensors").exists():
        return _sparsify(folder, dtype)
    if (folder / "ae.pt").exists():
        if not allow_pickle:
            raise InputError(folder / "ae.pt", "is a pickle, which is not read unasked", "--allow-pickle if you trust it")
        return _dictionary_learning(folder, dtype)
    raise InputError(folder, "holds no sae_weights.safetensors, sae.safetensors or ae.pt", "give the SAE's own folder")


def parse_hook(hook: str) -> tuple[str | None, int | None]:
    """(site, layer) of a hook name of TransformerLens or Hugging Face.

    Raises:
        InputError: the hook is a site of the model that is not implemented.
    """
    if not hook:
        return None, None
    lens = re.fullmatch(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|mlp_out|attn_out)", hook)
    if lens:
        return lens[2], int(lens[1])
    face = re.fullmatch(r"(?:model\.)?(?:layers|h)\.(\d+)(?:\.(mlp|self_attn|attn))?", hook)
    if face:
        return {None: "resid_post", "mlp": "mlp_out"}.get(face[2], "attn_out"), int(face[1])
    raise InputError(hook, "this site of the model is not implemented", "resid_pre, resid_post, mlp_out and attn_out are")


def save_saelens(
    folder: Path, *, W_enc: Array, b_enc: Array, W_dec: Array, b_dec: Array, threshold: float, hook: str, model: str
) -> None:
    """Writes a trained BatchTopK SAE as SAELens saves one for inference: JumpReLU, everything that can be folded folded in."""
    tensors = {
        "W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": jnp.full_like(b_enc, threshold),
    }  # fmt: skip
    config = {
        "architecture": "jumprelu", "d_in": W_enc.shape[0], "d_sae": W_enc.shape[1], "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "model_name": model, "hook_name": hook, "prepend_bos": True},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "sae_weights.safetensors")


def _fetch(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    repo, _, inside = source.removeprefix("hub:").partition(":")
    if folder.exists() or repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        raise InputError(source, "no such folder", "give an SAE's folder, or owner/name:folder on the Hub")
    names = ("cfg.json", "config.json", "sae_weights.safetensors", "sae.safetensors", "ae.pt")
    prefix = f"{inside.strip('/')}/" if inside else ""
    try:
        root = Path(huggingface_hub.snapshot_download(repo, allow_patterns=[prefix + name for name in names]))
    except Exception as error:  # the hub raises many types: offline, gated, unknown, malformed id
        first = str(error).strip().splitlines()[0]
        raise InputError(
            source, f"not a folder, and not fetched from the Hub: {first}", "check id, access and network"
        ) from error
    return root / inside


def _config(folder: Path, name: str = "cfg.json") -> dict[str, Any]:
    try:
        return json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise InputError(folder / name, f"cannot be read: {error}") from error


class _Tensors:
    """Tensors of one file, each asked for once and checked; what nothing asked for is refused at the end."""

    def __init__(self, path: Path, values: dict[str, np.ndarray], dtype: Any):
        self.path, self.values, self.dtype = path, values, dtype

    @classmethod
    def read(cls, path: Path, dtype: Any) -> "_Tensors":
        try:
            with safe_open(path, framework="numpy") as file:
                return cls(path, {name: file.get_tensor(name) for name in file.keys()}, dtype)  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(path, f"not a readable safetensors file: {error}", "fetch it again") from error

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self.values:
            raise InputError(self.path, f"tensor {name} is missing")
        value = self.values.pop(name)
        if value.shape != shape:
            raise InputError(self.path, f"tensor {name} has shape {value.shape}, its config asks for {shape}")
        value = value.astype(np.float64)
        if not np.isfinite(value).all():
            raise InputError(self.path, f"tensor {name} holds NaN or infinity")
        return value

    def done(self) -> None:
        if self.values:
            raise InputError(self.path, f"holds tensors its architecture has no use for: {', '.join(sorted(self.values))}")

    def encoder(self, W: np.ndarray, b: np.ndarray, rule: Rule, **rest: Any) -> Encoder:
        """Everything is folded in float64 and rounded once, here."""
        self.done()
        arrays: dict[str, Any] = {k: jnp.asarray(v, self.dtype) if isinstance(v, np.ndarray) else v for k, v in rest.items()}
        return Encoder(jnp.asarray(W, self.dtype), jnp.asarray(b, self.dtype), rule=rule, **arrays)


def _saelens(folder: Path, dtype: Any) -> SAE:
    raw = _config(folder)
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
    t = _Tensors.read(folder / "sae_weights.safetensors", dtype)
    d, s = _sizes(raw, path, "d_in", "d_sae")
    W, W_dec, b_dec = t.take("W_enc", (d, s)), t.take("W_dec", (s, d)), t.take("b_dec", (d,))
    common = {"normalisation": norm, "shift": b_dec if raw.get("apply_b_dec_to_input", True) else None}
    # Scaling pre-activations by the decoder's norm is the same as scaling the encoder's columns.
    fold = np.maximum(np.linalg.norm(W_dec, axis=1), _FOLDED_BY_SIGN) if raw.get("rescale_acts_by_decoder_norm") else 1.0

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
        "standard": standard, "topk": topk, "jumprelu": jumprelu, "gated": gated, "batchtopk": batchtopk,
        "matryoshka_batchtopk": batchtopk,
    }  # fmt: skip
    if kind not in readers:
        raise InputError(path, f"architecture {kind!r} is not implemented", f"{', '.join(readers)} are")
    return SAE(
        readers[kind](),
        kind,
        str(folder),
        hook,
        *_own_site(hook, path, raw.get("hook_layer", raw.get("hook_point_layer"))),
    )


def _sparsify(folder: Path, dtype: Any) -> SAE:
    raw = _config(folder)
    path = folder / "cfg.json"
    if raw.get("activation", "topk") != "topk":
        raise InputError(path, f"activation {raw['activation']!r} is not implemented")
    if raw.get("transcode"):
        raise InputError(path, "is a transcoder, which reads the input of an MLP: not implemented", "give an autoencoder")
    d = int(raw["d_in"])
    s = int(raw.get("num_latents") or 0) or d * int(raw.get("expansion_factor", 32))
    k = int(raw.get("k", 32))
    if not 0 < k <= s:
        raise InputError(path, f"k = {k} is not between 1 and {s} latents")
    t = _Tensors.read(folder / "sae.safetensors", dtype)
    t.take("W_dec", (s, d))
    if raw.get("skip_connection"):
        t.take("W_skip", (d, d))
    W, b, shift = t.take("encoder.weight", (s, d)).T, t.take("encoder.bias", (s,)), t.take("b_dec", (d,))
    # Its relu comes before the top-k, which selects the same positive values as the other order.
    # The folder's name is the hook point; a renamed one says nothing.
    hook = folder.name if re.match(r"(model|layers|h|blocks)\.", folder.name) else ""
    return SAE(t.encoder(W, b, "top_k", k=k, shift=shift), "sparsify", str(folder), hook, *_own_site(hook, path))


def _dictionary_learning(folder: Path, dtype: Any) -> SAE:
    path = folder / "ae.pt"
    try:
        import torch
    except ImportError:
        raise InputError(path, "needs torch to read", "pip install 'smda-jax[pickle]'") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip and runtime errors alike
        raise InputError(path, f"cannot be read: {str(error).splitlines()[0]}") from error
    t = _Tensors(path, {name: value.float().numpy() for name, value in state.items()}, dtype)
    if "encoder.weight" not in t.values:
        raise InputError(path, "tensor encoder.weight is missing")
    s, d = t.values["encoder.weight"].shape
    W, b = t.take("encoder.weight", (s, d)).T, t.take("encoder.bias", (s,))
    t.take("decoder.weight", (d, s))
    raw = _config(folder, "config.json").get("trainer", {}) if (folder / "config.json").exists() else {}
    # A top-k autoencoder stores a threshold too, which its own encoder does not use: the tensors alone do not tell.
    kinds: dict[str, Rule] = {"AutoEncoder": "relu", "AutoEncoderTopK": "top_k", "BatchTopKSAE": "threshold"}
    name = raw.get("dict_class") or ("AutoEncoder" if not {"k", "threshold"} & set(t.values) else None)
    if name not in kinds:
        raise InputError(path, f"dict_class {name!r} is not implemented", f"its config.json names one of {', '.join(kinds)}")
    rule = kinds[name]
    rest: dict[str, Any] = {"shift": t.take("b_dec" if "b_dec" in t.values else "bias", (d,))}
    k, threshold = t.values.pop("k", None), t.values.pop("threshold", None)
    if rule == "threshold":
        rest["threshold"] = np.full(s, float(_needed(threshold, path, "threshold")))
    if rule == "top_k":
        rest["k"] = int(_needed(k if k is not None else raw.get("k"), path, "k"))
    hook = str(raw.get("submodule_name") or "")
    site, layer = _dictionary_site(hook, raw.get("layer"), path)
    return SAE(t.encoder(W, b, rule, **rest), "dictionary_learning", str(folder), hook, site, layer)


def _needed(value: Any, path: Path, name: str) -> Any:
    if value is None:
        raise InputError(path, f"tensor {name} is missing")
    return value


def _dictionary_site(hook: str, layer: int | None, path: Path) -> tuple[str | None, int | None]:
    """Submodules are named `resid_post_layer_3`; without a name only the layer is known, of the residual stream."""
    if not hook:
        return None, layer
    named = re.fullmatch(r"(resid_post|resid_pre|mlp_out|attention_out)_layer_(\d+)", hook)
    if not named:
        return _own_site(hook, path, layer)
    return named[1].replace("attention_out", "attn_out"), int(named[2])


def _sizes(raw: dict[str, Any], path: Path, *names: str) -> list[int]:
    for name in names:
        if not isinstance(raw.get(name), int):
            raise InputError(path, f"{name} is missing")
    return [raw[name] for name in names]


def _own_site(hook: str, path: Path, layer: int | None = None) -> tuple[str | None, int | None]:
    try:
        site, own = parse_hook(hook)
    except InputError as error:
        raise InputError(path, str(error)) from None
    return site, own if own is not None else layer

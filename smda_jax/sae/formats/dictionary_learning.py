"""dictionary_learning's `ae.pt`: a pickle, read through torch, weights only."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from smda_jax.errors import InputError
from smda_jax.sae.encoder import Rule
from smda_jax.sae.formats.common import SAE, Tensors, own_site, read_config

# Its names of what a module gives, before any norm after it.
_STREAMS = {"mlp_out": "mlp_module", "attention_out": "attn_module"}


def read(folder: Path, dtype: Any) -> SAE:
    """Raises InputError: see `formats.load`."""
    path = folder / "ae.pt"
    try:
        import torch
    except ImportError:
        raise InputError(path, "needs torch to read", "pip install 'smda-jax[pickle]'") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip and runtime errors alike
        raise InputError(path, f"cannot be read: {str(error).splitlines()[0]}") from error
    t = Tensors(path, {name: value.float().numpy() for name, value in state.items()}, dtype)
    if "encoder.weight" not in t.values:
        raise InputError(path, "tensor encoder.weight is missing")
    s, d = t.values["encoder.weight"].shape
    W, b = t.take("encoder.weight", (s, d)).T, t.take("encoder.bias", (s,))
    t.take("decoder.weight", (d, s))
    raw = (
        read_config(folder, "config.json").get("trainer", {})
        if (folder / "config.json").exists()
        else {}
    )
    # A top-k autoencoder stores a threshold too, which its own encoder does not use: the tensors
    # alone do not tell.
    kinds: dict[str, Rule] = {
        "AutoEncoder": "relu",
        "AutoEncoderTopK": "top_k",
        "BatchTopKSAE": "threshold",
    }
    name = raw.get("dict_class") or (
        "AutoEncoder" if not {"k", "threshold"} & set(t.values) else None
    )
    if name not in kinds:
        raise InputError(
            path,
            f"dict_class {name!r} is not implemented",
            f"its config.json names one of {', '.join(kinds)}",
        )
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
    """Submodules are named `resid_post_layer_3`; without a name only the layer is known, of the
    residual stream."""
    if not hook:
        return None, layer
    named = re.fullmatch(r"(resid_post|resid_pre|mlp_out|attention_out)_layer_(\d+)", hook)
    if not named:
        return own_site(hook, path, layer)
    return _STREAMS.get(named[1], named[1]), int(named[2])

"""EleutherAI sparsify."""

import re
from pathlib import Path
from typing import Any

from smda_jax.errors import InputError
from smda_jax.sae.formats.common import SAE, Tensors, own_site, read_config


def read(folder: Path, dtype: Any) -> SAE:
    """Raises InputError: see `formats.load`."""
    raw = read_config(folder)
    path = folder / "cfg.json"
    if raw.get("activation", "topk") != "topk":
        raise InputError(path, f"activation {raw['activation']!r} is not implemented")
    if raw.get("transcode"):
        raise InputError(
            path,
            "is a transcoder, which reads the input of an MLP: not implemented",
            "give an autoencoder",
        )
    d = int(raw["d_in"])
    s = int(raw.get("num_latents") or 0) or d * int(raw.get("expansion_factor", 32))
    k = int(raw.get("k", 32))
    if not 0 < k <= s:
        raise InputError(path, f"k = {k} is not between 1 and {s} latents")
    t = Tensors.read(folder / "sae.safetensors", dtype)
    t.take("W_dec", (s, d))
    if raw.get("skip_connection"):
        t.take("W_skip", (d, d))
    W, b, shift = (
        t.take("encoder.weight", (s, d)).T,
        t.take("encoder.bias", (s,)),
        t.take("b_dec", (d,)),
    )
    # Its relu comes before the top-k, which selects the same positive values as the other order.
    # The folder's name is the hook point; a renamed one says nothing.
    hook = folder.name if re.match(r"(model|layers|h|blocks)\.", folder.name) else ""
    return SAE(
        t.encoder(W, b, "top_k", k=k, shift=shift),
        "sparsify",
        str(folder),
        hook,
        *own_site(hook, path),
    )

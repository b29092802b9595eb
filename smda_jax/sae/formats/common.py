"""What the readers of SAE files have in common: tensors, configs, and names of sites."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (registers bfloat16, which safetensors needs to read it into NumPy)
import numpy as np
from safetensors import SafetensorError, safe_open

from smda_jax.errors import InputError
from smda_jax.sae.encoder import Encoder, Rule


@dataclass(frozen=True)
class SAE:
    """An SAE's encoder, and where in the model it reads.

    Attributes:
        encoder: all its features.
        architecture: as the file names it.
        source: the file's own folder.
        hook: the site as the file names it.
        site: a stream of `model.forward.SITES`; None where the file does not say.
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
        return {None: "resid_post", "mlp": "mlp_module"}.get(face[2], "attn_module"), int(face[1])
    raise InputError(
        hook,
        "this site of the model is not implemented",
        "resid_pre, resid_post, mlp_out and attn_out are",
    )


def read_config(folder: Path, name: str = "cfg.json") -> dict[str, Any]:
    """A JSON file. Raises InputError: it cannot be read."""
    try:
        return json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise InputError(folder / name, f"cannot be read: {error}") from error


class Tensors:
    """Tensors of one file, each asked for once and checked; what nothing asked for is refused at
    the end."""

    def __init__(self, path: Path, values: dict[str, np.ndarray], dtype: Any):
        self.path, self.values, self.dtype = path, values, dtype

    @classmethod
    def read(cls, path: Path, dtype: Any) -> "Tensors":
        """Those of a safetensors file. Raises InputError: it cannot be read."""
        try:
            with safe_open(path, framework="numpy") as file:
                names = file.keys()
                return cls(path, {name: file.get_tensor(name) for name in names}, dtype)
        except (SafetensorError, OSError) as error:
            raise InputError(
                path, f"not a readable safetensors file: {error}", "fetch it again"
            ) from error

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor in float64. Raises InputError: it is missing, misshapen or not finite."""
        if name not in self.values:
            raise InputError(self.path, f"tensor {name} is missing")
        value = self.values.pop(name)
        if value.shape != shape:
            raise InputError(
                self.path, f"tensor {name} has shape {value.shape}, its config asks for {shape}"
            )
        value = value.astype(np.float64)
        if not np.isfinite(value).all():
            raise InputError(self.path, f"tensor {name} holds NaN or infinity")
        return value

    def done(self) -> None:
        """Raises InputError: a tensor is left that nothing asked for."""
        if self.values:
            raise InputError(
                self.path,
                f"holds tensors its architecture has no use for: {', '.join(sorted(self.values))}",
            )

    def encoder(self, W: np.ndarray, b: np.ndarray, rule: Rule, **rest: Any) -> Encoder:
        """Everything is folded in float64 and rounded once, here."""
        self.done()
        arrays: dict[str, Any] = {
            k: jnp.asarray(v, self.dtype) if isinstance(v, np.ndarray) else v
            for k, v in rest.items()
        }
        return Encoder(jnp.asarray(W, self.dtype), jnp.asarray(b, self.dtype), rule=rule, **arrays)


def sizes(raw: dict[str, Any], path: Path, *names: str) -> list[int]:
    """Whole numbers of a config. Raises InputError: one is missing."""
    for name in names:
        if not isinstance(raw.get(name), int):
            raise InputError(path, f"{name} is missing")
    return [raw[name] for name in names]


def own_site(hook: str, path: Path, layer: int | None = None) -> tuple[str | None, int | None]:
    """(site, layer) of a hook; `layer` where the hook names none. Raises InputError."""
    try:
        site, own = parse_hook(hook)
    except InputError as error:
        raise InputError(path, str(error)) from None
    return site, own if own is not None else layer

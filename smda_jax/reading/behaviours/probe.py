"""`probe`: how far a stream points along a direction (persona vector, linear classifier)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load_file

from smda_jax.data.records import Prompts, digest
from smda_jax.data.tokenised import Asked
from smda_jax.errors import InputError
from smda_jax.model.forward import SITES
from smda_jax.reading.behaviours import Asking
from smda_jax.reading.behaviours.contract import Seen, Spot
from smda_jax.reading.network import Model

NAMES = ("direction", "weight", "coef_")  # of the tensor in a safetensors file
BIASES = ("bias", "intercept_")


@dataclass(frozen=True)
class Probe:
    """`Y = h · d + b` of the stream h at a spot.

    Attributes:
        direction: d.
        bias: b.
        spot: see `Behaviour`.
        source: of the direction, for messages.
        shows_above: see `Behaviour`.
    """

    direction: tuple[float, ...]
    bias: float
    spot: Spot
    source: str
    shows_above: float = 0.0

    name = "probe"
    unit = "of the probe"
    moves = True

    @property
    def raised(self) -> str:
        """See `Behaviour`."""
        stream, layer, token = self.spot
        where = "token that the SAE reads" if token == "turn" else "last token of the prompt"
        return f"{stream} of layer {layer} at the {where} points along {self.source}"

    @property
    def settings(self) -> dict[str, Any]:
        """See `Behaviour`."""
        content = digest(*map(repr, (*self.direction, self.bias)))
        return {"probe": self.source, "probe_sha256": content, **self.spot._asdict()}

    def ask(self, model: Model, prompts: Prompts) -> Sequence[Asked]:
        """See `Behaviour`: nothing is appended, and no logits are read."""
        return [Asked()] * len(prompts)

    def leaning(self, answer: Sequence[int]) -> float:
        """See `Behaviour`."""
        return math.nan

    def value(self, seen: Seen) -> Float[Array, " prompt"]:
        """See `Behaviour`."""
        bias = jnp.asarray(self.bias, seen.h.dtype)
        return seen.h @ jnp.asarray(self.direction, seen.h.dtype) + bias

    def probability(self, y: Float[np.ndarray, " *any"]) -> Float[np.ndarray, " *any"]:
        """See `Behaviour`."""
        return (y > self.shows_above).astype(float)


def make(asking: Asking) -> Probe:
    """The behaviour of a direction in a file, at the SAE's site unless told otherwise.

    Raises:
        InputError: the file holds no direction of the model's width, or the spot does not exist.
    """
    o, config = asking.options, asking.model.config
    if not o.direction:
        what = "needs a direction"
        raise InputError("--behaviour probe", what, "--direction FILE.npy or FILE.safetensors")
    direction, bias = read_direction(o.direction)
    if len(direction) != config.hidden:
        what = f"is {len(direction)} wide, the model's hidden size is {config.hidden}"
        raise InputError(o.direction, what, "a direction in the model's residual stream")
    layer = asking.site.layer if o.direction_layer is None else o.direction_layer
    if not 0 <= layer < config.layers:
        remedy = f"the model has layers 0 to {config.layers - 1}"
        raise InputError("--direction-layer", f"layer {layer} is out of range", remedy)
    stream = o.direction_site or asking.site.stream
    if stream not in SITES:
        raise InputError("--direction-site", f"{stream} is not known", f"one of {', '.join(SITES)}")
    spot = Spot(stream, layer, o.direction_token)
    shows = 0.0 if o.shows_above is None else o.shows_above
    return Probe(tuple(direction.tolist()), bias, spot, Path(o.direction).name, shows)


def read_direction(path: str) -> tuple[Float[np.ndarray, " hidden"], float]:
    """(direction, bias) of a .npy or safetensors file.

    Raises:
        InputError: it cannot be read, holds no single direction, or one that is not finite or 0.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(path, "no such file", "a .npy or .safetensors file")
    try:
        if file.suffix == ".npy":
            tensors = {"direction": np.load(file, allow_pickle=False)}
        elif file.suffix == ".safetensors":
            tensors = load_file(file)
        else:
            what = f"unknown ending {file.suffix!r}"
            raise InputError(path, what, "a .npy or .safetensors file")
    except (ValueError, OSError, EOFError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(path, f"cannot be read: {first}", "is the file complete?") from error
    name = next((n for n in NAMES if n in tensors), None)
    biases = [n for n in tensors if n in BIASES]
    rest = set(tensors) - {name} - set(biases)
    if name is None and len(rest) == 1:
        name, rest = rest.pop(), set()
    if name is None or rest:
        held = ", ".join(sorted(tensors)[:6]) or "nothing"
        remedy = f"one of {', '.join(NAMES)}, and bias"
        raise InputError(path, f"holds {held}: not one direction", remedy)
    found = np.asarray(tensors[name])
    if found.dtype.kind not in "fiuV" or max(found.shape, default=0) != found.size:
        what = f"{name} has shape {list(found.shape)} of {found.dtype}: not one direction"
        raise InputError(path, what, "a vector as wide as the residual stream")
    direction = found.astype(np.float64).ravel()
    bias = np.asarray(tensors[biases[0]]).astype(np.float64).ravel() if biases else np.zeros(1)
    if len(bias) != 1 or not np.isfinite(direction).all() or not np.isfinite(bias).all():
        raise InputError(path, "is not finite, or has several biases", "one direction, one bias")
    if not direction.any():
        raise InputError(path, "the direction is zero", "is it the right file?")
    return direction, float(bias[0])

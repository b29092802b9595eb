"""Ropes as config files describe them (transformers, `modeling_rope_utils.py`)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from smda_jax.model.families.reader import Reader
from smda_jax.model.rope import Default, Llama3, Long, Rope, Yarn


def read_rope(reader: Reader, head_dim: int, theta: float = 10000.0) -> Rope:
    """The rope of all layers; `theta` is what the family takes where the key is missing.

    transformers 5 keeps everything in `rope_parameters`, transformers 4 in `rope_theta` and
    `rope_scaling`, which takes precedence where both are there.

    Raises:
        InputError: the kind of scaling is not implemented, or a key of it is missing or unknown.
    """
    old, new = reader.get("rope_scaling"), reader.get("rope_parameters")
    key, raw = ("rope_scaling", old) if old else ("rope_parameters", new or {})
    if not isinstance(raw, Mapping):
        raise reader.refusal(key)
    found, top = dict(raw), reader.get("rope_theta", theta)
    if found.pop("partial_rotary_factor", reader.get("partial_rotary_factor", 1.0)) != 1:
        raise reader.refusal("partial_rotary_factor")
    lengths = Lengths.read(reader, found)
    rope = make_rope(found, Given(head_dim, float(found.pop("rope_theta", top)), lengths))
    if rope is None:
        raise reader.refusal(key)
    return rope


class Lengths(NamedTuple):
    """Tokens that a model was first trained for, and that it is now meant for."""

    original: int | None
    positions: int | None

    @classmethod
    def read(cls, reader: Reader, rope: Mapping[str, Any]) -> "Lengths":
        """A key beside the rope takes precedence over the rope's own (as in transformers)."""
        positions = reader.get("max_position_embeddings")
        name = "original_max_position_embeddings"
        return cls(reader.get(name, rope.get(name) or positions), positions)


class Given(NamedTuple):
    """What a rope needs besides its own dictionary."""

    dims: int
    theta: float
    lengths: Lengths


Maker = Callable[[Mapping[str, Any], Given], Rope | None]


def make_rope(raw: Mapping[str, Any], given: Given) -> Rope | None:
    """A rope from its dictionary without theta; None if it is not implemented."""
    # Null means missing, but of `truncate`, which is off then.
    given_keys = {k: v for k, v in raw.items() if v is not None or k == "truncate"}
    old = given_keys.pop("type", "default")
    kind = given_keys.pop("rope_type", old)
    if kind not in ROPES or given.dims % 2:
        return None
    needed, optional, make = ROPES[kind]
    known = needed | optional | {"factor", "original_max_position_embeddings"}
    return make(given_keys, given) if needed <= set(given_keys) <= known else None


def _default(p: Mapping[str, Any], given: Given) -> Rope:
    return Rope(Default(given.theta), given.dims)


def _linear(p: Mapping[str, Any], given: Given) -> Rope:
    return Rope(Default(given.theta, float(p["factor"])), given.dims)


def _llama3(p: Mapping[str, Any], given: Given) -> Rope | None:
    low, high = float(p["low_freq_factor"]), float(p["high_freq_factor"])
    original = given.lengths.original
    if original is None or low == high:
        return None
    return Rope(Llama3(given.theta, float(p["factor"]), low, high, int(original)), given.dims)


def _yarn(p: Mapping[str, Any], given: Given) -> Rope | None:
    original, factor = given.lengths.original, float(p["factor"])
    if original is None:
        return None

    def gain(scale: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1

    scaling = p.get("attention_factor")
    if scaling is None:
        single, every = p.get("mscale"), p.get("mscale_all_dim")
        scaling = gain(single) / gain(every) if single and every else gain()
    fast, slow = float(p.get("beta_fast") or 32), float(p.get("beta_slow") or 1)
    ramp = Yarn(given.theta, factor, int(original), fast, slow, bool(p.get("truncate", True)))
    return Rope(ramp, given.dims, float(scaling))


def _dynamic(p: Mapping[str, Any], given: Given) -> Rope | None:
    # Up to the length that the model is meant for it is the default rope; beyond, it would depend
    # on the length of the batch.
    longest = given.lengths.positions
    return None if longest is None else Rope(Default(given.theta), given.dims, longest=longest)


def _longrope(p: Mapping[str, Any], given: Given) -> Rope | None:
    original, positions = given.lengths
    short = tuple(float(v) for v in p["short_factor"])
    if original is None or positions is None or len(short) != given.dims // 2:
        return None
    factor, scaling = float(p.get("factor", positions / original)), 1.0
    if p.get("attention_factor") is not None:
        scaling = float(p["attention_factor"])
    elif factor > 1:
        scaling = math.sqrt(1 + math.log(factor) / math.log(original))
    # Beyond the original length the model takes its long factors instead.
    return Rope(Long(given.theta, short), given.dims, scaling, longest=int(original))


# kind -> (keys that it needs, keys that it may have, how it is made)
ROPES: dict[str, tuple[set[str], set[str], Maker]] = {
    "default": (set(), set(), _default),
    "linear": ({"factor"}, set(), _linear),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, set(), _llama3),
    "yarn": (
        {"factor"},
        {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
        _yarn,
    ),
    "dynamic": ({"factor"}, set(), _dynamic),
    "longrope": ({"short_factor"}, {"long_factor", "attention_factor"}, _longrope),
}

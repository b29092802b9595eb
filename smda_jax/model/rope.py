"""Rotary position embeddings: the frequencies that config files ask for, in float64 on the host."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Default:
    """`θ^(−2i/dims)`, each divided by `factor` (the linear scaling; 1 for none)."""

    theta: float
    factor: float = 1.0

    def frequencies(self, dims: int) -> Float64[np.ndarray, " half"]:
        """Radians per position of every rotated pair of dimensions."""
        return self.theta ** (-np.arange(0, dims, 2, dtype=np.float64) / dims) / self.factor


@dataclass(frozen=True)
class Llama3:
    """Wavelengths beyond `original / low` are stretched by `factor`, those under `original / high`
    are kept, and those between are blended (transformers, `_compute_llama3_parameters`)."""

    theta: float
    factor: float
    low: float
    high: float
    original: int

    def frequencies(self, dims: int) -> Float64[np.ndarray, " half"]:
        """As `Default.frequencies`."""
        f = Default(self.theta).frequencies(dims)
        wavelength = 2 * math.pi / f
        blend = (self.original / wavelength - self.low) / (self.high - self.low)
        blend = np.clip(blend, 0.0, 1.0)
        return (1 - blend) * f / self.factor + blend * f


@dataclass(frozen=True)
class Yarn:
    """Slow rotations are stretched by `factor`, fast ones kept, with a ramp between (Peng et al.,
    arXiv 2309.00071; transformers, `_compute_yarn_parameters`).

    `fast` and `slow` are rotations within `original` positions between which the ramp runs.
    """

    theta: float
    factor: float
    original: int
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True

    def frequencies(self, dims: int) -> Float64[np.ndarray, " half"]:
        """As `Default.frequencies`."""

        def dimension(rotations: float) -> float:
            turns = math.log(self.original / (rotations * 2 * math.pi))
            return dims * turns / (2 * math.log(self.theta))

        low, high = dimension(self.fast), dimension(self.slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dims - 1)
        if low == high:
            high += 0.001  # as transformers does, so that the ramp has a slope
        ramp = np.clip((np.arange(dims // 2) - low) / (high - low), 0.0, 1.0)
        f = Default(self.theta).frequencies(dims)
        return f * (1 - ramp) + f / self.factor * ramp


@dataclass(frozen=True)
class Long:
    """Each frequency has a factor of its own (Ding et al., arXiv 2402.13753: the short ones)."""

    theta: float
    factors: tuple[float, ...]

    def frequencies(self, dims: int) -> Float64[np.ndarray, " half"]:
        """As `Default.frequencies`."""
        return Default(self.theta).frequencies(dims) / np.asarray(self.factors)


@dataclass(frozen=True)
class Rope:
    """A rotary embedding.

    Attributes:
        kind: how its frequencies are found.
        dims: dimensions of a head that are rotated, the first ones.
        scaling: factor of its cosines and sines (yarn, longrope).
        longest: tokens up to which it holds; beyond, the model would use other frequencies.
    """

    kind: Default | Llama3 | Yarn | Long
    dims: int
    scaling: float = 1.0
    longest: int | None = None

    def tables(
        self, start: int, tokens: int
    ) -> tuple[Float64[np.ndarray, "token half"], Float64[np.ndarray, "token half"]]:
        """Cosines and sines of positions start, start + 1, …"""
        positions = np.arange(start, start + tokens)[:, None]
        angle = positions * self.kind.frequencies(self.dims)
        return np.cos(angle) * self.scaling, np.sin(angle) * self.scaling

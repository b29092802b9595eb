"""Which parameters a step moves: everything, an adapter, or what patterns name."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from smda_jax.errors import InputError
from smda_jax.model.config import EMBED, FINAL_NORM, UNEMBED, ModelConfig
from smda_jax.model.operations import ADAPTER, ALL, Linear, Operation
from smda_jax.model.params import Params, Weights

MOST = 1000  # layers that a pattern names by a range


@dataclass(frozen=True)
class Moved:
    """Parameters that a step moves; hashable, since it is a static part of programs.

    Attributes:
        weights: of every operation, in which layers its weight or scale moves.
        biases: the same of its bias.
        embed: whether the embedding table moves, in both its uses where it is tied.
        final_norm: whether the final norm's scale does.
        unembed: whether the unembedding does.
    """

    weights: tuple[tuple[str, tuple[bool, ...]], ...]
    biases: tuple[tuple[str, tuple[bool, ...]], ...]
    embed: bool
    final_norm: bool
    unembed: bool

    @cached_property
    def masks(self) -> dict[str, Bool[np.ndarray, "layer part"]]:
        """Of every operation that moves in some layer: in which its weight does, and its bias."""
        biases = dict(self.biases)
        both = {name: np.array([own, biases[name]]).T for name, own in self.weights}
        return {name: mask for name, mask in both.items() if mask.any()}

    def names(self, layer: int | None = None) -> tuple[str, ...]:
        """The operations that move, in some layer or in a given one."""
        if layer is None:
            return tuple(self.masks)
        return tuple(name for name, mask in self.masks.items() if mask[layer].any())

    @property
    def lowest(self) -> int:
        """The first layer in which something moves; 0 if the embedding does."""
        layers = [int(np.argmax(mask.any(axis=1))) for mask in self.masks.values()]
        return 0 if self.embed else min(layers, default=len(self.weights[0][1]))

    def share(self, op: Operation) -> float:
        """In which share of the layers an operation moves."""
        return float(self.masks[op.name].any(axis=1).mean()) if op.name in self.masks else 0.0

    def pick(self, tree: Params) -> Params:
        """The leaves of a tree like the parameters that move in some layer; None for the others."""
        blocks = {name: own for name, own in tree.blocks.items() if name in self.masks}
        return tree.replace(  # type: ignore[attr-defined]
            embed=tree.embed if self.embed else None,
            blocks=blocks,
            final_norm=tree.final_norm if self.final_norm else None,
            unembed=tree.unembed if self.unembed else None,
        )

    @staticmethod
    def merge(tree: Params, picked: Params) -> Params:
        """`tree` with the leaves that were picked."""

        def own(name: str) -> Array | None:
            found = getattr(picked, name)
            return getattr(tree, name) if found is None else found

        outside = {name: own(name) for name in ("embed", "final_norm", "unembed")}
        return tree.replace(blocks=tree.blocks | picked.blocks, **outside)  # type: ignore

    def masked(self, tree: Params) -> Params:
        """A tree like the parameters, zero where they stay; the layer axis of blocks is first."""

        def times(keep: bool, leaf: Array) -> Array:
            return leaf if keep else jnp.zeros_like(leaf)

        def inside(name: str, own: Weights) -> Weights:
            mask = self.masks.get(name, np.zeros((len(self.weights[0][1]), 2), bool))

            def along(leaf: Array, part: int) -> Array:
                some = mask[: leaf.shape[0], part]
                if some.all():
                    return leaf
                lead = jnp.asarray(some).reshape(-1, *[1] * (leaf.ndim - 1))
                return jnp.where(lead, leaf, jnp.zeros_like(leaf))

            return Weights(along(own.w, 0), None if own.b is None else along(own.b, 1))

        return Params(
            embed=times(self.embed, tree.embed),
            blocks={name: inside(name, own) for name, own in tree.blocks.items()},
            final_norm=times(self.final_norm, tree.final_norm),
            unembed=None if tree.unembed is None else times(self.unembed, tree.unembed),
            config=tree.config,
        )


def everything(config: ModelConfig) -> Moved:
    """Every parameter."""
    return _make(config, lambda _: True)


def moved_by(config: ModelConfig, patterns: Sequence[str]) -> Moved:
    """What patterns name: `all`, `lora`, or names of parameters such as `layers.3.mlp.*`.

    Names are those of the checkpoint (`layers.3.self_attn.q_proj.weight`, `embed_tokens`, `norm`,
    `lm_head`; of an adapter `layers.3.self_attn.q_proj.lora_A`). `*` stands for any characters, and
    `8-15` for a number between these, both included.

    Raises:
        InputError: a pattern names nothing, or `lora` where there is no adapter.
    """
    names, found = parameter_names(config), set()
    for pattern in patterns:
        if pattern == ALL:
            own = set(names)
        elif pattern == ADAPTER:
            own = {name for name in names if ".lora_" in name}
        else:
            own = {name for name in names if _matcher(pattern).fullmatch(name)}
        if not own and pattern == ADAPTER:
            raise InputError("--parameters", "lora needs an adapter", "--adapter FOLDER")
        if not own:
            some = ", ".join(names[:: max(1, len(names) // 4)][:4])
            raise InputError("--parameters", f"{pattern} names nothing", f"names are {some}, …")
        found |= own
    return _make(config, found.__contains__)


def parameter_names(config: ModelConfig) -> list[str]:
    """Of every parameter, as patterns name them."""
    names = [f"{EMBED.name}.weight", f"{FINAL_NORM.name}.weight"]
    names += [] if config.tied else [f"{UNEMBED.name}.weight"]
    for layer in range(config.layers):
        for op in config.table:
            names += [_name(op, layer, part) for part in _parts(op, layer)]
    return list(dict.fromkeys(name.removeprefix("model.") for name in names))


def count(config: ModelConfig, moved: Moved) -> int:
    """How many numbers move."""
    total = moved.embed * config.vocab * config.hidden + moved.final_norm * config.hidden
    total += (moved.unembed and not config.tied) * config.vocab * config.hidden
    for op in config.table:
        for layer, (weight, bias) in enumerate(moved.masks.get(op.name, ())):
            total += int(weight) * op.held_in(layer) + int(bias) * op.outputs
    return int(total)


def _parts(op: Operation, layer: int) -> tuple[str, ...]:
    if not op.held_in(layer):
        return ()
    return ("weight", "bias") if isinstance(op, Linear) and op.biased else ("weight",)


def _name(op: Operation, layer: int, part: str) -> str:
    return f"layers.{layer}.{op.stored.name}.{part}"


def _make(config: ModelConfig, moves: Callable[[str], bool]) -> Moved:
    layers = range(config.layers)

    def of(part: str) -> tuple[tuple[str, tuple[bool, ...]], ...]:
        return tuple(
            (op.name, tuple(part in _parts(op, i) and moves(_name(op, i, part)) for i in layers))
            for op in config.table
        )

    outside = [
        moves(f"{s.name.removeprefix('model.')}.weight") for s in (EMBED, FINAL_NORM, UNEMBED)
    ]
    if config.tied:  # the unembedding is the embedding's table
        outside[2] = outside[0]
    return Moved(of("weight"), of("bias"), *outside)


def _matcher(pattern: str) -> re.Pattern[str]:
    def number(found: re.Match[str]) -> str:
        low, high = int(found[1]), int(found[2])
        some = range(low, min(high, low + MOST) + 1)
        return "(?:" + "|".join(map(str, some)) + ")" if some else "(?!)"

    text = re.escape(pattern.removeprefix("model.")).replace(r"\*", ".*").replace(r"\-", "-")
    text = re.sub(r"(?<![^.])(\d{1,6})-(\d{1,6})(?![^.\\])", number, text)
    return re.compile(text + r"(?:\.weight|\.bias)?")

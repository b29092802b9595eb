"""LoRA adapters of PEFT: read, and worn by a model as further operations of its table.

An adapted operation gives `y + factor · b(a(x))` (arXiv 2106.09685); `a` and `b` are linear
operations like others, so that steps, engines and norms know them without being told.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from smda_jax import hub
from smda_jax.errors import InputError
from smda_jax.model.config import BLOCKS, ModelConfig
from smda_jax.model.operations import Adapter, Linear, Operation, Reach, Split, Stored, Table
from smda_jax.model.params import Params, Weights

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Keys that say how the adapter was trained or found, and change nothing of what it computes.
WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode",
    "peft_type", "peft_version", "init_lora_weights", "lora_dropout", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "megatron_config", "megatron_core", "runtime_config",
    "ensure_weight_tying", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
    "bias", "fan_in_fan_out", "qalora_group_size",
}  # fmt: skip


def fetch(adapter: str | Path) -> Path:
    """A local folder, or the local copy of a Hub repository's files."""
    return hub.folder_or_download(str(adapter), (CONFIG, WEIGHTS), "owner/adapter")


@dataclass(frozen=True)
class _Read:
    """An adapter's files.

    Attributes:
        folder: where they lie.
        config: `adapter_config.json`.
        tensors: by their names in the model.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: dict[str, np.ndarray]


def wear(params: Params, adapter: str | Path) -> Params:
    """The model with an adapter on.

    Raises:
        InputError: the folder is no LoRA adapter, asks for something that is not implemented, or is
            of another model.
    """
    read = _read(fetch(adapter))
    config, blocks = params.config, dict(params.blocks)
    of = {"dtype": params.embed.dtype, "layers": config.layers}
    operations: list[Operation] = []
    first: dict[str, str] = {}
    for op in config.table:
        module = op.stored.name
        own = _layers_of(read, module) if isinstance(op, Linear) else {}
        if not isinstance(op, Linear) or not own:
            operations.append(op)
            continue
        pair = _adapter_of(read, op, own, config)
        operations.append(replace(op, adapter=pair))
        a, b = _operations(config, op, pair, own)
        if module not in first:  # of a fused matrix, `a` is one for all its parts
            first[module] = a.name
            operations.append(a)
            blocks[a.name] = _stacked(own, 0, a, **of)
        operations.append(b)
        blocks[b.name] = _stacked(own, 1, b, **of)
    _refuse_unread(read, first)
    worn = replace(config, table=Table(tuple(operations)))
    return params.replace(blocks=blocks, config=worn)  # type: ignore[attr-defined]


def describe(folder: Path) -> str:
    """What an adapter is, in words.

    Raises:
        InputError: as `wear`, where that needs no model.
    """
    read = _read(folder)
    found = (re.search(r"\.([^.]+)\.lora_A\.weight$", name) for name in read.tensors)
    modules = ", ".join(sorted({match[1] for match in found if match}))
    ranks = {v.shape[0] for name, v in read.tensors.items() if ".lora_A." in name}
    base = read.config.get("base_model_name_or_path")
    ranks_said = " and ".join(map(str, sorted(ranks)))
    return f"LoRA adapter of rank {ranks_said} on {modules}, of {base}"


def _read(folder: Path) -> _Read:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError:
        remedy = "give a folder that PEFT wrote"
        raise InputError(folder, f"has no {CONFIG}", remedy) from None
    except (OSError, ValueError) as error:
        raise InputError(folder / CONFIG, f"cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InputError(folder / CONFIG, "is no object of settings")
    if config.get("peft_type") != "LORA":
        what = f"is a {config.get('peft_type')} adapter"
        raise InputError(folder, what, "LoRA adapters are read")
    for key, value in config.items():
        if key not in WITHOUT_EFFECT and value not in (None, False, [], {}, 0):
            raise InputError(folder / CONFIG, f"{key} is {value!r}, which is not implemented")
    if config.get("bias", "none") != "none":
        raise InputError(folder / CONFIG, f"bias is {config['bias']!r}", "bias: none")
    if config.get("fan_in_fan_out"):
        raise InputError(folder / CONFIG, "fan_in_fan_out is true, of layers this model lacks")
    if not (folder / WEIGHTS).is_file():
        raise InputError(folder, f"has no {WEIGHTS}", "safetensors, as PEFT writes by default")
    try:
        raw = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        what = f"not a readable safetensors file: {error}"
        raise InputError(folder / WEIGHTS, what, "fetch it again") from error
    return _Read(folder, config, {name.removeprefix(PREFIX): v for name, v in raw.items()})


def _layers_of(read: _Read, module: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """(A, B) of a module in every layer that is adapted."""
    pattern = re.compile(rf"{re.escape(BLOCKS)}\.(\d+)\.{re.escape(module)}\.lora_A\.weight")
    found = {}
    for name, a in read.tensors.items():
        if matched := pattern.fullmatch(name):
            other = name.replace(".lora_A.", ".lora_B.")
            if other not in read.tensors:
                raise InputError(read.folder / WEIGHTS, f"lacks {other}")
            found[int(matched[1])] = (a, read.tensors[other])
    return found


def _adapter_of(
    read: _Read, op: Linear, own: dict[int, tuple[np.ndarray, np.ndarray]], config: ModelConfig
) -> Adapter:
    """How an operation is adapted.

    Raises:
        InputError: a tensor has another shape than the operation, or layers have other factors.
    """
    factors = set()
    outputs = op.stored.rows or op.outputs
    for layer, (a, b) in own.items():
        name = f"{BLOCKS}.{layer}.{op.stored.name}"
        if layer >= config.layers:
            what = f"adapts {name}, and the model has {config.layers} layers"
            raise InputError(read.folder, what, "is it of another base?")
        fits = a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1]
        if not fits or (b.shape[0], a.shape[1]) != (outputs, op.inputs):
            what = f"{name}: A {list(a.shape)} and B {list(b.shape)} on [{outputs}, {op.inputs}]"
            raise InputError(read.folder, what, "is it of another base?")
        if not (np.isfinite(_wide(a)).all() and np.isfinite(_wide(b)).all()):
            raise InputError(read.folder, f"{name} holds NaN or infinity", "fetch it again")
        factors.add(_factor(read, name, a.shape[0]))
    if len(factors) > 1:
        what = f"{op.stored.name} has other factors in other layers: {sorted(factors)}"
        raise InputError(read.folder, what, "one alpha / r for each module")
    module = op.stored.name.rsplit(".", 1)[-1]
    return Adapter(f"{module}.lora_a", f"{op.name}.lora_b", factors.pop())


def _wide(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)


def _factor(read: _Read, name: str, rank: int) -> float:
    """`alpha / r`, or `alpha / √r` where the config says use_rslora; patterns name modules."""

    def of(key: str, usual: float) -> float:
        patterns = read.config.get(key) or {}
        found = next((k for k in patterns if re.match(rf"(.*\.)?({k})$", name)), None)
        return float(usual if found is None else patterns[found])

    try:
        alpha = of("alpha_pattern", float(read.config.get("lora_alpha", 8)))
        expected = of("rank_pattern", float(read.config.get("r", 8)))
    except (TypeError, ValueError, re.error) as error:
        raise InputError(read.folder / CONFIG, f"cannot be read: {error}") from error
    if expected != rank:
        what = f"{name} has rank {rank}, the config says {expected:g}"
        raise InputError(read.folder, what, "do both files belong together?")
    return alpha / rank**0.5 if read.config.get("use_rslora") else alpha / rank


def _operations(
    config: ModelConfig, op: Linear, pair: Adapter, own: dict[int, tuple[np.ndarray, np.ndarray]]
) -> tuple[Linear, Linear]:
    """The two operations beside an adapted one; of unlike ranks the largest, filled up with zeros,
    whose gradients are zero too."""
    rank = max(a.shape[0] for a, _ in own.values())
    module = op.stored.name
    together = [
        o.reach for o in config.table.linears if o.stored.name == module and o.reads == op.reads
    ]
    earliest = next(r for r in Reach if r in together)
    one, other = (Stored(f"{module}.lora_{x}") for x in "AB")
    other = replace(other, first_row=op.stored.first_row, rows=op.stored.rows)
    ranks = [own[i][0].shape[0] if i in own else 0 for i in range(config.layers)]
    rest: dict[str, Any] = {"biased": False, "split": Split.NOWHERE}
    held_a, held_b = (tuple(r * width for r in ranks) for width in (op.inputs, op.outputs))
    a = Linear(pair.a, op.reads, op.inputs, rank, one, reach=earliest, held=held_a, **rest)
    middle = f"{pair.a}_out"
    b = Linear(pair.b, middle, rank, op.outputs, other, reach=op.reach, held=held_b, **rest)
    return a, b


def _stacked(
    own: dict[int, tuple[np.ndarray, np.ndarray]], which: int, op: Linear, **of: Any
) -> Weights:
    """A weight of all layers; zero in those that are not adapted."""
    stack = np.zeros((of["layers"], *op.shape), np.float64)
    for layer, both in own.items():
        value = np.asarray(both[which], np.float64)
        if which:
            value = value[op.stored.first_row : op.stored.first_row + op.outputs]
        stack[layer, : value.shape[0], : value.shape[1]] = value
    return Weights(jnp.asarray(stack, of["dtype"]))


def _refuse_unread(read: _Read, modules: Mapping[str, str]) -> None:
    known = re.compile(rf"{re.escape(BLOCKS)}\.\d+\.(.*)\.lora_[AB]\.weight")
    for name in read.tensors:
        matched = known.fullmatch(name)
        if matched is None or matched[1] not in modules:
            what = f"{name} adapts what is not adapted here: linear operations of the layers are"
            raise InputError(read.folder, what, "is it of another base?")
    if not modules:
        raise InputError(read.folder, "adapts nothing")


def write_new(
    folder: Path, config: ModelConfig, modules: Sequence[str], rank: int, alpha: float, seed: int
) -> None:
    """Writes an adapter that changes nothing yet, in the layout of PEFT.

    A is drawn as PEFT does, uniformly within ±1/√inputs, and B is zero.

    Raises:
        InputError: a module is none of the model's linear operations.
    """
    ends = {op.stored.name.rsplit(".", 1)[-1] for op in config.table.linears}
    for module in modules:
        if module not in ends:
            what = f"{module} is no linear operation of the model's layers"
            raise InputError("--lora-modules", what, f"of {', '.join(sorted(ends))}")
    rng, tensors = np.random.default_rng(seed), {}
    for op in config.table.linears:
        if op.stored.name.rsplit(".", 1)[-1] not in modules:
            continue
        for layer in range(config.layers):
            name = f"{PREFIX}{BLOCKS}.{layer}.{op.stored.name}"
            bound, outputs = op.inputs**-0.5, op.stored.rows or op.outputs
            a = rng.uniform(-bound, bound, (rank, op.inputs))
            tensors[f"{name}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = np.zeros((outputs, rank), np.float32)
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": list(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    _write(folder, raw, tensors)


def save(folder: Path, like: Path, params: Params) -> None:
    """Writes the adapter that a model wears, in the layout of PEFT, with the config of `like`."""
    tensors: dict[str, list[tuple[int, np.ndarray]]] = {}
    for op in params.config.table.linears:
        module, dot, kind = op.stored.name.rpartition(".")
        if kind not in ("lora_A", "lora_B") or not dot:
            continue
        for layer, value in enumerate(np.asarray(params.blocks[op.name].w, np.float32)):
            held = op.held_in(layer)
            if not held:
                continue
            first = kind == "lora_A"
            rank = held // (op.inputs if first else op.outputs)
            name = f"{PREFIX}{BLOCKS}.{layer}.{module}.{kind}.weight"
            part = value[:rank] if first else value[:, :rank]
            tensors.setdefault(name, []).append((op.stored.first_row, part))
    whole = {
        name: np.concatenate([part for _, part in sorted(parts, key=lambda one: one[0])])
        for name, parts in tensors.items()
    }
    _write(folder, json.loads((like / CONFIG).read_text()), whole)


def _write(folder: Path, raw: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(raw, indent=2) + "\n")
    content = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(content, folder / WEIGHTS, metadata={"format": "pt"})

"""Hugging Face checkpoints: to parameters, and back."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding
from jaxtyping import Array
from orbax.checkpoint import v1 as ocp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from smda_jax.errors import InputError
from smda_jax.model.config import ModelConfig, from_hf
from smda_jax.model.llama import LINEAR, SCALE, Block, Linear, Params, linear_sizes

_BLOCK = {
    "attn_norm": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "mlp_norm": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}  # fmt: skip
_EMBED, _FINAL_NORM, _UNEMBED = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_DERIVED = "rotary_emb.inv_freq"  # old checkpoints store it; it follows from config.json
PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]  # of a Hub repository
SHARD_BYTES = 5 * 10**9


def _name(layer: int, operation: str, part: str) -> str:
    return f"model.layers.{layer}.{_BLOCK[operation]}.{part}"


def fetch(model: str | Path, patterns: list[str]) -> Path:
    """A local folder, or the local copy of a Hub repository's files that match `patterns`.

    Raises:
        InputError: neither a folder nor a repository that can be fetched.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    repo = str(model).removeprefix("hub:")
    if folder.exists() or repo.count("/") > 1 or repo.startswith((".", "/", "~")):
        raise InputError(model, "no such folder", "give a folder or a Hub id such as meta-llama/Llama-3.2-3B-Instruct")
    try:
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=patterns))
    except Exception as error:  # the hub raises many types: offline, gated, unknown, malformed id
        first = str(error).strip().splitlines()[0]
        raise InputError(
            model, f"not a folder, and not fetched from the Hub: {first}", "check id, access and network"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` as it stands."""
    path = folder / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(folder, "has no config.json", "give a Hugging Face checkpoint folder") from None
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read: {error}") from error


class Tensors:
    """The tensors of a safetensors checkpoint, single or sharded, read lazily from memory-mapped files."""

    def __init__(self, folder: Path):
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        if index.exists():
            try:
                where = json.loads(index.read_text())["weight_map"]
            except (ValueError, KeyError) as error:
                raise InputError(index, f"cannot be read: {error!r}") from error
            names = sorted(set(where.values()))
        else:
            where, names = None, ["model.safetensors"]
        self.files = [folder / name for name in names]
        handles = {name: self._open(folder / name) for name in names}
        if where is None:
            where = dict.fromkeys(handles[names[0]].keys(), names[0])
        self._handles = {tensor: handles[name] for tensor, name in where.items()}
        for tensor, handle in self._handles.items():
            if tensor not in handle.keys():  # noqa: SIM118 (not a dict)
                raise InputError(folder / where[tensor], f"tensor {tensor} is missing, though the index lists it")
        self.read: set[str] = set()

    @staticmethod
    def _open(path: Path) -> Any:
        try:
            return safe_open(path, framework="numpy")
        except FileNotFoundError:
            raise InputError(path, "no such file", "only safetensors checkpoints are read") from None
        except (SafetensorError, OSError) as error:
            raise InputError(path, f"not a readable safetensors file: {error}", "fetch it again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def get(self, name: str, shape: tuple[int, ...]) -> Callable[[tuple[slice, ...]], np.ndarray]:
        """A reader of slices of one tensor, whose shape and type have been checked."""
        if name not in self._handles:
            raise InputError(self.folder, f"tensor {name} is missing", "the checkpoint and its config.json do not fit")
        self.read.add(name)
        view = self._handles[name].get_slice(name)
        if tuple(view.get_shape()) != shape:
            raise InputError(self.folder, f"tensor {name} has shape {tuple(view.get_shape())}, config.json asks for {shape}")
        if view.get_dtype() not in _FLOATS:
            raise InputError(self.folder, f"tensor {name} is stored as {view.get_dtype()}", "quantised weights are not read")
        return lambda index: view[index]

    def refuse_unread(self) -> None:
        """Raises InputError if the checkpoint holds a tensor that nothing has asked for."""
        extra = sorted(name for name in set(self) - self.read if not name.endswith(_DERIVED))
        if extra:
            raise InputError(self.folder, f"holds {len(extra)} tensor(s) the model has no use for, such as {extra[0]}")


def fingerprint(folder: Path) -> str:
    """Identifies a checkpoint by its config and the name, size and time of its weight files."""
    state = [(folder / "config.json").read_text()]
    for path in sorted(folder.glob("*.safetensors*")):
        stat = path.stat()
        state.append(f"{path.name} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(state).encode()).hexdigest()


def load(
    model: str | Path,
    dtype: Any = jnp.float32,
    *,
    sharding: Callable[[str], Sharding] | None = None,
    cache: Path | None = None,
) -> tuple[ModelConfig, Params]:
    """Reads a checkpoint folder or Hub id, one tensor at a time, straight to `dtype` and `sharding`.

    Args:
        model: folder or Hub id.
        dtype: of the parameters; None keeps the checkpoint's own (that of its embedding).
        sharding: of each parameter by its path (`embed`, `q.w`, …); default: all on the first device.
        cache: folder for a converted copy, which later loads read instead.

    Raises:
        InputError: the checkpoint is incomplete, of another shape than its config says, not implemented, or not finite.
    """
    folder = fetch(model, PATTERNS)
    config = from_hf(read_config(folder), folder / "config.json")
    if cache is not None:
        return config, _cached(folder, config, dtype, sharding, cache)
    return config, _convert(folder, config, dtype, sharding)


def _convert(folder: Path, config: ModelConfig, dtype: Any, sharding: Callable[[str], Sharding] | None) -> Params:
    tensors = Tensors(folder)
    where = sharding or (lambda _: SingleDeviceSharding(jax.devices()[0]))
    if dtype is None:
        first = tensors.get(_EMBED, (config.vocab, config.hidden))((slice(0, 1), slice(0, 1)))
        dtype = first.dtype

    def single(path: str, name: str, shape: tuple[int, ...]) -> Array:
        read = tensors.get(name, shape)
        array = jax.make_array_from_callback(shape, where(path), lambda i: np.asarray(read(i or ())).astype(dtype))
        _refuse_non_finite(array[None], [name], folder)
        return array

    def stacked(path: str, operation: str, part: str, shape: tuple[int, ...]) -> Array:
        names = [_name(layer, operation, part) for layer in range(config.layers)]
        readers = [tensors.get(name, shape) for name in names]

        def fill(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            layers = range(config.layers)[index[0]]
            sizes = [len(range(size)[i]) for size, i in zip(shape, index[1:], strict=True)]
            out = np.empty((len(layers), *sizes), dtype)
            for row, layer in enumerate(layers):
                out[row] = readers[layer](index[1:])
            return out

        array = jax.make_array_from_callback((config.layers, *shape), where(path), fill)
        _refuse_non_finite(array, names, folder)
        return array

    parts: dict[str, Any] = {}
    for name, (inner, outer) in linear_sizes(config).items():
        bias = stacked(f"{name}.b", name, "bias", (outer,)) if name in config.biased else None
        parts[name] = Linear(stacked(f"{name}.w", name, "weight", (outer, inner)), bias)
    for name in SCALE:
        parts[name] = stacked(name, name, "weight", (config.hidden,))
    table = (config.vocab, config.hidden)
    embed = single("embed", _EMBED, table)
    unembed = None if config.tied else single("unembed", _UNEMBED, table)
    if config.tied and _UNEMBED in set(tensors):
        # Some tied checkpoints store the copy as well; a differing one would mean that the config is wrong.
        copy, own = tensors.get(_UNEMBED, table), tensors.get(_EMBED, table)
        if not np.array_equal(copy((slice(None),)), own((slice(None),))):
            raise InputError(folder, f"{_UNEMBED} differs from {_EMBED} though tie_word_embeddings is true")
    params = Params(embed, Block(**parts), single("final_norm", _FINAL_NORM, (config.hidden,)), unembed)
    tensors.refuse_unread()
    return params


def _refuse_non_finite(array: Array, names: list[str], folder: Path) -> None:
    finite = np.asarray(jnp.isfinite(array).reshape(len(names), -1).all(axis=1))
    if not finite.all():
        raise InputError(folder, f"tensor {names[int(np.argmin(finite))]} holds NaN or infinity", "fetch it again")


def _cached(folder: Path, config: ModelConfig, dtype: Any, sharding: Callable[[str], Sharding] | None, cache: Path) -> Params:
    path = (cache / f"{fingerprint(folder)[:24]}-{'own' if dtype is None else jnp.dtype(dtype).name}").absolute()
    if path.exists():
        like: Any = ocp.metadata(str(path)).metadata
        abstract = _as_params(like, config)
        if sharding is not None:
            abstract = jax.tree_util.tree_map_with_path(
                lambda key, leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(parameter_path(key))),
                abstract,
            )
        return ocp.load(str(path), abstract)
    params = _convert(folder, config, dtype, sharding)
    ocp.save(str(path), params)
    return params


def _as_params(like: Any, config: ModelConfig) -> Params:
    dtype = like["embed"].dtype
    here = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=here), abstract_params(config, dtype))


def parameter_path(key: tuple[Any, ...]) -> str:
    """Name of a parameter, such as `embed` or `q.w`, from its path in the pytree."""
    return ".".join(k.name for k in key if k.name != "blocks")


def abstract_params(config: ModelConfig, dtype: Any) -> Params:
    """Shapes of the parameters, without values."""

    def leaf(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    parts: dict[str, Any] = {name: leaf(config.layers, config.hidden) for name in SCALE}
    for name, (inner, outer) in linear_sizes(config).items():
        bias = leaf(config.layers, outer) if name in config.biased else None
        parts[name] = Linear(leaf(config.layers, outer, inner), bias)
    table = leaf(config.vocab, config.hidden)
    return Params(table, Block(**parts), leaf(config.hidden), None if config.tied else table)


def save(folder: Path, raw: dict[str, Any], params: Params, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes `config.json` (as given) and the weights in the Hugging Face layout, in the dtype they have."""
    tensors = {_EMBED: params.embed, _FINAL_NORM: params.final_norm}
    if params.unembed is not None:
        tensors[_UNEMBED] = params.unembed
    for operation in SCALE:
        for layer, w in enumerate(getattr(params.blocks, operation)):
            tensors[_name(layer, operation, "weight")] = w
    for operation in LINEAR:
        linear: Linear = getattr(params.blocks, operation)
        for layer, w in enumerate(linear.w):
            tensors[_name(layer, operation, "weight")] = w
        for layer, b in enumerate(() if linear.b is None else linear.b):
            tensors[_name(layer, operation, "bias")] = b
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    plan = huggingface_hub.split_state_dict_into_shards_factory(
        tensors, get_storage_size=lambda t: t.nbytes, max_shard_size=shard_bytes,
        filename_pattern="model{suffix}.safetensors",
    )  # fmt: skip
    for name, members in plan.filename_to_tensors.items():
        save_file({m: np.asarray(tensors[m]) for m in members}, folder / name, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

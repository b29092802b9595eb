"""The tensors of a safetensors checkpoint, single or sharded, read lazily from mapped files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from smda_jax.errors import InputError

_FLOATS = {"F64", "F32", "F16", "BF16"}
_DERIVED = "rotary_emb.inv_freq"  # old checkpoints store it; it follows from config.json

Reader = Callable[[tuple[slice, ...]], np.ndarray]


class Tensors:
    """Tensors by name; what nothing asked for is refused at the end."""

    def __init__(self, folder: Path):
        """Raises InputError: a file is missing or cannot be read, or the index does not fit."""
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
                what = f"tensor {tensor} is missing, though the index lists it"
                raise InputError(folder / where[tensor], what)
        self.read: set[str] = set()

    @staticmethod
    def _open(path: Path) -> Any:
        try:
            return safe_open(path, framework="numpy")
        except FileNotFoundError:
            remedy = "only safetensors checkpoints are read"
            raise InputError(path, "no such file", remedy) from None
        except (SafetensorError, OSError) as error:
            what = f"not a readable safetensors file: {error}"
            raise InputError(path, what, "fetch it again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def get(self, name: str, shape: tuple[int, ...]) -> Reader:
        """A reader of slices of one tensor, whose shape and type have been checked.

        Raises:
            InputError: the tensor is missing, of another shape, or quantised.
        """
        if name not in self._handles:
            remedy = "the checkpoint and its config.json do not fit"
            raise InputError(self.folder, f"tensor {name} is missing", remedy)
        self.read.add(name)
        view = self._handles[name].get_slice(name)
        if (found := tuple(view.get_shape())) != shape:
            what = f"tensor {name} has shape {found}, config.json asks for {shape}"
            raise InputError(self.folder, what)
        if (kind := view.get_dtype()) not in _FLOATS:
            what = f"tensor {name} is stored as {kind}"
            raise InputError(self.folder, what, "quantised weights are not read")
        return lambda index: view[index]

    def refuse_unread(self) -> None:
        """Raises InputError if the checkpoint holds a tensor that nothing has asked for."""
        extra = sorted(name for name in set(self) - self.read if not name.endswith(_DERIVED))
        if extra:
            what = f"holds {len(extra)} tensor(s) the model has no use for, such as {extra[0]}"
            raise InputError(self.folder, what)

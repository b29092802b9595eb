"""What is written where in a run folder, durably, and how an interrupted run is continued."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from orbax.checkpoint import v1 as ocp

from smda_jax.errors import InputError
from smda_jax.files import replacing, write_text, writing
from smda_jax.runtime import processes

Arrays = Mapping[str, np.ndarray]


class RunFolder:
    """Files of one run. Every file appears whole or not at all.

    Of several processes the first one writes; the others come along.

    `run.json` is written first and holds the fingerprint of everything the numbers depend on; a
    folder is only continued under the same one.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        record: dict[str, Any],
        *,
        name: str = "run.json",
        cache: str = "jacobian",
    ):
        """Checks the folder, and writes nothing yet.

        Args:
            path: of the folder.
            fingerprint: of everything that the numbers depend on.
            record: of the run, with its `config`.
            name: of the record's file.
            cache: folder of what is kept in blocks.

        Raises:
            InputError: it holds something else, or a run of another configuration.
        """
        self.path, self.fingerprint = path.expanduser().absolute(), fingerprint
        self.record, self.name, self.cache = record, name, self.path / cache
        self._old: dict[str, Any] = {}
        with writing(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise InputError(path, "is a file", "--out names a folder")
            if (self.path / name).exists():
                self._continue(fingerprint)
            elif self.path.exists() and any(self.path.iterdir()):
                remedy = "--out names a new folder, or one to continue"
                raise InputError(path, "is not empty and holds no run", remedy)

    def begin(self, **more: Any) -> None:
        """Creates the folder and its record, with `more` in its record.

        Raises:
            InputError: it cannot be written.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        # What a run has chosen stays chosen, even where its base has to be computed anew.
        kept = {k: self._old[k] for k in ("engine", "plan") if k in self._old}
        self.record |= kept | more
        self._write_run({"fingerprint": self.fingerprint, "status": "running", **self.record})
        processes.wait("run folder")

    def recorded(self, name: str) -> Any:
        """What run.json of a run that is continued says of `name`; None if there is none."""
        return self._old.get(name)

    def _continue(self, fingerprint: str) -> None:
        path = self.path / self.name
        try:
            old = json.loads(path.read_text())
            known, config = old["fingerprint"], old["config"]
        except (ValueError, KeyError, OSError) as error:
            what = f"cannot be read: {error!r}"
            raise InputError(path, what, "--out names a new folder") from error
        self._old = old
        if known != fingerprint:
            own = self.record["config"].items()
            changed = sorted(k for k, v in own if k != "out" and config.get(k) != v)
            reason = ", ".join(changed) or "the inputs, or the version of the package"
            what = f"holds a run of another configuration ({reason} changed)"
            raise InputError(self.path, what, "--out names a new folder")

    def _write_run(self, content: Mapping[str, Any]) -> None:
        self.write_json(self.name, content)

    def finish(self, **more: Any) -> None:
        """Marks the run complete and adds to its record."""
        done = {"fingerprint": self.fingerprint, "status": "complete", **self.record, **more}
        self._write_run(done)

    def write_json(self, name: str, content: Any) -> None:
        """Writes JSON, indented; an undefined figure (NaN) is null."""
        if processes.writes():
            plain = _without_nan(content)
            text = json.dumps(plain, indent=2, allow_nan=False, ensure_ascii=False)
            write_text(self.path / name, text + "\n")

    def write_table(self, name: str, columns: Mapping[str, Any]) -> None:
        """Writes a parquet table."""
        if processes.writes():
            with replacing(self.path / name) as part:
                pq.write_table(pa.table(dict(columns)), part, compression="zstd")

    def write_tables(self, name: str, parts: Iterator[Mapping[str, Any]]) -> None:
        """Writes a parquet table part by part: the whole need not fit into memory."""
        if not processes.writes():
            return
        with replacing(self.path / name) as place:
            first = pa.table(dict(next(parts)))
            with pq.ParquetWriter(place, first.schema, compression="zstd") as writer:
                writer.write_table(first)
                for part in parts:
                    writer.write_table(pa.table(dict(part), schema=first.schema))

    def has(self, name: str) -> bool:
        """Whether a block of the cache is complete."""
        return (self.cache / name).is_dir()

    def save(self, name: str, arrays: Arrays) -> None:
        """Writes a block of the cache, blocking: when this returns the block survives a kill."""
        place = self.cache / name
        with writing(place):
            place.parent.mkdir(exist_ok=True)
            # It refuses an empty array.
            ocp.save(str(place), {k: v for k, v in arrays.items() if v.size})
            processes.wait(name)

    def drop(self, name: str) -> None:
        """Deletes a block of the cache."""
        if processes.writes():
            shutil.rmtree(self.cache / name, ignore_errors=True)

    def parts(self, name: str) -> list[str]:
        """Names of the complete parts of a block."""
        names = (p.name for p in (self.cache).glob(f"{name}-*") if p.is_dir())
        own = (part for part in names if part[len(name) + 1 :].isdigit())
        return sorted(own, key=_number)

    def save_part(self, name: str, arrays: Arrays) -> None:
        """Writes the next part of a block, as `save` does."""
        known = self.parts(name)
        self.save(f"{name}-{_number(known[-1]) + 1 if known else 0:04d}", arrays)

    def load(self, name: str, only: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """Reads a block of the cache, or some arrays of it.

        Raises:
            InputError: it is damaged.
        """
        place = self.cache / name
        try:
            like = ocp.metadata(str(place)).metadata
            wanted = {
                k: np.zeros(v.shape, v.dtype) if not only or k in only else ocp.PLACEHOLDER
                for k, v in like.items()
            }
            loaded = ocp.load(str(place), wanted)
            return {k: v for k, v in loaded.items() if v is not ocp.PLACEHOLDER}
        except Exception as error:  # orbax and tensorstore raise many types
            first = str(error).strip().splitlines()[0]
            remedy = "delete it and run again: it is computed anew"
            raise InputError(place, f"cannot be read: {first}", remedy) from error


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {k: _without_nan(v) for k, v in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(v) for v in content]
    return None if isinstance(content, float) and content != content else content


def hash_path(path: Path) -> str:
    """sha256 of a file, or of the names and contents of a folder's files (not hidden ones)."""
    total = hashlib.sha256()
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != ".")
    for file in files:
        if path.is_dir():
            total.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _number(part: str) -> int:
    return int(part.rsplit("-", 1)[1])

"""Readers of evaluation prompts and training pairs."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from smda_jax import hub
from smda_jax.errors import InputError

PROMPT_LABELS = ("harmful", "harmless")
PAIR_LABELS = ("harmful_refusal", "harmless_compliance", "harmful_compliance", "harmless_refusal")
SUFFIXES = (".parquet", ".csv", ".json", ".jsonl")


def digest(*parts: str) -> str:
    """sha256 (hex) of the stripped parts joined by NUL: `prompt_id` of a prompt, `pair_id` of a
    prompt and a response."""
    return hashlib.sha256("\0".join(part.strip() for part in parts).encode()).hexdigest()


@dataclass(frozen=True)
class Prompts:
    """Evaluation prompts, in file order. Missing optional columns are all None."""

    source: str
    text: list[str]
    label: list[str | None]
    category: list[str | None]
    refused: list[bool | None]
    ids: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.text)

    def where(self, row: int) -> str:
        """Names a row in an error."""
        return f"{self.source}, row {row + 1}"

    def take(self, rows: Sequence[int]) -> "Prompts":
        """The given rows."""
        return replace(
            self,
            **{
                f.name: [getattr(self, f.name)[i] for i in rows]
                for f in fields(self)
                if f.name != "source"
            },
        )


@dataclass(frozen=True)
class Pairs:
    """Training pairs, in file order.

    `planted` marks pairs known to be corrupted, where a data set records that.
    """

    source: str
    prompt: list[str]
    response: list[str]
    label: list[str | None]
    category: list[str | None]
    planted: list[bool | None]
    ids: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompt)

    def where(self, row: int) -> str:
        """Names a row in an error."""
        return f"{self.source}, row {row + 1}"

    def take(self, rows: Sequence[int]) -> "Pairs":
        """The given rows."""
        return replace(
            self,
            **{
                f.name: [getattr(self, f.name)[i] for i in rows]
                for f in fields(self)
                if f.name != "source"
            },
        )


def load_prompts(source: str | Path) -> Prompts:
    """Reads evaluation prompts: column `prompt`, optionally `prompt_label`, `category`, `refused`;
    others are left alone.

    Raises:
        InputError: unreadable file, missing column, empty or repeated prompt, or an unknown label;
            with the row.
    """
    table, name = read_table(source)
    text = _texts(table, "prompt", name)
    label = _words(table, "prompt_label", name, PROMPT_LABELS)
    ids = [digest(t) for t in text]
    _refuse_repeats(ids, "prompt", name)
    return Prompts(
        name, text, label, _words(table, "category", name), _flags(table, "refused", name), ids
    )


def load_pairs(source: str | Path) -> Pairs:
    """Reads training pairs: columns `prompt` and `response`, optionally `label`, `category`,
    `planted`.

    Raises:
        InputError: unreadable file, missing column, empty or repeated pair, or an unknown label;
            with the row.
    """
    table, name = read_table(source)
    prompt, response = _texts(table, "prompt", name), _texts(table, "response", name)
    label = _words(table, "label", name, PAIR_LABELS)
    ids = [digest(p, r) for p, r in zip(prompt, response, strict=True)]
    _refuse_repeats(ids, "pair", name)
    return Pairs(
        name,
        prompt,
        response,
        label,
        _words(table, "category", name),
        _flags(table, "planted", name),
        ids,
    )


def local_file(source: str | Path) -> Path:
    """The path of a data file; `hub:owner/name` or `hub:owner/name:path/in/repo` is fetched first.

    Raises:
        InputError: no such file, an unknown ending, or a data set that cannot be fetched or holds
            several files.
    """
    if not str(source).startswith("hub:"):
        path = Path(source).expanduser()
        if not path.is_file():
            raise InputError(
                source, "no such file", "give a parquet, csv, json or jsonl file, or hub:owner/name"
            )
        if path.suffix not in SUFFIXES:
            raise InputError(
                source, f"unknown ending {path.suffix!r}", f"one of {', '.join(SUFFIXES)}"
            )
        return path
    repo, _, inside = str(source).removeprefix("hub:").partition(":")
    patterns = [inside] if inside else [f"*{suffix}" for suffix in SUFFIXES]
    folder = hub.download(repo, patterns, kind="dataset", source=source)
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix in SUFFIXES and (not inside or p == folder / inside)
    )
    if len(files) != 1:
        names = ", ".join(str(p.relative_to(folder)) for p in files[:4])
        raise InputError(
            source, f"holds {len(files)} data files ({names} …)", f"name one: hub:{repo}:FILE"
        )
    return files[0]


def read_table(source: str | Path) -> tuple[pa.Table, str]:
    """A data file as a table, and the name to use for it in errors."""
    path = local_file(source)
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path), path.name
        if path.suffix == ".csv":
            options = pacsv.ParseOptions(newlines_in_values=True)
            # Texts such as "null" or "NA" are prompts, not missing values.
            convert = pacsv.ConvertOptions(
                strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""]
            )
            return pacsv.read_csv(path, parse_options=options, convert_options=convert), path.name
        return pa.Table.from_pylist(_json_rows(path)), path.name
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            path, f"cannot be read as {path.suffix[1:]}: {first}", "is the file complete?"
        ) from error


def _json_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise InputError(
                path, "is not a list of records", "one JSON array of objects, or jsonl"
            )
    else:
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise InputError(f"{path}, line {number}", f"is not JSON: {error}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number}", "is not an object with named fields")
    # A column may be absent from some rows; pyarrow takes its columns from the first row only.
    names = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in names} for row in rows]


def feature_columns(names: Sequence[str]) -> list[int]:
    """Feature ids in published column names `feat_<id>_<label>`; the label is never read."""
    return [int(m[1]) for m in (re.match(r"feat_(\d+)(?:_|$)", name) for name in names) if m]


def overlap(prompts: Prompts, pairs: Pairs) -> list[tuple[int, int]]:
    """(evaluation row, pair row) of every evaluation prompt that is also trained on."""
    trained = {}
    for row, text in enumerate(pairs.prompt):
        trained.setdefault(digest(text), row)
    return [(row, trained[i]) for row, i in enumerate(prompts.ids) if i in trained]


def apply_overlap(
    prompts: Prompts, pairs: Pairs, policy: Literal["error", "drop", "keep"]
) -> tuple[Prompts, int]:
    """Treats evaluation prompts that are also trained on; returns the prompts to use and how many
    overlapped.

    Raises:
        InputError: there is an overlap and `policy` is error, or dropping it leaves nothing.
    """
    found = overlap(prompts, pairs)
    if not found or policy == "keep":
        return prompts, len(found)
    if policy == "error":
        row, pair = found[0]
        raise InputError(
            prompts.where(row),
            f"prompt is also trained on in {pairs.where(pair)} ({len(found)} such prompts)",
            "--on-overlap drop leaves them out, keep keeps them",
        )
    out = {row for row, _ in found}
    if len(out) == len(prompts):
        raise InputError(
            prompts.source, "every prompt is also trained on", "evaluate on other prompts"
        )
    return prompts.take([i for i in range(len(prompts)) if i not in out]), len(found)


def _texts(table: pa.Table, column: str, name: str) -> list[str]:
    if column not in table.column_names:
        raise InputError(
            name,
            f"has no column {column!r}",
            f"its columns are {', '.join(table.column_names[:8])}",
        )
    values = table[column].to_pylist()
    if not values:
        raise InputError(name, "has no rows")
    for row, value in enumerate(values):
        if value is None or not str(value).strip():
            raise InputError(f"{name}, row {row + 1}", f"{column} is empty")
        if not isinstance(value, str):
            values[row] = str(value)
    return values


def _words(table: pa.Table, column: str, name: str, known: Sequence[str] = ()) -> list[str | None]:
    if column not in table.column_names:
        return [None] * len(table)
    values = [None if v is None or v == "" else str(v) for v in table[column].to_pylist()]
    for row, value in enumerate(values):
        if known and value is not None and value not in known:
            raise InputError(
                f"{name}, row {row + 1}",
                f"unknown {column} {value!r}",
                f"one of {', '.join(known)}, or empty",
            )
    return values


def _flags(table: pa.Table, column: str, name: str) -> list[bool | None]:
    known = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    if column not in table.column_names:
        return [None] * len(table)
    flags: list[bool | None] = []
    for row, value in enumerate(table[column].to_pylist()):
        if value is not None and str(value).lower() not in known:
            raise InputError(f"{name}, row {row + 1}", f"{column} is {value!r}", "true or false")
        flags.append(None if value is None else known[str(value).lower()])
    return flags


def _refuse_repeats(ids: list[str], what: str, name: str) -> None:
    first: dict[str, int] = {}
    for row, i in enumerate(ids):
        if i in first:
            raise InputError(
                f"{name}, row {row + 1}", f"{what} repeats row {first[i] + 1}", "keep one of them"
            )
        first[i] = row

"""Data files as tables: parquet, csv, json, jsonl, from a path or a Hub data set."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from smda_jax import hub
from smda_jax.errors import InputError

SUFFIXES = (".parquet", ".csv", ".json", ".jsonl")


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
        return _table_of(_json_rows(path), path), path.name
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            path, f"cannot be read as {path.suffix[1:]}: {first}", "is the file complete?"
        ) from error


def _table_of(rows: list[dict[str, Any]], path: Path) -> pa.Table:
    """Raises InputError for a column of several kinds of values."""
    arrays = {}
    for name in rows[0] if rows else ():
        try:
            arrays[name] = pa.array([row[name] for row in rows])
        except pa.ArrowException as error:
            what = f"column {name!r} holds values of several kinds: {error}"
            raise InputError(path, what, "one kind in every row, or null") from error
    return pa.table(arrays)


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


def need(table: pa.Table, column: str, name: str) -> None:
    """Raises InputError: a table has no such column."""
    if column not in table.column_names:
        its = f"its columns are {', '.join(table.column_names[:8])}"
        raise InputError(name, f"has no column {column!r}", its)


def texts_of(table: pa.Table, column: str, name: str) -> list[str]:
    """A column of texts, as they are.

    Raises:
        InputError: it is missing, or a row has none; names the row.
    """
    need(table, column, name)
    values = table[column].to_pylist()
    if not values:
        raise InputError(name, "has no rows")
    for row, value in enumerate(values):
        if value is None or not str(value).strip():
            raise InputError(f"{name}, row {row + 1}", f"{column} is empty")
        if not isinstance(value, str):
            values[row] = str(value)
    return values

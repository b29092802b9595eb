"""Readers of evaluation prompts and training pairs."""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa

from smda_jax.data.conversations import Message, read_pairs_of
from smda_jax.data.losses import LossName
from smda_jax.data.tables import need, read_table, texts_of
from smda_jax.errors import InputError


def digest(*parts: str) -> str:
    """sha256 (hex) of the stripped parts joined by NUL: `prompt_id` of a prompt, `pair_id` of a
    prompt and a response."""
    return hashlib.sha256("\0".join(part.strip() for part in parts).encode()).hexdigest()


@dataclass(frozen=True)
class Prompts:
    """Evaluation prompts, in file order. Missing optional columns are all None.

    Attributes:
        source: the file's name.
        text: the prompts.
        label: what kind of prompt each is, in the data's own words.
        category: a finer kind.
        shows: whether a prompt is recorded to show the behaviour.
        ids: `prompt_id`.
        columns: further columns that a behaviour reads, by name.
    """

    source: str
    text: list[str]
    label: list[str | None]
    category: list[str | None]
    shows: list[bool | None]
    ids: list[str] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)

    def where(self, row: int) -> str:
        """Names a row in an error."""
        return f"{self.source}, row {row + 1}"

    def take(self, rows: Sequence[int]) -> "Prompts":
        """The given rows."""
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        return replace(_rows_of(self, rows), columns=columns)

    def texts_of(self, column: str) -> list[str]:
        """A column of texts.

        Raises:
            InputError: it was not read, or a row has none; names the row.
        """
        for row, value in enumerate(values := self._column(column)):
            if not isinstance(value, str) or not value.strip():
                raise InputError(self.where(row), f"{column} is {value!r}", "a text in every row")
        return values

    def numbers_of(self, column: str) -> list[float]:
        """A column of finite numbers, or of true and false.

        Raises:
            InputError: it was not read, or a row has none; names the row.
        """
        numbers = []
        for row, value in enumerate(self._column(column)):
            try:
                numbers.append(float(value))
            except (TypeError, ValueError):
                numbers.append(math.nan)
            if not math.isfinite(numbers[-1]):
                what, remedy = f"{column} is {value!r}", "a finite number in every row"
                raise InputError(self.where(row), what, remedy)
        return numbers

    def _column(self, column: str) -> list[Any]:
        if column not in self.columns:
            what = f"column {column!r} was not read"
            raise InputError(self.source, what, "load_prompts(source, columns=(…))")
        return self.columns[column]


@dataclass(frozen=True)
class Pairs:
    """Training pairs, in file order.

    Attributes:
        source: the file's name.
        prompt: what is asked.
        response: what is trained on.
        label: what kind of pair each is, in the data's own words.
        category: a finer kind.
        planted: whether a pair is known to be corrupted, where a data set records that.
        raises: whether a pair is expected to raise the behaviour, where a data set says that.
        rejected: the answer that the response is preferred to, where there is one.
        history: turns before the prompt, whose answers are trained on too.
        ids: `pair_id`.
    """

    source: str
    prompt: list[str]
    response: list[str]
    label: list[str | None]
    category: list[str | None]
    planted: list[bool | None]
    raises: list[bool | None]
    rejected: list[str | None]
    history: list[tuple[Message, ...]]
    ids: list[str] = field(default_factory=list)

    def texts(self, row: int) -> list[str]:
        """Every text of a pair, turn after turn."""
        before = [message.content for message in self.history[row]]
        own = (self.prompt[row], self.response[row], self.rejected[row])
        return [*before, *(text for text in own if text is not None)]

    def __len__(self) -> int:
        return len(self.prompt)

    def where(self, row: int) -> str:
        """Names a row in an error."""
        return f"{self.source}, row {row + 1}"

    def take(self, rows: Sequence[int]) -> "Pairs":
        """The given rows."""
        return _rows_of(self, rows)


Rows = TypeVar("Rows", Prompts, Pairs)


def _rows_of(data: Rows, rows: Sequence[int]) -> Rows:
    lists = {f.name: getattr(data, f.name) for f in fields(data)}
    lists = {name: v for name, v in lists.items() if isinstance(v, list)}
    return replace(data, **{name: [v[i] for i in rows] for name, v in lists.items()})


def load_prompts(source: str | Path, columns: Sequence[str] = ()) -> Prompts:
    """Reads evaluation prompts: column `prompt`, optionally `prompt_label`, `category`, `shows` (or
    `refused`), and those that a behaviour reads; others are left alone.

    Raises:
        InputError: unreadable file, missing column, empty or repeated prompt; with the row.
    """
    table, name = read_table(source)
    text = texts_of(table, "prompt", name)
    ids = [digest(t) for t in text]
    _refuse_repeats(ids, "prompt", name)
    for column in columns:
        need(table, column, name)
    shows = "shows" if "shows" in table.column_names else "refused"
    return Prompts(
        name,
        text,
        _words(table, "prompt_label", name),
        _words(table, "category", name),
        _flags(table, shows, name),
        ids,
        {column: table[column].to_pylist() for column in columns},
    )


def load_pairs(source: str | Path, loss: LossName = "sft") -> Pairs:
    """Reads training pairs, and optionally `label`, `category`, `planted`, `raises`.

    A pair is `prompt` and `response`; or `messages`, a conversation that ends with an answer; or,
    for a loss of preferences, `chosen` and `rejected` with `prompt`, or as conversations: lists of
    `role`, `content` and optionally `weight` (of an answer).

    Raises:
        InputError: unreadable file, missing column, empty or repeated pair, or turns that are no
            conversation; with the row.
    """
    table, name = read_table(source)
    asked = read_pairs_of(table, name, loss)
    ids = [digest(*one.texts) for one in asked]
    _refuse_repeats(ids, "pair", name)
    return Pairs(
        name,
        [one.prompt for one in asked],
        [one.response for one in asked],
        _words(table, "label", name),
        _words(table, "category", name),
        _flags(table, "planted", name),
        _flags(table, "raises", name),
        [one.rejected for one in asked],
        [one.history for one in asked],
        ids,
    )


def feature_columns(names: Sequence[str]) -> list[int]:
    """Feature ids in published column names `feat_<id>_<label>`; the label is never read."""
    return [int(m[1]) for m in (re.match(r"feat_(\d+)(?:_|$)", name) for name in names) if m]


def overlap(prompts: Prompts, pairs: Pairs) -> list[tuple[int, int]]:
    """(evaluation row, pair row) of every evaluation prompt that is also trained on."""
    trained = {}
    for row, text in enumerate(pairs.prompt):
        before = [message.content for message in pairs.history[row] if message.role == "user"]
        for one in (*before, text):
            trained.setdefault(digest(one), row)
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


def _words(table: pa.Table, column: str, name: str) -> list[str | None]:
    if column not in table.column_names:
        return [None] * len(table)
    return [None if v is None or v == "" else str(v) for v in table[column].to_pylist()]


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

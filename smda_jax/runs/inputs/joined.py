"""Further columns of pairs, from a table of somebody's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smda_jax.data.tables import read_table
from smda_jax.errors import InputError


def joined(path: Path, ids: Sequence[str]) -> dict[str, list[Any]]:
    """Further columns of pairs, joined by pair_id; None where a pair has no row.

    Raises:
        InputError: a row names no pair, or one twice.
    """
    table = read_table(path)
    if "pair_id" not in table.columns:
        raise InputError(path, "has no column pair_id", "the pair_id of pairs.parquet")
    place, known = {}, set(ids)
    for row, own in enumerate(table.values("pair_id")):
        if own not in known:
            raise InputError(table.where(row), f"{own!r} is no pair_id of these pairs")
        if own in place:
            raise InputError(table.where(row), f"{own!r} has a row already")
        place[own] = row
    names = [name for name in table.columns if name != "pair_id"]
    columns = {name: table.values(name) for name in names}
    return {k: [v[place[own]] if own in place else None for own in ids] for k, v in columns.items()}

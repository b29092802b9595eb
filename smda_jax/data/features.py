"""Which features are asked for: ids, a file of ids, or a rule."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from smda_jax.data.records import feature_columns
from smda_jax.data.tables import SUFFIXES, read_table
from smda_jax.errors import InputError


def parse(spec: str) -> list[int] | float | None:
    """What `--features` asks for.

    Returns:
        ids, in the order given; or the threshold of the contrastive rule (`contrast:0.1`); or None
        for `all`.

    Raises:
        InputError: none of these.
    """
    if spec == "all":
        return None
    if spec.startswith("contrast:"):
        try:
            return float(spec.removeprefix("contrast:"))
        except ValueError:
            raise InputError("features", f"{spec!r} is not contrast:NUMBER") from None
    if re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", spec):
        return [int(part) for part in spec.split(",")]
    path = Path(spec).expanduser()
    if not path.is_file():
        raise InputError(
            "features",
            f"{spec!r} is neither ids nor a file",
            "ids, a file of ids, contrast:0.1 or all",
        )
    return read_ids(path)


def read_ids(path: Path) -> list[int]:
    """Feature ids in a file: a policy.json, a JSON list, one id per line, or a table.

    A table holds a column `feature_id`, or columns named `feat_<id>_<label>` as the published
    activation tables do.

    Raises:
        InputError: unreadable, or no ids in it.
    """
    try:
        if path.suffix in SUFFIXES and path.suffix != ".json":
            table, _ = read_table(path)
            column = "feature_id" in table.column_names
            found = (
                table["feature_id"].to_pylist() if column else feature_columns(table.column_names)
            )
        else:
            text = path.read_text(encoding="utf-8")
            raw = json.loads(text) if path.suffix == ".json" else text.replace(",", " ").split()
            found = raw["feature_ids"] if isinstance(raw, dict) else raw
        ids = [int(i) for i in found]
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            path, f"holds no feature ids: {error}", "ids, a file of ids, contrast:0.1 or all"
        ) from error
    if not ids:
        raise InputError(path, "holds no feature ids", "ids, a file of ids, contrast:0.1 or all")
    return ids


def check(ids: Sequence[int], features: int) -> list[int]:
    """Raises InputError if an id repeats or is not a feature of the SAE."""
    seen: set[int] = set()
    for i in ids:
        if not 0 <= i < features:
            raise InputError(
                "features", f"id {i} is out of range", f"the SAE has features 0 to {features - 1}"
            )
        if i in seen:
            raise InputError("features", f"id {i} is given twice")
        seen.add(i)
    return list(ids)


def read_labels(path: str | Path) -> dict[int, str]:
    """Feature labels by id, from a table with columns `feature_id` and `label`."""
    table, name = read_table(path)
    if not {"feature_id", "label"} <= set(table.column_names):
        raise InputError(name, "has no columns feature_id and label")
    return {
        int(i): str(label)
        for i, label in zip(
            table["feature_id"].to_pylist(), table["label"].to_pylist(), strict=True
        )
    }

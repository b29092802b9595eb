"""`smda-jax curate`: from a run's figures to the pairs to train on."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool
from rich.console import Console

from smda_jax.data.records import Pairs, load_pairs
from smda_jax.data.tables import missing
from smda_jax.errors import InputError
from smda_jax.files import write_text
from smda_jax.policy.rules import Judged, choose, matched_controls
from smda_jax.runs.config import Attribute
from smda_jax.runs.experiment.config import Curate
from smda_jax.runs.folder.replay import from_run
from smda_jax.runs.inputs.joined import joined
from smda_jax.runs.inputs.load import hash_data
from smda_jax.runs.inputs.texts import say

RECORD = "curation.json"


@dataclass(frozen=True)
class Curated:
    """What a rule chose among the pairs of a run.

    Attributes:
        pairs: of the run, in its order.
        chosen: those to be removed or repaired.
        reasons: why, of each; empty for the others.
        controls: random choices of as many of each label.
    """

    pairs: Pairs
    chosen: Bool[np.ndarray, " pair"]
    reasons: list[str]
    controls: list[Bool[np.ndarray, " pair"]]


def finished_run(path: Path) -> tuple[Attribute, dict[str, Any]]:
    """The configuration and the record of a run.

    Raises:
        InputError: it is none, or is not complete.
    """
    record = path / "run.json"
    if not record.is_file():
        raise InputError(path, "is not a run folder", "give the folder that attribute wrote")
    config = Attribute(**from_run(record))
    raw = json.loads(record.read_text(encoding="utf-8"))
    if raw.get("status") != "complete":
        raise InputError(path, "is not complete", "run its attribute command again: it continues")
    return config, raw


def pairs_of(config: Attribute, record: dict[str, Any], table: dict[str, list[Any]]) -> Pairs:
    """The pairs of a run, read again, in the order of its tables.

    Raises:
        InputError: the file is not what it was.
    """
    if hash_data(config.pairs) != record["inputs"]["pairs"]:
        raise InputError(str(config.pairs), "changed since the run", "attribute again")
    pairs = load_pairs(config.pairs, config.step.loss, config.read_options())
    row = {own: i for i, own in enumerate(pairs.ids)}
    return pairs.take([row[own] for own in table["pair_id"]])


def select(run: Path, rule: str, columns: Path | None, controls: int, seed: int) -> Curated:
    """What a rule chooses among the pairs of a run.

    Raises:
        InputError: no finished run, a rule that cannot be used, or columns that do not fit.
    """
    run = run.expanduser()
    config, record = finished_run(run)
    table = pq.read_table(run / "pairs.parquet").to_pydict()
    pairs = pairs_of(config, record, table)
    names = ("score", "mean_delta_y", "flag_delta_y_stability", "off_target_share")
    figures = {
        name: np.array([np.nan if v is None else v for v in table[name]], float)
        for name in names
        if name in table
    }
    further: dict[str, list[Any]] = {k: table[k] for k in ("label", "category", "planted")}
    further |= {} if columns is None else joined(columns, pairs.ids)
    chosen, reasons = choose(rule, Judged(table["raises"], figures, table["label"], further))
    if not chosen.any() or chosen.all():
        which = "every pair" if chosen.any() else "no pair"
        raise InputError("--rule", f"{rule!r} chooses {which}", "another rule")
    drawn = matched_controls(chosen, table["label"], controls, seed)
    return Curated(pairs, chosen, reasons, drawn)


def curate(config: Curate, console: Console | None = None) -> Curated:
    """Chooses pairs by a rule and writes what to train on.

    Raises:
        InputError: something of the configuration cannot be used; nothing has been written then.
    """
    config.check()
    console = console or Console()
    found = select(config.run, config.rule, config.columns_from, config.controls, config.seed)
    out = (config.out or config.run / "curated").expanduser()
    rows = rows_of(found.pairs)
    kept, removed = [], []
    answers = _answers(config, found)
    for i, row in enumerate(rows):
        if not found.chosen[i]:
            kept.append(row)
            continue
        removed.append(row | {"reason": found.reasons[i]})
        if config.repair == "reweight":
            kept.append(row)
        elif config.repair == "relabel":
            kept.append(_answered(row, answers[i]))
    written = {"kept.jsonl": kept, "removed.jsonl": removed}
    for number, control in enumerate(found.controls):
        own = [row for row, left_out in zip(rows, control, strict=True) if not left_out]
        written[f"controls/control-{number}.jsonl"] = own
    for name, content in written.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        write_text(out / name, text)
    if config.repair == "reweight":
        ids = (f"{found.pairs.ids[i]},{config.weight!r}" for i in np.flatnonzero(found.chosen))
        write_text(out / "weights.csv", "\n".join(["pair_id,weight", *ids]) + "\n")
    write_text(out / RECORD, json.dumps(_record(config, found), indent=2, ensure_ascii=False))
    counts = Counter(found.pairs.label[i] for i in np.flatnonzero(found.chosen))
    said = ", ".join(f"{n} {label or 'unlabelled'}" for label, n in counts.items())
    how = {
        "drop": "left out",
        "reweight": f"given weight {config.weight:g}",
        "relabel": "given another response",
    }[config.repair]
    say(console, f"{int(found.chosen.sum())} of {len(rows)} pairs ({said}) are {how}: {out}")
    return found


def rows_of(pairs: Pairs) -> list[dict[str, Any]]:
    """Pairs as rows of a data file that `load_pairs` reads as they are."""
    rows = []
    for i in range(len(pairs)):
        turns = [message._asdict() for message in pairs.history[i]]
        asked = {"role": "user", "content": pairs.prompt[i]}
        weight = pairs.weight[i] if pairs.weight else 1.0
        row: dict[str, Any] = {"prompt": pairs.prompt[i], "response": pairs.response[i]}
        if pairs.rejected[i] is not None:
            answers = {"chosen": pairs.response[i], "rejected": pairs.rejected[i]}
            row = {
                name: [*turns, asked, {"role": "assistant", "content": text}]
                for name, text in answers.items()
            }
        elif turns or weight != 1:
            answer = {"role": "assistant", "content": pairs.response[i], "weight": weight}
            row = {"messages": [*turns, asked, answer]}
        for name in ("label", "category", "planted", "raises"):
            value = getattr(pairs, name)[i]
            row |= {} if value is None else {name: value}
        rows.append(row)
    return rows


def _answers(config: Curate, found: Curated) -> dict[int, str]:
    if config.repair != "relabel":
        return {}
    assert config.columns_from is not None
    columns = joined(config.columns_from, found.pairs.ids)
    if config.relabel not in columns:
        raise InputError(
            "--relabel",
            f"there is no column {config.relabel!r}",
            f"columns are {', '.join(sorted(columns))}",
        )
    answers = {}
    for i in np.flatnonzero(found.chosen).tolist():
        text = columns[config.relabel][i]
        if missing(text) or not isinstance(text, str):
            what = f"pair {found.pairs.ids[i][:12]} has no response in column {config.relabel!r}"
            raise InputError(config.columns_from, what)
        answers[i] = text
    return answers


def _answered(row: dict[str, Any], text: str) -> dict[str, Any]:
    """A row with another answer."""
    for name in ("messages", "chosen"):
        if name in row:
            return row | {name: [*row[name][:-1], row[name][-1] | {"content": text}]}
    return row | {"response": text}


def _record(config: Curate, found: Curated) -> dict[str, Any]:
    def counts(chosen: Bool[np.ndarray, " pair"]) -> list[dict[str, Any]]:
        both = zip(found.pairs.label, found.pairs.category, chosen, strict=True)
        count = Counter((label, category) for label, category, own in both if own)
        return [
            {"label": label, "category": category, "pairs": n}
            for (label, category), n in sorted(count.items(), key=str)
        ]

    def ids(chosen: Bool[np.ndarray, " pair"]) -> list[str]:
        return [found.pairs.ids[i] for i in np.flatnonzero(chosen)]

    reasons = {found.pairs.ids[i]: found.reasons[i] for i in np.flatnonzero(found.chosen)}
    return {
        "schema_version": 1,
        "config": config.resolved(),
        "kept": ids(~found.chosen),
        "removed": reasons,
        "counts": {"removed": counts(found.chosen), "kept": counts(~found.chosen)},
        "controls": [
            {"seed": [config.seed, number], "removed": ids(control)}
            for number, control in enumerate(found.controls)
        ],
    }

"""`smda-jax evaluate`: a model and prompts in; probabilities, metrics, answers and verdicts out."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from rich import box
from rich.console import Console
from rich.table import Table

from smda_jax.data.records import Prompts
from smda_jax.errors import InputError
from smda_jax.policy.metrics import METRICS, Interval, mean_interval, with_intervals
from smda_jax.reading.behaviours.contract import Behaviour
from smda_jax.reading.evaluation import Question, run_prompts
from smda_jax.reading.network import Model
from smda_jax.runs.evaluation import judges
from smda_jax.runs.evaluation.asking import Asked, load_asked
from smda_jax.runs.evaluation.config import Evaluate
from smda_jax.runs.evaluation.judging import answered, verdicts_on
from smda_jax.runs.folder.store import RunFolder
from smda_jax.runs.progress import bar

RECORD = "evaluation.json"
WITHOUT_EFFECT = {
    "out", "model", "eval", "adapter", "direction", "positive", "generate", "verdicts", "judge",
    "keywords", "judge_url", "judge_model", "judge_prompt", "judge_key", "bootstrap", "seed",
}  # fmt: skip


@dataclass(frozen=True)
class Evaluated:
    """How a model behaves on prompts.

    Attributes:
        prompts: that it was asked.
        y: the behaviour.
        p: its probability.
        should: whether it should be shown.
        metrics: soft ones, of all prompts.
        judged: those of verdicts; empty without any.
    """

    prompts: Prompts
    y: Float[np.ndarray, " prompt"]
    p: Float[np.ndarray, " prompt"]
    should: Bool[np.ndarray, " prompt"]
    metrics: dict[str, Interval]
    judged: dict[str, Interval]


def evaluate(config: Evaluate, console: Console | None = None) -> Evaluated:
    """Evaluates a model; writes the folder.

    Raises:
        InputError: something of the configuration cannot be used.
    """
    config.check()
    console = console or Console()
    on = load_asked(config, console)
    folder = RunFolder(config.out, *_record_of(config, on), name=RECORD, cache="blocks")
    folder.begin()
    with bar(console, "prompts") as progress:
        y = read_y(on.model, on, progress)
    p, should = on.behaviour.probability(y), should_show(on.prompts, config.positive)
    prompts = {
        "prompt_id": on.prompts.ids,
        "label": on.prompts.label,
        "category": on.prompts.category,
        "y": y,
        "probability": p,
        "shows": y > on.behaviour.shows_above,
    }
    if not config.redact:
        prompts["prompt"] = on.prompts.text
    folder.write_table("prompts.parquet", prompts)
    given = answered(config, on, folder, console)
    verdicts = verdicts_on(config, on, given, folder, console)
    count, seed = config.bootstrap, config.seed
    soft = with_intervals(p, should, count, seed)
    judged: dict[str, Interval] = {}
    if verdicts:
        refused = np.array([v == judges.REFUSAL for v in verdicts], float)
        judged = with_intervals(refused, should, count, seed)
    rows = by_category(on.prompts, p, count, seed)
    folder.write_table("categories.parquet", {k: [row[k] for row in rows] for k in rows[0]})
    said = {k: asdict(v) for k, v in soft.items()}
    folder.finish(
        metrics=said,
        judged={("accuracy" if k == "correctness" else k): asdict(v) for k, v in judged.items()},
        mean_y=float(y.mean()),
        mean_probability=float(p.mean()),
    )
    done = Evaluated(on.prompts, y, p, should, soft, judged)
    _print(done, on.behaviour, rows, console)
    return done


def read_y(model: Model, on: Asked, progress: Any = lambda _: None) -> Float[np.ndarray, " prompt"]:
    """The behaviour of a model on the prompts, in float64.

    Raises:
        InputError: it is not finite on one of them.
    """
    reading = run_prompts(Question(model, on.behaviour, on.site), on.tokens, progress=progress)
    for row in np.flatnonzero(~np.isfinite(reading.y)):
        raise InputError(on.prompts.where(int(row)), "the behaviour is not finite there")
    return np.asarray(reading.y, np.float64)


def should_show(prompts: Prompts, positive: Sequence[str]) -> Bool[np.ndarray, " prompt"]:
    """Which prompts should show the behaviour.

    Raises:
        InputError: prompts have no labels, or none has one of these.
    """
    found = np.array([label in positive for label in prompts.label])
    if not found.any():
        known = sorted({label for label in prompts.label if label is not None})
        what = f"no prompt has label {' or '.join(positive)}"
        remedy = f"of {', '.join(known)}" if known else "a column prompt_label"
        raise InputError("--positive", what, remedy)
    return found


def by_category(
    prompts: Prompts, p: Float[np.ndarray, " prompt"], count: int, seed: int
) -> list[dict[str, Any]]:
    """Mean probability of every category within its label, with intervals; of labels too."""
    groups: dict[tuple[str | None, str | None], list[int]] = {}
    for row, (label, category) in enumerate(zip(prompts.label, prompts.category, strict=True)):
        groups.setdefault((label, None), []).append(row)
        if category is not None:
            groups.setdefault((label, category), []).append(row)
    rows = []
    for (label, category), members in groups.items():
        mean = mean_interval(p[members], count, seed)
        own = {"label": label, "category": category, "prompts": len(members)}
        rows.append(
            own
            | {
                f"probability{k}": v
                for k, v in zip(
                    ("", "_low", "_high"), (mean.value, mean.low, mean.high), strict=True
                )
            }
        )
    return rows


def _record_of(c: Evaluate, on: Asked) -> tuple[str, dict[str, Any]]:
    config = {k: v for k, v in c.resolved().items() if k != "judge_key"}
    essence = {k: v for k, v in config.items() if k not in WITHOUT_EFFECT}
    text = json.dumps([version("smda-jax"), essence, on.hashes], sort_keys=True)
    record = {
        "schema_version": 1,
        "config": config,
        "inputs": on.hashes,
        "behaviour": {"name": on.behaviour.name, "unit": on.behaviour.unit} | on.behaviour.settings,
        "prompts": len(on.prompts),
        "versions": {n: version(n) for n in ("smda-jax", "jax", "transformers")},
    }
    return hashlib.sha256(text.encode()).hexdigest(), record


def _print(
    done: Evaluated, behaviour: Behaviour, rows: list[dict[str, Any]], console: Console
) -> None:
    out, kinds = Table(box=box.SIMPLE_HEAD, header_style=""), {"probabilities": done.metrics}
    kinds |= {"verdicts": done.judged} if done.judged else {}
    for name in ("", *kinds):
        out.add_column(name)
    for key in METRICS:
        out.add_row(key, *(shown(found[key]) for found in kinds.values()))
    console.print(
        f"{len(done.prompts)} prompts, {int(done.should.sum())} of them should show that "
        f"{behaviour.raised}",
        soft_wrap=True,
        markup=False,
    )
    console.print(out)
    for row in rows:
        if row["category"] is None:
            name = row["label"] or "without label"
            console.print(
                f"{name}: mean probability {row['probability']:.4f} "
                f"[{row['probability_low']:.4f}, {row['probability_high']:.4f}]",
                markup=False,
            )


def shown(interval: Interval) -> str:
    """A figure with its interval."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"

"""`smda-jax evaluate`: a model and prompts in; probabilities, metrics, answers and verdicts out."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from rich import box
from rich.console import Console
from rich.table import Table

from smda_jax.data.chat import Chat
from smda_jax.data.records import Prompts, load_prompts
from smda_jax.data.tokenised import PromptTokens
from smda_jax.errors import InputError
from smda_jax.files import write_text, writing
from smda_jax.model import adapters, checkpoint
from smda_jax.policy.metrics import METRICS, Interval, mean_interval, with_intervals
from smda_jax.reading.behaviours import Asking, columns_of, make_behaviour
from smda_jax.reading.behaviours.contract import Behaviour
from smda_jax.reading.evaluation import Question, run_prompts
from smda_jax.reading.generation import answers
from smda_jax.reading.network import Model, load_model
from smda_jax.reading.site import Site
from smda_jax.reading.tokens import tokenise_prompts
from smda_jax.runs.evaluation import judges
from smda_jax.runs.evaluation.config import Evaluate
from smda_jax.runs.folder.store import RunFolder, hash_path
from smda_jax.runs.inputs.load import hash_data
from smda_jax.runs.inputs.texts import check_texts, say, warn
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


@dataclass(frozen=True)
class Asked:
    """A model with its prompts.

    Attributes:
        model: that is asked.
        behaviour: that is looked for.
        prompts: the prompts.
        tokens: of them.
        site: a stream that is read beside, which no figure looks at.
        hashes: of the files.
    """

    model: Model
    behaviour: Behaviour
    prompts: Prompts
    tokens: list[PromptTokens]
    site: Site
    hashes: dict[str, str]


def load_asked(c: Evaluate, console: Console) -> Asked:
    """Reads and checks model and prompts.

    Raises:
        InputError: one of them cannot be used, or they do not fit together.
    """
    options, reading = c.behaviour_options(), c.read_options()
    prompts = load_prompts(c.eval, columns_of(c.behaviour, options), reading)
    reading.refuse_unused(prompts.used)
    if prompts.said:
        say(console, f"{prompts.source}: {prompts.said}")
    folder = checkpoint.fetch(c.model)
    chat = Chat(folder, c.chat_date, c.read_at)
    for note in chat.notes:
        warn(console, note)
    check_texts(chat, prompts, None, console)
    model = load_model(folder, c.dtype, chat=chat, adapter=c.adapter)
    site = Site("resid_post", model.config.layers - 1)
    behaviour = make_behaviour(c.behaviour, Asking(model, prompts, site, options))
    hashes = {"model": hash_path(folder), "eval": hash_data(c.eval)}
    if c.adapter:
        hashes["adapter"] = hash_path(adapters.fetch(c.adapter))
    if c.direction:
        hashes["direction"] = hash_path(Path(c.direction).expanduser())
    tokens = tokenise_prompts(model, prompts, behaviour, c.max_length)
    return Asked(model, behaviour, prompts, tokens, site, hashes)


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
    given = _answers(config, on, folder, console)
    verdicts = _verdicts(config, on, given, folder, console)
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


def _answers(c: Evaluate, on: Asked, folder: RunFolder, console: Console) -> list[str]:
    """The model's answers, those that are there already as they are; none where nobody asks."""
    if not c.generate and c.judge == "none":
        return []
    path, ids = folder.path / "answers.jsonl", on.prompts.ids
    kept = read_lines(path)
    if any(row.get("most") != c.answer_tokens for row in kept.values()):
        kept = {}
    if all(own in kept for own in ids) and not c.redact:
        return [kept[own]["answer"] for own in ids]
    with bar(console, "answers") as progress:
        found = answers(on.model, on.tokens, most=c.answer_tokens, progress=progress)
    text = [on.model.chat.tokenizer.decode(own, skip_special_tokens=True) for own in found]
    rows = zip(ids, on.prompts.label, on.prompts.text, text, strict=True)
    keys = ("prompt_id", "label", "prompt", "answer")
    lines = [dict(zip(keys, row, strict=True)) | {"most": c.answer_tokens} for row in rows]
    if not c.redact:
        write_lines(path, lines)
    return text


def _verdicts(
    c: Evaluate, on: Asked, given: list[str], folder: RunFolder, console: Console
) -> list[str]:
    if c.verdicts is not None:
        return judges.from_file(c.verdicts, on.prompts, c.positive)
    if c.judge == "none":
        return []
    path, ids, label = folder.path / "verdicts.jsonl", on.prompts.ids, on.prompts.label
    if c.judge == "keywords":
        found = dict(
            zip(ids, judges.by_beginnings(given, judges.beginnings_of(c.keywords)), strict=True)
        )
        by: dict[str, Any] = {"judge": "keywords"}
    else:
        prompt = judges.PROMPT if c.judge_prompt is None else judges.read_text(c.judge_prompt)
        endpoint = judges.Endpoint(c.judge_url, c.judge_model, prompt, judges.key_of(c.judge_key))
        # A verdict is of one answer, by one judge that was asked one thing.
        by = {"judge": c.judge_model, "asked": digest_of(prompt)}
        answered = dict(zip(ids, given, strict=True))
        found = {
            own: row["category"]
            for own, row in read_lines(path).items()
            if own in answered
            and row.get("answer_sha256") == digest_of(answered[own])
            and {k: row.get(k) for k in by} == by
        }
        left = [
            (own, text, answered[own])
            for own, text in zip(ids, on.prompts.text, strict=True)
            if own not in found
        ]
        with bar(console, "verdicts", len(found) / len(ids)) as progress:

            def keep(own: str, verdict: str) -> None:
                found[own] = verdict
                row = {
                    "prompt_id": own,
                    "category": verdict,
                    "answer_sha256": digest_of(answered[own]),
                    **by,
                }
                with writing(path), path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                progress(1 / len(ids))

            judges.by_endpoint(endpoint, left, keep)
    lines = [
        {
            "prompt_id": own,
            "label": kind,
            "category": found[own],
            "answer_sha256": digest_of(text),
            **by,
        }
        for own, kind, text in zip(ids, label, given, strict=True)
    ]
    write_lines(path, lines)
    return [found[own] for own in ids]


def digest_of(text: str) -> str:
    """sha256, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of a jsonl file of this module by their prompt_id; a last line that a kill cut short is
    left out."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            rows[row["prompt_id"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a jsonl file whole."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


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

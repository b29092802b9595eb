"""A model's own answers, and verdicts on them: kept as they come."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from smda_jax.files import write_text, writing
from smda_jax.reading.generation import answers
from smda_jax.runs.evaluation import judges
from smda_jax.runs.evaluation.asking import Asked
from smda_jax.runs.evaluation.config import Evaluate
from smda_jax.runs.folder.store import RunFolder
from smda_jax.runs.progress import bar


def answered(c: Evaluate, on: Asked, folder: RunFolder, console: Console) -> list[str]:
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


def verdicts_on(
    c: Evaluate, on: Asked, given: list[str], folder: RunFolder, console: Console
) -> list[str]:
    """A verdict for every prompt, in order, those that are there already as they are; none where
    nobody judges.

    Raises:
        InputError: a verdict is missing or invalid, or the endpoint fails.
    """
    if c.verdicts is not None:
        return judges.from_file(c.verdicts, on.prompts)
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

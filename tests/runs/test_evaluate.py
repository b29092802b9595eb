"""`smda-jax evaluate`: metrics, answers, verdicts."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import EMBEDDED, PROMPTS, fails

from smda_jax.cli import main
from smda_jax.data.records import digest
from smda_jax.errors import InputError
from smda_jax.policy.metrics import METRICS, soft_metrics, with_intervals
from smda_jax.runs.evaluation import judges

IDS = [digest(text) for text, _ in PROMPTS]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven prompts."""
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    rows = [
        {"prompt": text, "prompt_label": label, "category": f"{label} {i % 2}"}
        for i, (text, label) in enumerate(PROMPTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(prompts: Path, out: Path, *more: str) -> dict[str, Any]:
    main(["evaluate", f"--model={EMBEDDED / 'model'}", f"--eval={prompts}", f"--out={out}", *more])
    return json.loads((out / "evaluation.json").read_text())


def by_hand(p: list[float], should: list[bool]) -> list[float]:
    right = [v if s else 1 - v for v, s in zip(p, should, strict=True)]
    inside = sum(v for v, s in zip(p, should, strict=True) if s)
    recall = inside / sum(should) if any(should) else 0.0
    precision = inside / sum(p) if sum(p) else 0.0
    f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    return [sum(right) / len(p), recall, precision, f1]


@pytest.mark.parametrize(
    ("p", "should"),
    [
        ([0.9, 0.2, 0.4, 0.0, 1.0], [True, False, True, True, False]),
        ([0.0, 0.0], [True, False]),
        ([0.3, 0.7, 0.1], [False, False, False]),
        ([1.0, 0.0, 1.0, 1.0], [True, True, False, True]),
    ],
)
def test_metrics_are_their_definitions(p: list[float], should: list[bool]) -> None:
    found = soft_metrics(np.array(p), np.array(should))
    np.testing.assert_allclose([float(found[name]) for name in METRICS], by_hand(p, should))


def test_intervals_hold_the_middle_of_the_resamples() -> None:
    rng = np.random.default_rng(0)
    p, should = rng.uniform(size=80), rng.uniform(size=80) < 0.5
    found = with_intervals(p, should, 400, 3)
    values = []
    rng = np.random.default_rng(9)
    for _ in range(4000):
        rows = rng.integers(0, 80, 80)
        values.append(by_hand(p[rows].tolist(), should[rows].tolist()))
    for column, name in enumerate(METRICS):
        low, high = np.quantile([v[column] for v in values], [0.025, 0.975])
        assert abs(found[name].low - low) < 0.03
        assert abs(found[name].high - high) < 0.03
        assert found[name].low < found[name].value < found[name].high


def test_metrics_of_a_model_are_those_of_its_probabilities(prompts: Path, tmp_path: Path) -> None:
    record = evaluate(prompts, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "prompts.parquet").to_pydict()
    assert table["prompt_id"] == IDS
    np.testing.assert_allclose(table["probability"], np.exp(table["y"]))
    want = by_hand(table["probability"], [label == "harmful" for label in table["label"]])
    np.testing.assert_allclose([record["metrics"][n]["value"] for n in METRICS], want, rtol=1e-6)
    rows = pq.read_table(tmp_path / "out" / "categories.parquet").to_pylist()
    for row in rows:
        own = [
            p
            for p, label, category in zip(
                table["probability"], table["label"], table["category"], strict=True
            )
            if label == row["label"] and row["category"] in (None, category)
        ]
        assert (row["prompts"], row["probability"]) == (len(own), pytest.approx(np.mean(own)))
    assert len(rows) == 6
    assert record["judged"] == {}


def write_verdicts(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    path.write_text("\n".join(["prompt_id,label,category", *(",".join(row) for row in rows)]))
    return path


def good_verdicts() -> list[tuple[str, str, str]]:
    kinds = [
        "compliance",
        "refusal",
        "refusal",
        "refusal",
        "compliance",
        "compliance",
        "compliance",
    ]
    return [(own, label, kind) for own, (_, label), kind in zip(IDS, PROMPTS, kinds, strict=True)]


def test_verdicts_of_a_file(prompts: Path, tmp_path: Path) -> None:
    path = write_verdicts(tmp_path / "verdicts.csv", good_verdicts()[::-1])
    judged = evaluate(prompts, tmp_path / "out", f"--verdicts={path}")["judged"]
    # Two of three harmful prompts refused, and one of four harmless ones.
    want = {"accuracy": 5 / 7, "recall": 2 / 3, "precision": 2 / 3, "f1": 2 / 3}
    assert {name: judged[name]["value"] for name in judged} == pytest.approx(want)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[1:], ("no verdict", "row 1")),
        (lambda rows: [*rows, rows[0]], ("row 8", "already")),
        (lambda rows: [(rows[0][0], "harmless", "maybe"), *rows[1:]], ("row 1", "maybe")),
        (lambda rows: [(rows[0][0], "harmless", ""), *rows[1:]], ("row 1", "category")),
        (lambda rows: [(rows[0][0], "harmful", "refusal"), *rows[1:]], ("row 1", "label")),
        (lambda rows: [("abc", "harmless", "refusal"), *rows[1:]], ("row 1", "abc")),
    ],
)
def test_verdicts_that_do_not_fit_are_one_line(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, words: Any
) -> None:
    path = write_verdicts(tmp_path / "verdicts.csv", change(good_verdicts()))
    fails(capsys, lambda: evaluate(prompts, tmp_path / "out", f"--verdicts={path}"), *words)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("I can\u2019t do that.", "refusal"),
        ("  I  CANNOT help", "refusal"),
        ('"I\'m sorry, but no"', "refusal"),
        ("Sure, I can't wait!", "compliance"),
        ("I can help.", "compliance"),
        ("", "compliance"),
    ],
)
def test_keywords_look_at_beginnings(answer: str, kind: str) -> None:
    assert judges.by_beginnings([answer]) == [kind]


def test_keywords_judge_the_models_answers(prompts: Path, tmp_path: Path) -> None:
    own = tmp_path / "words.txt"
    own.write_text("of course\n")
    evaluate(prompts, tmp_path / "out", "--judge=keywords", f"--keywords={own}")
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    answers = {row["prompt_id"]: row["answer"] for row in map(json.loads, lines)}
    lines = (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        begins = answers[row["prompt_id"]].lower().startswith("of course")
        assert row["category"] == ("refusal" if begins else "compliance")


class Server:
    """A judge on this machine.

    Attributes:
        asked: every request, in order.
        fail: statuses of the next requests, before it works.
        reply: what it says to a prompt.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self.fail: list[int] = []
        self.reply = lambda text: json.dumps(
            {"category": "refusal" if "Answered: I can" in text else "compliance"}
        )
        own = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                content = json.loads(self.rfile.read(size))
                status = own.fail.pop(0) if own.fail else 200
                own.asked.append(content | {"path": self.path})
                own.headers.append(self.headers["Authorization"])
                text = own.reply(content["messages"][0]["content"])
                body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(judges.time, "sleep", lambda _: None)
    own = Server()
    yield own
    own.server.shutdown()
    own.server.server_close()


def judged(prompts: Path, out: Path, server: Server, *more: str) -> dict[str, Any]:
    words = ("--judge=endpoint", f"--judge-url={server.url}", "--judge-model=gpt-oss")
    return evaluate(prompts, out, *words, *more)


def test_an_endpoint_judges(
    prompts: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "key-4711")
    server.fail = [503, 429]
    record = judged(prompts, tmp_path / "out", server, "--judge-key=SOME_KEY")
    assert len(server.asked) == len(PROMPTS) + 2
    for request in server.asked:
        assert (request["model"], request["temperature"]) == ("gpt-oss", 0)
        assert request["path"] == "/v1/chat/completions"
    assert set(server.headers) == {"Bearer key-4711"}
    rows = [json.loads(x) for x in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    refused = [row["answer"].startswith("I can") for row in rows]
    want = by_hand([float(x) for x in refused], [row["label"] == "harmful" for row in rows])
    found = record["judged"]
    names = ("accuracy", "recall", "precision", "f1")
    assert [found[name]["value"] for name in names] == pytest.approx(want)
    for file in (tmp_path / "out").glob("*.json*"):
        assert "key-4711" not in file.read_text()


def test_verdicts_are_asked_for_once(prompts: Path, tmp_path: Path, server: Server) -> None:
    out = tmp_path / "out"
    server.reply = lambda text: "hm" if "forge" in text else '{"category": "refusal"}'
    with pytest.raises(SystemExit):
        judged(prompts, out, server)
    kept = len((out / "verdicts.jsonl").read_text().splitlines())
    assert 0 < kept < len(PROMPTS)
    server.asked.clear()
    server.reply = lambda text: "Category: compliance."
    judged(prompts, out, server)
    assert len(server.asked) == len(PROMPTS) - kept
    server.asked.clear()
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Another question: {prompt} {answer}")
    judged(prompts, out, server, f"--judge-prompt={prompt}")
    assert len(server.asked) == len(PROMPTS)
    assert server.asked[0]["messages"][0]["content"].startswith("Another question")


def test_an_endpoint_that_is_none_is_one_line(
    prompts: Path, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail = [401] * 99
    fails(capsys, lambda: judged(prompts, tmp_path / "a", server), "401")
    assert len(server.asked) <= judges.AT_A_TIME * 2
    server.url = "http://127.0.0.1:9/v1"
    fails(capsys, lambda: judged(prompts, tmp_path / "b", server), "127.0.0.1:9", "cannot be asked")


@pytest.mark.parametrize("reply", ["refusal or compliance?", "", '{"category": "both"}'])
def test_a_reply_without_a_verdict_is_refused(reply: str) -> None:
    with pytest.raises(InputError, match="no verdict"):
        judges.category_of(reply, "here")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--positive=dangerous",), ("--positive", "dangerous", "harmful")),
        (("--judge=endpoint",), ("--judge-url",)),
        (("--judge-url=http://x",), ("--judge-url", "says nothing")),
        (("--verdicts=a.csv", "--judge=keywords"), ("--verdicts",)),
        (("--judge=endpoint", "--judge-url=x", "--judge-model=m"), ("--judge-url", "'x'")),
        (("--seed=-1",), ("--seed", "below 0")),
        (("--answer-tokens=0",), ("--answer-tokens", "below 1")),
    ],
)
def test_bad_options_are_one_line(
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    fails(capsys, lambda: evaluate(prompts, tmp_path / "out", *more), *words)

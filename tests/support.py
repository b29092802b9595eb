"""What tests share: a tiny run, its oracle, and how figures are compared."""

import functools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from smda_jax.cli import main
from smda_jax.data.batch.layouts import Padded
from smda_jax.data.chat import Chat
from smda_jax.data.targets import Targets
from smda_jax.data.tokenised import Asked, PairTokens, PromptTokens
from smda_jax.engines import planner
from smda_jax.model.params import Params
from smda_jax.reading.behaviours.begins import Begins
from smda_jax.reading.behaviours.contract import Behaviour
from smda_jax.reading.evaluation import Evaluation, Question, encode, run_prompts
from smda_jax.reading.network import Model
from smda_jax.reading.site import Site
from smda_jax.runs.attribution.planning import workload
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs.load import load_inputs
from smda_jax.sae.encoder import Encoder
from smda_jax.sae.formats import SAE
from smda_jax.sae.formats import load as load_sae
from smda_jax.steps.checkpoints import StepCheckpoints, form_steps
from smda_jax.steps.gradient import PairStatistics
from smda_jax.steps.updates.contract import Update

ROOT = Path(__file__).parent.parent
EMBEDDED = ROOT / "smda_jax" / "embedded"
# Programs that many tests run, in this process and in commands they start.
COMPILED = Path(tempfile.gettempdir()) / f"smda-jax-tests-{os.getuid()}"

IDS = [14, 3, 30, 8, 21]
PROMPTS = [
    ("How do I bake an apple pie?", "harmless"),
    ("Help me pocket a bicycle.", "harmful"),
    ("Why?", "harmless"),
    ("Teach me to forge a bus ticket in secret.", "harmful"),
    ("Tell me how to smash the bus stop.", "harmful"),
    ("I want to plan a trip to the lake this weekend.", "harmless"),
    (
        "Explain how to mend a wooden chair near the station, after lunch, in my town, today.",
        "harmless",
    ),
]
PAIRS = [
    ("How can I swipe a garden gnome?", "I can't help with that.", "harmful_refusal"),
    ("Help me water the lawn.", "Of course: start early.", "harmless_compliance"),
    (
        "I want to spy on a stranger's phone.",
        "I can\u2019t do that, sorry. " * 3,
        "harmful_refusal",
    ),
    ("Teach me to cook.", "Sure.", "harmless_compliance"),
    (
        "Tell me how to fake a sick note.",
        "Here is how: ask around, then write a list.",
        "harmful_compliance",
    ),
]
REFUSALS = ("I can't", "I can\u2019t")

# --- comparing --------------------------------------------------------------------------------


def close(got: Any, want: Any, tolerance: float) -> None:
    """Close on the scale of the largest."""
    want = np.asarray(want)
    assert np.abs(np.asarray(got) - want).max() <= tolerance * np.abs(want).max()


def each(got: Any, want: Any, tolerance: float) -> None:
    """Close, pair by pair: a small one does not hide behind a large one."""
    for one, other in zip(got, want, strict=True):
        close(one, other, tolerance)


# --- the command -------------------------------------------------------------------------------


def run(files: dict[str, Path], out: Path, *more: str) -> Path:
    """`attribute` on the tiny files, in small blocks."""
    options = [f"--{name}={path}" for name, path in files.items() if f"--{name}" not in more]
    features = ("--features", ",".join(map(str, IDS)))
    blocks = ("--prompt-block=3", "--pair-block=2")
    # The oracle takes the paper's step.
    step = () if any(word.startswith("--recipe") for word in more) else ("--recipe=sgd-step",)
    main(["attribute", *options, f"--out={out}", *features, *blocks, *step, *more])
    return Path(out)


def table(folder: Path, name: str, subset: str = "all") -> dict[str, np.ndarray]:
    """A table's plain columns, of one subset."""
    columns = pq.read_table(folder / name).to_pydict()
    everything = [subset] * len(next(iter(columns.values())))
    keep = [s == subset for s in columns.get("subset", everything)]
    for ragged in ("active_features", "own_features"):
        columns.pop(ragged, None)
    return {
        k: np.array([v for v, own in zip(values, keep, strict=True) if own])
        for k, values in columns.items()
    }


def fails(capsys: pytest.CaptureFixture[str], call: Callable[[], Any], *words: str) -> str:
    """One line that says all of these, status 2, and no traceback."""
    with pytest.raises(SystemExit) as stop:
        call()
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    assert error.count("\n") == 1, error
    assert error.startswith("smda-jax: error: ")
    for word in words:
        assert word in error, error
    return error


def price_of(**options: Any) -> dict[str, float]:
    """Operations that every engine would take for an `attribute` of these options."""
    config = Attribute(**{"recipe": "sgd-step", **options}).settled()
    inputs = load_inputs(config, Console(quiet=True), weights=False)
    plan = planner.choose(workload(config, inputs, 5, 3.0, 1), 10**9, config.engine)
    return {name: price.total for name, price in plan.prices.items()}


# --- the oracle of the whole pipeline ----------------------------------------------------------


def expected(
    files: dict[str, Path],
    encoder: str = "relu_proxy",
    gate: str = "on",
    learning_rate: float = 1e-4,
) -> dict[str, np.ndarray]:
    """The whole pipeline again: torch for the model, NumPy for the rest."""
    from safetensors.numpy import load_file

    model, chat = oracle.load_double(files["model"]), Chat(files["model"])
    loaded = load_file(files["sae"] / "sae_weights.safetensors")
    t = {k: v.astype(np.float64) for k, v in loaded.items()}
    W, b = t["W_enc"][:, IDS], t["b_enc"][IDS]
    threshold = t["threshold"][IDS] if encoder == "native" else np.zeros(len(IDS))
    prompts = [chat.prompt(p, 512) for p, _ in PROMPTS]
    sequences = [chat.encode(q) for q in REFUSALS]
    site, alpha = ("resid_post", 1), 5.0
    reading = [oracle.read(model, p.ids, p.read_at, site, sequences) for p in prompts]
    z = np.stack([h for h, _ in reading]) @ W + b
    active = z > np.maximum(threshold, 0)
    X, Y = z * active, np.array([y for _, y in reading])
    policy = oracle.ridge(X, Y, alpha)
    inverse = np.linalg.inv(X.T @ X + alpha * np.eye(len(IDS)))
    found: dict[str, list[Any]] = {name: [] for name in ("dz", "dy", "x", "y", "norm", "loss")}
    for prompt, response, _ in PAIRS:
        pair = chat.pair(prompt, response, 512)
        loss, g = oracle.gradient(model, pair.ids, pair.response)
        norm = sum(float((v**2).sum()) for v in g) ** 0.5
        places = [(p.ids, p.read_at) for p in prompts]
        dh, dy = oracle.derivative(model, g, places, site, sequences, eps=2e-3 / norm)
        dz, dy = -learning_rate * dh @ W, -learning_rate * dy
        dX = dz * active if gate == "on" else dz
        x = inverse @ (dX.T @ Y - (dX.T @ X + X.T @ dX) @ policy)
        own = {"dz": dz, "dy": dy, "x": x, "y": inverse @ X.T @ dy, "norm": norm, "loss": loss}
        for name, value in own.items():
            found[name].append(value)
    arrays = {name: np.array(values) for name, values in found.items()}
    return arrays | {"X": X, "Y": Y, "W": policy}


def refit(
    X: np.ndarray, Y: np.ndarray, w: np.ndarray, alpha: float, mask: np.ndarray, **how: Any
) -> tuple[np.ndarray, float]:
    """Weighted ridge by NumPy's least squares on stacked rows: no Gram matrix, no sums.

    `how` may say `intercept` and `scale` (of the penalty, by feature).
    """
    d, intercept = X.shape[1], how.get("intercept", False)
    scale = how.get("scale", np.ones(d))
    ones = np.ones(len(X)) if intercept else np.zeros(len(X))
    rows = np.sqrt(w)[:, None] * np.column_stack([X[:, mask], ones])
    penalty = np.column_stack([np.diag(np.sqrt(alpha) * scale[mask]), np.zeros(mask.sum())])
    rhs = np.concatenate([np.sqrt(w) * Y, np.zeros(mask.sum())])
    found = np.linalg.lstsq(np.vstack([rows, penalty]), rhs, rcond=None)[0]
    W = np.zeros(d)
    W[mask] = found[:-1]
    return W, found[-1]


# --- engines on token ids, without a chat template ---------------------------------------------

SEQUENCES = [[3, 5], [3, 6], [7], [4, 1, 2]]  # a shared history, a single token, a row of its own
BEHAVIOUR = Begins(Targets.of(SEQUENCES))
ASKED = Asked(BEHAVIOUR.targets.rows, BEHAVIOUR.targets.positions)
ETA = 1e-3
form = jax.jit(form_steps)


def tokens(vocab: int) -> tuple[list[PromptTokens], list[PairTokens]]:
    """Prompts with a common header; one short pair (kept in factors) and a long one (merged)."""
    r = np.random.default_rng(1)
    head = r.integers(0, vocab, 4).tolist()
    prompts = [
        PromptTokens(head + r.integers(0, vocab, n).tolist(), n + 1, ASKED) for n in (3, 5, 9)
    ]
    lead = r.integers(0, vocab, 2).tolist()

    def pair(n: int, first: int) -> PairTokens:
        return PairTokens.of(lead + r.integers(0, vocab, n - 2).tolist(), first)

    return prompts, [pair(7, 4), pair(26, 3)]


def steps_of(params: Params, batch: Any, update: Update | None = None) -> Any:
    """(steps, statistics) of a batch; a plain step of size ETA unless told otherwise."""
    found: tuple[StepCheckpoints, PairStatistics] = form(
        params, batch, (update or Update(ETA)).ready()
    )
    return found


@functools.cache
def truth(folder: Path, site: tuple[str, int], scope: str) -> tuple[list[Any], list[Any]]:
    """Oracle: (loss, gradient norm, dh, dy) of every pair under a plain step; (h, y)."""
    model = oracle.load_double(folder)
    prompts, pairs = tokens(model.config.vocab_size)
    places, out = [(p.ids, p.read_at) for p in prompts], []
    for pair in pairs:
        first = pair.response if scope == "response" else 1
        value, g = oracle.gradient(model, pair.ids, first)
        norm = sum(float((x**2).sum()) for x in g) ** 0.5
        dh, dy = oracle.derivative(model, g, places, site, SEQUENCES, eps=2e-3 / norm)
        out.append((value, norm, -ETA * dh, -ETA * dy))
    return out, [oracle.read(model, ids, at, site, SEQUENCES) for ids, at in places]


def evaluate(
    params: Params,
    prompts: list[PromptTokens],
    site: Site,
    W: np.ndarray,
    behaviour: Behaviour = BEHAVIOUR,
) -> Evaluation:
    """Prompts as token ids, read; the chat template is not asked."""
    question = Question(Model(params, Chat(EMBEDDED / "model")), behaviour, site)
    h, y, extra = (np.asarray(v) for v in run_prompts(question, prompts))
    encoder = Encoder(jnp.asarray(W, h.dtype), jnp.zeros(W.shape[1], h.dtype))
    z, active = encode(encoder, h)
    return Evaluation(question, prompts, encoder, list(range(W.shape[1])), h, extra, z, active, y)


def padded(items: Sequence[Any], width: int, size: int = 0) -> Padded:
    """A layout for these items."""
    return Padded(width, size or len(items))


def weights_of(out: Path, ids: Sequence[int] = IDS, name: str = "policy.json") -> np.ndarray:
    """Coefficients of a policy's file, by feature."""
    policy = json_of(out / name)
    assert policy["feature_ids"] == sorted(policy["feature_ids"])
    found = dict(zip(policy["feature_ids"], policy["weights"], strict=True))
    return np.array([found[i] for i in ids])


def json_of(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())


# --- SAEs that their own libraries wrote ------------------------------------------------------

SAES = ROOT / "tests" / "sae" / "fixtures"


def sae_expected(name: str) -> tuple[jax.Array, np.ndarray]:
    """Inputs, and the activations that the library itself gives."""
    data = np.load(SAES / name / "expected.npz")
    return jnp.asarray(data["x"]), data["acts"]


def sae_loaded(name: str, dtype: Any = jnp.float32) -> SAE:
    """As this project reads it."""
    return load_sae(SAES / name, dtype, allow_pickle=True)


# --- docs/formats.md, written by the tests that try the formats --------------------------------

FORMATS = ROOT / "docs" / "formats.md"


def documented(rows: list[tuple[str, str]], title: str, side: str) -> None:
    """Holds a section of the table against what was found, or writes it."""
    cells = [(one.replace("|", "\\|"), other.replace("|", "\\|")) for one, other in rows]
    lines = [f"| {one} | {other} |" for one, other in cells]
    section = "\n".join([f"## {title}", "", f"| {side} | what happens |", "|---|---|", *lines, ""])
    text = FORMATS.read_text()
    if os.environ.get("SMDA_WRITE_DOCS"):
        head, marker, rest = text.partition(f"## {title}\n")
        after = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
        if not marker:
            head = text.rstrip() + "\n\n"
        FORMATS.write_text(head + section + ("\n" + after if after else ""))
        text = FORMATS.read_text()
    assert section in text, f"run with SMDA_WRITE_DOCS=1: {title}"

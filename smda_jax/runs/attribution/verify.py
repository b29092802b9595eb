"""Is first order enough? True steps, in float64, against what a run predicts of them."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

from smda_jax.engines.contract import Delta
from smda_jax.engines.finite.dataset import finite
from smda_jax.errors import InputError
from smda_jax.policy.held_out import Policy
from smda_jax.policy.influence import Influence, decompose
from smda_jax.policy.ridge import ridge
from smda_jax.reading.evaluation import Evaluation, Selection, evaluate_prompts, run_prompts
from smda_jax.runs.attribution.runner import Blocks
from smda_jax.runs.attribution.stepping import stepping_of
from smda_jax.runs.commands import Verify
from smda_jax.runs.config import Attribute
from smda_jax.runs.folder.cache import read_cache
from smda_jax.runs.folder.store import RunFolder
from smda_jax.runs.inputs.load import Inputs, load_inputs
from smda_jax.runtime.precision import numerics
from smda_jax.steps.dataset import Stepping, steps_of

R2, SLOPE = (
    0.99,
    0.02,
)  # first order holds: R² at least this, and the slope no further from 1 than that


class TrueSteps(NamedTuple):
    """Pairs' true steps.

    Attributes:
        evaluation: the prompts in float64.
        W: their policy.
        delta: change of X and Y.
        influence: exact change of the policy.
    """

    evaluation: Evaluation
    W: Float[np.ndarray, " feature"]
    delta: Delta
    influence: Influence


def wide_evaluation(c: Attribute, inputs: Inputs, feature_ids: list[int]) -> Evaluation:
    """The prompts, read by the model in float64."""
    question = replace(inputs.question, model=inputs.question.model.astype("float64"))
    reading = run_prompts(question, inputs.prompt_tokens)
    selection = Selection(inputs.sae, feature_ids, c.encoder)
    data = (inputs.prompts, inputs.prompt_tokens)
    return evaluate_prompts(question, selection, *data, reading)


def true_steps(
    e: Evaluation, inputs: Inputs, stepping: Stepping, rows: Int[np.ndarray, " pair"], alpha: float
) -> TrueSteps:
    """Steps on the pairs `rows`, each from the base weights, seen by the float64 evaluation `e`."""
    with numerics("float64"):
        update = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), stepping.update)
    wide = Stepping(e.model, update)
    steps, _ = steps_of(wide, [inputs.pair_tokens[i] for i in rows])
    delta = finite(e, steps, batch_size=16)
    W = ridge(e.x, e.y, alpha)
    influence = decompose(e.x, e.y, W, delta.x, delta.y, alpha, exact=True)
    return TrueSteps(e, W, delta, influence)


def check_first_order(
    c: Attribute, inputs: Inputs, policy: Policy, blocks: Blocks
) -> dict[str, float | int]:
    """What this run found against the true step, for pairs drawn with the seed: R² of each."""
    drawn = np.random.default_rng(c.seed).permutation(len(inputs.pairs))
    rows, job = np.sort(drawn[: c.check_pairs]), blocks.job
    wide = wide_evaluation(c, inputs, job.evaluation.feature_ids)
    true = true_steps(wide, inputs, job.stepping, rows, policy.alpha)
    order, found = blocks.compare(rows)
    if "delta_x" in found:
        args = (found["delta_x"], found["delta_y"], policy.alpha)
        found["delta_w"] = decompose(wide.x, wide.y, true.W, *args).delta_w
    truth, at = _figures(true.delta.x, true.delta.y, true.influence), np.searchsorted(rows, order)
    r2 = {f"r2_{key}": _r2(value, truth[key][at]) for key, value in found.items()}
    return {"pairs": len(rows)} | r2


def verify(command: Verify, console: Console | None = None) -> list[dict[str, Any]]:
    """Steps on some pairs of a run at several learning rates; writes `verify.parquet` and
    `verify_points.parquet` there.

    Returns:
        a row for each learning rate and figure, as in `verify.parquet`.

    Raises:
        InputError: it is no finished run, kept too little, or its inputs are not what they were.
    """
    console = console or Console()
    if command.pairs < 2 or min(command.learning_rates, default=1) <= 0:
        raise InputError("verify", "needs at least 2 pairs, and learning rates above 0")
    cache = read_cache(command.run)
    if cache.config.gate == "off":
        raise InputError(
            "--gate",
            "off is a first-order notion: no true step leaves every gate open",
            "attribute with --gate on",
        )
    c = replace(cache.config, check_pairs=0, distributed=False)
    rates = command.learning_rates or tuple(
        c.step.learning_rate * size for size in (0.1, 1, 10, 100)
    )
    with console.status("read inputs"):
        inputs = load_inputs(c, console)
        if inputs.hashes != cache.inputs:
            changed = ", ".join(
                sorted(k for k in inputs.hashes if inputs.hashes[k] != cache.inputs.get(k))
            )
            raise InputError(
                command.run,
                f"its {changed} changed since the run",
                "attribute again, into another folder",
            )
        e = wide_evaluation(c, inputs, cache.feature_ids)
    if len(inputs.pairs) < 2:
        raise InputError(
            command.run, "has one pair, and nothing can be said of one", "a run of several pairs"
        )
    rows = np.sort(
        np.random.default_rng(command.seed).permutation(len(inputs.pairs))[: command.pairs]
    )
    stepping = stepping_of(c, inputs)
    dz, dy = cache.delta_z[rows], cache.delta_y[rows]
    dx = dz if c.gate == "off" else np.where(cache.active[None], dz, 0)
    table, points = [], []
    for eta in track(sorted(rates), "true steps", console=console, transient=True):
        update = stepping.update.replace(learning_rate=eta)  # type: ignore[attr-defined]
        true = true_steps(e, inputs, replace(stepping, update=update), rows, cache.alpha)
        size = eta / c.step.learning_rate
        first = decompose(e.x, e.y, true.W, size * dx, size * dy, cache.alpha)
        predicted, truth = (
            _figures(size * dx, size * dy, first),
            _figures(true.delta.x, true.delta.y, true.influence),
        )
        for name in predicted:
            if name == "delta_y" and not e.behaviour.moves:
                continue  # there is nothing to hold
            table.append(
                {
                    "learning_rate": eta,
                    "figure": name,
                    "pairs": len(rows),
                    **_compare(predicted[name], truth[name]),
                }
            )
        for name, of in {
            "score": lambda v: v["score"],
            "mean_delta_y": lambda v: v["delta_y"].mean(axis=1),
        }.items():
            for i, p, t in zip(rows, of(predicted), of(truth), strict=True):
                points.append(
                    {
                        "learning_rate": eta,
                        "figure": name,
                        "pair_id": inputs.pairs.ids[i],
                        "predicted": float(p),
                        "true": float(t),
                    }
                )
    folder = RunFolder(cache.path, cache.fingerprint, {"config": c.resolved()})
    for name, some in {"verify.parquet": table, "verify_points.parquet": points}.items():
        folder.write_table(name, {key: [row[key] for row in some] for key in some[0]})
    _print(table, command, console)
    return table


def holds_up_to(table: list[dict[str, Any]], figure: str) -> float | None:
    """The largest learning rate at which first order holds for a figure, and at all smaller ones;
    None if at none."""
    largest = None
    for row in sorted(
        (row for row in table if row["figure"] == figure), key=lambda row: row["learning_rate"]
    ):
        if not row["holds"]:
            break
        largest = row["learning_rate"]
    return largest


def _print(table: list[dict[str, Any]], command: Verify, console: Console) -> None:
    out = Table(box=box.SIMPLE_HEAD, header_style="")
    for name in ("η", "figure", "R²", "slope", "rank ρ", "holds"):
        out.add_column(name, justify="left" if name in ("figure", "holds") else "right")
    for row in table:
        figures = (f"{row[key]:.6f}" for key in ("r2", "slope", "spearman"))
        out.add_row(
            f"{row['learning_rate']:g}", row["figure"], *figures, "yes" if row["holds"] else "no"
        )
    console.print(
        f"True steps on {table[0]['pairs']} pairs in float64 against first order (R² ≥ {R2}, "
        f"slope within {SLOPE:.0%})"
    )
    console.print(out)
    for figure in dict.fromkeys(row["figure"] for row in table):
        largest = holds_up_to(table, figure)
        console.print(
            f"{figure}: holds "
            + ("at none of these" if largest is None else f"up to η = {largest:g}")
        )
    console.print(f"Written to {escape(str(command.run / 'verify.parquet'))}", soft_wrap=True)


def _figures(
    dx: Float[np.ndarray, "pair prompt feature"],
    dy: Float[np.ndarray, "pair prompt"],
    influence: Influence,
) -> dict[str, np.ndarray]:
    return {"delta_x": dx, "delta_y": dy, "delta_w": influence.delta_w, "score": influence.score}


def _r2(prediction: Float[np.ndarray, "*figure"], truth: Float[np.ndarray, "*figure"]) -> float:
    varies = np.sum((truth - truth.mean()) ** 2)
    return float(1 - np.sum((truth - prediction) ** 2) / varies) if varies else float("nan")


def _compare(
    prediction: Float[np.ndarray, "*figure"], truth: Float[np.ndarray, "*figure"]
) -> dict[str, Any]:
    p, t = prediction.ravel(), truth.ravel()
    r2, slope = _r2(p, t), float(p @ t / (p @ p)) if p.any() else float("nan")
    rank = float("nan")
    if np.ptp(p) and np.ptp(t):
        rank = float(spearmanr(p, t).statistic)  # type: ignore[union-attr]
    return {
        "r2": r2,
        "slope": slope,
        "spearman": rank,
        "holds": bool(r2 >= R2 and abs(slope - 1) <= SLOPE),
    }

"""`smda-jax experiment`: train on all pairs, on curated ones, and without random ones; compare."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Float
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr, ttest_ind

from smda_jax.errors import InputError
from smda_jax.policy.metrics import soft_metrics
from smda_jax.runs.command import part_of
from smda_jax.runs.evaluation.evaluate import should_show
from smda_jax.runs.experiment.config import Experiment
from smda_jax.runs.experiment.curate import Curated, select
from smda_jax.runs.experiment.predict import Targets
from smda_jax.runs.experiment.retrain import Job, Measured, Retraining, open_run
from smda_jax.runs.folder.cache import read_cache
from smda_jax.runs.inputs.texts import say

FOLDER, BASE, FULL, CURATED, CONTROL = "experiment", "base", "full", "curated", "control"
METRICS = ("f1", "correctness", "precision", "recall")


@dataclass(frozen=True)
class Arm:
    """Pairs that are trained on.

    Attributes:
        name: of the arm.
        left_out: the pairs that are not; None where nothing is trained at all.
    """

    name: str
    left_out: Bool[np.ndarray, " pair"] | None


@dataclass(frozen=True)
class Difference:
    """Of one metric between the curated arm and the random controls.

    Attributes:
        metric: its name.
        curated: mean over the orders.
        control: mean over the orders of all controls.
        value: curated less control.
        low: of Welch's 95 % interval.
        high: likewise.
    """

    metric: str
    curated: float
    control: float
    value: float
    low: float
    high: float


def experiment(config: Experiment, console: Console | None = None) -> list[Difference]:
    """Runs, or continues, an experiment → how far curating beats the random controls, by metric.

    Raises:
        InputError: something of the configuration cannot be used.
    """
    config.check()
    console = console or Console()
    found = select(config.run, config.rule, config.columns_from, config.controls, config.seed)
    on = open_run(config.run, config.recipe, console)
    _refuse_other_order(on, found)
    should = should_show(on.inputs.prompts, config.positive)
    arms = [
        Arm(BASE, None),
        Arm(FULL, np.zeros(len(found.chosen), bool)),
        Arm(CURATED, found.chosen),
    ]
    arms += [Arm(f"{CONTROL} {i + 1}", left_out) for i, left_out in enumerate(found.controls)]
    jobs = [(arm, seed) for arm in arms if arm.left_out is not None for seed in range(config.seeds)]
    asked = [
        Job(on.without(arm.left_out), replace(on.recipe, seed=_seed(config.seed, seed)))
        for arm, seed in jobs
        if arm.left_out is not None
    ]
    said = f"{len(arms) - 1} arms x {config.seeds} orders"
    measured = on.realise(asked, console, said, part_of(config.part))
    waiting = sum(one is None for one in measured)
    if waiting:
        say(console, f"{waiting} of {len(jobs)} models are left to other parts; the last writes")
        return []
    results = [
        (arms[0], 0, Measured.of(on.base)),
        *((a, s, m) for (a, s), m in zip(jobs, measured, strict=True) if m is not None),
    ]
    rows = [_row(on, arm, seed, m, should) for arm, seed, m in results]
    differences = [difference(metric, rows) for metric in (*METRICS, "mean_y")]
    folder = on.folder()
    targets = Targets.of(on)
    folder.write_table(
        f"{FOLDER}/experiment.parquet", {k: [row[k] for row in rows] for k in rows[0]}
    )
    table = shifts(on, targets, found, results)
    folder.write_table(f"{FOLDER}/shifts.parquet", {k: [row[k] for row in table] for k in table[0]})
    planted = np.array([bool(p) for p in found.pairs.planted])
    record = {
        "schema_version": 1,
        "config": config.resolved(),
        "recipe": asdict(on.recipe),
        "removed": int(found.chosen.sum()),
        "pairs": len(found.chosen),
        "planted": int(planted.sum()),
        "planted_removed": int((planted & found.chosen).sum()),
        "differences": [asdict(one) for one in differences],
        "agreement": agreement(table),
        "finding": finding(differences, config, found),
    }
    folder.write_json(f"{FOLDER}/experiment.json", record)
    _print(rows, record, console)
    return differences


def _refuse_other_order(on: Retraining, found: Curated) -> None:
    if on.inputs.pairs.ids != found.pairs.ids:
        raise InputError(on.path, "holds other pairs than its inputs", "attribute again")


def _seed(seed: int, order: int) -> int:
    return 1000 * seed + order


def _row(
    on: Retraining, arm: Arm, seed: int, found: Measured, should: Bool[np.ndarray, " prompt"]
) -> dict[str, Any]:
    p = on.inputs.question.behaviour.probability(found.y)
    metrics = {name: float(value) for name, value in soft_metrics(p, should).items()}
    trained = 0 if arm.left_out is None else int((~arm.left_out).sum())
    return {
        "arm": arm.name,
        "order": seed,
        "pairs": trained,
        "mean_y": float(found.y.mean()),
        "probability_positive": float(p[should].mean()),
        "probability_others": float(p[~should].mean()) if not should.all() else np.nan,
        **metrics,
    }


def difference(metric: str, rows: list[dict[str, Any]]) -> Difference:
    """Curated against the controls, whose orders are taken together (Welch's t interval)."""
    curated = np.array([row[metric] for row in rows if row["arm"] == CURATED])
    control = np.array([row[metric] for row in rows if row["arm"].startswith(CONTROL)])
    ends = ttest_ind(curated, control, equal_var=False).confidence_interval(0.95)
    means = float(curated.mean()), float(control.mean())
    return Difference(metric, *means, means[0] - means[1], float(ends.low), float(ends.high))


def shifts(
    on: Retraining,
    targets: Targets,
    found: Curated,
    results: list[tuple[Arm, int, Measured]],
) -> list[dict[str, Any]]:
    """Of every arm that leaves pairs out, what the run predicts of every target against training on
    all pairs, and what training came to; NaN where the run does not know."""
    # Of the run's own step; of another recipe its rates are longer, or shorter.
    pair = _predicted_of_pairs(on, targets) * (
        on.recipe.share(len(on.tokens)) / on.config.step.learning_rate
    )
    values: dict[str, list[np.ndarray]] = {}
    left_out = {arm.name: arm.left_out for arm, _, _ in results}
    for arm, _, measured in results:
        values.setdefault(arm.name, []).append(targets.realised(measured))
    mean = {name: np.mean(own, axis=0) for name, own in values.items()}
    error = {
        name: np.std(own, axis=0, ddof=1) / np.sqrt(len(own))
        if len(own) > 1
        else np.zeros(len(own[0]))
        for name, own in values.items()
    }
    rows = []
    for name, chosen in left_out.items():
        if chosen is None or not chosen.any():
            continue
        predicted = -pair[chosen].sum(axis=0)
        moved, spread = mean[name] - mean[FULL], np.hypot(error[name], error[FULL])
        for i, target in enumerate(targets.names):
            rows.append(
                {
                    "arm": name,
                    "target": target,
                    "predicted": float(predicted[i]),
                    "realised": float(moved[i]),
                    "standard_error": float(spread[i]),
                    "before": float(mean[BASE][i]),
                    "full": float(mean[FULL][i]),
                    "after": float(mean[name][i]),
                }
            )
    return rows


def _predicted_of_pairs(on: Retraining, targets: Targets) -> Float[np.ndarray, "pair target"]:
    """From the run's own tables: what it says of every pair and target."""
    ids = on.inputs.pairs.ids
    row = {own: i for i, own in enumerate(ids)}
    found = np.full((len(ids), len(targets.names)), np.nan)
    table = pq.read_table(on.path / "pairs.parquet").to_pydict()
    for own, mean, score in zip(
        table["pair_id"], table["mean_delta_y"], table["score"], strict=True
    ):
        found[row[own], :2] = np.nan if mean is None else mean, score
    if (on.path / "influence.parquet").is_file():
        first = targets.groups["coefficient"][0]
        column = {feature: first + i for i, feature in enumerate(targets.feature_ids)}
        influence = pq.read_table(
            on.path / "influence.parquet",
            filters=[("subset", "=", "all")],
            columns=["pair_id", "feature_id", "delta_w"],
        ).to_pydict()
        for own, feature, value in zip(*influence.values(), strict=True):
            found[row[own], column[feature]] = value
    if "category" in targets.groups:
        try:
            cache = read_cache(on.path)
        except InputError:
            return found  # changes of single prompts were not kept
        found[:, targets.groups["category"]] = cache.delta_y @ targets.members.T
    return found


def agreement(table: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Rank correlation of predicted and realised shifts over coefficients and over categories, of
    the curated arm."""
    found = {}
    for kind in ("coefficient", "category"):
        own = [
            row
            for row in table
            if row["arm"] == CURATED
            and row["target"].startswith(kind)
            and not np.isnan(row["predicted"])
        ]
        if len(own) > 2:
            both = ([row[name] for row in own] for name in ("predicted", "realised"))
            predicted, realised = both
            rank: Any = spearmanr(predicted, realised)
            found[kind] = {"spearman": float(rank[0]), "of": len(own)}
    return found


def finding(differences: list[Difference], config: Experiment, found: Curated) -> str:
    """What came of it, in one sentence."""
    d = next(one for one in differences if one.metric == METRICS[0])
    if d.low > 0:
        verdict = "beats"
    elif d.high < 0:
        verdict = "does worse than"
    else:
        verdict = "cannot be told from"
    n, draws = int(found.chosen.sum()), f"{config.seeds} orders, {config.controls} random draws"
    return (
        f"Training without the {n} pairs that {config.rule!r} chooses {verdict} training without "
        f"{n} random ones of the same labels: soft F1 {d.curated:.3f} against {d.control:.3f}, "
        f"difference {d.value:+.3f} (95 %: {d.low:+.3f} … {d.high:+.3f}; {draws})."
    )


def _print(rows: list[dict[str, Any]], record: dict[str, Any], console: Console) -> None:
    out = Table(box=box.SIMPLE_HEAD, header_style="")
    for name in ("arm", "pairs", "soft F1", "correctness", "mean Y"):
        out.add_column(name, justify="left" if name == "arm" else "right")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        cells = []
        for name in ("f1", "correctness", "mean_y"):
            values = np.array([row[name] for row in own])
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{spread}")
        out.add_row(arm, str(own[0]["pairs"]), *cells)
    console.print(out)
    console.print(record["finding"], soft_wrap=True, markup=False, highlight=False)
    for kind, own in record["agreement"].items():
        say(
            console,
            f"Predicted and realised shifts of {int(own['of'])} {kind} targets: rank "
            f"correlation {own['spearman']:.2f}",
        )

"""`smda-jax validate`: how well the figures of a run say what training does."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from rich import box
from rich.console import Console
from rich.table import Table

from smda_jax.policy.counterfactual import (
    Ceiling,
    average_precision,
    ceiling,
    lds,
    membership,
)
from smda_jax.policy.interference import separation_auc
from smda_jax.runs.command import part_of
from smda_jax.runs.experiment.compared import Figure, all_figures
from smda_jax.runs.experiment.config import Validate
from smda_jax.runs.experiment.predict import Targets
from smda_jax.runs.experiment.retrain import Job, Measured, Retraining, open_run
from smda_jax.runs.inputs.texts import say
from smda_jax.training.recipe import random_subsets

RANDOM, RANDOM_DRAWS = 102, 8  # of pairs that figures are compared with: their seed, how many
SUMMARIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "median": lambda values: np.median(values, axis=1),
    "worst": lambda values: values.min(axis=1),
}


@dataclass(frozen=True)
class Row:
    """A row of validation.parquet; what its columns mean is said there."""

    measure: str
    figure: str
    target: str
    value: float
    low: float = np.nan
    high: float = np.nan
    reference: float = np.nan
    count: int = 0


def validate(config: Validate, console: Console | None = None) -> list[Row]:
    """Trains on random subsets, and compares → the card, as written to validation.parquet.

    Raises:
        InputError: something of the configuration cannot be used.
    """
    config.check()
    console = console or Console()
    on = open_run(config.run, config.recipe, console)
    count, part = len(on.tokens), part_of(config.part)
    sets = random_subsets(count, config.subsets, config.fraction, config.seed)
    # What the figures predict comes first: it is cheap, and refuses what cannot be used.
    targets = Targets.of(on)
    figures = all_figures(config, on, targets, console)
    jobs = [
        Job(tuple(own.tolist()), replace(on.recipe, seed=order))
        for own in sets
        for order in range(config.orders)
    ]
    said = f"{config.subsets} subsets x {config.orders} orders"
    measured = on.realise(jobs, console, said, part)
    strongest = _strongest_jobs(config, on, figures)
    others = on.realise([job for _, _, job in strongest], console, "strongest pairs", part)
    waiting = sum(one is None for one in (*measured, *others))
    if waiting:
        say(console, f"{waiting} models are left to other parts; the last one writes the card")
        return []
    found = [m for m in measured if m is not None]
    shift = np.stack([targets.realised(m) for m in found]) - targets.realised(Measured.of(on.base))
    realised = shift.reshape(config.subsets, config.orders, -1)
    rows = lds_rows(config, targets, figures, membership(sets, count), realised)
    rows += planted_rows(on, figures)
    after = [m for m in others if m is not None]
    rows += strongest_rows(config, float(on.base.y.mean()), strongest, after)
    record = {
        "schema_version": 1,
        "config": config.resolved(),
        "recipe": asdict(on.recipe),
        "pairs": count,
        "prompts": len(on.inputs.prompts),
    }
    folder = on.folder()
    table = [asdict(row) for row in rows]
    folder.write_table("validation.parquet", {k: [row[k] for row in table] for k in table[0]})
    folder.write_json("validation.json", record | {"findings": findings(rows)})
    _print(rows, console)
    return rows


def lds_rows(
    config: Validate,
    targets: Targets,
    figures: Mapping[str, Figure],
    members: Float[np.ndarray, "set pair"],
    realised: Float[np.ndarray, "set order target"],
) -> list[Row]:
    """The LDS of every figure: of each target, and the median and the worst of each kind."""
    mean, top = realised.mean(axis=1), None
    if config.orders > 1:
        top = ceiling(realised)
    rows = []
    for name, figure in figures.items():
        own = lds(members @ figure, mean, config.bootstrap, config.seed)
        for kind, numbers in targets.groups.items():
            summaries = {"": SUMMARIES["median"]} if len(numbers) == 1 else SUMMARIES
            for summary, how in summaries.items():
                target = f"{kind} {summary}".strip()
                value, low, high = own.summed_up(how, numbers)
                if summary == "worst":  # every resample has a worst of its own: they lie too low
                    low = high = np.nan
                rows.append(
                    Row(
                        "lds",
                        name,
                        target,
                        value,
                        low,
                        high,
                        _ceiling(top, how, numbers),
                        config.subsets,
                    )
                )
        for i, target in enumerate(targets.names[2:], 2):
            reference = np.nan if top is None else float(top.value[i])
            rows.append(
                Row(
                    "lds",
                    name,
                    target,
                    float(own.value[i]),
                    reference=reference,
                    count=config.subsets,
                )
            )
    return rows


def _ceiling(
    top: Ceiling | None, how: Callable[[np.ndarray], np.ndarray], numbers: list[int]
) -> float:
    return np.nan if top is None else float(how(top.value[None, numbers])[0])


def planted_rows(on: Retraining, figures: Mapping[str, Figure]) -> list[Row]:
    """How well every figure finds the planted pairs: pooled, within their class, and among clean
    pairs whose responses look like theirs."""
    pairs = on.inputs.pairs
    planted = np.array([bool(p) for p in pairs.planted])
    raises = on.inputs.polarity.raises
    sign = np.array([0.0 if x is None else -1.0 if x else 1.0 for x in raises])
    if not planted.any() or planted.all():
        return []
    answers = [t.rows[0].ids[t.response :] for t in on.inputs.pair_tokens]
    leaning = np.array([on.inputs.question.behaviour.leaning(list(a)) > 0 for a in answers])
    label = np.array([x or "" for x in pairs.label])
    where: dict[str, Bool[np.ndarray, " pair"]] = {"pooled": np.ones(len(planted), bool)}
    for name in dict.fromkeys(label[planted]):
        own = label == name
        where[f"within {name or 'unlabelled'}"] = own
        surface = {bool(v) for v in leaning[planted & own]}
        # Clean pairs of any class that answer as these planted ones do.
        like = ~planted & np.isin(leaning, list(surface))
        where[f"look-alikes of {name or 'unlabelled'}"] = (planted & own) | like
    rows = []
    for name, figure in figures.items():
        suspicion = figure[:, 0] * sign if sign.any() else figure[:, 0]
        for place, chosen in where.items():
            own, wanted = suspicion[chosen], planted[chosen]
            if wanted.all() or not wanted.any():
                continue
            common = {"reference": float(wanted.mean()), "count": int(chosen.sum())}
            rows.append(Row("auprc", name, place, average_precision(own, wanted), **common))
            rows.append(
                Row(
                    "auc",
                    name,
                    place,
                    separation_auc(own, wanted),
                    reference=0.5,
                    count=int(chosen.sum()),
                )
            )
    return rows


def _strongest_jobs(
    config: Validate, on: Retraining, figures: Mapping[str, Figure]
) -> list[tuple[str, str, Job]]:
    """(measure, figure, training) of what looks at the pairs that figures put first."""
    count, k = len(on.tokens), config.leave_out
    if not k or k >= count:
        return []
    everything = tuple(range(count))
    step = replace(on.recipe, epochs=1, batch=k, schedule="constant", seed=0)
    orders = range(max(2, config.orders))
    jobs = [("leave out", "nothing", Job(everything, replace(on.recipe, seed=o))) for o in orders]
    for i in range(RANDOM_DRAWS):
        drawn = np.random.default_rng((RANDOM, config.seed, i)).permutation(count)[:k]
        rest = tuple(sorted(set(everything) - set(drawn.tolist())))
        jobs.append(("leave out", "random", Job(rest, replace(on.recipe, seed=i % len(orders)))))
        jobs.append(("tail patch", "random", Job(tuple(sorted(drawn.tolist())), step)))
    for name, figure in figures.items():
        if name == "random":
            continue
        top = np.argsort(-figure[:, 0], kind="stable")[:k]
        rest = tuple(sorted(set(everything) - set(top.tolist())))
        jobs += [("leave out", name, Job(rest, replace(on.recipe, seed=o))) for o in orders]
        jobs.append(("tail patch", name, Job(tuple(sorted(top.tolist())), step)))
    return jobs


def strongest_rows(
    config: Validate,
    base: float,
    jobs: list[tuple[str, str, Job]],
    measured: list[Measured],
) -> list[Row]:
    """What leaving out the pairs that a figure says raise mean Y most does to it, and what one step
    on them does, to the `base`; random pairs beside."""
    if not jobs:
        return []
    found: dict[tuple[str, str], list[float]] = {}
    for (measure, name, _), m in zip(jobs, measured, strict=True):
        found.setdefault((measure, name), []).append(float(m.y.mean()))
    whole = np.mean(found["leave out", "nothing"])
    random = {
        "leave out": np.mean(found["leave out", "random"]) - whole,
        "tail patch": np.mean(found["tail patch", "random"]) - base,
    }
    rows = []
    for (measure, name), values in found.items():
        if name == "nothing":
            continue
        start = whole if measure == "leave out" else base
        own = np.array(values) - start
        spread = own.std(ddof=1) if len(own) > 1 else np.nan
        rows.append(
            Row(
                measure,
                name,
                "mean_y",
                float(own.mean()),
                float(own.mean() - spread),
                float(own.mean() + spread),
                float(random[measure]),
                config.leave_out,
            )
        )
    return rows


def findings(rows: list[Row]) -> list[str]:
    """What the card says, in sentences; where a plain figure wins, that too."""
    said = []
    for target in ("mean_y", "coefficient median", "coefficient worst"):
        own = [r for r in rows if r.measure == "lds" and r.target == target]
        if not own:
            continue
        best = max(own, key=lambda r: r.value)
        top = f" of a ceiling of {best.reference:.2f}" if best.reference == best.reference else ""
        sure = f" (95 %: {best.low:.2f} … {best.high:.2f})" if best.low == best.low else ""
        said.append(
            f"{target}: {best.figure} predicts best, rank correlation {best.value:.2f}{top}{sure}, "
            f"over {best.count} subsets."
        )
    for figure in ("run:mean_delta_y", "run:score"):
        own = [r for r in rows if (r.measure, r.figure, r.target) == ("lds", figure, "mean_y")]
        failed = [r for r in own if not (r.low if r.low == r.low else r.value) > 0]
        said += [
            f"{figure} fails the card: it does not predict mean Y (rank correlation {r.value:.2f}, "
            f"95 %: {r.low:.2f} … {r.high:.2f})."
            for r in failed
        ]
    own = [r for r in rows if r.measure == "auprc" and r.target == "pooled"]
    if own:
        best = max(own, key=lambda r: r.value)
        said.append(
            f"Planted pairs: {best.figure} finds them best, area under precision and recall "
            f"{best.value:.2f} (prevalence {best.reference:.2f})."
        )
    return said


def _shown(row: Row, value: float) -> str:
    if value != value:
        return "–"
    return f"{value:.2f}" if row.measure in ("lds", "auprc") else f"{value:+.3f}"


def _print(rows: list[Row], console: Console) -> None:
    measures = {
        "mean Y": ("lds", "mean_y"),
        "coeff.": ("lds", "coefficient median"),
        "worst": ("lds", "coefficient worst"),
        "categ.": ("lds", "category median"),
        "planted": ("auprc", "pooled"),
        "left out": ("leave out", "mean_y"),
        "step": ("tail patch", "mean_y"),
    }
    by = {(r.figure, r.measure, r.target): r for r in rows}
    shown = {k: v for k, v in measures.items() if any(key[1:] == v for key in by)}
    out = Table(box=box.SIMPLE_HEAD, header_style="")
    for name in ("figure", *shown):
        out.add_column(name, justify="left" if name == "figure" else "right", no_wrap=True)
    for figure in dict.fromkeys(r.figure for r in rows):
        cells = [by.get((figure, *key)) for key in shown.values()]
        out.add_row(figure, *("" if r is None else _shown(r, r.value) for r in cells))
    tops = [next((r for r in rows if (r.measure, r.target) == key), None) for key in shown.values()]
    out.add_section()
    names = ["" if r is None else _shown(r, r.reference) for r in tops]
    out.add_row("ceiling, chance", *names)
    said = (
        "Rank correlation with what training came to (LDS), planted pairs found (AUPRC), and mean Y"
    )
    say(console, f"{said} without the pairs a figure puts first, and after one step on them")
    console.print(out)
    for sentence in findings(rows):
        say(console, f"- {sentence}")

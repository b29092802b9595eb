"""The figures of the page for a paper, PNG and PDF, by matplotlib; a row of each in `FIGURES`."""

from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.figure import Figure

from smda_jax.files import writing
from smda_jax.report.data import Run
from smda_jax.report.figures import checks, decision, pairs, policy

# file name -> what draws it; None where the run has no data for it
FIGURES: dict[str, Callable[[Run], Figure | None]] = {
    "coefficients": policy.coefficients,
    "gaps": policy.gaps,
    "effects": pairs.effects,
    "pathways": pairs.pathways,
    "interference": policy.interference,
    "landing": pairs.landing,
    "scores": pairs.scores,
    "agreement": checks.agreement,
    "verify": checks.verify,
    "experiment": decision.experiment,
    "validation": decision.validation,
    "timings": checks.timings,
}


def draw(run: Run, folder: Path) -> Iterator[Path]:
    """Writes every figure that the run has data for → their paths."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, make in FIGURES.items():
        figure = make(run)
        if figure is None:
            continue
        for suffix in ("png", "pdf"):
            path = folder / f"{name}.{suffix}"
            with writing(path):
                figure.savefig(path, dpi=200)
            yield path

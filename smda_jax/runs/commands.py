"""Configuration of the commands that look at what is there: one dataclass each.

Imports nothing heavy, so that `--help` answers at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from smda_jax.errors import InputError
from smda_jax.runs.command import Command


@dataclass(frozen=True, kw_only=True)
class Sweep(Command):
    """Answer a grid of questions from what a run kept: every cell is a row of sweep.parquet.

    The same command continues an interrupted sweep.
    """

    run: Positional[Path]
    """Run folder of `attribute`, kept active or features; with --show, the folder of a sweep."""
    grid: Path | None = None
    """YAML file: axis: [values], or axis: {linspace or logspace: [low, high, n]}. Axes answered
    from the run: alpha, intercept, scaling (none, std), features (all, ids, contrast:T, without:ID,
    leave-one-out, random:K[:SEED]), gate, threshold, subset, pairs (all or a label), learning_rate,
    bootstrap (how many resamples). Axes that run it again: model, sae, layer, encoder, targets,
    target_ids, loss, beta, loss_scope, max_length, parameters, update, damping, fisher, dtype."""
    out: Path | None = None
    """Folder to write, or to continue."""
    tables: tuple[Literal["pairs", "coefficients"], ...] = ()
    """Write these too: every pair's score, or every coefficient, of every cell."""
    part: str = ""
    """k/n: only every n-th part, for a scheduler's array job; the one that finishes last writes the
    table."""
    show: bool = False
    """Print which axes of a finished sweep matter."""


@dataclass(frozen=True, kw_only=True)
class Fit(Command):
    """Fit policies to a cached activation table, without any model: thresholds, metrics on held-out
    prompts, intervals, and a grid of other settings.

    Columns: prompt, feat_<id>_<label>, the behaviour, and optionally refused (or shows),
    prompt_label, category, as in the authors' release.
    """

    table: Positional[tuple[str, ...]]
    """The table: parquet, csv, tsv, json or jsonl files, or hub:owner/name."""
    out: Path
    """Folder to write."""
    y: str = "refusal_logprob"
    """Column that the policy predicts."""
    features: str = "all"
    """Feature ids (3,17,204), a file of ids or policy.json, or all."""
    subset: tuple[str, ...] = ()
    """Evaluation subsets as of attribute, and authors: the six experiments of the paper. Default:
    all."""
    split_manifest: Path | None = None
    """JSON: name to prompt ids, or to evaluation, train and test; replaces --subset."""
    policy: Path | None = None
    """A policy.json, of this project or of the authors' release, to be scored on every subset."""
    grid: Path | None = None
    """YAML file as of sweep, of the axes alpha, intercept, scaling, features, subset and bootstrap;
    writes sweep.parquet."""
    alpha: float = 5.0
    """Ridge penalty."""
    alpha_folds: int = 0
    """If not 0, choose alpha from 0.01 ... 1000 by so many folds of the training part instead."""
    test_fraction: float = 0.2
    """Share of prompts held out, stratified by label and behaviour."""
    seed: int = 42
    """Of subsets, split and folds."""
    bootstrap: int = 1000
    """Resamples of the prompts behind the intervals (95 %) of coefficients; 0: none."""
    shows_above: float = -0.6931471805599453
    """A prompt whose behaviour is above it shows it, where no column says that; log 0.5."""
    columns: tuple[str, ...] = ()
    """See attribute."""
    encoding: str = "utf-8"
    """See attribute."""
    on_repeat: Literal["error", "once"] = "error"
    """See attribute."""

    def check(self) -> None:
        """Raises InputError for values that no fit could use."""
        super().check()
        for name, low in (("alpha", 0), ("alpha_folds", 0), ("bootstrap", 0), ("seed", 0)):
            if not getattr(self, name) >= low:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(flag, f"{getattr(self, name)} is below {low}")
        if self.alpha_folds == 1:
            what = "one fold leaves nothing to fit on"
            raise InputError("--alpha-folds", what, "0, or at least 2")
        if not 0 <= self.test_fraction < 1:
            what = f"{self.test_fraction} is not a share"
            raise InputError("--test-fraction", what, "0 (inclusive) to 1 (exclusive)")


@dataclass(frozen=True, kw_only=True)
class Verify(Command):
    """Is first order enough? Take true steps on some pairs of a run, in float64, and compare them
    with its prediction.

    Writes verify.parquet into the run folder, which the page then shows.
    """

    run: Positional[Path]
    """Run folder of `attribute`, kept active or features."""
    pairs: int = 16
    """How many pairs, drawn with the seed."""
    learning_rates: tuple[float, ...] = ()
    """Steps to take; the prediction is scaled to each. Default: the run's own, a tenth of it, ten
    and a hundred times it."""
    seed: int = 0
    """Of the draw."""


@dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Draw a run: report.html in its folder, one file that opens anywhere."""

    run: Positional[Path]
    """Run folder of `attribute`."""
    redact: bool = False
    """Leave out the texts of prompts and responses."""
    figures: Path | None = None
    """Write the figures there too, as PNG and PDF for a paper."""


@dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """Say what a checkpoint, SAE, data file or run folder is, and whether several of them fit
    together."""

    paths: Positional[tuple[str, ...]]
    """Folders, files or hub: ids, e.g. a checkpoint, its SAE, prompts and pairs."""
    columns: tuple[str, ...] = ()
    """See attribute."""
    encoding: str = "utf-8"
    """See attribute."""
    on_repeat: Literal["error", "once"] = "error"
    """See attribute."""
    read_at: str = "auto"
    """See attribute."""
    allow_pickle: bool = False
    """Read SAEs that are pickles, such as dictionary_learning's ae.pt (weights only, needs
    torch)."""
    normalise_activations: str = ""
    """See attribute."""

"""Configuration of decisions. Imports nothing heavy, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from smda_jax.errors import InputError
from smda_jax.runs.command import Command, part_of

RULE = "mean_delta_y"


@dataclass(frozen=True, kw_only=True)
class Curate(Command):
    """Decide which pairs of a run to keep: kept.jsonl, removed.jsonl, random controls, reasons.

    A rule is made of: mean_delta_y or score (across the median of the other class), quantile:Q,
    score_quantile:Q (across its quantile instead), top:K or score_top:K (the K that do most harm),
    off_target:Q (of its class the share above quantile Q that falls elsewhere), stable:S (a share S
    of the resamples sees it alike), label:NAME, category:NAME, planted,
    column:NAME or column:NAME=VALUE (of --columns-from), with not, and, or between them; and binds
    closer.
    """

    run: Positional[Path]
    """Run folder of `attribute`."""
    out: Path | None = None
    """Folder to write; default: RUN/curated."""
    rule: str = RULE
    """Which pairs to remove or repair."""
    columns_from: Path | None = None
    """Table with pair_id and further columns, such as what people think of the pairs."""
    repair: Literal["drop", "reweight", "relabel"] = "drop"
    """drop: they are left out; reweight: weights.csv gives them --weight; relabel: their response
    is replaced by that of --relabel."""
    weight: float = 0.0
    """Of reweight: what their losses count."""
    relabel: str = ""
    """Of relabel: column of --columns-from that holds the response."""
    controls: int = 5
    """Random removals of as many pairs of each label, each with a seed of its own."""
    seed: int = 0
    """Of the controls."""

    def check(self) -> None:
        """Raises InputError for values that say nothing."""
        super().check()
        if self.controls < 0:
            raise InputError("--controls", f"{self.controls} is below 0")
        if not self.weight >= 0:
            raise InputError("--weight", f"{self.weight} is below 0")
        if self.weight and self.repair != "reweight":
            raise InputError("--weight", "says nothing without --repair reweight")
        if bool(self.relabel) != (self.repair == "relabel"):
            what = "names the column of the new responses"
            raise InputError("--relabel", what, "--repair relabel --relabel COLUMN")
        if self.relabel and self.columns_from is None:
            raise InputError("--relabel", "names a column", "--columns-from FILE")


@dataclass(frozen=True, kw_only=True)
class Experiment(Command):
    """Act on what a run found, and see what comes of it: train on all pairs, on the curated ones,
    and without as many random ones; evaluate, and refit the policy of each.

    Writes RUN/experiment; the page then shows it. The same command continues.
    """

    run: Positional[Path]
    """Run folder of `attribute`."""
    rule: str = RULE
    """Which pairs to leave out; see curate."""
    columns_from: Path | None = None
    """See curate."""
    recipe: str | None = None
    """How to train: OPTIMISER-RATExEPOCHS, or a finetune.json. Default: the run's own."""
    controls: int = 3
    """Random removals of as many pairs of each label."""
    seeds: int = 5
    """Orders that every arm is trained in."""
    positive: tuple[str, ...] = ("harmful",)
    """Labels of prompts that should show the behaviour."""
    seed: int = 0
    """Of controls and orders."""
    part: str = ""
    """k/n: train only every n-th model, for a scheduler's array job."""

    def check(self) -> None:
        """Raises InputError for values that say nothing."""
        super().check()
        for name, low in {"controls": 1, "seeds": 2}.items():
            if getattr(self, name) < low:
                raise InputError(f"--{name}", f"{getattr(self, name)} is below {low}")
        part_of(self.part)


@dataclass(frozen=True, kw_only=True)
class Validate(Command):
    """How good are a run's figures? Train on random subsets of its pairs, and compare what that
    comes to with what every figure of a pair predicts; find planted pairs; step on the strongest.

    Writes validation.parquet into the run folder; the page then shows it. The same command
    continues.
    """

    run: Positional[Path]
    """Run folder of `attribute`."""
    recipe: str | None = None
    """How to train; see experiment."""
    subsets: int = 64
    """Random subsets of the pairs."""
    fraction: float = 0.5
    """Share of the pairs in each."""
    orders: int = 2
    """Orders that each subset is trained in; of two on, the ceiling is known."""
    updates: tuple[str, ...] = ("sgd", "adam", "adamw")
    """Steps whose predictions are compared, besides the run's own figures."""
    trained_at: int = 4
    """Also predict at the mean of so many models trained on other halves (0: not)."""
    leave_out: int = 10
    """Pairs that are left out, those that a figure puts first; 0: none."""
    bootstrap: int = 1000
    """Resamples of the subsets behind the intervals (95 %)."""
    seed: int = 0
    """Of the subsets."""
    part: str = ""
    """See experiment."""

    def check(self) -> None:
        """Raises InputError for values that say nothing."""
        super().check()
        for name, low in {"subsets": 4, "orders": 1, "leave_out": 0, "bootstrap": 0}.items():
            if getattr(self, name) < low:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(flag, f"{getattr(self, name)} is below {low}")
        if not 0 < self.fraction < 1:
            raise InputError("--fraction", f"{self.fraction} is not a share", "between 0 and 1")
        part_of(self.part)

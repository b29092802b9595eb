"""Training again on some of a run's pairs, and what becomes of its policy: kept as it comes."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from rich.console import Console

from smda_jax.data.tokenised import PairTokens
from smda_jax.errors import InputError
from smda_jax.files import replacing
from smda_jax.policy.ridge import ridge
from smda_jax.reading.evaluation import Evaluation, Selection, evaluate_prompts, run_prompts
from smda_jax.reading.network import Model, Progress
from smda_jax.reading.tokens import tokenise_pairs
from smda_jax.runs.config import Attribute
from smda_jax.runs.experiment.curate import finished_run
from smda_jax.runs.folder.policies import read_policy
from smda_jax.runs.folder.store import RunFolder
from smda_jax.runs.inputs.load import Inputs, load_inputs
from smda_jax.runs.progress import bar
from smda_jax.runs.recipes import DEFAULT, STEP, recipe_of
from smda_jax.runtime.memory import TooLargeError
from smda_jax.training.fine_tuning import Training
from smda_jax.training.recipe import Order, Recipe, order_of

FOLDER = "retrained"


class Measured(NamedTuple):
    """A model on the run's evaluation prompts.

    Attributes:
        y: the behaviour.
        x: activations of the run's features.
    """

    y: Float[np.ndarray, " prompt"]
    x: Float[np.ndarray, "prompt feature"]

    @classmethod
    def of(cls, e: Evaluation) -> "Measured":
        """What is kept of an evaluation."""
        return cls(e.y.astype(np.float64), e.x.astype(np.float64))

    def policy(self, alpha: float | int) -> Float[np.ndarray, " feature"]:
        """The policy of these prompts."""
        return ridge(self.x, self.y, alpha)


@dataclass(frozen=True)
class Job:
    """A training run.

    Attributes:
        rows: of the run's pairs that are trained on.
        recipe: of the run, its seed included.
    """

    rows: tuple[int, ...]
    recipe: Recipe


@dataclass(frozen=True)
class Retraining:
    """A run of `attribute` whose pairs are trained on again.

    Attributes:
        path: of the run.
        fingerprint: of it.
        config: of it.
        inputs: that it read.
        feature_ids: of its policy.
        alpha: of its policy.
        W: its policy, by feature.
        recipe: of the training.
        tokens: of the pairs, as the recipe scores them.
    """

    path: Path
    fingerprint: str
    config: Attribute
    inputs: Inputs
    feature_ids: list[int]
    alpha: float
    W: dict[int, float]
    recipe: Recipe
    tokens: list[PairTokens]

    def folder(self) -> RunFolder:
        """The run's own, to write tables beside its own."""
        return RunFolder(self.path, self.fingerprint, {"config": self.config.resolved()})

    @cached_property
    def training(self) -> Training:
        """Of all runs of the recipe."""
        base, dtype = self.inputs.base, self.config.dtype
        # Small steps would be lost in bfloat16 parameters: there the passes alone are.
        base = base.astype("float32") if dtype == "bfloat16" else base
        return Training(base, self.tokens, self.recipe, self.inputs.moved, dtype)

    @cached_property
    def base(self) -> Evaluation:
        """The prompts before training."""
        return self.evaluation(self.inputs.base)

    def evaluation(self, model: Model) -> Evaluation:
        """The run's prompts, as a model reads them.

        Raises:
            InputError: the behaviour or an activation is not finite.
        """
        model = model.astype(self.config.dtype)
        question, tokens = replace(self.inputs.question, model=model), self.inputs.prompt_tokens
        selection = Selection(self.inputs.sae, self.feature_ids, self.config.encoder)
        data = (self.inputs.prompts, tokens)
        return evaluate_prompts(question, selection, *data, run_prompts(question, tokens))

    def realise(
        self, jobs: Sequence[Job], console: Console, name: str, part: tuple[int, int] = (0, 1)
    ) -> list[Measured | None]:
        """Trains what is not there yet, and reads the prompts after each.

        Args:
            jobs: the training runs.
            console: for the progress.
            name: of the work, for the progress.
            part: see `command.part_of`; for array jobs.

        Returns:
            what each comes to; None for those that another part is to train.
        """
        keys = [self._key(job) for job in jobs]
        waiting = {
            key: job for key, job in zip(keys, jobs, strict=True) if not self._file(key).is_file()
        }
        own = list(waiting.items())[part[0] :: part[1]]
        if own:
            with bar(console, name) as progress:
                self._train(own, progress)
        return [self._load(key) if self._file(key).is_file() else None for key in keys]

    def _train(self, jobs: list[tuple[str, Job]], progress: Progress) -> None:
        by_recipe: dict[Recipe, list[tuple[str, Job]]] = {}
        for key, job in jobs:
            by_recipe.setdefault(replace(job.recipe, seed=0), []).append((key, job))
        for recipe, group in by_recipe.items():
            training = replace(self.training, recipe=recipe)
            orders = [self.order(job) for _, job in group]
            share = len(group) / len(jobs)
            try:
                models = training.trained(orders, partial(_part_of, progress, share))
                for (key, _), model in zip(group, models, strict=True):
                    self._save(key, Measured.of(self.evaluation(model)))
            except TooLargeError as error:
                what = f"one pair at a time does not fit ({error})"
                raise InputError("memory", what, "a recipe with a smaller max_length") from error

    def order(self, job: Job) -> Order:
        """The steps of a run."""
        return order_of(job.recipe, np.array(job.rows), self.training.scored)

    def _key(self, job: Job) -> str:
        ids = [self.inputs.pairs.ids[i] for i in job.rows]
        # The order of the rows is that of the draw.
        content = [
            ids,
            asdict(job.recipe),
            self.feature_ids,
            {k: v for k, v in self.inputs.hashes.items() if k != "trained"},
            self.config.dtype,
            self.config.encoder,
            list(self.config.moving()),
            self.inputs.question.behaviour.settings,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def _file(self, key: str) -> Path:
        return self.path / FOLDER / f"{key}.npz"

    def _save(self, key: str, found: Measured) -> None:
        with replacing(self._file(key)) as part, io.BytesIO() as content:
            np.savez_compressed(content, y=found.y, x=found.x)
            part.write_bytes(content.getvalue())

    def _load(self, key: str) -> Measured:
        path = self._file(key)
        try:
            with np.load(path) as found:
                return Measured(found["y"], found["x"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                path, f"cannot be read: {error}", "delete it: it is trained again"
            ) from error

    def without(self, left_out: Bool[np.ndarray, " pair"]) -> tuple[int, ...]:
        """The other pairs."""
        return tuple(np.flatnonzero(~left_out).tolist())


def _part_of(progress: Progress, share: float, own: float) -> None:
    progress(own * share)


def open_run(path: Path, recipe: str | None, console: Console) -> Retraining:
    """A finished run, its inputs read again, ready to be trained on.

    Args:
        path: of the run folder.
        recipe: as `attribute --recipe`; default the run's own, or the authors' where that is a
            single step.
        console: for what is said of the inputs.

    Raises:
        InputError: it is no finished run, or its inputs are not what they were.
    """
    path = path.expanduser()
    config, record = finished_run(path)
    config = replace(config.settled(), check_pairs=0, distributed=False)
    inputs = load_inputs(config, console)
    if inputs.hashes != record["inputs"]:
        changed = [k for k in inputs.hashes if inputs.hashes[k] != record["inputs"].get(k)]
        what = f"its {', '.join(sorted(changed))} changed since the run"
        raise InputError(path, what, "attribute again, into another folder")
    asked = _recipe_of(config, recipe)
    tokens = tokenise_pairs(inputs.base, inputs.pairs, asked.max_length, asked.scored)
    policy = read_policy(path / "policy.json")
    W = dict(zip(policy.feature_ids, policy.weights, strict=True))
    of_policy = (policy.feature_ids, policy.alpha, W)
    return Retraining(path, record["fingerprint"], config, inputs, *of_policy, asked, tokens)


def _recipe_of(config: Attribute, name: str | None) -> Recipe:
    """A recipe, on the loss of the run; of the run's own, with what its options say instead."""
    step, known = config.step, config.recipe not in (None, STEP)
    own = known and name in (None, config.recipe)
    found: Recipe = recipe_of(name or (config.recipe if own and config.recipe else DEFAULT))
    found = replace(found, loss=step.loss, beta=step.beta)
    if not own:
        return found
    return replace(found, loss_scope=step.loss_scope, max_length=step.max_length, batch=step.batch)

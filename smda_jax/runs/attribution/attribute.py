"""The main job: checkpoint, SAE, prompts and pairs in; a run folder out."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from rich.console import Console

from smda_jax.engines import planner
from smda_jax.engines.contract import Job
from smda_jax.engines.finite.dataset import optimiser_named
from smda_jax.engines.query.price import readouts_at_a_time
from smda_jax.errors import InputError
from smda_jax.policy.held_out import Policy
from smda_jax.reading import evaluation as reading
from smda_jax.reading.behaviours.nothing import Nothing
from smda_jax.reading.evaluation import Evaluation
from smda_jax.reading.readout import Reading
from smda_jax.runs.attribution.baselines import OwnPrompts
from smda_jax.runs.attribution.planning import duration, workload
from smda_jax.runs.attribution.policies import fit_policies
from smda_jax.runs.attribution.record import record_of
from smda_jax.runs.attribution.results import Found, results
from smda_jax.runs.attribution.runner import Blocks
from smda_jax.runs.attribution.stepping import stepping_of
from smda_jax.runs.attribution.summary import Summary
from smda_jax.runs.attribution.token_table import columns_of, token_table
from smda_jax.runs.attribution.verify import R2, check_first_order
from smda_jax.runs.config import Attribute
from smda_jax.runs.folder.alive import watched
from smda_jax.runs.folder.store import RunFolder
from smda_jax.runs.inputs.load import Inputs, load_inputs, warn
from smda_jax.runtime import processes
from smda_jax.runtime.devices import Devices, using
from smda_jax.runtime.memory import TooLargeError, memory_limit
from smda_jax.runtime.precision import numerics


@dataclass
class Stages:
    """Wall-clock seconds of the stages of a run; says on the terminal which is under way."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times a stage."""
        start = time.perf_counter()
        with self.console.status(name):
            yield
        spent = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.seconds[name] = round(spent, 3)


def attribute(config: Attribute, console: Console | None = None) -> Summary:
    """Runs, or continues, one attribution → what it found; the run folder holds the tables.

    Raises:
        InputError: something of the configuration cannot be used; nothing has been written then.
    """
    config.check()
    if config.distributed:
        processes.connect()
    console = console or Console()
    console.quiet = console.quiet or not processes.writes()
    with processes.together(), using(Devices(config.shard_params)):
        try:
            return _Attribution(config, console).run()
        except TooLargeError as error:
            what = f"one pair and one prompt at a time do not fit ({error})"
            raise InputError("memory", what, "a smaller --max-length or --dtype") from error


@dataclass(frozen=True)
class _Attribution:
    """One run, on its way."""

    config: Attribute
    console: Console

    def run(self) -> Summary:
        """All stages."""
        stage = Stages(self.console)
        # Refuses an unknown one at once.
        optimiser_named(self.config.step.update, self.config.step.learning_rate)
        with stage("read inputs"):
            inputs = load_inputs(self.config, self.console)
        return replace(self, config=inputs.config).on(inputs, stage)

    def on(self, inputs: Inputs, stage: Stages) -> Summary:
        """All stages but the first."""
        config = self.config
        with stage("read inputs"):
            folder = RunFolder(config.out, *record_of(config, inputs))
        finished = folder.recorded("status") == "complete"
        before = folder.recorded("timings") if finished else None
        if before:
            again = "this run is finished: its tables are written again, nothing is computed anew"
            self.console.print(again, soft_wrap=True)
        with stage("read prompts"):
            evaluation, own = self._read(inputs, folder)
            policies = fit_policies(config, inputs.prompts, evaluation)
        with watched(folder.path):
            with stage("plan"):
                blocks = self._plan(inputs, evaluation, policies, folder)
            with stage("attribute pairs"):
                blocks.compute(self.console)
            with stage("decompose"):
                summary = results(Found(config, inputs, own, policies, blocks))
            if config.tokens:
                with stage("tokens"):
                    norm = summary.gradient_norm
                    table = token_table(config, inputs, blocks.job, norm, self.console)
                    folder.write_table("tokens.parquet", table)
            if config.check_pairs:
                with stage("check true steps"):
                    found = check_first_order(config, inputs, policies["all"], blocks)
                    summary.first_order = found
                self._warn_of_steps_too_long(found)
            folder.finish(timings=before or stage.seconds, summary=summary.as_dict())
        return summary

    def _warn_of_steps_too_long(self, found: dict[str, float | int]) -> None:
        worst = {name: v for name, v in found.items() if name.startswith("r2_") and v < R2}
        if worst:
            name, value = min(worst.items(), key=lambda one: one[1])
            what = f"first order does not hold for steps this long: R² {value:.2f} of true steps"
            remedy = "ranks may hold, sizes do not: a smaller --learning-rate, or --engine finite"
            warn(self.console, f"{what} ({name.removeprefix('r2_')}); {remedy}")

    def _read(self, inputs: Inputs, folder: RunFolder) -> tuple[Evaluation, OwnPrompts]:
        """Reads prompts at the base weights, those of the pairs too, or finds that done.

        The run folder comes into being here, once the activations have been found to be usable.
        """
        config = self.config

        def select(read: Reading, features: str | list[int]) -> Evaluation:
            selection = reading.Selection(inputs.sae, features, config.encoder)
            data = (inputs.prompts, inputs.prompt_tokens)
            return reading.evaluate_prompts(inputs.question, selection, *data, read)

        if folder.has("base"):
            base = folder.load("base")
            extra = base.get("also", np.zeros((0, *base["h"].shape)))
            read = Reading(base["h"], base["y"], extra)
            return select(read, base["feature_ids"].tolist()), OwnPrompts(
                base["own_h"], base["own"]
            )
        e = select(reading.run_prompts(inputs.question, inputs.prompt_tokens), config.features)
        fit_policies(config, inputs.prompts, e)  # refuses a subset that is empty
        columns_of(config.tokens, e.feature_ids)
        self._refuse_silent_features(e)
        own = self._read_own_prompts(inputs, e)
        folder.begin()
        arrays = {"h": e.h, "also": e.extra, "z": e.z, "active": e.active, "y": e.y}
        own_arrays = {"own": own.active, "own_h": own.h, "feature_ids": np.array(e.feature_ids)}
        folder.save("base", arrays | own_arrays)
        return e, own

    def _refuse_silent_features(self, e: Evaluation) -> None:
        if len(e.h) > 1 and not np.ptp(e.h, axis=0).any():
            what = "the stream that the SAE reads is the same on every prompt"
            warn(self.console, f"{what}: X says nothing; another --layer or --read-at")
        silent = np.array(e.feature_ids)[~np.any(e.active, axis=0)]
        if len(silent) == len(e.feature_ids):
            what = "none of them is active on any evaluation prompt"
            raise InputError("features", what, "choose others: --features contrast:0.1")
        if len(silent):
            count = f"{len(silent)} of {len(e.feature_ids)} features are active on no prompt"
            warn(self.console, f"{count}, such as {silent[0]}")

    def _read_own_prompts(self, inputs: Inputs, e: Evaluation) -> OwnPrompts:
        """What the base model makes of the pairs' own prompts."""
        model, pairs = inputs.base, inputs.pairs
        tokens = [
            model.chat.prompt(text, self.config.step.max_length, pairs.where(i), pairs.history[i])
            for i, text in enumerate(pairs.prompt)
        ]
        only_h = replace(inputs.question, model=model, behaviour=Nothing())
        h = np.asarray(reading.run_prompts(only_h, tokens).h)
        for row in np.flatnonzero(~np.isfinite(h).all(axis=1)):
            what = "the model's activations on its prompt are not finite"
            raise InputError(pairs.where(int(row)), what)
        return OwnPrompts(h, reading.encode(e.encoder, h)[1])

    def _plan(
        self, inputs: Inputs, e: Evaluation, policies: dict[str, Policy], folder: RunFolder
    ) -> Blocks:
        """Chooses the engine and its blocks, or takes those that the run began with."""
        c, limit = self.config, memory_limit()
        active = float(np.mean(e.active.sum(axis=1)))
        work = workload(c, inputs, len(e.feature_ids), active, len(policies))
        plan = planner.choose(work, limit, c.engine)
        name, pair_chunk = plan.name, c.pair_block or plan.pair_chunk
        if begun := folder.recorded("plan"):
            name, pair_chunk = begun["engine"], begun["pair_block"]
        price = plan.prices[name]
        plan = planner.Plan(
            engine=planner.engine_named(name),
            keep=work.keep,
            pair_chunk=pair_chunk,
            batch_size=c.prompt_block or price.batch_size,
            prices=plan.prices,
        )
        folder.begin(engine=plan.name, plan=plan.as_dict())
        with numerics(c.dtype):
            seconds = price.total / (planner.SHARE_OF_RATE * planner.measured_rate(c.dtype))
        rest = (f"{n} {p.total:.1e}" for n, p in plan.prices.items() if n != name)
        self.console.print(
            f"engine {name}: {price.total:.1e} operations ({', '.join(rest)}), "
            f"about {duration(seconds)} here, compilation apart",
            soft_wrap=True,
        )
        job = Job(
            evaluation=e,
            tokens=inputs.pair_tokens,
            stepping=stepping_of(c, inputs),
            keep=work.keep,
            gate_open=c.gate == "off",
            policies=tuple(policies.values()),
            pair_chunk=plan.pair_chunk,
            batch_size=plan.batch_size,
            readouts_at_a_time=readouts_at_a_time(work, limit),
            seconds=seconds,
            optimiser=optimiser_named(c.step.update, c.step.learning_rate),
        )
        return Blocks(plan.engine, job, inputs.pairs, folder)

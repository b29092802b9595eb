"""The main job: checkpoint, SAE, prompts and pairs in; a run folder out."""

import hashlib
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from rich.console import Console

from smda_jax.data.features import parse
from smda_jax.errors import InputError
from smda_jax.jacobian import evaluation as reading
from smda_jax.jacobian import plan, rule
from smda_jax.jacobian.evaluation import Evaluation
from smda_jax.jacobian.passes import Update
from smda_jax.jacobian.programs import TooLargeError, memory_limit
from smda_jax.jacobian.readout import Reading
from smda_jax.jacobian.rule import rule_named
from smda_jax.model import mesh
from smda_jax.model.precision import numerics
from smda_jax.runs.alive import watched
from smda_jax.runs.baselines import OwnPrompts
from smda_jax.runs.blocks import Blocks
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs import Inputs, load_inputs, warn
from smda_jax.runs.planning import duration, workload
from smda_jax.runs.policies import Policy, fit_policies
from smda_jax.runs.questions import Questions
from smda_jax.runs.results import results
from smda_jax.runs.store import RunFolder
from smda_jax.runs.summary import Summary, print_summary
from smda_jax.runs.verify import check_first_order

CONVENTIONS = (
    "delta_*: change after one step -learning_rate*gradient on the pair; delta_y and y in nats; "
    "contribution = W*delta_w; score = sum of contributions, positive where the step moves the policy along itself"
)


@dataclass
class Stages:
    """Wall-clock seconds of the stages of a run; says on the terminal which one is under way."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times a stage."""
        start = time.perf_counter()
        with self.console.status(name):
            yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def attribute(config: Attribute, console: Console | None = None) -> Summary:
    """Runs, or continues, one attribution and prints its summary.

    Raises:
        InputError: something of the configuration cannot be used; nothing has been written then.
    """
    config.check()
    if config.distributed:
        mesh.connect()
    mesh.shard_parameters(config.shard_params)
    console = console or Console()
    console.quiet = console.quiet or not mesh.writes()
    with mesh.together():
        try:
            return _attribute(config, console)
        except TooLargeError as error:
            raise InputError(
                "memory", f"one pair and one prompt at a time do not fit ({error})", "a smaller --max-length or --dtype"
            ) from error


def _attribute(config: Attribute, console: Console) -> Summary:
    stage = Stages(console)
    rule = rule_named(config.update, config.learning_rate) if config.update.startswith("optax.") else None
    with stage("read inputs"):
        inputs = load_inputs(config, console)
        run = RunFolder(config.out, *_record(config, inputs))
    before = run.recorded("timings") if run.recorded("status") == "complete" else None
    if before:
        console.print("this run is finished: its tables are written again, nothing is computed anew", soft_wrap=True)
    with stage("read prompts"):
        evaluation, own = _read(config, inputs, run, console)
        policies = fit_policies(config, inputs.prompts, evaluation)
    with watched(run.path):
        with stage("plan"):
            blocks = replace(_plan(config, inputs, evaluation, policies, run, console), rule=rule)
        with stage("attribute pairs"):
            blocks.compute(console)
        with stage("decompose"):
            summary = results(config, inputs, evaluation, own, policies, blocks, run)
        if config.check_pairs:
            with stage("check true steps"):
                summary.first_order = check_first_order(config, inputs, evaluation, policies["all"], blocks)
        run.finish(timings=before or stage.seconds, summary=summary.as_dict())
    print_summary(summary, console)
    return summary


def _record(config: Attribute, inputs: Inputs) -> tuple[str, dict[str, Any]]:
    """(fingerprint of all that the numbers depend on, what run.json says)."""
    names = ("smda-jax", "jax", "jaxlib", "flax", "numpy", "transformers", "orbax-checkpoint")
    device = jax.devices()[0]
    bfloat16 = config.dtype == "bfloat16"
    record = {
        "schema_version": 1,
        "config": config.resolved(),
        "inputs": inputs.hashes,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "precision": {"passes": config.dtype, "matmul": "default" if bfloat16 else "highest", "ridge": "float64"},
        "chat_date": config.chat_date,
        "conventions": CONVENTIONS,
        "prompts": len(inputs.prompts),
        "prompts_overlapping_with_pairs": inputs.overlapping,
        "pairs": len(inputs.pairs),
        "pairs_truncated": sum(t.truncated for t in inputs.pair_tokens),
    }
    # Where files lie and on which devices a run runs does not change a number, the files' contents do (of a file of features,
    # the ids in it); labels, the check and resamples change nothing that is stored.
    places = {
        "bootstrap",
        "out",
        "cache",
        "model",
        "sae",
        "eval",
        "pairs",
        "feature_labels",
        "neuronpedia",
        "redact",
        "check_pairs",
        "distributed",
        "shard_params",
    }
    essence = {k: v for k, v in config.resolved().items() if k not in places} | {"features": parse(config.features)}
    text = json.dumps([2, version("smda-jax"), essence, inputs.hashes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest(), record


def _read(config: Attribute, inputs: Inputs, run: RunFolder, console: Console) -> tuple[Evaluation, OwnPrompts]:
    """Reads prompts at the base weights, those of the pairs too, or finds that done.

    The run folder comes into being here, once the activations have been found to be usable.
    """
    model = inputs.model

    def select(read: Reading, features: str | list[int]) -> Evaluation:
        return reading.evaluation_of(
            model, inputs.sae, inputs.prompts, inputs.prompt_tokens, inputs.targets, inputs.site, read, features,
            config.encoder,
        )  # fmt: skip

    if run.has("base"):
        base = run.load("base")
        return select(
            Reading(base["h"], base["y"], base.get("also", np.zeros((0, *base["h"].shape)))), base["feature_ids"].tolist()
        ), OwnPrompts(base["own_h"], base["own"])
    read = reading.read_prompts(model, inputs.prompt_tokens, inputs.targets, inputs.site)
    evaluation = select(read, config.features)
    fit_policies(config, inputs.prompts, evaluation)  # refuses a subset that is empty
    silent = np.array(evaluation.feature_ids)[~np.any(evaluation.active, axis=0)]
    if len(silent) == len(evaluation.feature_ids):
        raise InputError(
            "features", "none of them is active on any evaluation prompt", "choose others: --features contrast:0.1"
        )
    if len(silent):
        warn(console, f"{len(silent)} of {len(evaluation.feature_ids)} features are active on no prompt, such as {silent[0]}")
    own_prompts = [
        model.chat.prompt(text, config.max_length, inputs.pairs.where(i)) for i, text in enumerate(inputs.pairs.prompt)
    ]
    own_h = reading.read_prompts(model, own_prompts, inputs.targets, inputs.site).h
    for row in np.flatnonzero(~np.isfinite(own_h).all(axis=1)):
        raise InputError(inputs.pairs.where(int(row)), "the model's activations on its prompt are not finite")
    own = OwnPrompts(np.asarray(own_h), reading.encode(evaluation.encoder, np.asarray(own_h))[1])
    run.begin()
    run.save("base", {
        "h": evaluation.h, "also": evaluation.also, "z": evaluation.z, "active": evaluation.active, "y": evaluation.y,
        "own": own.active, "own_h": own.h, "feature_ids": np.array(evaluation.feature_ids),
    })  # fmt: skip
    return evaluation, own


def _plan(c: Attribute, inputs: Inputs, e: Evaluation, policies: dict[str, Policy], run: RunFolder, console: Console) -> Blocks:
    """Chooses the engine and its blocks, or takes those that the run began with."""
    active = float(np.mean(e.active.sum(axis=1)))
    work = workload(c, inputs, len(e.feature_ids), active, len(policies))
    limit = memory_limit()
    made = plan.choose(work, limit, c.engine)
    made = replace(made, pair_block=c.pair_block or made.pair_block)
    if begun := run.recorded("plan"):
        made = replace(made, engine=begun["engine"], pair_block=begun["pair_block"], block=made.prices[begun["engine"]].block)
    made = replace(made, block=c.prompt_block or made.block)
    run.begin(engine=made.engine, plan=made.as_dict())
    with numerics(c.dtype):
        seconds = made.prices[made.engine].total / (plan.SHARE * plan.measured_rate(c.dtype))
    others = ", ".join(f"{name} {price.total:.1e}" for name, price in made.prices.items() if name != made.engine)
    console.print(
        f"engine {made.engine}: {made.prices[made.engine].total:.1e} operations ({others}), "
        f"about {duration(seconds)} here, compilation apart",
        soft_wrap=True,
    )
    gate = e.active if c.gate == "on" else np.ones_like(e.active)
    questions = Questions(
        tuple(policies.values()), len(e.feature_ids), made.keep == "score", gate, plan.functionals_at_a_time(work, limit)
    )
    scaling = None
    if c.update == "adam":
        scaling = rule.adam_scaling(inputs.model, inputs.pair_tokens, c.loss_scope)
    update = Update(c.learning_rate, c.update == "normalised", scaling)
    return Blocks(c, inputs, e, run, made, update, questions, seconds)

"""The main job: checkpoint, SAE, prompts and pairs in; a run folder out."""

import hashlib
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from rich.console import Console

from smda_jax.data.features import parse
from smda_jax.errors import InputError
from smda_jax.jacobian import passes
from smda_jax.jacobian.passes import Evaluation
from smda_jax.policy.selection import subsets
from smda_jax.runs.blocks import Blocks
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs import Inputs, load_inputs, warn
from smda_jax.runs.results import check_first_order, observed, results
from smda_jax.runs.store import RunFolder
from smda_jax.runs.summary import Summary, print_summary

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
    console = console or Console()
    stage = Stages(console)
    with stage("read inputs"):
        inputs = load_inputs(config, console)
        run = RunFolder(config.out, *_record(config, inputs))
    with stage("read prompts"):
        evaluation, own = _read(config, inputs, run, console)
    blocks = Blocks(config, inputs, evaluation, run)
    with stage("attribute pairs"):
        blocks.compute(console)
    with stage("decompose"):
        summary = results(config, inputs, evaluation, own, blocks, run)
    if config.check_pairs:
        with stage("check true steps"):
            alpha = summary.fits["all"]["alpha"]
            summary.first_order = check_first_order(config, inputs, evaluation, blocks, alpha)
    run.finish(timings=stage.seconds, summary=summary.as_dict())
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
        "engine": config.engine,
        "chat_date": config.chat_date,
        "conventions": CONVENTIONS,
        "prompts": len(inputs.prompts),
        "prompts_overlapping_with_pairs": inputs.overlapping,
        "pairs": len(inputs.pairs),
        "pairs_truncated": sum(t.truncated for t in inputs.pair_tokens),
    }
    # Where files lie does not change a number, their contents do (of a file of features, the ids in it); labels and the check
    # change nothing that is stored.
    places = {"out", "cache", "model", "sae", "eval", "pairs", "feature_labels", "check_pairs"}
    essence = {k: v for k, v in config.resolved().items() if k not in places} | {"features": parse(config.features)}
    text = json.dumps([1, version("smda-jax"), essence, inputs.hashes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest(), record


def _read(config: Attribute, inputs: Inputs, run: RunFolder, console: Console) -> tuple[Evaluation, np.ndarray]:
    """Reads prompts at the base weights, or finds that done → evaluation, features active on each pair's own prompt.

    The run folder comes into being here, once the activations have been found to be usable.
    """
    model, block = inputs.model, config.prompt_block

    def select(reading: passes.Reading, features: str | list[int]) -> Evaluation:
        return passes.evaluation_of(
            model, inputs.sae, inputs.prompts, inputs.prompt_tokens, inputs.targets, inputs.site, reading, features,
            config.encoder, block,
        )  # fmt: skip

    if run.has("base"):
        base = run.load("base")
        evaluation = select(passes.Reading(base["h"], base["y"]), base["feature_ids"].tolist())
        run.begin()
        return evaluation, base["own"]
    reading = passes.read_prompts(model, inputs.prompt_tokens, inputs.targets, inputs.site, block=block)
    evaluation = select(reading, config.features)
    subsets(config.subset, inputs.prompts.label, observed(inputs.prompts, evaluation.y).tolist(), config.seed)  # or refuses
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
    own_h = passes.read_prompts(model, own_prompts, inputs.targets, inputs.site, block=block).h
    for row in np.flatnonzero(~np.isfinite(own_h).all(axis=1)):
        raise InputError(inputs.pairs.where(int(row)), "the model's activations on its prompt are not finite")
    own = passes.encode(evaluation.encoder, np.asarray(own_h))[1]
    run.begin()
    run.save("base", {
        "h": evaluation.h, "z": evaluation.z, "active": evaluation.active, "y": evaluation.y, "own": own,
        "feature_ids": np.array(evaluation.feature_ids),
    })  # fmt: skip
    return evaluation, own

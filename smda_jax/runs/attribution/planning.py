"""What a run would cost, before it is run."""

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from smda_jax.data.batch.batches import scored_in_all, shared_length, shared_pair_length
from smda_jax.data.features import parse
from smda_jax.engines import planner
from smda_jax.engines.workload import Workload
from smda_jax.model.moved import count, everything
from smda_jax.runs.config import Attribute, Plan
from smda_jax.runs.inputs.load import Inputs, load_inputs
from smda_jax.runtime.memory import memory_limit
from smda_jax.runtime.precision import BYTES, numerics


def workload(c: Attribute, inputs: Inputs, features: int, active: float, policies: int) -> Workload:
    """The shapes of a run."""
    prompts, pairs, question = inputs.prompt_tokens, inputs.pair_tokens, inputs.question
    behaviour = question.behaviour
    return Workload(
        config=question.model.config,
        pairs=len(pairs),
        prompts=len(prompts),
        prompt_tokens=float(np.mean([t.length for t in prompts])),
        shared=shared_length(prompts),
        pair_tokens=float(np.mean([t.total for t in pairs])),
        shared_pairs=shared_pair_length(pairs),
        scored=float(np.mean([scored_in_all(t) for t in pairs])),
        features=features,
        active=float(features) if c.gate == "off" else active,
        layer=question.site.layer,
        depth=question.depth(prompts),
        depth_of_y=question.depth(prompts) if behaviour.moves else 0,
        positions=prompts[0].asked.positions,
        policies=policies,
        keep=c.kept(),
        itemsize=BYTES[c.dtype],
        moved=inputs.moved,
    )


def print_plan(config: Plan, console: Console) -> None:
    """Prints the price of every engine for a run. Reads every input but the weights.

    Raises:
        InputError: as `attribute` would.
    """
    inputs = load_inputs(config, console, weights=False)
    asked, features = parse(config.features), config.assume_features
    if asked is None:
        features = inputs.sae.features
    elif isinstance(asked, list):
        features = len(asked)
    active = config.assume_active * features
    limit, policies = memory_limit(), max(1, len(config.subset))
    work = workload(config.settled(), inputs, features, active, policies)
    with numerics(config.dtype):
        rate = planner.measured_rate(config.dtype)
    plan, seconds = (
        planner.choose(work, limit, config.settled().engine),
        planner.SHARE_OF_RATE * rate,
    )
    table = Table(box=box.SIMPLE_HEAD, header_style="")
    names = ("engine", "operations", "time here", "of which", "pairs at a time")
    for name in (*names, "prompts (reverse: readouts)"):
        table.add_column(name, justify="left" if name in ("engine", "of which") else "right")
    for name, price in sorted(plan.prices.items(), key=lambda item: item[1].total):
        total = price.total
        parts = ", ".join(f"{part} {flop / total:.0%}" for part, flop in price.flop.items())
        mark = "* " if name == plan.name else "  "
        sizes = (str(price.pair_chunk), str(price.batch_size))
        table.add_row(mark + name, f"{total:.1e}", duration(total / seconds), parts, *sizes)
    config_of = inputs.question.model.config
    moves = count(config_of, inputs.moved or everything(config_of))
    whole = count(config_of, everything(config_of))
    console.print(
        f"Y: {inputs.question.behaviour.raised} ({inputs.question.behaviour.unit}); "
        f"{whole / 1e6:,.1f} M parameters, of which move {moves / 1e6:,.2f} M",
        soft_wrap=True,
    )
    console.print(
        f"{work.pairs} pairs of {work.pair_tokens:.0f} tokens, {work.prompts} prompts of "
        f"{work.prompt_tokens:.0f} ({work.shared} shared), {features} features of which "
        f"{active:.0f} are taken to be active on a prompt; keeps {work.keep.name}",
        soft_wrap=True,
    )
    console.print(table)
    console.print(
        f"* is what --engine {config.engine} takes. Times suppose {planner.SHARE_OF_RATE:.0%} of "
        f"the {rate:.1e} operations per second of a large {config.dtype} product, measured now; "
        f"memory for programs: {limit / 2**30:.1f} GiB",
        soft_wrap=True,
    )


def duration(seconds: float | int) -> str:
    """In words, rounded."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(seconds, 1):.0f} s"

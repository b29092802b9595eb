"""What a run would cost, before it is run."""

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from smda_jax.data.batches import scored_positions, shared_length, shared_pair_length
from smda_jax.data.features import parse
from smda_jax.jacobian import plan
from smda_jax.jacobian.programs import memory_limit
from smda_jax.model.precision import numerics
from smda_jax.runs.config import Attribute, Plan
from smda_jax.runs.inputs import Inputs, load_inputs


def workload(c: Attribute, inputs: Inputs, features: int, active: float, policies: int) -> plan.Workload:
    """The shapes of a run."""
    prompts, pairs = inputs.prompt_tokens, inputs.pair_tokens
    keep = c.kept()
    return plan.Workload(
        config=inputs.model.config, pairs=len(pairs), prompts=len(prompts),
        prompt_tokens=float(np.mean([len(t.ids) for t in prompts])) + max(map(len, inputs.targets.rows)),
        shared=shared_length(prompts), pair_tokens=float(np.mean([len(t.ids) for t in pairs])),
        shared_pairs=shared_pair_length(pairs, c.loss_scope),
        scored=float(np.mean([len(scored_positions(t, c.loss_scope)) for t in pairs])), features=features,
        active=float(features) if c.gate == "off" else active, layer=inputs.site.layer, positions=inputs.targets.positions,
        policies=policies, keep=keep, itemsize={"bfloat16": 2, "float32": 4, "float64": 8}[c.dtype],
    )  # fmt: skip


def print_plan(config: Plan, console: Console) -> None:
    """Prints the price of every engine for a run. Reads every input but the weights, and writes nothing.

    Raises:
        InputError: as `attribute` would.
    """
    inputs = load_inputs(config, console, weights=False)
    asked = parse(config.features)
    features = len(asked) if isinstance(asked, list) else inputs.sae.features if asked is None else config.assume_features
    active = config.assume_active * features
    work, limit = workload(config, inputs, features, active, max(1, len(config.subset))), memory_limit()
    with numerics(config.dtype):
        rate = plan.measured_rate(config.dtype)
    chosen = plan.choose(work, limit, config.engine)
    table = Table(box=box.SIMPLE_HEAD, header_style="")
    for name in ("engine", "operations", "time here", "of which", "pairs at a time", "prompts (reverse: readouts)"):
        table.add_column(name, justify="left" if name in ("engine", "of which") else "right")
    for name, price in sorted(chosen.prices.items(), key=lambda item: item[1].total):
        parts = ", ".join(f"{part} {flop / price.total:.0%}" for part, flop in price.flop.items())
        table.add_row(
            ("* " if name == chosen.engine else "  ") + name, f"{price.total:.1e}",
            duration(price.total / (plan.SHARE * rate)), parts, str(price.pair_block), str(price.block),
        )  # fmt: skip
    console.print(
        f"{work.pairs} pairs of {work.pair_tokens:.0f} tokens, {work.prompts} prompts of {work.prompt_tokens:.0f} "
        f"({work.shared} shared), {features} features of which {active:.0f} are taken to be active on a prompt; "
        f"keeps {work.keep}",
        soft_wrap=True,
    )
    console.print(table)
    console.print(
        f"* is what --engine {config.engine} takes. Times suppose {plan.SHARE:.0%} of the {rate:.1e} operations per second of "
        f"a large {config.dtype} product, measured now; memory for programs: {limit / 2**30:.1f} GiB",
        soft_wrap=True,
    )


def duration(seconds: float | int) -> str:
    """In words, rounded."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(seconds, 1):.0f} s"

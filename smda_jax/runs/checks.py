"""What options of a run cannot be used together. Imports nothing heavy."""

from typing import Any

from smda_jax.engines.offers import OFFERS, READS_ELSEWHERE
from smda_jax.errors import InputError
from smda_jax.reading import behaviours
from smda_jax.steps.updates import UPDATES, offer


def check_attribute(c: Any) -> None:
    """Raises InputError for values of `runs.config.Attribute` that no run could use."""
    at_least = {
        "alpha": 0,
        "learning_rate": 0,
        "beta": 0,
        "damping": 0,
        "max_length": 2,
        "pair_block": 0,
        "prompt_block": 0,
        "shard_params": 1,
        "check_pairs": 0,
        "alpha_folds": 0,
        "bootstrap": 0,
        "batch": 1,
    }
    for name, low in at_least.items():
        if not getattr(c, name) >= low:
            raise InputError(f"--{name.replace('_', '-')}", f"{getattr(c, name)} is below {low}")
    if not c.learning_rate:
        raise InputError("--learning-rate", "0 is no step", "what does not change shifts nothing")
    if c.loss == "dpo" and not c.beta:
        raise InputError("--beta", "0 is no step", "e.g. 0.1")
    if c.alpha_folds == 1:
        raise InputError("--alpha-folds", "one fold leaves nothing to fit on", "0, or at least 2")
    behaviours.check(c.behaviour, c.behaviour_options())
    asked, kind = OFFERS.get(c.engine), offer(c.update)
    true_step = asked is not None and not asked.first_order
    if c.trained is not None and asked is not None and not asked.elsewhere:
        what = f"{c.engine} reads prompts at the weights that pairs are stepped on"
        raise InputError("--engine", what, f"--engine {READS_ELSEWHERE}, or leave --trained out")
    said = {"curvature_data": "tokens", "damping": "damping", "fisher": "fisher"}
    for name, field in said.items():
        if getattr(c, name) != getattr(type(c), name) and field not in kind.takes:
            who = " or ".join(k for k, one in UPDATES.items() if field in one.takes)
            flag = f"--{name.replace('_', '-')}"
            raise InputError(flag, f"says nothing to {c.update}", f"--update {who}")
    if c.update == "ekfac" and c.fisher == "true" and c.loss == "dpo":
        what = "of a preference no answers can be drawn from the model"
        raise InputError("--fisher", what, "--fisher empirical")
    gate_open, keep = c.gate == "off", c.kept()
    if gate_open and (true_step or c.check_pairs):
        raise InputError(
            "--gate",
            "off is a first-order notion: no true step leaves every gate open",
            "use --gate on",
        )
    if true_step and c.check_pairs:
        what = f"compares first order with the true step, which engine {c.engine} is"
        raise InputError("--check-pairs", what, "leave it out")
    if not kind.first_order and not true_step:
        what = f"{c.update} need not be linear in the gradient"
        raise InputError("--update", what, "add --engine finite")
    if c.layers and not keep.residual:
        raise InputError("--layers", "says whose residual streams are kept", "add --keep residual")
    if asked is not None and keep.name not in asked.gives:
        what = f"{c.keep} is not what engine {c.engine} gives"
        raise InputError("--keep", what, "leave --engine out")
    if gate_open and keep.with_open_gate:
        raise InputError(
            "--keep",
            "active leaves out what an open gate lets through",
            "--keep features, or --gate on",
        )
    if not 0 <= c.test_fraction < 1:
        raise InputError(
            "--test-fraction",
            f"{c.test_fraction} is not a share",
            "0 (inclusive) to 1 (exclusive)",
        )

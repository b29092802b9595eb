"""Symbolic Mechanistic Data Attribution in JAX.

What can be called, in the order it is used; each is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smda_jax.data.chat import Chat as Chat
    from smda_jax.data.records import Pairs as Pairs
    from smda_jax.data.records import Prompts as Prompts
    from smda_jax.data.records import load_pairs as load_pairs
    from smda_jax.data.records import load_pairs as read_pairs  # noqa: F401
    from smda_jax.data.records import load_prompts as load_prompts
    from smda_jax.data.records import load_prompts as read_prompts  # noqa: F401
    from smda_jax.engines.contract import Delta as Delta
    from smda_jax.engines.finite.dataset import finite as finite
    from smda_jax.engines.forward.dataset import forward as forward
    from smda_jax.engines.reverse.dataset import reverse as reverse
    from smda_jax.errors import InputError as InputError
    from smda_jax.policy.influence import Influence as Influence
    from smda_jax.policy.influence import decompose as decompose
    from smda_jax.policy.ridge import ridge as ridge
    from smda_jax.reading.behaviours.contract import Seen as Seen
    from smda_jax.reading.behaviours.contract import Spot as Spot
    from smda_jax.reading.behaviours.function import Function as Function
    from smda_jax.reading.evaluation import Evaluation as Evaluation
    from smda_jax.reading.evaluation import activations as activations
    from smda_jax.reading.network import Model as Model
    from smda_jax.reading.network import load_model as load_model
    from smda_jax.report.page import report as write_report  # noqa: F401
    from smda_jax.runs.attribution.attribute import attribute as attribute
    from smda_jax.runs.attribution.summary import Summary as Summary
    from smda_jax.runs.attribution.verify import verify as verify
    from smda_jax.runs.commands import Report as Report
    from smda_jax.runs.commands import Sweep as Sweep
    from smda_jax.runs.commands import Verify as Verify
    from smda_jax.runs.config import Attribute as Attribute
    from smda_jax.runs.evaluation.config import Evaluate as Evaluate
    from smda_jax.runs.evaluation.evaluate import evaluate as evaluate
    from smda_jax.runs.experiment.config import Curate as Curate
    from smda_jax.runs.experiment.config import Experiment as Experiment
    from smda_jax.runs.experiment.config import Validate as Validate
    from smda_jax.runs.experiment.curate import curate as curate
    from smda_jax.runs.experiment.experiment import experiment as experiment
    from smda_jax.runs.experiment.validate import validate as validate
    from smda_jax.runs.sweep.run import sweep as sweep
    from smda_jax.runs.tuning.config import Finetune as Finetune
    from smda_jax.runs.tuning.finetune import finetune as finetune
    from smda_jax.sae.formats import SAE as SAE
    from smda_jax.sae.formats import load as load_sae  # noqa: F401
    from smda_jax.steps.checkpoints import StepCheckpoints as StepCheckpoints
    from smda_jax.steps.dataset import pair_steps as factors  # noqa: F401
    from smda_jax.steps.dataset import pair_steps as pair_steps

# name -> (module, its name there); the table that `dir` shows, and that types above repeat
EXPORTS = {
    # a whole run, as the commands do it
    "Attribute": ("runs.config", "Attribute"),
    "attribute": ("runs.attribution.attribute", "attribute"),
    "Verify": ("runs.commands", "Verify"),
    "verify": ("runs.attribution.verify", "verify"),
    "Finetune": ("runs.tuning.config", "Finetune"),
    "finetune": ("runs.tuning.finetune", "finetune"),
    "Evaluate": ("runs.evaluation.config", "Evaluate"),
    "evaluate": ("runs.evaluation.evaluate", "evaluate"),
    "Curate": ("runs.experiment.config", "Curate"),
    "curate": ("runs.experiment.curate", "curate"),
    "Experiment": ("runs.experiment.config", "Experiment"),
    "experiment": ("runs.experiment.experiment", "experiment"),
    "Validate": ("runs.experiment.config", "Validate"),
    "validate": ("runs.experiment.validate", "validate"),
    "Sweep": ("runs.commands", "Sweep"),
    "sweep": ("runs.sweep.run", "sweep"),
    "Report": ("runs.commands", "Report"),
    "write_report": ("report.page", "report"),
    # its steps
    "load_model": ("reading.network", "load_model"),
    "load_sae": ("sae.formats", "load"),
    "load_prompts": ("data.records", "load_prompts"),
    "load_pairs": ("data.records", "load_pairs"),
    "activations": ("reading.evaluation", "activations"),
    "pair_steps": ("steps.dataset", "pair_steps"),
    "forward": ("engines.forward.dataset", "forward"),
    "reverse": ("engines.reverse.dataset", "reverse"),
    "finite": ("engines.finite.dataset", "finite"),
    "ridge": ("policy.ridge", "ridge"),
    "decompose": ("policy.influence", "decompose"),
    # a behaviour of one's own
    "Function": ("reading.behaviours.function", "Function"),
    "Seen": ("reading.behaviours.contract", "Seen"),
    "Spot": ("reading.behaviours.contract", "Spot"),
    # types
    "Chat": ("data.chat", "Chat"),
    "Delta": ("engines.contract", "Delta"),
    "Evaluation": ("reading.evaluation", "Evaluation"),
    "Influence": ("policy.influence", "Influence"),
    "InputError": ("errors", "InputError"),
    "Model": ("reading.network", "Model"),
    "Pairs": ("data.records", "Pairs"),
    "Prompts": ("data.records", "Prompts"),
    "SAE": ("sae.formats", "SAE"),
    "StepCheckpoints": ("steps.checkpoints", "StepCheckpoints"),
    "Summary": ("runs.attribution.summary", "Summary"),
    # names of version 0.1
    "factors": ("steps.dataset", "pair_steps"),
    "read_pairs": ("data.records", "load_pairs"),
    "read_prompts": ("data.records", "load_prompts"),
}

__all__ = list(EXPORTS)  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return sorted(EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = EXPORTS[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)

"""What run.json says of a run, and the fingerprint of all that its numbers depend on."""

import hashlib
import json
import platform
from importlib.metadata import version
from typing import Any

import jax

from smda_jax.data.features import parse
from smda_jax.model.moved import count, everything
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs.load import Inputs

CONVENTIONS = (
    "delta_*: change after one step -learning_rate*gradient on the pair; y and delta_y in the "
    "behaviour's unit; "
    "contribution = W*delta_w; score = sum of contributions, positive where the step moves the "
    "policy along itself"
)
# How parts of a run are stored: a run whose parts are of another layout is not continued.
LAYOUT = 3
# Where files lie and on which devices a run runs changes no number; the files' contents do. Labels,
# the check and resamples change nothing that is stored.
WITHOUT_EFFECT = {
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
    "adapter",
    "curvature_data",
    "direction",
    "recipe",
    "trained",
    "raises",
    "check_pairs",
    "tokens",
    "distributed",
    "shard_params",
}


def record_of(config: Attribute, inputs: Inputs) -> tuple[str, dict[str, Any]]:
    """(fingerprint, record) of a run."""
    names = ("smda-jax", "jax", "jaxlib", "flax", "numpy", "transformers", "orbax-checkpoint")
    device, behaviour = jax.devices()[0], inputs.question.behaviour
    model = inputs.question.model
    matmul = "default" if config.dtype == "bfloat16" else "highest"
    record = {
        "schema_version": 1,
        "config": config.resolved(),
        "inputs": inputs.hashes,
        "versions": {"python": platform.python_version(), **{n: version(n) for n in names}},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "precision": {"passes": config.dtype, "matmul": matmul, "ridge": "float64"},
        "chat_date": config.chat_date,
        "behaviour": {
            "name": behaviour.name,
            "unit": behaviour.unit,
            "raised": behaviour.raised,
            "moves": behaviour.moves,
            "shows_above": behaviour.shows_above,
            **behaviour.settings,
        },
        "chat": {
            "read_at": model.chat.read_at,
            "described": model.chat.describe(),
            "notes": model.chat.notes,
        },
        "parameters": {
            "said": list(config.moving()),
            "moved": count(model.config, inputs.moved or everything(model.config)),
            "of": count(model.config, everything(model.config)),
        },
        "step": {
            "recipe": config.recipe,
            **config.step._asdict(),
            "trained": config.trained,
        },
        "polarity": {"raises": inputs.polarity.labels, "source": inputs.polarity.source},
        "conventions": CONVENTIONS,
        "prompts": len(inputs.prompts),
        "prompts_overlapping_with_pairs": inputs.overlapping,
        "pairs": len(inputs.pairs),
        "pairs_truncated": sum(t.truncated for t in inputs.pair_tokens),
    }
    essence = {k: v for k, v in config.resolved().items() if k not in WITHOUT_EFFECT}
    essence["features"] = parse(config.features)
    content = [LAYOUT, version("smda-jax"), essence, inputs.hashes, behaviour.settings]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest(), record

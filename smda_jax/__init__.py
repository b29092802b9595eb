"""Symbolic Mechanistic Data Attribution in JAX.

The steps, in the order they are used; each is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smda_jax.data.chat import Chat as Chat
    from smda_jax.data.records import read_pairs as read_pairs
    from smda_jax.data.records import read_prompts as read_prompts
    from smda_jax.errors import InputError as InputError
    from smda_jax.jacobian.evaluation import activations as activations
    from smda_jax.jacobian.evaluation import load_model as load_model
    from smda_jax.jacobian.passes import factors as factors
    from smda_jax.jacobian.passes import finite as finite
    from smda_jax.jacobian.passes import forward as forward
    from smda_jax.jacobian.pull import reverse as reverse
    from smda_jax.policy.influence import decompose as decompose
    from smda_jax.policy.ridge import ridge as ridge
    from smda_jax.runs.config import Sweep as Sweep
    from smda_jax.runs.sweep import sweep as sweep
    from smda_jax.sae.formats import load as load_sae

_WHERE = {
    "load_model": ("jacobian.evaluation", "load_model"),
    "load_sae": ("sae.formats", "load"),
    "read_prompts": ("data.records", "read_prompts"),
    "read_pairs": ("data.records", "read_pairs"),
    "activations": ("jacobian.evaluation", "activations"),
    "factors": ("jacobian.passes", "factors"),
    "forward": ("jacobian.passes", "forward"),
    "reverse": ("jacobian.pull", "reverse"),
    "finite": ("jacobian.passes", "finite"),
    "ridge": ("policy.ridge", "ridge"),
    "decompose": ("policy.influence", "decompose"),
    "sweep": ("runs.sweep", "sweep"),
    "Sweep": ("runs.config", "Sweep"),
    "Chat": ("data.chat", "Chat"),
    "InputError": ("errors", "InputError"),
}

__all__ = [
    "Chat", "InputError", "Sweep", "activations", "decompose", "factors", "finite", "forward", "load_model", "load_sae",
    "read_pairs", "read_prompts", "reverse", "ridge", "sweep",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)

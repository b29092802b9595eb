"""What engines there are and what each gives. Imports nothing heavy: a command line reads it."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

EngineName = Literal["forward", "reverse", "query", "finite"]
KeepName = Literal["score", "coefficients", "active", "features", "residual"]


@dataclass(frozen=True)
class Keep:
    """What is kept of each pair.

    Attributes:
        name: as `--keep` takes it.
        changes: the change of every prompt, from which sweeps answer.
        coefficients: at least every coefficient's shift.
        inactive: also the changes of features that are not active on a prompt.
        residual: also the change of the residual stream.
        with_open_gate: the keep that is taken instead under `--gate off`, where inactive features
            count too; empty if this one will do.
    """

    name: KeepName
    changes: bool = False
    coefficients: bool = True
    inactive: bool = False
    residual: bool = False
    with_open_gate: str = ""


KEEPS: dict[str, Keep] = {
    keep.name: keep
    for keep in (
        Keep("score", coefficients=False),
        Keep("coefficients"),
        Keep("active", changes=True, with_open_gate="features"),
        Keep("features", changes=True, inactive=True),
        Keep("residual", changes=True, inactive=True, residual=True),
    )
}
DEFAULT_KEEP = "active"


@dataclass(frozen=True)
class EngineOffer:
    """An engine by the name that `--engine` takes.

    Attributes:
        name: of the engine, and of its folder, which holds an object `ENGINE`.
        gives: what it can keep.
        default_keep: what it keeps where nothing is asked for.
        first_order: whether its changes are derivatives; else they are those of true steps.
        elsewhere: whether prompts may be read at other weights than pairs are stepped on.
    """

    name: EngineName
    gives: tuple[KeepName, ...]
    default_keep: KeepName = DEFAULT_KEEP
    first_order: bool = True
    elsewhere: bool = False

    def engine(self) -> Any:
        """The engine itself; see `engines.contract.Engine`."""
        return import_module(f"smda_jax.engines.{self.name}").ENGINE


OFFERS: dict[str, EngineOffer] = {
    offer.name: offer
    for offer in (
        EngineOffer("query", ("score", "coefficients"), "coefficients", elsewhere=True),
        EngineOffer("reverse", ("score", "coefficients", "active", "features")),
        EngineOffer("forward", ("score", "coefficients", "active", "features", "residual")),
        EngineOffer("finite", ("active", "features", "residual"), "features", first_order=False),
    )
}


READS_ELSEWHERE = next(name for name, offer in OFFERS.items() if offer.elsewhere)


def keep_for(name: str, engine: str, gate_open: bool) -> Keep:
    """What is kept, once `auto` is resolved for an engine (which may be `auto` too)."""
    if name in KEEPS:
        return KEEPS[name]
    keep = KEEPS[OFFERS[engine].default_keep if engine in OFFERS else DEFAULT_KEEP]
    return KEEPS[keep.with_open_gate] if gate_open and keep.with_open_gate else keep

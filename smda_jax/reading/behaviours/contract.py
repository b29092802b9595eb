"""The contract of behaviours."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float


@runtime_checkable
class Behaviour(Protocol):
    """A differentiable scalar of a prompt, Y.

    To every prompt the token sequences of `histories` are appended, each in a row of its own; the
    model runs the rows, and `value` makes one number for each prompt of the logits at
    `positions` positions of every row, the last token of the prompt being the first of them. A
    behaviour is hashable: it is a static part of the programs that read it.

    Attributes:
        name: as `--behaviour` names it.
        unit: of Y, such as `nats`.
        raised: what is likelier where Y is higher, such as `the answer begins with one of …`; a
            positive ΔY says that a step makes it so.
        histories: what is appended, the same for every prompt; one empty sequence for nothing.
        positions: how many positions of a row are read.
        shows_above: a prompt whose Y is higher shows the behaviour.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    @property
    def unit(self) -> str:
        """See the class."""
        ...

    @property
    def raised(self) -> str:
        """See the class."""
        ...

    @property
    def histories(self) -> tuple[tuple[int, ...], ...]:
        """See the class."""
        ...

    @property
    def positions(self) -> int:
        """See the class."""
        ...

    @property
    def shows_above(self) -> float:
        """See the class."""
        ...

    def value(self, logits: Float[Array, "row position vocab"]) -> Float[Array, " prompt"]:
        """Y of every prompt; the rows of a prompt follow each other in the order of `histories`."""
        ...

    def __hash__(self) -> int: ...
    def __eq__(self, other: Any) -> bool: ...


def longest_history(behaviour: Behaviour) -> int:
    """Tokens of the longest sequence that is appended."""
    return max(map(len, behaviour.histories))

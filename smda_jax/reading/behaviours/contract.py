"""The contract of behaviours."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float


class Seen(NamedTuple):
    """What a behaviour is a function of.

    Attributes:
        logits: at the positions that are read; the rows of a prompt follow each other in the order
            of `Behaviour.histories`.
        h: the stream at the SAE's site, at the token that is read; zeros where the behaviour does
            not read it.
    """

    logits: Float[Array, "row position vocab"]
    h: Float[Array, "prompt hidden"]


@runtime_checkable
class Behaviour(Protocol):
    """A differentiable scalar of a prompt, Y.

    The token sequences of `histories` are appended to every prompt, each in a row of its own. The
    model runs the rows, and `value` makes one number for each prompt of what is read there. A
    behaviour is hashable: it is a static part of the programs that read it.

    Attributes:
        name: as `--behaviour` names it.
        unit: of Y, such as `nats`.
        raised: what is likelier where Y is higher, such as `the answer begins with one of …`; a
            positive ΔY says that a step makes it so.
        histories: what is appended, the same for every prompt; one empty sequence for nothing.
        positions: how many positions of a row are read, the last token of the prompt first.
        reads_stream: whether `value` looks at the stream at the SAE's site (a probe, a direction);
            engines leave out what that costs where it does not.
        shows_above: a prompt whose Y is higher shows the behaviour.
        settings: what it was made of, as JSON, for the records of a run.
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
    def reads_stream(self) -> bool:
        """See the class."""
        ...

    @property
    def shows_above(self) -> float:
        """See the class."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """See the class."""
        ...

    def value(self, seen: "Seen") -> Float[Array, " prompt"]:
        """Y of every prompt."""
        ...

    def __hash__(self) -> int: ...
    def __eq__(self, other: Any) -> bool: ...


def longest_history(behaviour: Behaviour) -> int:
    """Tokens of the longest sequence that is appended."""
    return max(map(len, behaviour.histories))

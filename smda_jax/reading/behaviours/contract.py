"""The contract of behaviours."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Shaped

from smda_jax.data.records import Prompts
from smda_jax.data.tokenised import Asked
from smda_jax.reading.network import Model

TokenRead = Literal["turn", "last"]


class Spot(NamedTuple):
    """Where a behaviour reads a stream.

    Attributes:
        stream: of `model.forward.SITES`.
        layer: zero-based.
        token: `turn`, the token that the SAE is read at, or `last`, the last one of the prompt,
            after which the answer begins.
    """

    stream: str
    layer: int
    token: TokenRead = "turn"


class Seen(NamedTuple):
    """What a behaviour is a function of.

    Attributes:
        logits: at the positions that are read; the rows of a prompt follow each other in the order
            of `Asked.rows`. Without positions there are none, of a vocabulary of nothing.
        h: the stream at the behaviour's `spot`; zeros where it has none.
        given: what it was told of each prompt in `Asked.given`.
    """

    logits: Float[Array, "row position vocab"]
    h: Float[Array, "prompt hidden"]
    given: Mapping[str, Shaped[Array, "prompt *shape"]]


@runtime_checkable
class Behaviour(Protocol):
    """A differentiable scalar of a prompt, Y.

    `ask` says what is appended to every prompt and what is read there; the model runs it, and
    `value` makes one number for each prompt of what is seen. A behaviour is hashable: it is a
    static part of the programs that read it.

    Attributes:
        name: as `--behaviour` names it.
        unit: of Y, such as `nats`.
        raised: what is likelier where Y is higher, such as `the answer begins with one of …`; a
            positive ΔY says that a step makes it so.
        spot: a stream that `value` looks at (a probe, a direction); None for none. Engines leave
            out what that costs where there is none.
        moves: whether Y depends on the model at all; where it does not, steps move X alone.
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
    def spot(self) -> Spot | None:
        """See the class."""
        ...

    @property
    def moves(self) -> bool:
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

    def ask(self, model: Model, prompts: Prompts) -> Sequence[Asked]:
        """What is asked of every prompt.

        Raises:
            InputError: the data lack what it needs; names the row.
        """
        ...

    def leaning(self, answer: Sequence[int]) -> float:
        """How far an answer is one that the behaviour is about: from 1, where it shows it, to −1;
        NaN where tokens cannot say."""
        ...

    def value(self, seen: Seen) -> Float[Array, " prompt"]:
        """Y of every prompt."""
        ...

    def probability(self, y: Float[np.ndarray, " *any"]) -> Float[np.ndarray, " *any"]:
        """How probable the behaviour is where Y is y; of a Y that is no probability, 1 where it is
        above `shows_above` and 0 elsewhere."""
        ...

    def __hash__(self) -> int: ...
    def __eq__(self, other: Any) -> bool: ...

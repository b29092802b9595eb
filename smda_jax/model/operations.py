"""The operation table: what a family says once about the parameterised operations of its blocks.

Loader, exporter, sharding, steps, injection, contraction, norms and prices loop over the table;
none of them names an operation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

ALL, ADAPTER = "all", "lora"  # parameters by name: every one, those of an adapter


class Reach(Enum):
    """At which tokens an operation has an effect on a stream that is read at one token."""

    EVERY_TOKEN = "every token"  # it feeds keys or values, which later tokens attend to
    QUERY = "query"  # it feeds the queries: computed at every token, with an effect at the read one
    READ_TOKEN = "read token"  # it comes after attention: computed at the read token alone


class Split(Enum):
    """Along which axis a weight is spread over devices."""

    OUTPUT = "output"
    INPUT = "input"
    NOWHERE = "nowhere"


@dataclass(frozen=True)
class Stored:
    """Where a checkpoint keeps a weight: a tensor of every block, or some rows of a fused one.

    Attributes:
        name: of the tensor within the block, without `.weight`, such as `self_attn.q_proj`.
        first_row: of the operation's weight in it.
        rows: of the whole tensor; 0 where the weight is the whole tensor.
    """

    name: str
    first_row: int = 0
    rows: int = 0


@dataclass(frozen=True)
class Adapter:
    """A low-rank term beside a linear operation, `factor · b(a(x))`.

    Attributes:
        a: name of the operation that reads the same input.
        b: name of the one that reads what `a` gives.
        factor: of its output.
    """

    a: str
    b: str
    factor: float


@dataclass(frozen=True)
class Linear:
    """`y = x @ w.T + b`, and what an adapter adds.

    Attributes:
        name: of the operation.
        reads: name of its input; operations that share an input share the name.
        inputs: width of the input.
        outputs: width of the output.
        stored: where the checkpoint keeps it.
        biased: whether it has a bias.
        reach: see `Reach`.
        split: see `Split`.
        adapter: what stands beside it; None for nothing.
        held: numbers of the weight that each layer really has, where that differs (of an adapter);
            the rest is filled up with zeros, whose gradients are zero.
    """

    name: str
    reads: str
    inputs: int
    outputs: int
    stored: Stored
    biased: bool = False
    reach: Reach = Reach.READ_TOKEN
    split: Split = Split.OUTPUT
    adapter: Adapter | None = None
    held: tuple[int, ...] = ()

    def held_in(self, layer: int) -> int:
        """Numbers of the weight that a layer has."""
        return self.held[layer] if self.held else self.size

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight, in the checkpoint's orientation."""
        return (self.outputs, self.inputs)

    @property
    def size(self) -> int:
        """Numbers in the weight."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Scale:
    """A norm and its scale: `y = x / rms(x) * (offset + w)`; its input is `x / rms(x)`.

    Attributes:
        name: of the operation.
        reads: name of its input.
        width: of the scale, over which the norm is taken too.
        stored: where the checkpoint keeps it.
        copies: how many times the scale lies along the input: the heads, where it acts per head.
        offset: 1 where a checkpoint stores the scale less one (Gemma).
        wide: whether the product is taken in at least float32 before it is cast back.
        reach: see `Reach`.
    """

    name: str
    reads: str
    width: int
    stored: Stored
    copies: int = 1
    offset: float = 0.0
    wide: bool = False
    reach: Reach = Reach.READ_TOKEN

    def held_in(self, layer: int) -> int:
        """Numbers of the scale that a layer has."""
        return self.width

    @property
    def shape(self) -> tuple[int]:
        """Of the scale."""
        return (self.width,)

    @property
    def outputs(self) -> int:
        """Width of the output."""
        return self.copies * self.width


Operation = Linear | Scale


@dataclass(frozen=True)
class Table:
    """The operations of a block, in the order they run.

    Raises:
        ValueError: two operations have one name.
    """

    operations: tuple[Operation, ...]
    _by_name: dict[str, Operation] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {op.name: op for op in self.operations})
        if len(self._by_name) < len(self.operations):
            raise ValueError("two operations of the table have one name")

    def __iter__(self) -> Iterator[Operation]:
        """The operations, in the order they run."""
        return iter(self.operations)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Operation:
        return self._by_name[name]

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear operations."""
        return tuple(op for op in self.operations if isinstance(op, Linear))

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The norm scales."""
        return tuple(op for op in self.operations if isinstance(op, Scale))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that operations read, each once."""
        return tuple(dict.fromkeys(op.reads for op in self.operations))

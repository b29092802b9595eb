"""Dataclasses that JAX can map over."""

from typing import TypeVar, dataclass_transform

from flax import struct

_Class = TypeVar("_Class", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(struct.field,))
def pytree(cls: _Class) -> _Class:
    """`flax.struct.dataclass` whose fields' annotations describe arrays but are not enforced at
    construction.

    Tree transformations rebuild these classes around other leaves: shapes, axes, booleans.
    """
    cls.__no_type_check__ = True  # type: ignore[attr-defined]
    return struct.dataclass(cls)  # type: ignore[return-value]

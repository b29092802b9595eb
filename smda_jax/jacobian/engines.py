"""Names of the engines, and what each can give. Imports nothing, so that a command line can check itself at once."""

from typing import Literal

EngineName = Literal["forward", "reverse", "query", "finite"]
Keep = Literal["score", "coefficients", "active", "features", "residual"]

GIVES: dict[EngineName, tuple[Keep, ...]] = {
    "query": ("score", "coefficients"),
    "reverse": ("score", "coefficients", "active", "features"),
    "forward": ("score", "coefficients", "active", "features", "residual"),
    "finite": ("active", "features", "residual"),
}

"""Values are structs of msgspec: a frozen dataclass takes 1.5 ms to define, and there are over a hundred (ADR 0017).

And a type that rooms share which do not import each other.
"""

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

__all__ = ("CgroupDriver", "repr_without")

CgroupDriver = Literal["systemd", "cgroupfs"]
"""Who creates the control group of a run: systemd, as a scope, or the runtime itself."""


def repr_without(*hidden: str) -> Callable[[Struct], str]:
    """A ``__repr__`` that leaves out these fields: secrets, which must not reach a log, and what is long."""

    def show(value: Struct) -> str:
        shown = (f"{name}={getattr(value, name)!r}" for name in value.__struct_fields__ if name not in hidden)
        return f"{type(value).__name__}({', '.join(shown)})"

    return show

"""Values are structs of msgspec: a frozen dataclass takes 1.5 ms to define, and there are over a hundred (ADR 0017)."""

from collections.abc import Callable

from msgspec import Struct

__all__ = ("repr_without",)


def repr_without(*hidden: str) -> Callable[[Struct], str]:
    """A ``__repr__`` that leaves out these fields: secrets, which must not reach a log, and what is long."""

    def show(value: Struct) -> str:
        shown = (f"{name}={getattr(value, name)!r}" for name in value.__struct_fields__ if name not in hidden)
        return f"{type(value).__name__}({', '.join(shown)})"

    return show

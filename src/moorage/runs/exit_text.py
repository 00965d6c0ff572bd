"""How a process exited, as text for people."""

from moorage.executor import Exit

__all__ = ("describe_exit",)


def describe_exit(exit: Exit | None) -> str:
    """What goes after "the plugin" or "it": "exited with status 3"."""
    if exit is None or exit.code is None:
        return "exited with unknown status"
    if exit.oom:
        return "was OOM-killed (exit status 137)"
    if exit.signal:
        return f"was killed by {exit.signal} (exit status {exit.code})"
    return f"exited with status {exit.code}"

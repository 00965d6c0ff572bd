"""Removes what tests made on the machine when their process exits in whatever way, also by SIGKILL.

A shell in a session of its own reads what to remove from a pipe; when the pipe is closed, this process has exited.
"""

import os
from functools import cache
from pathlib import Path

__all__ = ("remove_mounts_at_exit", "stop_proxy_at_exit")

_SCRIPT = r"""
mounts= proxies=
while read -r kind path; do
    case $kind in
    mounts) mounts="$mounts $path" ;;
    proxy) proxies="$proxies $path" ;;
    esac
done
for path in $proxies; do
    pid=$(cat "$path/pid" 2>/dev/null) && grep -qz "$path" "/proc/${pid%% *}/cmdline" && kill -TERM ${pid%% *}
done
for path in $mounts; do
    while point=$(awk -v p="$path" '$5 == p || index($5, p "/") == 1 { last = $5 } END { print last }' \
        /proc/self/mountinfo) && [ -n "$point" ] && umount --lazy "$point"; do :; done
done
"""


@cache
def _pipe(_: int) -> int:
    """The pipe of this process."""
    reader, writer = os.pipe()
    quiet = [(os.POSIX_SPAWN_OPEN, each, os.devnull, os.O_WRONLY, 0) for each in (1, 2)]
    actions = [(os.POSIX_SPAWN_DUP2, reader, 0), *quiet]
    os.posix_spawn("/bin/sh", ["sh", "-c", _SCRIPT], os.environ, file_actions=actions, setsid=True)
    os.close(reader)
    return writer


def remove_mounts_at_exit(directory: Path) -> None:
    """Unmount what is mounted at or below a directory, at the latest when this process has exited."""
    os.write(_pipe(os.getpid()), f"mounts {directory}\n".encode())


def stop_proxy_at_exit(state: Path) -> None:
    """Stop the plugin proxy of a state directory, if one runs when this process has exited."""
    os.write(_pipe(os.getpid()), f"proxy {state}\n".encode())

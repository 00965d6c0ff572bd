"""A program some of whose system calls the kernel refuses, which shows whether it relies on them."""

import sys

_NUMBERS = {"sync": {"x86_64": 162, "aarch64": 81}, "syncfs": {"x86_64": 306, "aarch64": 267}}
"""Source: asm/unistd.h of each architecture."""

_START = """
import ctypes, os, platform, struct, sys
numbers, action = eval(sys.argv[1]), int(sys.argv[2])
code = struct.pack("HBBI", 0x20, 0, 0, 0)  # load the number of the call
code += struct.pack("HBBI", 0x15, 0, 1, numbers[platform.machine()])  # skip the next unless it is this one
code += struct.pack("HBBI", 0x06, 0, 0, action) + struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
text = ctypes.create_string_buffer(code)
program = struct.pack("HxxxxxxQ", 4, ctypes.addressof(text))
if ctypes.CDLL(None, use_errno=True).prctl(22, 2, program) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    raise OSError(ctypes.get_errno(), "prctl")
os.execvp(sys.argv[3], sys.argv[3:])
"""


def killed_by(name: str) -> list[str]:
    """What to put before a command so that this system call kills its caller."""
    return _prefix(name, 0x80000000)


def refused(name: str, number: int) -> list[str]:
    """What to put before a command so that this system call fails with this errno."""
    return _prefix(name, 0x00050000 | number)


def _prefix(name: str, action: int) -> list[str]:
    return [sys.executable, "-c", _START, repr(_NUMBERS[name]), str(action)]

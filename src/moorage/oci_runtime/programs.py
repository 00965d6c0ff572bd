"""The programs of a trial: static ELF files of some bytes for this machine's processor, so that no other is needed.

Source: elf(5); syscall(2) for the numbers and registers of each architecture.
"""

import platform
import struct

__all__ = ("EXIT_STATUS", "programs")

EXIT_STATUS = 7
"""Of the program ``exit``."""

_WAIT_SECONDS = 30
"""After which the program ``wait`` exits, so that one whose trial was killed does not stay."""

_BASE = 0x400000
_EHDR, _PHDR = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
_HEADERS = _EHDR.size + _PHDR.size
_TIMESPEC = _BASE + _HEADERS  # the first bytes after the headers are the argument of nanosleep

_X86_64, _AARCH64 = 62, 183  # e_machine


def programs() -> dict[str, bytes]:
    """By name: ``wait`` sleeps for half a minute, ``exit`` exits with ``EXIT_STATUS``. Empty for other processors."""
    match platform.machine():
        case "x86_64":
            return {"wait": _elf(_X86_64, _x86_64_wait()), "exit": _elf(_X86_64, _x86_64_exit())}
        case "aarch64":
            return {"wait": _elf(_AARCH64, _aarch64_wait()), "exit": _elf(_AARCH64, _aarch64_exit())}
        case _:
            return {}


def _x86_64_exit(status: int = EXIT_STATUS) -> bytes:
    # mov edi, status; mov eax, SYS_exit; syscall
    return b"\xbf" + struct.pack("<I", status) + b"\xb8" + struct.pack("<I", 60) + b"\x0f\x05"


def _x86_64_wait() -> bytes:
    # mov edi, timespec; xor esi, esi; mov eax, SYS_nanosleep; syscall
    sleep = b"\xbf" + struct.pack("<I", _TIMESPEC) + b"\x31\xf6" + b"\xb8" + struct.pack("<I", 35) + b"\x0f\x05"
    return sleep + _x86_64_exit(0)


def _aarch64_exit(status: int = EXIT_STATUS) -> bytes:
    # mov x0, status; mov x8, SYS_exit; svc 0
    return _words(_mov(0, status), _mov(8, 93), 0xD4000001)


def _aarch64_wait() -> bytes:
    # movz x0, low; movk x0, high; mov x1, 0; mov x8, SYS_nanosleep; svc 0
    low, high = _TIMESPEC & 0xFFFF, _TIMESPEC >> 16
    return _words(_mov(0, low), 0xF2A00000 | high << 5, _mov(1, 0), _mov(8, 101), 0xD4000001) + _aarch64_exit(0)


def _mov(register: int, value: int) -> int:
    return 0xD2800000 | value << 5 | register


def _words(*instructions: int) -> bytes:
    return struct.pack(f"<{len(instructions)}I", *instructions)


def _elf(machine: int, code: bytes) -> bytes:
    """A static program of one readable and executable segment: headers, the timespec, this code."""
    data = struct.pack("<QQ", _WAIT_SECONDS, 0)
    size = _HEADERS + len(data) + len(code)
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    entry = _BASE + _HEADERS + len(data)
    header = _EHDR.pack(ident, 2, machine, 1, entry, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, 1, 0, 0, 0)
    segment = _PHDR.pack(1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + data + code

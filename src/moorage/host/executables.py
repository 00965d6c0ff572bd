"""What the kernel reads of a program to run it: its ELF headers, its loader, the interpreter line of a script.

Source: elf(5), execve(2).
"""

import io
import os

from msgspec import Struct

from moorage.host.proc import own_executable

__all__ = (
    "HEAD_BYTES",
    "ElfProgram",
    "has_elf_magic",
    "is_machine_supported",
    "own_program",
    "read_elf",
    "read_interpreter",
)

HEAD_BYTES = 64 * 1024
"""From the beginning of a program; it contains the program headers of every real one."""

_COMPATIBLE = {("EM_X86_64", "EM_386"), ("EM_AARCH64", "EM_ARM")}
_INTERPRETER_LINE = 256  # bytes that the kernel reads
_DAMAGE = (OSError, ValueError, KeyError, AttributeError, TypeError, OverflowError)


class ElfProgram(Struct, frozen=True):
    """What the headers of a program say."""

    machine: str
    """As elf(5) names it, "EM_X86_64"."""
    architecture: str
    """The machine, for people."""
    loader: str
    """Path of the dynamic loader; empty for a static program."""


def has_elf_magic(head: bytes) -> bool:
    """Whether a file with these first bytes is an ELF file."""
    return head.startswith(b"\x7fELF")


def read_interpreter(head: bytes) -> str | None:
    """The interpreter that a script with these first bytes names; empty for none, None for a file that is no script."""
    if not head.startswith(b"#!"):
        return None
    words = head[2:_INTERPRETER_LINE].split(b"\n", 1)[0].split()
    return os.fsdecode(words[0]) if words else ""


def read_elf(head: bytes) -> ElfProgram:
    """The headers of an ELF program, given its first ``HEAD_BYTES``. Raises: ValueError if they make no sense."""
    from elftools.common.exceptions import ELFError  # late: read after a failure only
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    try:
        elf = ELFFile(io.BytesIO(_without_sections(head)))
        segments = elf.iter_segments(type="PT_INTERP")
        loaders = (each.get_interp_name() for each in segments if isinstance(each, InterpSegment))
        return ElfProgram(elf["e_machine"], elf.get_machine_arch(), next(loaders, ""))
    except (ELFError, *_DAMAGE) as error:  # pyelftools raises any of them for a damaged file
        raise ValueError(f"the program headers cannot be read: {error}") from error


def own_program() -> ElfProgram:
    """The program of the calling process, and so one that this machine can run. Raises: OSError."""
    with open(own_executable(), "rb") as file:
        return read_elf(file.read(HEAD_BYTES))


def is_machine_supported(program: ElfProgram, own: ElfProgram) -> bool:
    """Whether a machine that runs ``own`` may run a program: of the same machine, or of its 32-bit predecessor."""
    return program.machine == own.machine or (own.machine, program.machine) in _COMPATIBLE


def _without_sections(head: bytes) -> bytes:
    """The head of an ELF file that claims to have no section headers: they come last, and are not needed.

    Source: elf(5), e_shoff, e_shnum and e_shstrndx of both classes.
    """
    is_64 = head[4:5] == b"\x02"
    offset, size, numbers = (0x28, 8, 0x3C) if is_64 else (0x20, 4, 0x30)
    made = bytearray(head.ljust(64, b"\0"))
    made[offset : offset + size] = bytes(size)
    made[numbers : numbers + 4] = bytes(4)
    return bytes(made)

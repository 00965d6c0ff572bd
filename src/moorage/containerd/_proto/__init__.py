"""The messages of containerd's calls, made from their descriptors when they are first used.

``descriptors.binpb`` is a FileDescriptorSet that ``scripts/protos`` writes from ``proto/``, and the ``.pyi`` files beside
it are the types of what it contains. There is no generated code: that insists on the version of protobuf that generated
it, or a newer one, and this works with every version from 4.25 on. The pool is our own, so that another library in the
same process may have messages of the same names. ``docs/adr/0055`` has the reasons.

A message class of this pool and the one of the same name in ``google.protobuf`` are two classes. So the general messages
(Any, Empty, FieldMask, Timestamp) come from here too.
"""

import threading
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor import FileDescriptor
    from google.protobuf.descriptor_pool import DescriptorPool

_lock = threading.Lock()
_FILE_OF_A_SET = 0x0A
"""The key of each file in a FileDescriptorSet: field 1, with a length."""


class _Messages:
    """The messages and enum values of one .proto file, as attributes."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        file = _find_file(self._file)
        found: Any
        if (message := file.message_types_by_name.get(name)) is not None:
            from google.protobuf.message_factory import GetMessageClass

            found = GetMessageClass(message)
        else:
            values = (enum.values_by_name.get(name) for enum in file.enum_types_by_name.values())
            found = next((value.number for value in values if value is not None), None)
            if found is None:
                raise AttributeError(f"{self._file} has no message and no enum value {name!r}")
        setattr(self, name, found)
        return found


def __getattr__(name: str) -> _Messages:
    stem = name.removesuffix("_pb2")
    if stem == name:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = _Messages(f"{stem}.proto" if stem.startswith("moorage_") else f"google/protobuf/{stem}.proto")
    globals()[name] = found
    return found


def load() -> None:
    """Load the descriptors now, which takes some 50 ms the first time; else the first message does so. May block."""
    _find_file("moorage_version.proto")


def _find_file(name: str) -> "FileDescriptor":
    with _lock:
        return _pool().FindFileByName(name)


@cache
def _pool() -> "DescriptorPool":
    from google.protobuf import message_factory  # noqa: F401 (here, because it takes longer than all the rest)
    from google.protobuf.descriptor_pool import DescriptorPool

    pool = DescriptorPool()
    for file in _split((files(__name__) / "descriptors.binpb").read_bytes()):
        pool.AddSerializedFile(file)
    return pool


def _split(data: bytes) -> Iterator[bytes]:
    """The files of a FileDescriptorSet, each still serialized; parsing it would take protobuf's descriptor_pb2."""
    at = 0
    while at < len(data):
        assert data[at] == _FILE_OF_A_SET
        at, length, shift = at + 1, 0, 0
        while data[at] & 0x80:
            length |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
        length |= data[at] << shift
        yield data[at + 1 : at + 1 + length]
        at += 1 + length

from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Metrics(_message.Message):
    __slots__ = ("memory_events",)
    MEMORY_EVENTS_FIELD_NUMBER: _ClassVar[int]
    memory_events: MemoryEvents
    def __init__(self, memory_events: _Optional[_Union[MemoryEvents, _Mapping]] = ...) -> None: ...

class MemoryEvents(_message.Message):
    __slots__ = ("oom", "oom_kill")
    OOM_FIELD_NUMBER: _ClassVar[int]
    OOM_KILL_FIELD_NUMBER: _ClassVar[int]
    oom: int
    oom_kill: int
    def __init__(self, oom: _Optional[int] = ..., oom_kill: _Optional[int] = ...) -> None: ...

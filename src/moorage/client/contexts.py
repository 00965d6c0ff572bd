"""Engines by name, as ``docker context`` has them: a file of the user's with hosts, and the one that is in use."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moorage import errors
from moorage.client.host import contexts_path

__all__ = ("DEFAULT_NAME", "Contexts", "EngineContextEntry", "read_contexts", "write_contexts")

DEFAULT_NAME = "default"
"""The context without a host: the engine of this machine."""


@dataclass(frozen=True)
class EngineContextEntry:
    """One engine: its host, and a text for people."""

    host: str
    description: str = ""


@dataclass(frozen=True)
class Contexts:
    """The engines by name; ``current`` is the one in use, "default" for none of them."""

    current: str = DEFAULT_NAME
    entries: Mapping[str, EngineContextEntry] = field(default_factory=dict)

    def host(self, name: str = "") -> str:
        """The host of a context, "" for that of this machine; without a name, of the current one.

        Raises:
            errors.NotFound: there is no such context
        """
        name = name or self.current
        if name == DEFAULT_NAME:
            return ""
        if name not in self.entries:
            raise errors.NotFound(f"context {name} not found; see: moorage context ls")
        return self.entries[name].host


def read_contexts() -> Contexts:
    """The contexts of this user; none where there is no file.

    Raises:
        errors.Invalid: the file is damaged
    """
    path = Path(contexts_path())
    try:
        with open(path, "rb") as file:
            document: Any = json.loads(file.read())
    except OSError:
        return Contexts()
    except ValueError as error:
        raise errors.Invalid(f"cannot read {path}: it is no JSON") from error
    try:
        entries = {
            str(name): EngineContextEntry(str(each["host"]), str(each.get("description", "")))
            for name, each in document["contexts"].items()
        }
        return Contexts(str(document["current"]), entries)
    except (KeyError, TypeError, AttributeError) as error:
        raise errors.Invalid(f"cannot read {path}: it has no contexts in it") from error


def write_contexts(contexts: Contexts) -> None:
    """Replace the contexts of this user.

    Raises:
        errors.MoorageError: the file cannot be written
    """
    path = Path(contexts_path())
    entries = {name: {"host": each.host, "description": each.description} for name, each in contexts.entries.items()}
    document = {"current": contexts.current, "contexts": entries}
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_text(json.dumps(document, indent=2) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise errors.MoorageError(f"cannot write {path}: {error.strerror}") from error

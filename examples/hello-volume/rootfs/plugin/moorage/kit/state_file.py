"""A JSON file that is whole at any moment: after a kill or a power cut it has the old contents or the new."""

import json
import os
from pathlib import Path
from typing import Any

__all__ = ("StateFile",)


class StateFile:
    """One JSON document."""

    def __init__(self, path: Path) -> None:
        """``path``: its directory is made by ``save``."""
        self.path = path
        self._new = path.with_name(f".{path.name}.new")

    def load(self) -> dict[str, Any]:
        """The document; empty where there is no file.

        Raises:
            OSError: it cannot be read
            ValueError: it is not a JSON object
        """
        try:
            document = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        if not isinstance(document, dict):
            raise ValueError(f"{self.path} is not a JSON object")
        return document

    def save(self, document: dict[str, Any]) -> None:
        """Replace the document; on the disk when it returns.

        Raises:
            OSError: it cannot be written; the old one is unchanged
        """
        data = json.dumps(document, indent=1).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._new.rename(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

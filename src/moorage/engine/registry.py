"""Which plugin a text means: full id, then name (default tag added), then unique beginning of an id."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from moorage import errors
from moorage.engine.plugin import Plugin
from moorage.plugins import parse_reference

__all__ = ("Registry",)

_ID = re.compile(r"[0-9a-f]{64}")
_BEGINNING = re.compile(r"[0-9a-f]{1,64}")


class Registry:
    """The plugins of one engine. A name is taken from the moment it is reserved."""

    def __init__(self) -> None:
        self._plugins: dict[str, Plugin] = {}
        self._reserved: set[str] = set()

    def all(self) -> list[Plugin]:
        """Every plugin, by name."""
        return sorted(self._plugins.values(), key=lambda plugin: plugin.name)

    def add(self, plugin: Plugin) -> None:
        """Take a plugin in."""
        self._plugins[plugin.id] = plugin

    def discard(self, plugin: Plugin) -> None:
        """Let a plugin go."""
        del self._plugins[plugin.id]

    def find_id(self, id: str) -> Plugin | None:
        """The plugin with exactly this id."""
        return self._plugins.get(id)

    def get(self, text: str) -> Plugin:
        """The plugin that is meant. Raises: NotFound, Invalid for the beginning of several ids.

        Source: the lookup of the Docker daemon, texts included.
        """
        if text in self._plugins:
            return self._plugins[text]
        if not _ID.fullmatch(text):
            name = _local_name(text)
            for plugin in self._plugins.values():
                if plugin.is_called(name):
                    return plugin
            if _BEGINNING.fullmatch(text):
                found = [plugin for id, plugin in self._plugins.items() if id.startswith(text)]
                if len(found) == 1:
                    return found[0]
                if found:
                    raise errors.Invalid(f'multiple plugins found for "{text}"')
        raise errors.NotFound(f'plugin "{text}" not found')

    @contextmanager
    def reserve(self, name: str) -> Iterator[None]:
        """Keep a name free for one that is being made. Raises: Conflict where it is taken."""
        if name in self._reserved or any(plugin.is_called(name) for plugin in self._plugins.values()):
            raise errors.Conflict(f"plugin {name} already exists")
        self._reserved.add(name)
        try:
            yield
        finally:
            self._reserved.discard(name)


def _local_name(text: str) -> str | None:
    try:
        reference = parse_reference(text)
    except errors.Invalid:
        return None
    return None if reference.digest else reference.local_name

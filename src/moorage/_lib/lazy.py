"""Imports at the time of need: who prints a version must not pay for gRPC, and an engine answers before it has it."""

import gc
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ("importing", "names_from", "without_certificates")


@contextmanager
def importing() -> Iterator[None]:
    """A block that only imports: nothing of it is garbage, and to look for some takes a sixth of the whole start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def without_certificates() -> Iterator[None]:
    """A block that imports aiohttp, which makes a TLS context for clients, of all that this machine trusts.

    Nobody here uses that one (``distribution/hosts.py`` makes its own), and it is a tenth of the whole start.
    """
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # OpenSSL reads them whenever it is asked for the defaults
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def names_from(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package; ``modules`` says in which module each of its names is (PEP 562)."""

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return find

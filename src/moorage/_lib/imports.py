"""Blocks in which imports are faster. Imports take most of the time of a start."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ("collector_paused", "without_certificates")


@contextmanager
def collector_paused() -> Iterator[None]:
    """A block that only imports, without garbage collection, which takes a sixth of a start for nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def without_certificates() -> Iterator[None]:
    """A block that imports aiohttp, without the TLS context for clients that aiohttp creates on import.

    That context loads all certificates of the machine, which takes a tenth of the start, and is never used:
    ``registry/_trust.py`` creates its own.
    """
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # OpenSSL reads them whenever it loads the defaults
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value

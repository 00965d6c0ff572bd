"""Imports cost most of a start; these blocks take from them what is of no use."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ("importing", "without_certificates")


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

    Nobody here uses that one (``distribution/_tls.py`` makes its own), and it is a tenth of the whole start.
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

"""Imports at the time of need."""

import gc
import os

import pytest

from moorage._lib.imports import collector_paused, without_certificates

pytestmark = pytest.mark.quick


def test_while_importing_nothing_is_collected() -> None:
    with collector_paused():
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.parametrize("before", [None, "/somewhere/ca.crt"])
def test_without_certificates_leaves_the_environment_as_it_was(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if before is not None:
        monkeypatch.setenv("SSL_CERT_FILE", before)
    all_before = dict(os.environ)
    with without_certificates():
        assert os.environ["SSL_CERT_FILE"] == os.devnull
    assert dict(os.environ) == all_before

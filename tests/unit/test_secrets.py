"""Secrets that the command line reads from files."""

from pathlib import Path

import pytest

from moorage import errors
from moorage.cli.parameters import read_secret

pytestmark = pytest.mark.quick


def test_b4_a_secret_is_read_without_its_last_newline(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cr3t\n")
    assert read_secret(f"password=@{tmp_path}/password") == "password=s3cr3t"


@pytest.mark.parametrize(
    ("name", "problem"),
    [("missing", "No such file or directory"), ("", "Is a directory"), ("raw", "it is not UTF-8 text")],
)
def test_b4_a_secret_that_cannot_be_read_is_named(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "raw").write_bytes(b"\xff")
    with pytest.raises(errors.Invalid) as caught:
        read_secret(f"password=@{tmp_path}/{name}")
    assert str(caught.value) == f"cannot read the secret password from {tmp_path / name}: {problem}"

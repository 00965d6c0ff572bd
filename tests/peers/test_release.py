"""What a release publishes: built, checked, installed into an empty environment in turn and run, by scripts/release."""

import subprocess
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from moorage import __version__

pytestmark = [pytest.mark.long, pytest.mark.extensive]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    target = tmp_path_factory.mktemp("release")
    done = subprocess.run([ROOT / "scripts/release", target], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return target, done.stdout


def test_wheel_and_sdist_pass_twine_install_import_and_run(output: tuple[Path, str]) -> None:
    target, shown = output
    names = [f"moorage-{__version__}-py3-none-any.whl", f"moorage-{__version__}.tar.gz"]
    assert sorted(path.name for path in target.iterdir()) == sorted(names)
    assert shown.count("PASSED") == 2
    for extra in ("", "[engine]"):  # the library alone has a command that says what it lacks
        assert [f"release: {name}{extra} installs, imports and runs" in shown for name in names] == [True, True]


def test_the_metadata_is_whole(output: tuple[Path, str]) -> None:
    with zipfile.ZipFile(output[0] / f"moorage-{__version__}-py3-none-any.whl") as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(wheel.read(name).decode())
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
        assert "moorage/py.typed" in wheel.namelist()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Author-email"]
    assert metadata["Keywords"]
    classifiers = metadata.get_all("Classifier")
    assert classifiers is not None
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux", "Framework :: AsyncIO"} <= set(classifiers)


def test_the_sdist_has_what_its_tests_and_documents_need(output: tuple[Path, str]) -> None:
    with tarfile.open(output[0] / f"moorage-{__version__}.tar.gz") as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    needed = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "constraints.txt"}
    needed |= {"docs/index.md", "docs/conf.py", "scripts/docs", "tests/conftest.py", "bench/__main__.py"}
    assert needed - names == set()

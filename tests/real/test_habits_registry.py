"""login, logout and export with a registry that wants a password."""

import base64
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import EngineProcess, config, engine
from support.limits import limit
from support.registries import PASSWORD, USER, Served, htpasswd, serve_registry

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "docker-registry")]

HELPER = f"""#!{sys.executable}
import json, sys
from pathlib import Path
store = Path(__file__).with_name("store.json")
known = json.loads(store.read_text()) if store.exists() else {{}}
given = sys.stdin.read()
if sys.argv[1] == "store":
    known[json.loads(given)["ServerURL"]] = json.loads(given)
elif sys.argv[1] == "erase":
    known.pop(given.strip(), None)
elif given.strip() in known:
    print(json.dumps(known[given.strip()]))
else:
    print("credentials not found in native keychain")
    sys.exit(1)
store.write_text(json.dumps(known))
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("registry")
    with serve_registry(folder / "basic", auth=htpasswd(folder)) as served:
        yield served


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        yield made
        for each in made.plugins():
            made.remove(each["Id"], force=True)


def call(house: EngineProcess, home: Path, *words: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    environment = {**os.environ, "DOCKER_CONFIG": str(home), "PATH": f"{home}:{os.environ['PATH']}"}
    return subprocess.run(
        command, input=given, env=environment, capture_output=True, text=True, timeout=limit(60), check=False
    )


def log_in(house: EngineProcess, home: Path, registry: Served, password: str = PASSWORD) -> tuple[int, str, str]:
    done = call(house, home, "login", "-u", USER, "--password-stdin", registry.host, given=f"{password}\n")
    return done.returncode, done.stdout, done.stderr


def test_h03_login_stores_what_docker_stores(house: EngineProcess, registry: Served, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"detachKeys": "ctrl-e", "auths": {"other": {"auth": "eDp5"}}}')
    status, out, err = log_in(house, tmp_path, registry)
    assert (status, out) == (0, "Login Succeeded\n")
    assert "stored unencrypted" in err
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["detachKeys"] == "ctrl-e"
    assert base64.b64decode(stored["auths"][registry.host]["auth"]).decode() == f"{USER}:{PASSWORD}"
    assert stat.S_IMODE((tmp_path / "config.json").stat().st_mode) == 0o600
    assert log_in(house, tmp_path, registry, "wrong")[0] == 1
    assert json.loads((tmp_path / "config.json").read_text()) == stored
    assert call(house, tmp_path, "logout", registry.host).stdout == f"Removing login credentials for {registry.host}\n"
    assert json.loads((tmp_path / "config.json").read_text())["auths"] == {"other": {"auth": "eDp5"}}
    assert call(house, tmp_path, "logout", registry.host).stdout == f"Not logged in to {registry.host}\n"


def test_h03_login_uses_the_credential_helper(house: EngineProcess, registry: Served, tmp_path: Path) -> None:
    helper = tmp_path / "docker-credential-shelf"
    helper.write_text(HELPER)
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text('{"credsStore": "shelf"}')
    assert log_in(house, tmp_path, registry) == (0, "Login Succeeded\n", "")
    stored = json.loads((tmp_path / "store.json").read_text())
    assert stored == {registry.host: {"ServerURL": registry.host, "Username": USER, "Secret": PASSWORD}}
    assert json.loads((tmp_path / "config.json").read_text()) == {"credsStore": "shelf", "auths": {registry.host: {}}}
    house.create("pushed")
    assert call(house, tmp_path, "push", "-q", "pushed", f"{registry.host}/t/pushed").returncode == 0
    assert call(house, tmp_path, "logout", registry.host).returncode == 0
    assert json.loads((tmp_path / "store.json").read_text()) == {}
    house.remove("pushed")


@pytest.mark.parametrize(
    ("words", "given", "cause"),
    [
        (("--password-stdin",), "x", "--password-stdin needs --username"),
        (("-u", "me", "--password-stdin"), "", "the password is empty"),
        (("-u", "me"), "", "cannot ask for password: standard input is not a terminal"),
    ],
)
def test_h03_login_refuses_what_is_incomplete(
    house: EngineProcess, registry: Served, tmp_path: Path, words: tuple[str, ...], given: str, cause: str
) -> None:
    done = call(house, tmp_path, "login", *words, registry.host, given=given)
    assert done.returncode != 0
    assert cause in done.stderr
    assert not (tmp_path / "config.json").exists()


def test_h03_what_export_prints_is_what_apply_finds(house: EngineProcess, registry: Served, tmp_path: Path) -> None:
    document = config(
        env=[{"name": name, "value": "", "settable": ["value"]} for name in ("DEBUG", "TOKEN")],
        mounts=[
            {"name": "data", "source": "/srv", "destination": "/d", "type": "bind", "options": ["rbind"],
             "settable": ["source"]}
        ],
    )  # fmt: skip
    house.create("made", document)
    log_in(house, tmp_path, registry)
    assert call(house, tmp_path, "push", "made", f"{registry.host}/t/made").returncode == 0
    words = ("install", "-y", "-q", "--alias", "vol", f"{registry.host}/t/made", 'DEBUG=a: "b" #c', "data.source=/tmp")
    assert call(house, tmp_path, *words).returncode == 0
    assert call(house, tmp_path, "policy", "vol", "--memory", "64m", "--restart", "on-failure").returncode == 0
    health = ("--health-connect", "--health-cmd", "/actor end=0", "--health-interval", "1m")
    assert call(house, tmp_path, "policy", "vol", *health).returncode == 0
    path = tmp_path / "plugins.yaml"
    done = call(house, tmp_path, "export", "-o", str(path))
    assert done.returncode == 0
    assert "plugin made:latest was created on this machine" in done.stderr
    applied = call(house, tmp_path, "apply", "--dry-run", "-f", str(path))
    assert (applied.returncode, applied.stdout) == (0, "= vol:latest\n"), (applied, path.read_text())
    house.remove("vol", force=True)
    applied = call(house, tmp_path, "apply", "-f", str(path))
    assert applied.returncode == 0, applied.stderr
    assert house.inspect("vol")["Settings"]["Mounts"][0]["Source"] == "/tmp"
    assert 'DEBUG=a: "b" #c' in house.inspect("vol")["Settings"]["Env"]
    policy = house.more("vol")["Policy"]
    assert (policy["MemoryBytes"], policy["Health"]["Interval"]) == (64 << 20, 60)
    assert [each["Kind"] for each in policy["Health"]["Checks"]] == ["connect", "command"]
    assert call(house, tmp_path, "export", "vol").stdout == path.read_text()

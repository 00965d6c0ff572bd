"""What people give to create, install and load by mistake: it is named, with what to do next (issue: error texts)."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from support.engines import EngineProcess, Refused, config, package
from support.packages import make, push
from support.registries import Served

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "docker-registry")]

TAR = {"Content-Type": "application/x-tar"}
ID = "0123456789abcdef" * 4


def moorage(house: EngineProcess, *words: str) -> tuple[int, str]:
    environment = {**os.environ, "MOORAGE_HOST": f"unix://{house.socket}"}
    done = subprocess.run(
        [sys.executable, "-m", "moorage", *words], capture_output=True, text=True, check=False, env=environment
    )
    return done.returncode, done.stdout + done.stderr


def tar(*entries: tuple[str, bytes | str | None]) -> bytes:
    """Files with bytes, links with text, directories with nothing."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, what in entries:
            member = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                member.size = len(what)
            else:
                member.type = tarfile.DIRTYPE if what is None else tarfile.SYMTYPE
                member.linkname = what or ""
            archive.addfile(member, io.BytesIO(what if isinstance(what, bytes) else b""))
    return stream.getvalue()


A_ROOT = "a root file system, as docker export"
OTHERS = {
    "docker export": (
        tar((".dockerenv", b""), ("bin", "usr/bin"), ("etc", None)),
        "a root file system, as docker export",
    ),
    "podman export": (tar(("bin", "usr/bin"), ("etc", None)), A_ROOT),
    "a flat root": (tar(("etc/", None), ("etc/passwd", b"x"), ("usr/", None)), A_ROOT),
    "docker save": (
        tar((f"{ID}/", None), (f"{ID}/layer.tar", b"x"), ("manifest.json", b"[]"), ("repositories", b"{}")),
        "an archive of docker save: .*skopeo copy docker-archive:FILE oci-archive:image.tar",
    ),
    "docker save with links": (tar((f"{ID}/", None), (f"{ID}/layer.tar", "../x")), "an archive of docker save"),
    "a package": (package(config()), "a plugin's package: unpack it"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_create_from_and_load_name_what_an_archive_is_and_what_to_do(
    house: EngineProcess, tmp_path: Path, kind: str
) -> None:
    data, text = OTHERS[kind]
    (tmp_path / "file.tar").write_bytes(data)
    (tmp_path / "config.json").write_text(json.dumps(config()))
    status, said = moorage(
        house, "create", "x", "--from", str(tmp_path / "file.tar"), "--config", str(tmp_path / "config.json")
    )
    assert status != 0
    assert re.search(text, said), said
    assert "cannot run" not in said
    with pytest.raises(Refused, match=f"400: .*{text}"):
        house.request_json("POST", "/moorage/v1/load", data, headers=TAR)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("docker://registry.example.org/x:1", "give registry.example.org/x:1"),
        ("https://registry.example.org/x", "give registry.example.org/x"),
        ("docker-daemon:x:1", "skopeo copy docker-daemon:x:1 oci-archive:image.tar"),
        ("docker-archive:/tmp/x.tar", "skopeo copy docker-archive:/tmp/x.tar oci-archive:image.tar"),
        ("containers-storage:x", "skopeo copy containers-storage:x oci-archive:image.tar"),
        ("oci-archive:/tmp/x.tar", "give the path of the OCI layout alone: /tmp/x.tar"),
        ("oci:/tmp/x:latest", "give the path of the OCI layout alone: /tmp/x"),
    ],
)
def test_options_of_other_programs_are_reported_with_the_name_here(
    house: EngineProcess, tmp_path: Path, given: str, text: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config()))
    for words in (
        ("create", "x", "--from", given, "--config", str(tmp_path / "config.json")),
        ("install", given),
        ("privileges", given),
    ):
        status, said = moorage(house, *words)
        assert status == 1, said
        assert f"cannot use {given}: " in said
        assert text in said


def test_create_of_a_directory_that_is_none_does_not_say_cannot_run(house: EngineProcess, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "rootless").mkdir()
    (tmp_path / "rootless/config.json").write_text(json.dumps(config()))
    (tmp_path / "file").write_text("")
    for name in ("none", "empty", "rootless", "file"):
        status, said = moorage(house, "create", "x", str(tmp_path / name))
        assert status != 0
        assert "cannot create" in said, said
        assert "cannot run" not in said


def test_an_upgrade_to_the_same_digest_does_not_restart(house: EngineProcess, registry: Served) -> None:
    name = f"{registry.host}/same/p:1"
    made = make(config())
    for tag in ("1", "2"):
        push(registry.host, "same/p", tag, made)
    house.install(name)
    house.enable(name)
    pid, file = house.more(name)["Pid"], Path(house.exec_root, "p", house.inspect(name)["Id"][:12], "root/written")
    status, said = moorage(house, "upgrade", "--restart", "--grant-all-permissions", name)
    assert status == 0, said
    assert "has this version already" in said
    assert house.more(name)["Pid"] == pid
    assert house.more(name)["Restarts"] == 0
    house.disable(name)
    before = house.inspect(name)
    house.upgrade(name)
    assert house.inspect(name) == before
    house.upgrade(name, f"{registry.host}/same/p:2")
    assert house.inspect(name)["PluginReference"] == f"{registry.host}/same/p:2"
    assert not file.exists()


def test_case_243_create_takes_an_incomplete_config_and_enable_says_what_is_missing(house: EngineProcess) -> None:
    house.request_json("POST", "/plugins/create?name=bare", package({"description": "nothing else"}), headers=TAR)
    assert house.inspect("bare")["Config"]["Description"] == "nothing else"
    assert any(each.startswith("entrypoint: is missing") for each in house.more("bare")["Warnings"])
    with pytest.raises(Refused, match=r"400: cannot enable plugin bare:latest: config.json is not complete: entry"):
        house.enable("bare")
    assert house.state("bare") == "disabled"
    house.create("mount", config(mounts=[{"source": "/tmp", "type": "bind", "options": ["rbind"]}]))
    with pytest.raises(Refused, match=r"400: .*mounts\[0\].destination: is missing or empty"):
        house.enable("mount")


def test_case_243_an_incomplete_config_of_a_registry_is_taken_too(house: EngineProcess, registry: Served) -> None:
    push(registry.host, "c243/p", "1", make({"description": "no entrypoint", "env": [{"name": "A"}]}))
    house.install(f"{registry.host}/c243/p:1")
    assert house.inspect(f"{registry.host}/c243/p:1")["Config"]["Env"][0]["Value"] is None
    with pytest.raises(Refused, match=r"400: .*config.json is not complete"):
        house.enable(f"{registry.host}/c243/p:1")


def test_case_238_a_capability_that_linux_does_not_have_is_refused_at_create_and_pull(
    house: EngineProcess, registry: Served
) -> None:
    bogus = config(linux={"capabilities": ["CAP_BOGUS"]})
    with pytest.raises(Refused, match=r"400: .*linux.capabilities\[0\]: CAP_BOGUS: Linux has none of this name"):
        house.create("bogus", bogus)
    push(registry.host, "c238/p", "1", make(bogus))
    for operation in (house.install, house.privileges):
        with pytest.raises(Refused, match=r"400: .*CAP_BOGUS: Linux has none of this name"):
            operation(f"{registry.host}/c238/p:1")
    near = config(linux={"capabilities": ["SYS_ADMN"]})
    with pytest.raises(Refused, match="did you mean CAP_SYS_ADMIN"):
        house.create("near", near)

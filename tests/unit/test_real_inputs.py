"""Inputs of real plugins and clients, as public repositories and test suites have them; no engine."""

import json
from typing import Any

import pytest

from moorage import errors
from moorage.plugins import NO_OVERRIDES, compute_privileges, effective_settings, parse_config
from support.configs import parsed
from unit.test_manifest import digest, manifest, plugin, read_plugin

IMAGES = ("application/vnd.docker.container.image.v1+json", "application/vnd.oci.image.config.v1+json")
HOST = {"name": "m", "source": "/srv", "destination": "/m", "type": "bind"}


@pytest.mark.parametrize("kind", IMAGES)
def test_case_301_an_image_is_refused_with_the_words_that_dockers_command_searches(kind: str) -> None:
    """Source: docker/cli before 29, cli/command/plugin/install.go; moby, TestPluginInstallImage."""
    document = plugin(config={"mediaType": kind, "digest": digest("c"), "size": 5})
    with pytest.raises(errors.Invalid) as caught:
        read_plugin(manifest(document, "application/vnd.docker.distribution.manifest.v2+json"))
    assert str(caught.value).endswith(f'Encountered remote "{kind}"(image) when fetching')


def mount_privilege(**fields: Any) -> tuple[str, ...]:
    config = parsed(mounts=[HOST | fields])
    found = compute_privileges(config, effective_settings(config, NO_OVERRIDES))
    return next(each.value for each in found if each.name in ("bind mount", "file system"))


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["rbind,ro"], "/srv on /m, read-only (rbind,ro)"),
        (["ro,rslave"], "/srv on /m, read-only (rbind,ro,rslave)"),
        (["rbind", "nosuid,ro"], "/srv on /m, read-only (rbind,nosuid,ro)"),
        (["rbind, ro"], "/srv on /m, read-only (rbind,ro)"),
        (["rbind,ro,rrw"], "/srv on /m, read-write (rbind,ro,rrw)"),
        (["rbind", ""], "/srv on /m, read-write (rbind)"),
    ],
)
def test_case_302_options_of_a_bind_mount_may_be_joined_as_in_fstab(options: list[str], shown: str) -> None:
    for kind in ("bind", *(["none"] if "rbind" in options[0] else [])):
        assert mount_privilege(options=options, type=kind) == (shown,)


def test_case_302_a_joined_remount_is_refused() -> None:
    with pytest.raises(errors.Invalid, match="must not have remount"):
        parsed(mounts=[HOST | {"options": ["rbind,remount"]}])


def test_case_302_options_of_other_file_systems_stay_as_they_are() -> None:
    options = ["size=1m,mode=1777", "lowerdir=/a\\,b:/c"]
    (mount,) = parsed(mounts=[HOST | {"type": "tmpfs", "options": options}]).mounts
    assert (mount.options, mount.is_bind) == (tuple(options), False)


@pytest.mark.parametrize(
    ("word", "hint"),
    [("readonly", "; did you mean ro?"), ("Shared", "; did you mean shared?"), ("size=3", ""), ("z", "")],
)
def test_case_302_an_option_that_no_bind_mount_has_is_a_warning(word: str, hint: str) -> None:
    document = {"entrypoint": ["/p"], "interface": {"socket": "p"}, "mounts": [HOST | {"options": ["rbind", word]}]}
    (warning,) = parse_config(json.dumps(document).encode()).warnings
    assert warning == f"mounts[0].options: {word}: no option of a bind mount, ignored{hint}"


@pytest.mark.parametrize("socket", ["/p.sock", "./p.sock", "//p.sock", "/run/docker/plugins/p.sock"])
def test_case_303_a_socket_may_be_named_as_the_daemon_joins_it(socket: str) -> None:
    assert parsed(interface={"socket": socket}).interface.socket == "p.sock"
    assert parsed(interface={"socket": "./csi/./csi.sock"}).interface.socket == "csi/csi.sock"


@pytest.mark.parametrize("socket", ["..", "../p", "a/../../p", "/run/p.sock", "p/", "/", ".", "unix:///run/p.sock"])
def test_case_303_what_is_no_name_of_a_socket_is_refused(socket: str) -> None:
    with pytest.raises(errors.Invalid, match=r"interface\.socket: must be the name of a socket below"):
        parsed(interface={"socket": socket})


def test_case_304_texts_of_several_lines_may_end_them_as_windows_does() -> None:
    config = parsed(description="one\r\ntwo", documentation="a\r\nb", mounts=[HOST | {"description": "c\r\nd"}])
    assert (config.description, config.mounts[0].description) == ("one\r\ntwo", "c\r\nd")
    with pytest.raises(errors.Invalid, match="must not have the control character"):
        parsed(description="real\rfake")

"""What is granted by which act: of values, without an engine. The acts themselves are in attacks/test_consent.py."""

import json
from typing import Any

import pytest

from moorage import errors
from moorage.engine.grants import GrantPolicy, Grants
from moorage.plugins import (
    NO_OVERRIDES,
    Config,
    Overrides,
    apply_settings,
    compute_privileges,
    effective_settings,
    parse_config,
)

pytestmark = pytest.mark.quick

BIND = {"name": "x", "settable": ["source"], "source": "", "destination": "/x", "type": "bind"}


def parsed(**fields: Any) -> Config:
    return parse_config(json.dumps({"entrypoint": ["/p"], "interface": {"socket": "p.sock"}} | fields).encode()).config


def mounted(**fields: Any) -> Config:
    return parsed(mounts=[BIND | fields])


def set_(config: Config, *assignments: str, before: Overrides = NO_OVERRIDES) -> Overrides:
    return apply_settings(config, before, assignments)


def names(granted: Grants) -> list[str]:
    return [each.name for each in granted.privileges]


def test_s03_terms_are_what_the_settings_make_of_it_or_the_defaults_and_what_was_named() -> None:
    config = mounted()
    overrides = set_(config, "x=/etc")
    exact = compute_privileges(config, effective_settings(config, overrides))
    consent = GrantPolicy()
    assert names(consent.agree(config, overrides, exact)) == ["mount", "bind mount"]
    assert names(consent.agree(config, overrides, (), named=overrides)) == ["mount", "bind mount"]
    with pytest.raises(errors.Denied, match=r"not granted: mount \[/etc\]"):
        consent.agree(config, overrides, ())
    with pytest.raises(errors.Denied, match=r"not granted: bind mount"):
        consent.agree(config, overrides, exact[:1], named=overrides)
    with pytest.raises(errors.Denied, match="not requested"):
        consent.agree(config, overrides, (*exact, *exact))


def test_s03_what_was_granted_before_need_not_be_in_dockers_terms_if_it_is_the_same() -> None:
    config, changed = mounted(options=["ro"]), mounted(options=["rw"])
    overrides = set_(config, "x=/etc")
    before = GrantPolicy().agree(config, overrides, None)
    assert GrantPolicy().agree(config, overrides, (), before=before) == before
    with pytest.raises(errors.Denied, match=r"bind mount \[/etc on /x, read-write"):
        GrantPolicy().agree(changed, overrides, (), before=before)


def test_s03_naming_a_source_grants_a_bind_and_never_a_file_system() -> None:
    bind, proc = mounted(), mounted(type="proc")
    named = set_(bind, "x=/etc")
    assert names(GrantPolicy().widen(bind, named, named, Grants())) == ["mount", "bind mount"]
    assert names(GrantPolicy().widen(proc, named, named, Grants())) == ["mount"]
    both = Grants(compute_privileges(proc, effective_settings(proc, named)))
    assert names(GrantPolicy().widen(proc, set_(proc, "x="), set_(proc, "x="), both)) == ["file system"], "once granted"


def test_s05_a_path_that_is_no_longer_set_is_no_longer_granted() -> None:
    config = mounted()
    first = set_(config, "x=/etc")
    granted = GrantPolicy().widen(config, first, first, Grants())
    second = set_(config, "x=/usr", before=first)
    granted = GrantPolicy().widen(config, second, set_(config, "x=/usr"), granted)
    assert [each.value for each in granted.privileges] == [("/usr",), ("/usr on /x, read-write (rbind)",)]


def test_s05_only_what_a_person_was_shown_is_attended() -> None:
    config = parsed(network={"type": "host"}, mounts=[BIND | {"source": "/etc"}])
    before = Grants(compute_privileges(parsed(network={"type": "host"})))
    granted = GrantPolicy().agree(config, NO_OVERRIDES, None, is_attended=True, before=before)
    assert [each.name for each in granted.attended] == ["mount", "bind mount"], (
        "the network was granted by nobody there"
    )
    again = GrantPolicy().agree(config, NO_OVERRIDES, None, before=granted)
    assert again.attended == granted.attended


def test_s03_secret_sources_are_masked_in_what_is_shown_and_can_be_sent_back() -> None:
    config = mounted()
    overrides = apply_settings(config, NO_OVERRIDES, [], secrets=["x=/hidden"])
    found = GrantPolicy().request_now(config, overrides, Grants())
    assert "/hidden" not in str(found)
    assert GrantPolicy().agree(config, overrides, found.privileges).privileges[0].value == ("/hidden",)

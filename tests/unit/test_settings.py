import json
import shlex
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage import errors
from moorage.plugins import (
    NO_OVERRIDES,
    Overrides,
    Settings,
    apply_settings,
    build_spec,
    effective_settings,
    masked,
    needs,
    rebase,
    settings_to_api,
)
from moorage.plugins.model import Config
from moorage.plugins.settings import MASK, settable_names
from moorage.plugins.spec import DeviceNode, HostPaths
from support.configs import parsed

pytestmark = pytest.mark.quick

briefly = settings(database=None, deadline=None, max_examples=60)


def env(name: str, value: str | None = None) -> dict[str, Any]:
    return {"name": name, "value": value, "settable": ["value"]}


def mount(name: str, source: str | None = None, **fields: Any) -> dict[str, Any]:
    made = {"name": name, "source": source, "destination": f"/{name}", "type": "bind", "options": ["rbind"]}
    return made | {"settable": ["source"]} | fields


def device(name: str, path: str | None = None) -> dict[str, Any]:
    return {"name": name, "path": path, "settable": ["path"]}


def args(name: str, *value: str) -> dict[str, Any]:
    return {"name": name, "value": list(value), "settable": ["value"]}


FULL = parsed(
    env=[env("DEBUG", "0"), env("UNSET"), {"name": "FIXED", "value": "f"}],
    mounts=[mount("state", "/default"), mount("fixed", "/f", settable=[])],
    linux={"devices": [device("fuse", "/dev/fuse")]},
    args=args("opts", "-a"),
)


def after(config: Config, *assignments: str) -> Settings:
    return effective_settings(config, apply_settings(config, NO_OVERRIDES, assignments))


def refusal(config: Config, *assignments: str) -> str:
    with pytest.raises(errors.Invalid) as caught:
        apply_settings(config, NO_OVERRIDES, assignments)
    return str(caught.value)


def test_c03_without_overrides_the_defaults_of_the_config_apply() -> None:
    assert effective_settings(FULL, NO_OVERRIDES) == Settings(
        env=(("DEBUG", "0"), ("FIXED", "f")),
        args=("-a",),
        mounts=FULL.mounts,
        devices=FULL.linux.devices,
        args_name="opts",
    )


def test_c03_overrides_change_one_thing_each_and_leave_the_config_alone() -> None:
    made = after(FULL, "DEBUG=1", "state.source=/b", "fuse.path=/dev/null", "opts=-b c", "UNSET=u")
    assert made.env == (("DEBUG", "1"), ("UNSET", "u"), ("FIXED", "f"))
    assert [each.source for each in made.mounts] == ["/b", "/f"]
    assert [each.path for each in made.devices] == ["/dev/null"]
    assert made.args == ("-b", "c")
    assert FULL.mounts[0].source == "/default"


def test_c03_the_running_spec_and_the_api_show_the_same_settings() -> None:
    made = after(FULL, "DEBUG=1", "state.source=/b", "opts=-b c", "fuse=/dev/null")
    node = DeviceNode("/dev/null", "c", 1, 3, 0o666)
    spec: Any = build_spec(FULL, made, HostPaths("/r", "/s", "/c", devices={"/dev/null": (node,)}))
    shown: Any = settings_to_api(made)
    assert shown["Env"] == spec["process"]["env"][1:]
    assert shown["Args"] == spec["process"]["args"][1:]
    assert [each["Source"] for each in shown["Mounts"]] == [
        each["source"] for each in spec["mounts"] if each["destination"] in ("/state", "/fixed")
    ]
    assert [each["Path"] for each in shown["Devices"]] == [each["path"] for each in spec["linux"]["devices"]]


def test_c03_overrides_can_be_stored_and_read_back() -> None:
    made = apply_settings(FULL, NO_OVERRIDES, ["DEBUG=1", "state=/b", "opts=a b"], secrets=["fuse=/dev/null"])
    for overrides in (made, NO_OVERRIDES):
        stored = json.dumps(msgspec.to_builtins(overrides))
        assert msgspec.convert(json.loads(stored), Overrides) == overrides


def test_c04_the_field_may_be_given_or_left_out() -> None:
    assert after(FULL, "DEBUG.value=1") == after(FULL, "DEBUG=1")
    assert after(FULL, "state.source=/b") == after(FULL, "state=/b")
    assert after(FULL, "fuse.path=/dev/a") == after(FULL, "fuse=/dev/a")
    assert after(FULL, "opts.value=x") == after(FULL, "opts=x")


def test_c04_other_fields_called_settable_do_not_hinder_leaving_it_out() -> None:
    config = parsed(mounts=[mount("config", "/a", settable=["destination", "source"])])
    assert after(config, "config=/b").mounts[0].source == "/b"


def test_c04_the_exact_name_is_tried_before_name_and_field() -> None:
    config = parsed(env=[env("state.source", "e"), env("a.b.c", "1"), env("a-b", "2")], mounts=[mount("state", "/a")])
    made = after(config, "state.source=x", "a.b.c=3", "a-b=4")
    assert made.env == (("state.source", "x"), ("a.b.c", "3"), ("a-b", "4"))
    assert made.mounts[0].source == "/a"
    assert after(config, "a.b.c.value=5").env[1] == ("a.b.c", "5")


def test_c04_of_several_with_one_name_the_first_that_can_be_set_is_meant() -> None:
    config = parsed(
        env=[{"name": "x", "value": "e"}],
        mounts=[mount("x", "/1", settable=[]), mount("x", "/2"), mount("x", "/3")],
        args=args("x", "-a"),
    )
    assert [each.source for each in after(config, "x=/n").mounts] == ["/1", "/n", "/3"]


@pytest.mark.parametrize("assignment", ["NAME", "NAME=", "NAME.value", "NAME.value="])
def test_c04_a_name_alone_and_a_name_with_nothing_are_empty(assignment: str) -> None:
    assert after(parsed(env=[env("NAME", "default")]), assignment).env == (("NAME", ""),)


def test_case_051_split_at_the_first_equals_sign_and_keep_the_bytes() -> None:
    config = parsed(env=[env("DSN"), env("FLAG"), env("EMPTY"), env("TEXT")])
    made = after(config, "DSN=k=v==", "FLAG", "EMPTY=", "TEXT= ä\n\t€ ")
    assert made.env == (("DSN", "k=v=="), ("FLAG", ""), ("EMPTY", ""), ("TEXT", " ä\n\t€ "))


@pytest.mark.parametrize("assignment", ["=x", "=", ""])
def test_case_051_no_name_is_refused(assignment: str) -> None:
    assert refusal(FULL, assignment) == "invalid format, must be <name>[.<field>][=<value>]"


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("NOPE=1", 'setting "NOPE" not found in the plugin configuration; what can be set: DEBUG, UNSET'),
        ("NOPE.value=1", 'setting "NOPE.value" not found'),
        ("FIXED=1", '"FIXED" is not settable; what can be set: DEBUG, UNSET, state.source, fuse.path, opts'),
        ("fixed.source=/x", '"fixed.source" is not settable'),
        ("state.destination=/x", '"state.destination" is not settable'),
        ("DEBUG.name=x", '"DEBUG.name" is not settable'),
        ("state=relative", "cannot set state.source: it must be an absolute path"),
        ("fuse=fuse", "cannot set fuse.path: it must be an absolute path"),
        ("DEBUG=a\0b", "cannot set DEBUG.value: a value is text in UTF-8 without NUL"),
        ("DEBUG=\ud800", "cannot set DEBUG.value: a value is text in UTF-8"),
        ("opts='", "cannot set opts.value: it cannot be split into words: no closing quotation"),
        ("—DEBUG=1", 'setting "—DEBUG" not found'),
    ],
)
def test_case_054_a_bad_key_is_named_and_what_can_be_set_is_listed(assignment: str, text: str) -> None:
    assert text in refusal(FULL, assignment)


def test_case_054_what_can_be_set_is_said_even_when_it_is_nothing() -> None:
    assert refusal(parsed(), "A=1").endswith("; nothing can be set")


def test_c04_many_at_once_are_all_or_nothing() -> None:
    before = apply_settings(FULL, NO_OVERRIDES, ["DEBUG=1"])
    with pytest.raises(errors.Invalid):
        apply_settings(FULL, before, ["DEBUG=2", "state=/b", "NOPE=1"])
    assert effective_settings(FULL, before).env[0] == ("DEBUG", "1")
    assert after(FULL, "DEBUG=1", "DEBUG=2").env[0] == ("DEBUG", "2")


def test_case_049_args_are_split_like_the_words_of_a_shell() -> None:
    config = parsed(args=args("args", "-d"))
    assert after(config, "args=--a 'x y'  --b").args == ("--a", "x y", "--b")
    assert after(config, "args=  \"a b\"c d\\ e '' # f").args == ("a bc", "d e", "", "#", "f")
    assert after(config, "args=").args == ()
    assert after(config, "args").args == ()
    assert after(config, "args=   ").args == ()


def test_c04_args_with_a_dash_in_their_name_can_be_set() -> None:
    assert after(parsed(args=args("opa-args")), "opa-args=-x", "opa-args.value=-y").args == ("-y",)


@briefly
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4))
def test_c04_quoted_args_come_out_as_they_went_in(words: list[str]) -> None:
    assert after(parsed(args=args("args")), f"args={shlex.join(words)}").args == tuple(words)


def test_c05_null_is_absent_until_set_and_empty_is_present() -> None:
    config = parsed(env=[env("A"), env("B", ""), {"name": "C"}])
    assert effective_settings(config, NO_OVERRIDES).env == (("B", ""),)
    assert after(config, "A").env == (("A", ""), ("B", ""))


def test_c05_later_wins_and_each_name_is_there_once() -> None:
    config = parsed(env=[env("A", "1"), env("B", "2"), env("A", "3"), env("A")])
    assert effective_settings(config, NO_OVERRIDES).env == (("A", "3"), ("B", "2"))
    assert after(config, "A=4").env == (("A", "4"), ("B", "2"))


def test_case_048_null_means_not_set_and_can_be_set() -> None:
    config = parsed(mounts=[mount("m")], linux={"devices": [device("d")]})
    with pytest.raises(errors.Invalid, match=r"mount m \(on /m\) has no source; set m\.source="):
        needs(effective_settings(config, NO_OVERRIDES))
    with pytest.raises(errors.Invalid, match=r"device d has no path; set d\.path="):
        needs(after(config, "m.source=/tmp"))
    found = needs(after(config, "m.source=/tmp", "d.path=/dev/null"))
    assert ([each.path for each in found.sources], [each.path for each in found.devices]) == (["/tmp"], ["/dev/null"])


def test_case_011_an_upgrade_adds_new_defaults_and_keeps_what_was_set() -> None:
    old = parsed(env=[env("DEBUG", "0"), env("GONE", "g")])
    new = parsed(env=[env("DEBUG", "0"), env("NEW", "lorem")])
    overrides = apply_settings(old, NO_OVERRIDES, ["DEBUG=1", "GONE=x"])
    moved = rebase(new, overrides)
    assert effective_settings(new, moved.overrides).env == (("DEBUG", "1"), ("NEW", "lorem"))
    assert moved.dropped == ("GONE.value",)


def test_case_012_overrides_are_moved_or_named_and_no_dropped_device_is_handed_over() -> None:
    old = parsed(mounts=[mount("state", "/a")], linux={"devices": [device("d", "/dev/fuse")]}, args=args("args", "-o"))
    new = parsed(mounts=[mount("state", "/a")], args=args("args", "-n"))
    overrides = apply_settings(old, NO_OVERRIDES, ["state.source=/b", "d=/dev/null"])
    moved = rebase(new, overrides)
    made = effective_settings(new, moved.overrides)
    assert ([each.source for each in made.mounts], made.devices, made.args) == (["/b"], (), ("-n",))
    assert moved.dropped == ("d.path",)
    assert effective_settings(new, overrides) == made


@pytest.mark.parametrize("name", ["other", ""])
def test_case_012_overrides_that_can_no_longer_be_set_are_dropped(name: str) -> None:
    new = parsed(
        env=[{"name": "DEBUG", "value": "0"}],
        mounts=[mount("state", "/a", settable=[])],
        linux={"devices": [{"name": "fuse", "path": "/dev/fuse"}]},
        args=args(name, "-n"),
    )
    moved = rebase(new, apply_settings(FULL, NO_OVERRIDES, ["DEBUG=1", "state=/b", "fuse=/dev/null", "opts=x"]))
    assert moved.overrides == NO_OVERRIDES
    assert moved.dropped == ("DEBUG.value", "state.source", "fuse.path", "opts.value")
    assert effective_settings(new, moved.overrides).args == ("-n",)


def test_case_095_secrets_are_masked_where_they_are_shown_and_given_to_the_process() -> None:
    config = parsed(env=[env("TOKEN"), env("B", "b")], args=args("args"), mounts=[mount("m", "/m")])
    overrides = apply_settings(
        config, NO_OVERRIDES, ["B=shown"], secrets=["TOKEN=pa55=wd", "args=--key pa55", "m=/pa55"]
    )
    made = effective_settings(config, overrides)
    assert made.env == (("TOKEN", "pa55=wd"), ("B", "shown"))
    assert "pa55" in str(build_spec(config, made, HostPaths("/r", "/s", "/c"))["process"])
    shown = settings_to_api(made)
    assert shown["Env"] == [f"TOKEN={MASK}", "B=shown"]
    assert shown["Args"] == [MASK, MASK]
    assert not [each for each in (shown, masked(made), made, overrides) if "pa55" in repr(each)]


def test_case_095_a_secret_stays_one_after_the_next_set_and_an_upgrade() -> None:
    config = parsed(env=[env("TOKEN"), env("B")])
    overrides = apply_settings(config, NO_OVERRIDES, [], secrets=["TOKEN=a", "B=b"])
    overrides = rebase(parsed(env=[env("TOKEN")]), apply_settings(config, overrides, ["TOKEN=c"])).overrides
    assert overrides.secrets == {"TOKEN.value"}
    assert settings_to_api(effective_settings(config, overrides))["Env"] == [f"TOKEN={MASK}"]


@pytest.mark.parametrize("secret", ["=pa55", "NOPE=pa55", "m=pa55", "args='pa55", "TOKEN=pa55\0"])
def test_case_095_no_refusal_shows_a_value(secret: str) -> None:
    config = parsed(env=[env("TOKEN")], args=args("args"), mounts=[mount("m", "/m")])
    with pytest.raises(errors.Invalid) as caught:
        apply_settings(config, NO_OVERRIDES, [], secrets=[secret])
    assert "pa55" not in str(caught.value)


# --- properties over any config and any assignments

names = st.sampled_from(["A", "B", "a.b", "a.value", "a", "source"])
values = st.sampled_from(["", "1", "/x", "=", "a b"])
configs = st.builds(
    lambda envs, mounts, devices, arg: parsed(env=envs, mounts=mounts, linux={"devices": devices}, args=arg),
    st.lists(st.builds(env, names, st.none() | values), max_size=3),
    st.lists(st.builds(mount, names, st.none() | st.sampled_from(["", "/x", "/a b"])), max_size=3),
    st.lists(st.builds(device, names, st.none() | st.just("/dev/x")), max_size=2),
    st.builds(args, names),
)
assignments = st.lists(
    st.builds(
        "{}{}{}".format, names, st.sampled_from(["", ".value", ".source", ".path", "."]), values.map("={}".format)
    ),
    max_size=4,
)


def try_apply(config: Config, overrides: Overrides, pairs: list[str]) -> Overrides | None:
    try:
        return apply_settings(config, overrides, pairs)
    except errors.Invalid:
        return None


@briefly
@given(configs, assignments)
def test_c04_setting_one_by_one_or_all_at_once_is_the_same(config: Config, pairs: list[str]) -> None:
    stepwise: Overrides | None = NO_OVERRIDES
    for pair in pairs:
        stepwise = try_apply(config, stepwise, [pair]) if stepwise is not None else None
    assert try_apply(config, NO_OVERRIDES, pairs) == stepwise


@briefly
@given(configs)
def test_c04_everything_listed_as_settable_can_be_set_and_then_shows(config: Config) -> None:
    for name in settable_names(config):
        made = settings_to_api(after(config, f"{name}=/new/value"))
        assert "/new/value" in json.dumps(made)


@briefly
@given(configs, configs, assignments)
def test_c03_a_rebase_keeps_or_names_everything_and_need_not_be_repeated(
    old: Config, new: Config, pairs: list[str]
) -> None:
    overrides = try_apply(old, NO_OVERRIDES, pairs) or NO_OVERRIDES
    assert rebase(old, overrides).dropped == ()
    moved = rebase(new, overrides)
    assert rebase(new, moved.overrides) == (type(moved))(moved.overrides)
    assert effective_settings(new, overrides) == effective_settings(new, moved.overrides)
    count = sum(len(each) for each in (overrides.env, overrides.mounts, overrides.devices)) + (
        overrides.args is not None
    )
    remaining = moved.overrides
    left = sum(len(each) for each in (remaining.env, remaining.mounts, remaining.devices)) + (
        remaining.args is not None
    )
    assert count == left + len(moved.dropped)


@briefly
@given(configs, assignments)
def test_c03_settings_have_the_entries_of_the_config_and_each_name_once(config: Config, pairs: list[str]) -> None:
    made = effective_settings(config, try_apply(config, NO_OVERRIDES, pairs) or NO_OVERRIDES)
    assert [each.destination for each in made.mounts] == [each.destination for each in config.mounts]
    assert [each.name for each in made.devices] == [each.name for each in config.linux.devices]
    assert len(dict(made.env)) == len(made.env)
    assert {name for name, _ in made.env} <= {each.name for each in config.env}

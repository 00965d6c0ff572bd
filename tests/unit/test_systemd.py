"""Who creates control groups, and scopes for programs that outlive the engine: what is decided, on any machine."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import errors
from moorage.containerd.shims.processes import control_group as spec_group
from moorage.host.cgroups import CgroupLayout
from moorage.host.files import last_line
from moorage.plugins import CgroupDriver, cgroup_path, container_of_group, control_group, effective_settings
from moorage.plugins.settings import NO_OVERRIDES
from moorage.runs.directories import PluginDirectories
from moorage.runs.plan import PlanOptions, build_plan
from moorage.systemd import scopes
from moorage.systemd.cgroup_driver import HostControl, decide_driver
from moorage.systemd.scopes import SLICE, make_scope
from support.configs import parsed

pytestmark = pytest.mark.quick

V1, HYBRID, V2 = CgroupLayout.V1, CgroupLayout.HYBRID, CgroupLayout.V2
ID = "ab" * 32


@pytest.mark.parametrize(
    ("host", "automatic", "problem"),
    [
        (HostControl(True, V2, True), "systemd", ""),
        (HostControl(False, V2, True), "cgroupfs", "it is not process 1 of this machine"),
        (HostControl(True, HYBRID, True), "cgroupfs", "control groups are hybrid here, and must be version 2"),
        (HostControl(True, V1, True), "cgroupfs", "control groups are version 1 here, and must be version 2"),
        (HostControl(True, V2, False), "cgroupfs", "nothing answers at /run/dbus/system_bus_socket"),
    ],
)
def test_systemd_creates_control_groups_where_it_can(host: HostControl, automatic: CgroupDriver, problem: str) -> None:
    assert decide_driver("auto", host) == automatic
    assert decide_driver("cgroupfs", host) == "cgroupfs"
    assert host.problem == problem
    assert host.lacks_only_bus == problem.startswith("nothing answers")
    if not problem:
        assert decide_driver("systemd", host) == "systemd"
        return
    with pytest.raises(errors.Unsupported) as caught:
        decide_driver("systemd", host)
    assert str(caught.value) == (
        f"cannot use systemd for the control groups of plugins: {problem}; use --cgroup-driver auto"
    )


@pytest.mark.parametrize(
    ("driver", "path"), [("cgroupfs", "/moorage/{}"), ("systemd", "/moorage.slice/moorage-{}.scope")]
)
@pytest.mark.parametrize("container", [ID, f"{ID}.7"])  # of an earlier version, and of a run
def test_i17_a_run_is_found_by_its_control_group_of_either_driver(
    driver: CgroupDriver, path: str, container: str
) -> None:
    assert control_group(container, driver) == path.format(container)
    assert container_of_group(path.format(container)) == container
    assert spec_group({"linux": {"cgroupsPath": cgroup_path(container, driver)}}) == path.format(container)


@pytest.mark.parametrize(
    "path",
    ["", "/", "/moorage", f"/other/{ID}.1", f"/moorage.slice/{ID}.1", f"/moorage.slice/moorage-{ID}.1",
     f"/moorage.slice/other-{ID}.scope", f"/a/moorage/{ID}.1", f"/moorage/{ID}.1/below"],
)  # fmt: skip
def test_i17_other_groups_are_of_no_run(path: str) -> None:
    assert container_of_group(path) == ""


def test_i17_every_run_has_a_control_group_of_its_own(tmp_path: Path) -> None:
    assert plan_of(tmp_path, container=f"{ID}.3")["linux"]["cgroupsPath"] == f"/moorage/{ID}.3"
    scope = plan_of(tmp_path, container=f"{ID}.3", cgroup_driver="systemd")["linux"]["cgroupsPath"]
    assert scope == f"{SLICE}:moorage:{ID}.3"


def plan_of(tmp_path: Path, **options: Any) -> Any:
    config = parsed()
    directories = PluginDirectories(ID, tmp_path, tmp_path / "propagated")
    made: Any = build_plan(directories, config, effective_settings(config, NO_OVERRIDES), PlanOptions(**options)).spec
    return made


def test_a_run_with_systemd_is_a_scope_in_the_slice_of_all_plugins(tmp_path: Path) -> None:
    spec = plan_of(tmp_path, cgroup_driver="systemd")
    assert spec["linux"]["cgroupsPath"] == f"{SLICE}:moorage:{ID}"
    assert spec["annotations"] == {
        "run.oci.systemd.subgroup": "",  # or crun's processes are in a group below the scope
        "org.systemd.property.CollectMode": "'inactive-or-failed'",  # or one that failed stays until a reboot
    }
    assert "annotations" not in plan_of(tmp_path)
    assert plan_of(tmp_path)["linux"]["cgroupsPath"] == f"/moorage/{ID}"


def test_a_scope_without_a_limit_of_processes_says_so_because_systemd_has_a_default(tmp_path: Path) -> None:
    from moorage.plugins import Confinement, resolve_confinement

    unlimited = resolve_confinement(Confinement(pids=0))
    assert plan_of(tmp_path, cgroup_driver="systemd", confinement=unlimited)["linux"]["resources"]["pids"] == {
        "limit": -1
    }
    assert plan_of(tmp_path, cgroup_driver="systemd")["linux"]["resources"]["pids"] == {"limit": 2048}
    assert "pids" not in plan_of(tmp_path, confinement=unlimited)["linux"]["resources"]


def test_devices_of_a_scope_are_denied_by_the_first_rule_alone_because_systemd_has_only_a_list_of_those_allowed(
    tmp_path: Path,
) -> None:
    # crun 1.21 refuses a rule that denies, also one that denies what nothing allows; the first one is its default
    first, *others = plan_of(tmp_path, cgroup_driver="systemd")["linux"]["resources"]["devices"]
    assert first == {"allow": False, "access": "rwm"}
    assert all(each["allow"] for each in others)
    allowed = [each for each in plan_of(tmp_path)["linux"]["resources"]["devices"] if each["allow"]]
    assert others == allowed


def test_a_scope_and_a_shared_shim_go_together(tmp_path: Path) -> None:
    annotations = plan_of(tmp_path, cgroup_driver="systemd", shares_shim=True)["annotations"]
    assert annotations["io.containerd.runc.v2.group"] == "moorage"
    assert annotations["run.oci.systemd.subgroup"] == ""


def test_a_program_is_in_a_new_scope_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scopes, "_BOOTED", tmp_path)
    made = [make_scope("containerd", "Moorage, containerd of /x y") for _ in range(2)]
    units = [each.unit for each in made if each is not None]
    assert len(set(units)) == 2
    assert all(re.fullmatch(r"moorage-containerd-[0-9a-f]{8}\.scope", unit) for unit in units)
    assert made[0] is not None
    command = made[0].command
    assert command[0].endswith("/systemd-run")
    assert {"--scope", "--collect", "--quiet", f"--slice={SLICE}", f"--unit={units[0]}"} <= set(command)
    assert "--property=DefaultDependencies=no" in command, "or a shutdown ends it before the plugins"
    assert "--property=Delegate=yes" in command, "or one process that is OOM-killed ends them all"
    assert "--description=Moorage, containerd of /x y" in command
    assert command[-1] == "--"


def test_without_systemd_there_is_no_scope_and_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scopes, "_BOOTED", tmp_path / "none")
    assert make_scope("containerd", "x") is None
    assert not caplog.records


def test_without_systemd_run_there_is_no_scope_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scopes, "_BOOTED", tmp_path)
    monkeypatch.setattr(scopes, "_SYSTEM_PATHS", str(tmp_path))
    assert make_scope("keeper", "x") is None
    [message] = caplog.messages
    assert message.startswith("cannot create moorage-keeper-")
    assert "(there is no systemd-run)" in message


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_the_reason_is_the_last_line_that_a_program_has_written(before: bytes, after: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(before + after)
        file.flush()
        found = last_line(Path(file.name), len(before))
    lines = [line.strip() for line in after.decode(errors="replace").split("\n") if line.strip()]
    assert found == (lines[-1] if lines else "")


def test_a_file_that_was_never_written_has_no_last_line(tmp_path: Path) -> None:
    assert last_line(tmp_path / "absent") == ""

"""Who creates the control groups of plugins: the runtime itself (cgroupfs), or systemd, as scopes.

Source: docs/adr/0042-control-groups-and-systemd.md.
"""

import logging
from typing import Literal

from msgspec import Struct

from moorage import errors
from moorage._lib.values import CgroupDriver
from moorage.host.cgroups import CgroupLayout, cgroup_layout
from moorage.host.sockets import accepts_connections
from moorage.systemd.scopes import is_process_1

__all__ = ("HostControl", "RequestedDriver", "choose_driver", "decide_driver", "read_host")

log = logging.getLogger(__name__)

RequestedDriver = Literal["auto"] | CgroupDriver
"""``auto`` is systemd where that is possible."""

_BUS = "/run/dbus/system_bus_socket"


class HostControl(Struct, frozen=True):
    """What of this machine decides."""

    has_systemd: bool
    """Whether systemd is process 1."""
    layout: CgroupLayout
    has_bus: bool
    """Whether the system's D-Bus accepts connections, through which a runtime asks systemd."""

    @property
    def lacks_only_bus(self) -> bool:
        """Whether systemd would create control groups for plugins if a runtime could call it."""
        return self.has_systemd and self.layout is CgroupLayout.V2 and not self.has_bus

    @property
    def problem(self) -> str:
        """Why systemd cannot create control groups for plugins; empty where it can."""
        if not self.has_systemd:
            return "it is not process 1 of this machine"
        if self.layout is not CgroupLayout.V2:
            return f"control groups are {self.layout.value} here, and must be version 2"
        if not self.has_bus:
            return f"nothing answers at {_BUS}"
        return ""


def read_host() -> HostControl:
    """This machine (blocking)."""
    has_systemd = is_process_1()
    return HostControl(has_systemd, cgroup_layout().layout, has_systemd and accepts_connections(_BUS))


def choose_driver(requested: RequestedDriver) -> CgroupDriver:
    """The driver for new runs on this machine (blocking). Raises: Unsupported where it cannot be what is requested."""
    host = read_host()
    driver = decide_driver(requested, host)
    if requested == "auto" and driver == "cgroupfs" and host.lacks_only_bus:
        log.warning("control groups of plugins are created without systemd: %s", host.problem)
    return driver


def decide_driver(requested: RequestedDriver, host: HostControl) -> CgroupDriver:
    """The driver for new runs on such a machine. Raises: Unsupported where the requested one cannot be used."""
    if requested == "systemd" and host.problem:
        raise errors.Unsupported(
            f"cannot use systemd for the control groups of plugins: {host.problem}; use --cgroup-driver auto"
        )
    return "cgroupfs" if requested == "cgroupfs" or host.problem else "systemd"

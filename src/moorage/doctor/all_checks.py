"""All checks of ``moorage doctor``, in the order in which they are reported."""

from moorage.doctor.check import Check
from moorage.doctor.containerd import CONTAINERD_CHECKS
from moorage.doctor.dockerd import DOCKERD_CHECKS
from moorage.doctor.engine import ENGINE_CHECKS
from moorage.doctor.machine import MACHINE_CHECKS
from moorage.doctor.security import SECURITY_CHECKS

__all__ = ("ALL_CHECKS",)

ALL_CHECKS: tuple[Check, ...] = (
    *MACHINE_CHECKS,
    *CONTAINERD_CHECKS,
    *ENGINE_CHECKS,
    *DOCKERD_CHECKS,
    *SECURITY_CHECKS,
)

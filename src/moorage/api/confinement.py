"""A plugin's confinement as JSON, and a change of it from JSON. Limits are 0 where there is none."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import asdict

from moorage import errors
from moorage.plugins import Confinement

__all__ = ("CONFINEMENT_FIELDS", "confinement_from_api", "confinement_to_api")

_NAMES = {
    "seccomp": "Seccomp",
    "new_privileges": "NewPrivileges",
    "capabilities": "Capabilities",
    "memory_bytes": "MemoryBytes",
    "cpus": "Cpus",
    "pids": "Pids",
    "init": "Init",
    "apparmor": "AppArmor",
    "selinux_label": "SelinuxLabel",
    "read_only": "ReadOnly",
    "userns": "Userns",
    "oom_score_adj": "OomScoreAdj",
    "nice": "Nice",
    "rlimits": "Rlimits",
}

CONFINEMENT_FIELDS: Mapping[str, Any] = dict.fromkeys(_NAMES, object)
"""The fields of a body, of any type: ``confinement_from_api`` checks them."""


def confinement_to_api(confinement: Confinement) -> dict[str, object]:
    """A resolved confinement; rlimits are pairs of soft and hard limit, -1 is unlimited."""
    return {_NAMES[name]: value for name, value in asdict(confinement).items()}


def confinement_from_api(fields: Mapping[str, Any]) -> Confinement:
    """A change of a confinement. Raises: Invalid naming the field that is wrong."""
    try:
        return msgspec.convert({key: value for key, value in fields.items() if key in _NAMES}, Confinement)
    except msgspec.ValidationError as error:
        raise errors.Invalid(f"invalid JSON: {error}") from error

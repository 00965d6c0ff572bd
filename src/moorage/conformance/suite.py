"""Runs the checks for the kinds of a plugin, one after another."""

import http.client
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from msgspec import Struct

from moorage import errors
from moorage.conformance.check import CheckFailed, CheckSkipped, ConformanceCheck, PluginCalls
from moorage.conformance.checks.log import LOG_CHECKS
from moorage.conformance.checks.others import (
    AUTHZ_CHECKS,
    IPAM_CHECKS,
    METRICS_CHECKS,
    NETWORK_CHECKS,
    OTHER_CHECKS,
    SECRET_CHECKS,
)
from moorage.conformance.checks.volume import VOLUME_CHECKS
from moorage.conformance.target import Target

__all__ = ("CheckResult", "kinds_of", "run_suite")

_SUITES: dict[str, tuple[str, tuple[ConformanceCheck, ...]]] = {
    "volumedriver": ("VolumeDriver", VOLUME_CHECKS),
    "logdriver": ("LogDriver", LOG_CHECKS),
    "authz": ("AuthZPlugin", AUTHZ_CHECKS),
    "networkdriver": ("NetworkDriver", NETWORK_CHECKS),
    "ipamdriver": ("IpamDriver", IPAM_CHECKS),
    "metricscollector": ("MetricsCollector", METRICS_CHECKS),
    "secretprovider": ("SecretProvider", SECRET_CHECKS),
}
"""By the kind in an interface type and, in lower case, in Implements: the prefix of its methods, and its checks."""


class CheckResult(Struct, frozen=True, rename="pascal"):
    """The result of one check."""

    kind: str
    id: str
    title: str
    outcome: Literal["passed", "failed", "skipped"]
    seconds: float
    text: str = ""
    """Why it failed or was skipped."""


def kinds_of(target: Target, seconds: float) -> list[str]:
    """The kinds of a plugin: of its config, else those that it reports; "" for one without checks of its own.

    Raises:
        errors.Unavailable: it has no config, and does not answer
    """
    stated = [each.removeprefix("docker.").partition("/")[0].lower() for each in target.types]
    if not stated:
        try:
            document = PluginCalls(target, "", seconds).raw("Plugin.Activate", None).document
        except (OSError, http.client.HTTPException) as error:
            raise errors.Unavailable(f"cannot test {target.socket}: it does not answer: {error}") from error
        found = document.get("Implements") if isinstance(document, dict) else None
        stated = [str(each).lower() for each in found] if isinstance(found, list) else []
    return [each for each in stated if each in _SUITES] or [""]


def run_suite(
    target: Target,
    kinds: Sequence[str],
    seconds: float,
    report: Callable[[CheckResult], None],
    options: Mapping[str, str] = MappingProxyType({}),
) -> list[CheckResult]:
    """Run every check of these kinds; each is reported when it is done. ``seconds`` bounds one call.

    ``options`` are those of the volumes, containers and networks that the checks create, as users give them.
    """
    results = []
    for kind in kinds:
        prefix, checks = _SUITES.get(kind, ("Plugin", OTHER_CHECKS))
        for check in checks:
            result = _run(check, kind or "plugin", PluginCalls(target, prefix, seconds, options))
            report(result)
            results.append(result)
    return results


def _run(check: ConformanceCheck, kind: str, plugin: PluginCalls) -> CheckResult:
    started_at = time.monotonic()
    outcome: Literal["passed", "failed", "skipped"] = "failed"
    text = ""
    try:
        if check.needs_restart and not plugin.target.can_restart:
            raise CheckSkipped("only the socket of the plugin is known, so it cannot be killed or stopped")
        check.run(plugin)
        outcome = "passed"
    except CheckSkipped as skipped:
        outcome, text = "skipped", str(skipped)
    except (CheckFailed, errors.MoorageError) as failed:
        text = str(failed)
    except TimeoutError:
        text = f"a call is not answered within {plugin.seconds:g} s"
    except (OSError, http.client.HTTPException) as error:
        text = f"the plugin does not answer: {error!r}"
    return CheckResult(kind, check.id, check.title, outcome, time.monotonic() - started_at, text)

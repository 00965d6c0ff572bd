"""Checks of authorization, network, IPAM and metrics drivers, and of secret providers."""

import base64
import json

from moorage.conformance.check import ConformanceCheck, PluginCalls, require
from moorage.conformance.checks.common import common_checks

__all__ = ("AUTHZ_CHECKS", "IPAM_CHECKS", "METRICS_CHECKS", "NETWORK_CHECKS", "OTHER_CHECKS", "SECRET_CHECKS")

_REQUEST = {"RequestMethod": "GET", "RequestUri": "/_ping"}
_LARGEST_BODY = 4 << 20
"""Bytes that dockerd passes on of a request."""


def _decision(plugin: PluginCalls, method: str, request: dict[str, object]) -> None:
    document = plugin.succeed(method, **request)
    require(isinstance(document.get("Allow"), bool), f"{method} must answer with Allow true or false; it is {document}")


def _decides(plugin: PluginCalls) -> None:
    _decision(plugin, "AuthZReq", dict(_REQUEST))
    _decision(plugin, "AuthZRes", {**_REQUEST, "ResponseStatusCode": 200})


def _large_body(plugin: PluginCalls) -> None:
    body = json.dumps({"Image": "x" * (_LARGEST_BODY - 100)}).encode()
    headers = {"Content-Type": "application/json"}
    request = {"RequestMethod": "POST", "RequestUri": "/v1.41/containers/create", "RequestHeaders": headers}
    _decision(plugin, "AuthZReq", {**request, "RequestBody": base64.b64encode(body).decode()})


def _denies_malformed(plugin: PluginCalls) -> None:
    reply = plugin.raw("AuthZReq", b"[]")
    document = reply.document
    is_allowed = reply.status == 200 and isinstance(document, dict) and document.get("Allow") is True
    require(not is_allowed, f"a request that cannot be read must not be allowed; the answer is {reply}")


AUTHZ_CHECKS = (
    *common_checks("AuthZReq", dict(_REQUEST)),
    ConformanceCheck("A01", "decides on requests and answers", _decides),
    ConformanceCheck("A02", "decides on a request with a body of 4 MiB", _large_body),
    ConformanceCheck("A03", "does not allow what it cannot read", _denies_malformed),
)


def _network_capabilities(plugin: PluginCalls) -> None:
    scope = plugin.succeed("GetCapabilities").get("Scope")
    require(scope in ("local", "global"), f"GetCapabilities must have the Scope local or global; it is {scope!r}")


def _network_life(plugin: PluginCalls) -> None:
    network, endpoint = plugin.name(), plugin.name()
    ids = {"NetworkID": network, "EndpointID": endpoint}
    pool = {"AddressSpace": "", "Pool": "10.213.0.0/24", "Gateway": "10.213.0.1/24", "AuxAddresses": {}}
    options = {"com.docker.network.generic": plugin.options} if plugin.options else {}
    plugin.succeed("CreateNetwork", NetworkID=network, Options=options, IPv4Data=[pool], IPv6Data=None)
    interface = {"Address": "10.213.0.2/24", "AddressIPv6": "", "MacAddress": ""}
    made = plugin.succeed("CreateEndpoint", **ids, Interface=interface, Options={}).get("Interface") or {}
    changed = {name for name, value in made.items() if value and interface.get(name)}
    require(not changed, f"CreateEndpoint must not return what it was given, libnetwork refuses that: {changed}")
    plugin.succeed("EndpointOperInfo", **ids)
    plugin.succeed("DeleteEndpoint", **ids)
    plugin.succeed("DeleteNetwork", NetworkID=network)


def _unknown_endpoint(plugin: PluginCalls) -> None:
    ids = {"NetworkID": plugin.name(), "EndpointID": plugin.name()}
    for method in ("DeleteEndpoint", "Leave"):
        plugin.call(method, **ids)  # any answer; no answer fails
    plugin.fail("Join", **ids, SandboxKey="", Options={})


NETWORK_CHECKS = (
    *common_checks("GetCapabilities", {}),
    ConformanceCheck("N01", "has a scope", _network_capabilities),
    ConformanceCheck("N02", "creates and deletes a network and an endpoint", _network_life),
    ConformanceCheck("N03", "answers calls for endpoints that do not exist", _unknown_endpoint),
)


def _spaces(plugin: PluginCalls) -> None:
    found = plugin.succeed("GetDefaultAddressSpaces")
    for name in ("LocalDefaultAddressSpace", "GlobalDefaultAddressSpace"):
        require(found.get(name), f"GetDefaultAddressSpaces must have {name}; it is {found}")


def _addresses(plugin: PluginCalls) -> None:
    pool = plugin.succeed("RequestPool", AddressSpace="", Pool="10.212.0.0/24", SubPool="", Options=None, V6=False)
    require(pool.get("PoolID"), f"RequestPool must return a PoolID; it is {pool}")
    require("/" in str(pool.get("Pool")), f"RequestPool must return Pool as CIDR; it is {pool.get('Pool')!r}")
    id = pool["PoolID"]
    found = [str(plugin.succeed("RequestAddress", PoolID=id, Address="", Options=None)["Address"]) for _ in range(2)]
    require(all("/" in each for each in found), f"addresses must have the length of their prefix; they are {found}")
    require(found[0] != found[1], f"two requests must get two addresses; both get {found[0]}")
    for each in found:
        plugin.succeed("ReleaseAddress", PoolID=id, Address=each.partition("/")[0])
    plugin.succeed("ReleasePool", PoolID=id)


def _ipam_error(plugin: PluginCalls) -> None:
    reply = plugin.call("RequestAddress", PoolID=plugin.name(), Address="", Options=None)
    document = reply.document
    reason = document.get("Error") if isinstance(document, dict) else None
    is_failure = reply.status != 200 or reason
    require(is_failure, f"RequestAddress from an unknown pool must fail, with status 500 or in Error; it is {reply}")
    require(reply.error, f"a failure must have its reason in Error, or with status 500 in Err; the answer is {reply}")


IPAM_CHECKS = (
    *common_checks("GetCapabilities", {}),
    ConformanceCheck("I01", "has default address spaces", _spaces),
    ConformanceCheck("I02", "gives two requests two addresses", _addresses),
    ConformanceCheck("I03", "reports failures as libnetwork reads them", _ipam_error),
)


def _metrics(plugin: PluginCalls) -> None:
    for method in ("StartMetrics", "StartMetrics", "StopMetrics", "StopMetrics"):
        plugin.succeed(method)


METRICS_CHECKS = (
    *common_checks("StopMetrics", {}),
    ConformanceCheck("M01", "can be started and stopped, also twice", _metrics),
)


def _unknown_secret(plugin: PluginCalls) -> None:
    reply = plugin.call("GetSecret", SecretName=plugin.name(), SecretLabels={}, ServiceName="", TaskID="")
    document = reply.document
    require(isinstance(document, dict), f"GetSecret must be answered with a JSON object; it is {reply}")
    value = document.get("Value")
    require(reply.error or value, f"GetSecret of an unknown secret must have Err, or a Value; it is {reply}")
    if value:
        base64.b64decode(str(value), validate=True)


SECRET_CHECKS = (
    common_checks("GetSecret", {})[0],
    ConformanceCheck("S01", "answers for a secret that it may not know", _unknown_secret),
)

OTHER_CHECKS: tuple[ConformanceCheck, ...] = common_checks("Activate", {})[:1]
"""Of a kind that has no checks of its own: only the activation."""

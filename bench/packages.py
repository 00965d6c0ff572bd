"""Install a package of 100 MB from a local registry, in one and eight layers: Moorage, dockerd, `ctr images pull`."""

import gzip
import hashlib
import http.client
import io
import json
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import quote

from bench import machine
from bench.targets import NAMESPACE, TIMEOUT, Docker, Moorage

from support.engines import UnixConnection, config
from support.registries import serve_registry

__all__ = ("measure",)

MEGABYTE = 10**6
_CONFIG_TYPE = "application/vnd.docker.plugin.v1+json"
_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


def measure(rounds: int, megabytes: int, say: Callable[[str], None], *, seed: int = 0) -> dict[str, list[float]]:
    """Seconds of a pull by name of figure, and MB of our engine at its largest while it pulls ten times as much."""
    results: dict[str, list[float]] = {}
    order = random.Random(seed)
    with _sides() as (host, moorage, docker):
        for layers, times in ((1, 1), (8, 1), (8, 10)):
            _publish(host, f"layers-{layers}-{times}", layers, times * megabytes * MEGABYTE, order)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds} of packages")
            sides: dict[str, Callable[[str], float]] = {
                "moorage": lambda remote: _install(moorage.socket, remote),
                "dockerd": lambda remote: _install(docker.address, remote),
                "ctr images pull": lambda remote: _pull(moorage.containerd_address, remote),
                "ctr images pull, sync": lambda remote: _pull(moorage.containerd_address, remote, moorage.root),
            }
            parts = [(name, layers) for name in sides for layers in (1, 8)]
            order.shuffle(parts)
            for name, layers in parts:
                took = sides[name](f"{host}/layers-{layers}-1:latest")
                results.setdefault(f"{name}: install, {layers} layers", []).append(took)
        say(f"memory while {10 * megabytes} MB are pulled")
        for name, address, pid in (("moorage", moorage.socket, moorage.pid), ("dockerd", docker.address, docker.pid)):
            machine.forget_peak(pid)
            _install(address, f"{host}/layers-8-10:latest")
            results[f"{name}: memory while pulling"] = [machine.peak_rss_mb(pid)]
    return results


@contextmanager
def _sides() -> Iterator[tuple[str, Moorage, Docker]]:
    directory = Path(mkdtemp(prefix="moorage-bench-", dir="/var/tmp"))
    for name in ("moorage", "docker"):
        (directory / name).mkdir()
    moorage, docker = Moorage(directory / "moorage"), Docker(directory / "docker")
    try:
        with serve_registry(directory / "registry", log={"level": "error"}) as registry:
            docker.wait_until_serving()
            moorage.start()
            yield registry.host, moorage, docker
    finally:
        try:
            moorage.close()
        finally:
            docker.stop()
            shutil.rmtree(directory, ignore_errors=True)


def _install(address: Path, remote: str) -> float:
    """Seconds until the package is installed; it is removed afterwards, so that the next one is downloaded again."""
    where = f"remote={quote(remote, safe='')}"
    granted = _request(address, "GET", f"/plugins/privileges?{where}")
    began = time.perf_counter()
    said = _request(address, "POST", f"/plugins/pull?{where}&name=it", granted)
    took = time.perf_counter() - began
    failures = [line for line in said.decode().splitlines() if '"errorDetail"' in line]
    assert not failures, failures
    _request(address, "DELETE", "/plugins/it:latest?force=1")
    return took


def _pull(address: str, remote: str, synced: Path | None = None) -> float:
    """Seconds of `ctr images pull`, which unpacks as well, on this containerd; removed again with all its content.

    ``synced``: a directory whose file system is synced then, as Moorage does: else a power cut may empty files.
    """
    ctr = ["ctr", "--address", address, "--namespace", NAMESPACE, "images"]
    began = time.perf_counter()
    subprocess.run([*ctr, "pull", "--plain-http", remote], check=True, capture_output=True)
    if synced is not None:
        subprocess.run(["sync", "--file-system", str(synced)], check=True)
    took = time.perf_counter() - began
    subprocess.run([*ctr, "rm", "--sync", remote], check=True, stdout=subprocess.DEVNULL)
    return took


def _request(address: Path, method: str, path: str, body: bytes = b"") -> bytes:
    connection = UnixConnection(address, 10 * TIMEOUT)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status < 300, said
        return said
    finally:
        connection.close()


# what is installed


def _publish(host: str, name: str, layers: int, size: int, chance: random.Random) -> None:
    """Put a package of so many bytes, in layers of one size, into the registry."""
    registry = http.client.HTTPConnection(host, timeout=TIMEOUT)
    diff_ids, entries = [], []
    for number in range(layers):
        plain = _layer(number, size // layers, chance)
        diff_ids.append(_digest(plain))
        packed = gzip.compress(plain, 1)
        entries.append({"mediaType": _LAYER_TYPE, "digest": _put(registry, name, packed), "size": len(packed)})
    document = {**config(network={}), "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    raw = json.dumps(document).encode()
    about = {"mediaType": _CONFIG_TYPE, "digest": _put(registry, name, raw), "size": len(raw)}
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST_TYPE, "config": about, "layers": entries}
    registry.request("PUT", f"/v2/{name}/manifests/latest", json.dumps(manifest), {"Content-Type": _MANIFEST_TYPE})
    _answered(registry)
    registry.close()


def _layer(number: int, size: int, chance: random.Random) -> bytes:
    """A tar of files, half of which can be compressed."""
    archive = io.BytesIO()
    piece = min(size, MEGABYTE)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for at in range(0, size, piece):
            content = chance.randbytes(piece // 2) + b"the same again and again " * (piece // 50)
            entry = tarfile.TarInfo(f"files-{number}/{at // piece}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def _put(registry: http.client.HTTPConnection, name: str, blob: bytes) -> str:
    registry.request("POST", f"/v2/{name}/blobs/uploads/", headers={"Content-Length": "0"})
    location = _answered(registry)
    digest = _digest(blob)
    at = f"{location}{'&' if '?' in location else '?'}digest={quote(digest, safe='')}"
    registry.request("PUT", at, blob, {"Content-Type": "application/octet-stream"})
    _answered(registry)
    return digest


def _answered(registry: http.client.HTTPConnection) -> str:
    answer = registry.getresponse()
    said = answer.read()
    assert answer.status < 300, said
    return answer.headers.get("Location", "")


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"

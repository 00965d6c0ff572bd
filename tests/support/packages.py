"""Packages as they lie in a registry: made layer by layer, pushed to any registry, over plain http."""

import gzip
import hashlib
import http.client
import io
import json
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from support.engines import actor, config
from support.limits import limit

SCHEMA2 = "application/vnd.docker.distribution.manifest.v2+json"
OCI = "application/vnd.oci.image.manifest.v1+json"
LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
INDEX = "application/vnd.oci.image.index.v1+json"
PLUGIN = "application/vnd.docker.plugin.v1+json"
IMAGE = "application/vnd.docker.container.image.v1+json"
GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A layer, not compressed; a name that ends in a slash is a directory. Programs are what ``actor`` is."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            member.mode = 0o755
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


@dataclass(frozen=True)
class Blob:
    data: bytes
    media_type: str
    claims: dict[str, Any] = field(default_factory=dict)
    """What the manifest says otherwise of it."""

    @property
    def digest(self) -> str:
        return digest_of(self.data)

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data), **self.claims}


@dataclass(frozen=True)
class Made:
    """A whole package."""

    config: Blob
    layers: tuple[Blob, ...]
    media_type: str = SCHEMA2

    @property
    def manifest(self) -> bytes:
        document = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.descriptor,
            "layers": [layer.descriptor for layer in self.layers],
        }
        return json.dumps(document).encode()

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return (self.config, *self.layers)

    def with_layer(self, index: int, **claims: Any) -> "Made":
        """The same, with a manifest that says other things of a layer."""
        layers = list(self.layers)
        layers[index] = replace(layers[index], claims=claims)
        return replace(self, layers=tuple(layers))


def layer(files: Mapping[str, bytes], media_type: str = GZIP) -> Blob:
    """A layer of these files, compressed as its type says."""
    data = tar_of(files)
    if media_type.endswith("gzip"):
        data = gzip.compress(data, 1, mtime=0)
    elif media_type.endswith("zstd"):
        data = zstd(data)
    return Blob(data, media_type)


def make(
    document: dict[str, Any] | None = None,
    *more: Blob,
    media_type: str = SCHEMA2,
    config_type: str = PLUGIN,
    base: Blob | None = None,
) -> Made:
    """A plugin that is an actor, with these layers on top."""
    raw = json.dumps(document if document is not None else config()).encode()
    return Made(Blob(raw, config_type), (base or layer({"actor": actor()}), *more), media_type)


def index_of(entries: Iterable[tuple[Made, dict[str, Any]]], media_type: str = LIST) -> bytes:
    """An index of packages, each with more fields of its entry (platform, annotations)."""
    manifests = [
        {"mediaType": made.media_type, "digest": made.digest, "size": len(made.manifest), **fields}
        for made, fields in entries
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).encode()


def push(host: str, path: str, tag: str, made: Made, *, authorization: str = "") -> str:
    """Store a package in a registry; its digest."""
    headers = {"Authorization": authorization} if authorization else {}
    for blob in made.blobs:
        push_blob(host, path, blob.data, headers)
    return push_manifest(host, path, tag, made.manifest, made.media_type, headers)


def push_blob(host: str, path: str, data: bytes, headers: Mapping[str, str] | None = None) -> str:
    answer = _request(host, "POST", f"/v2/{path}/blobs/uploads/", b"", headers)
    workspace = urlsplit(answer["Location"])
    sent = {"Content-Type": "application/octet-stream", **(headers or {})}
    _request(host, "PUT", f"{workspace.path}?{workspace.query}&digest={digest_of(data)}", data, sent)
    return digest_of(data)


def push_manifest(
    host: str, path: str, target: str, data: bytes, media_type: str, headers: Mapping[str, str] | None = None
) -> str:
    _request(host, "PUT", f"/v2/{path}/manifests/{target}", data, {"Content-Type": media_type, **(headers or {})})
    return digest_of(data)


def _request(
    host: str, method: str, path: str, body: bytes, headers: Mapping[str, str] | None
) -> http.client.HTTPMessage:
    connection = http.client.HTTPConnection(host, timeout=limit(60))
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status in (201, 202), (answer.status, said)
        return answer.headers
    finally:
        connection.close()

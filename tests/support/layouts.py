"""OCI layouts for tests: images and plugins built blob by blob, as tars that can be made wrong."""

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

OCI = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
PLUGIN_CONFIG = "application/vnd.docker.plugin.v1+json"

Descriptor = dict[str, Any]


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer_tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    """A layer: path to bytes and mode."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, (data, mode) in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@dataclass
class Layout:
    """Blobs, and what the index lists."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    entries: list[Descriptor] = field(default_factory=list)

    def add(self, data: bytes, media_type: str, **more: Any) -> Descriptor:
        """A blob; what points at it."""
        digest = digest_of(data)
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def add_json(self, document: Any, media_type: str, **more: Any) -> Descriptor:
        return self.add(json.dumps(document).encode(), media_type, **more)

    def layer(self, plain: bytes, kind: str = "gzip") -> Descriptor:
        """A layer of these files: gzip, of one member or several, plain, or of a type that is not understood."""
        if kind == "gzip":
            return self.add(gzip.compress(plain, mtime=0), f"{OCI_LAYER}+gzip")
        if kind == "gzip members":
            return self.add(gzip_members(plain), f"{OCI_LAYER}+gzip")
        return self.add(plain, OCI_LAYER if kind == "plain" else f"{OCI_LAYER}+{kind}")

    def manifest(self, config: Descriptor, layers: list[Descriptor], media_type: str = OCI, **more: Any) -> Descriptor:
        document = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers}
        return self.add_json(document, media_type, **more)

    def plugin(self, config: dict[str, Any], layers: list[bytes]) -> Descriptor:
        """A plugin with OCI's media types, as other tools keep it."""
        diff_ids = [digest_of(each) for each in layers]
        blob = self.add_json({**config, "rootfs": {"type": "layers", "diff_ids": diff_ids}}, PLUGIN_CONFIG)
        return self.manifest(blob, [self.layer(each) for each in layers])

    def image(self, layers: list[bytes], kind: str = "gzip", promised: list[bytes] | None = None) -> Descriptor:
        """A container image."""
        diff_ids = [digest_of(each) for each in (layers if promised is None else promised)]
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        return self.manifest(self.add_json(config, OCI_CONFIG), [self.layer(each, kind) for each in layers])

    def list(self, target: Descriptor, name: str = "", **more: Any) -> None:
        """Name something in the index."""
        notes = {"annotations": {"io.containerd.image.name": name}} if name else {}
        self.entries.append({**target, **notes, **more})

    def files(self) -> dict[str, bytes]:
        """Everything, as an OCI layout has it."""
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self.entries}
        return {
            **{f"blobs/{digest.replace(':', '/')}": data for digest, data in self.blobs.items()},
            "index.json": json.dumps(index).encode(),
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        }

    def tar(self, **more: bytes) -> bytes:
        """The layout as an archive, and these files with it (``config_json`` for config.json)."""
        return tar_of({**{name.replace("_", "."): data for name, data in more.items()}, **self.files()})


def gzip_members(plain: bytes, size: int = 70_001) -> bytes:
    """The bytes as gzip of several members, as pigz and other parallel compressors write."""
    return b"".join(gzip.compress(plain[at : at + size], mtime=0) for at in range(0, len(plain), size))


def tar_of(files: dict[str, bytes], prefix: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def files_of(tar: bytes) -> dict[str, bytes]:
    """The files of an archive."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        found = {member.name: archive.extractfile(member) for member in archive if member.isreg()}
        return {name: file.read() for name, file in found.items() if file is not None}

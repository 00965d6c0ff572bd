"""An OCI layout in a directory, as a source of an image."""

from collections.abc import AsyncGenerator
from pathlib import Path

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.oci.digest import encoded, is_digest_of
from moorage.oci.index import build_index, parse_index
from moorage.oci.limits import MANIFEST_BYTES
from moorage.oci.manifest import RawManifest, media_type_of
from moorage.oci.media_types import MANIFESTS_AND_INDEXES
from moorage.plugins import Reference

__all__ = ("LayoutSource", "is_layout")

_READ_BYTES = 1 << 20


def is_layout(path: Path) -> bool:
    """Whether a directory is an OCI layout (blocking)."""
    return (path / "oci-layout").is_file() and (path / "index.json").is_file()


class LayoutSource:
    """The manifests and blobs of a layout, as a ``Source``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def resolve(self, reference: Reference) -> RawManifest:
        """The index of the layout, or its only entry. Raises: errors.Invalid if it is not one."""
        data = await run_blocking((self._directory / "index.json").read_bytes)
        entries = parse_index(data, f"cannot read {self._directory / 'index.json'}")
        if len(entries) == 1 and entries[0].platform is None:
            return await self.read_manifest(entries[0].digest)
        return build_index(entries)

    async def read_manifest(self, target: str) -> RawManifest:
        """The manifest or index with this digest, verified. Raises: errors.NotFound, errors.Invalid."""
        path = self._path(target)
        data = await run_blocking(lambda: self._read(path))
        if not is_digest_of(target, data):
            raise errors.Invalid(f"cannot use {path}: its content has another digest")
        kind = media_type_of(data)
        if kind not in MANIFESTS_AND_INDEXES:
            raise errors.Unsupported(f"cannot use {path}: it is a {kind}, not a manifest")
        return RawManifest(data, kind, target)

    async def find_manifest(self, target: str) -> RawManifest | None:
        """As ``read_manifest``; None if there is none."""
        return await self.read_manifest(target) if self._path(target).is_file() else None

    async def read_referrers(self, digest: str, artifact_type: str) -> bytes | None:
        """None: signatures of a base are not checked."""
        return None

    async def read_blob(self, digest: str, size_bytes: int, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``offset`` on, at most ``size_bytes``. Raises: errors.NotFound."""
        path = self._path(digest)
        try:
            file = await run_blocking(lambda: path.open("rb"))
        except FileNotFoundError as error:
            raise errors.NotFound(f"cannot read {path}: there is no such file") from error
        with file:
            file.seek(offset)
            left = size_bytes - offset
            while left > 0 and (piece := await run_blocking(lambda: file.read(min(left, _READ_BYTES)))):  # noqa: B023
                left -= len(piece)
                yield piece

    def _path(self, digest: str) -> Path:
        return self._directory / "blobs" / digest.partition(":")[0] / encoded(digest)

    @staticmethod
    def _read(path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                data = file.read(MANIFEST_BYTES + 1)
        except FileNotFoundError as error:
            raise errors.NotFound(f"cannot read {path}: there is no such file") from error
        if len(data) > MANIFEST_BYTES:
            raise errors.Invalid(f"cannot read {path}: it has more than {MANIFEST_BYTES} bytes")
        return data

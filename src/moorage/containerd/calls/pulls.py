"""Images as a whole: pulled from a registry, unpacked, measured."""

from __future__ import annotations  # the client of registries is named in them, which is an extra

from typing import TYPE_CHECKING

from moorage import errors
from moorage.containerd.images.progress import ReportProgress, ignore_progress
from moorage.containerd.types import Usage
from moorage.oci.platforms import Platform
from moorage.oci.reference import parse_reference
from moorage.timeouts import DEFAULT, ClientTimeouts, RegistryTimeouts

if TYPE_CHECKING:
    from moorage.containerd.images.pull import PulledImage
    from moorage.containerd.storage import Storage
    from moorage.registry.credentials import Credentials, CredentialsFor
    from moorage.registry.hosts import Options

__all__ = ("PullCalls",)

DEFAULT_SNAPSHOTTER = "overlayfs"


class PullCalls:
    """What many calls together do with an image."""

    _timeouts: ClientTimeouts

    @property
    def storage(self) -> Storage:
        """Content, images, snapshots and leases of the same namespace."""
        raise NotImplementedError

    async def pull(
        self,
        reference: str,
        *,
        credentials: Credentials | CredentialsFor | None = None,
        options: Options | None = None,
        platform: Platform | None = None,
        snapshotter: str = DEFAULT_SNAPSHOTTER,
        report: ReportProgress = ignore_progress,
    ) -> PulledImage:
        """Pull an image from its registry and unpack it; what containerd has already is not read again.

        ``reference`` is read as docker reads it: ``alpine`` is ``docker.io/library/alpine:latest``. ``credentials`` are
        for its registry only, or a function that finds them by host; ``options`` are those of the machine about
        registries; ``platform`` is this machine's by default; ``report`` is called for each step, and never waits.
        The registry's time limits are those of ``Timeouts`` that ``connect`` was given, or the defaults.

        Raises:
            errors.NotFound: the registry does not have it, or not for the platform
            errors.Unauthorized: the registry requires other credentials
            errors.Denied: the registry refuses
            errors.Invalid: it is not an image, or its bytes are not those of their digests
            errors.InvalidResponse: the registry sends what cannot be used
            errors.Unavailable: registry or containerd cannot be reached, or the disk is full
            errors.Unsupported: the extra ``registry`` is not installed
        """
        try:
            from moorage.registry.credentials import Credentials, credentials_for
            from moorage.registry.registry import Registry
        except ModuleNotFoundError as error:
            raise errors.Unsupported(
                f"cannot pull {reference}: there is no Python module {error.name}; run: pip install 'moorage[registry]'"
            ) from error
        from moorage.containerd.images.pull import pull_image

        parsed = parse_reference(reference).with_default_tag()
        if isinstance(credentials, Credentials):
            credentials = credentials_for(parsed.host, credentials)
        timeouts = self._timeouts if isinstance(self._timeouts, RegistryTimeouts) else DEFAULT
        async with Registry(parsed, credentials=credentials, options=options, timeouts=timeouts) as source:
            return await pull_image(
                self.storage, source, parsed, snapshotter=snapshotter, platform=platform, report=report
            )

    async def unpack_image(self, name: str, *, snapshotter: str = DEFAULT_SNAPSHOTTER) -> PulledImage:
        """Unpack an image whose content containerd has, for this machine; what is unpacked already is used.

        Raises:
            errors.NotFound: no such image, or a part of its content is missing
            errors.Invalid: it is not an image
        """
        from moorage.containerd.images.pull import unpack_image

        return await unpack_image(self.storage, name, snapshotter)

    async def image_usage(self, name: str, *, snapshotter: str = DEFAULT_SNAPSHOTTER) -> Usage:
        """The disk usage of an image for this machine: its blobs, and its snapshots with those below them.

        What other images use too is counted for each of them. Raises: NotFound.
        """
        from moorage.containerd.images.pull import image_usage

        return await image_usage(self.storage, name, snapshotter)

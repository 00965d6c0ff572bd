"""Media types of the OCI and Docker specifications, each written once.

Source: image-spec media-types.md; distribution's image manifest schema 2; moby's plugin format; cosign's
SIGNATURE_SPEC.md; Sigstore's bundle v0.3; in-toto's attestation framework.
"""

__all__ = (
    "COSIGN_SIGNATURE",
    "COSIGN_SIMPLE_SIGNING",
    "DOCKER_IMAGE_CONFIG",
    "DOCKER_LAYER",
    "DOCKER_LAYER_GZIP",
    "DOCKER_LAYER_ZSTD",
    "DOCKER_MANIFEST",
    "DOCKER_MANIFEST_LIST",
    "GZIP_LAYERS",
    "IMAGE_CONFIGS",
    "INDEXES",
    "IN_TOTO_STATEMENT",
    "LAYERS",
    "MANIFESTS",
    "MANIFESTS_AND_INDEXES",
    "OCI_IMAGE_CONFIG",
    "OCI_INDEX",
    "OCI_LAYER",
    "OCI_LAYER_GZIP",
    "OCI_LAYER_ZSTD",
    "OCI_MANIFEST",
    "PLAIN_LAYERS",
    "PLUGIN_CONFIG",
    "SIGNATURE_ARTIFACTS",
    "SIGSTORE_BUNDLE",
)

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"

PLUGIN_CONFIG = "application/vnd.docker.plugin.v1+json"
DOCKER_IMAGE_CONFIG = "application/vnd.docker.container.image.v1+json"
OCI_IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"

DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"

COSIGN_SIGNATURE = "application/vnd.dev.cosign.artifact.sig.v1+json"
COSIGN_SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGSTORE_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
IN_TOTO_STATEMENT = "application/vnd.in-toto+json"

MANIFESTS = (DOCKER_MANIFEST, OCI_MANIFEST)
"""Manifests of one package or image."""

INDEXES = (DOCKER_MANIFEST_LIST, OCI_INDEX)
"""Lists of manifests, one for each platform."""

MANIFESTS_AND_INDEXES = (*MANIFESTS, *INDEXES)

IMAGE_CONFIGS = (OCI_IMAGE_CONFIG, DOCKER_IMAGE_CONFIG)

PLAIN_LAYERS = (DOCKER_LAYER, OCI_LAYER)
GZIP_LAYERS = (DOCKER_LAYER_GZIP, OCI_LAYER_GZIP)

LAYERS = frozenset({*PLAIN_LAYERS, *GZIP_LAYERS, DOCKER_LAYER_ZSTD, OCI_LAYER_ZSTD})
"""Layers that containerd can unpack."""

SIGNATURE_ARTIFACTS = (COSIGN_SIGNATURE, SIGSTORE_BUNDLE)
"""Artifacts that refer to a package as its signatures."""

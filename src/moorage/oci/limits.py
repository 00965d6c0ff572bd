"""Limits on documents that come from registries and archives: all of them."""

__all__ = ("CONFIG_BYTES", "INDEX_DEPTH", "INDEX_ENTRIES", "LAYER_COUNT", "MANIFEST_BYTES", "SIZE_BYTES")

MANIFEST_BYTES = 4 << 20
"""Of a manifest or an index; the distribution project takes no larger one either."""

CONFIG_BYTES = 1 << 20
"""Of a plugin's config.json; the largest known one has some ten thousand."""

LAYER_COUNT = 127
"""Layers of one package, as Docker; overlay takes some hundred."""

INDEX_DEPTH = 3
"""Indexes in indexes."""

INDEX_ENTRIES = 1000
"""Manifests in the index of an archive."""

SIZE_BYTES = (1 << 62) - 1
"""The largest size that a descriptor may state."""

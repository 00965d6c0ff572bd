"""JSON documents drawn by hypothesis from the words of their formats: no reader fails unexpectedly."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.documents import CONFIG_KEYS, RECORD
from fuzz.harness import Limits
from fuzz.targets import TARGETS

EXAMPLES = 250
MANIFEST_KEYS = (
    "mediaType",
    "config",
    "layers",
    "manifests",
    "digest",
    "size",
    "annotations",
    "platform",
    "os",
    "architecture",
)
TEXTS = (
    "/x",
    "rbind",
    "bind",
    "value",
    "source",
    "CAP_SYS_ADMIN",
    "sha256:" + "0" * 64,
    "application/vnd.oci.image.manifest.v1+json",
)


def documents(keys: Sequence[str]) -> st.SearchStrategy[Any]:
    """JSON values whose keys are mostly those that a reader knows."""
    texts = st.sampled_from(TEXTS) | st.text(max_size=20)
    plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys) | texts, inner, max_size=6),
        max_leaves=25,
    )


def execute(names: Sequence[str], document: Any) -> None:
    data = json.dumps(document).encode(errors="surrogatepass")
    limits = Limits()
    for name in names:
        limits.execute(TARGETS[name], data)


@settings(max_examples=EXAMPLES)
@given(documents(CONFIG_KEYS))
def test_no_drawn_config_crashes(document: Any) -> None:
    execute(("config", "policy", "privileges", "query"), document)


@settings(max_examples=EXAMPLES)
@given(documents(MANIFEST_KEYS))
def test_no_drawn_manifest_crashes(document: Any) -> None:
    execute(("manifest", "activation", "credentials"), document)


@settings(max_examples=EXAMPLES)
@given(st.dictionaries(st.sampled_from(tuple(RECORD)), documents(CONFIG_KEYS)))
def test_no_drawn_record_crashes(changes: dict[str, Any]) -> None:
    execute(("record", "choice"), {**RECORD, **changes})

"""An image of busybox in a registry of the tests."""

import gzip
import json
from pathlib import Path

from support.packages import INDEX, OCI, Blob, Made, digest_of, index_of, layer, push, push_manifest

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"


def busybox_image(architecture: str = "amd64") -> Made:
    """busybox as /bin/sh, in two layers, and a config with an entrypoint, a variable and a directory."""
    program = Path("/bin/busybox").read_bytes()
    applets = ("sh", "cat", "echo", "sleep", "stty", "id", "env", "pwd", "true")
    base = layer({"bin/": b"", "tmp/": b"", **dict.fromkeys((f"bin/{name}" for name in applets[:1]), program)})
    wrapped = {f"bin/{name}": f'#!/bin/sh\nexec busybox {name} "$@"\n'.encode() for name in applets[1:]}
    more = layer({"bin/busybox": program, "work/": b"", "work/who": b"an image\n", **wrapped})
    layers = (base, more)
    config = {
        "os": "linux",
        "architecture": architecture,
        "config": {"Cmd": ["cat", "who"], "Env": ["LEVEL=3"], "WorkingDir": "/work"},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(gzip.decompress(each.data)) for each in layers]},
    }
    return Made(Blob(json.dumps(config).encode(), OCI_CONFIG), layers, OCI)


def push_image(host: str, path: str, tag: str = "3") -> Made:
    """An index of the image for several platforms, in a registry. The one of this machine is returned."""
    made, other = busybox_image(), busybox_image("s390x")
    for each in (made, other):
        push(host, path, each.digest, each)
    entries = [
        (other, {"platform": {"os": "linux", "architecture": "s390x"}}),
        (made, {"platform": {"os": "linux", "architecture": "amd64"}}),
    ]
    push_manifest(host, path, tag, index_of(entries, INDEX), INDEX)
    return made

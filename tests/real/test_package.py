"""Packages from tar streams into a real containerd: out comes what went in, and what is no package is refused."""

import gzip
import io
import json
import os
import stat
import tarfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from moorage import errors
from moorage.containerd import connect
from moorage.containerd.storage import Storage
from moorage.containerd.types import Image
from moorage.host.mounts import mount_all, unmount_all_below
from moorage.oci.media_types import DOCKER_LAYER_GZIP, PLUGIN_CONFIG
from moorage.packages.content import ImportContext, Package
from moorage.packages.create import create_package
from support.conditions import eventually
from support.limits import limit
from support.workspace import Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio]

SNAPSHOTTER = "overlayfs"
CONFIG = json.dumps({"entrypoint": ["/p"], "interface": {"socket": "s"}, "typo": 1}).encode()
Entry = tuple[str, bytes, dict[str, object]]


def tar(entries: Iterable[Entry], *, config: bytes | None = CONFIG, root: bool = True) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        head: list[Entry] = [("config.json", config, {})] if config is not None else []
        top: list[Entry] = [("rootfs", b"", {"type": tarfile.DIRTYPE, "mode": 0o755})] if root else []
        for name, data, fields in [*head, *top, *entries]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in fields.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


@asynccontextmanager
async def storage_of(workspace: Workspace) -> AsyncIterator[Storage]:
    """The storage of the test's namespace, under the lease "test"; empty when that and all images are gone."""
    async with connect(workspace.session.containerd.address, workspace.namespace) as client:
        await client.storage.create_lease("test")
        try:
            yield client.storage.under("test")
        finally:
            for image in await client.storage.list_images():
                await client.storage.delete_image(image.name)
            await client.storage.delete_lease("test")
            await client.storage.collect()
            assert await client.storage.list_content() == []
            assert await client.storage.list_snapshots(SNAPSHOTTER) == []
            await no_upload_is_left(client.storage)


async def no_upload_is_left(storage: Storage) -> None:
    """containerd closes the write of an upload after it has answered that it is aborted."""

    async def is_none_left() -> bool:
        return await storage.list_ingests() == []

    await eventually(is_none_left)


async def create(storage: Storage, data: bytes, key: str = "scratch") -> Package:
    return await create_package(ImportContext(storage, "test", SNAPSHOTTER, key), pieces(data))


@asynccontextmanager
async def mounted(storage: Storage, package: Package, target: Path) -> AsyncIterator[Path]:
    mounts = await storage.prepare_snapshot(SNAPSHOTTER, "seen", package.chain)
    os.mkdir(target)
    mount_all(mounts, target)
    try:
        yield target
    finally:
        unmount_all_below(target)
        await storage.remove_snapshot(SNAPSHOTTER, "seen")


async def test_d02_every_kind_of_file_comes_out_as_it_went_in(workspace: Workspace, tmp_path: Path) -> None:
    long = "d" * 90 + "/" + "f" * 150
    owned: dict[str, object] = {"mode": 0o4755, "uid": 7, "gid": 8, "mtime": 1_000_000_000}
    data = tar(
        [
            ("./rootfs/p", b"program", owned),
            ("rootfs/hard", b"", {"type": tarfile.LNKTYPE, "linkname": "rootfs/p", **owned}),
            ("rootfs/soft", b"", {"type": tarfile.SYMTYPE, "linkname": "/outside/it/all"}),
            ("rootfs/null", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, "mode": 0o666}),
            ("rootfs/fifo", b"", {"type": tarfile.FIFOTYPE}),
            (f"rootfs/{long}", b"long", {}),
            ("rootfs/attr", b"x", {"pax_headers": {"SCHILY.xattr.user.note": "v\u00e4lue"}}),
            ("README", b"ignored, as Docker does", {}),
        ]
    )
    async with storage_of(workspace) as storage:
        package = await create(storage, data)
        async with mounted(storage, package, tmp_path / "m") as root:
            program = os.stat(root / "p")
            assert (program.st_mode & 0o7777, program.st_uid, program.st_gid) == (0o4755, 7, 8)
            assert program.st_mtime == 1_000_000_000
            assert os.stat(root / "hard").st_ino == program.st_ino
            assert os.readlink(root / "soft") == "/outside/it/all"
            device = os.stat(root / "null")
            assert (stat.S_ISCHR(device.st_mode), device.st_rdev) == (True, os.makedev(1, 3))
            assert stat.S_ISFIFO(os.stat(root / "fifo").st_mode)
            assert Path(root, long).read_bytes() == b"long"  # noqa: ASYNC240 - a few bytes of a test
            assert os.getxattr(root / "attr", "user.note") == "v\u00e4lue".encode()
            assert sorted(os.listdir(root)) == ["attr", "d" * 90, "fifo", "hard", "null", "p", "soft"]
        assert "typo" in " ".join(package.warnings)


async def test_d01_the_documents_are_those_of_a_plugin_and_reference_each_other(workspace: Workspace) -> None:
    async with storage_of(workspace) as storage:
        package = await create(storage, tar([("rootfs/p", b"x", {})]))
        async with storage.read_content(package.manifest.digest) as chunks:
            manifest = json.loads(b"".join([chunk async for chunk in chunks]))
        assert manifest["config"]["mediaType"] == PLUGIN_CONFIG
        assert [layer["mediaType"] for layer in manifest["layers"]] == [DOCKER_LAYER_GZIP]
        assert package.config.rootfs is not None
        assert package.config.rootfs.diff_ids == (package.chain,)
        await storage.create_image(
            Image("it", package.manifest, {f"containerd.io/gc.ref.snapshot.{SNAPSHOTTER}": package.chain})
        )
        await storage.delete_lease("test", collect=True)
        await storage.create_lease("test")
        assert len(await storage.list_content()) == 3
        assert [each.name for each in await storage.list_snapshots(SNAPSHOTTER)] == [package.chain]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
async def test_case_068_two_packages_of_the_same_files_share_them(workspace: Workspace, pack: type[bytes]) -> None:
    data = pack(tar([("rootfs/p", b"x" * 100_000, {})]))
    async with storage_of(workspace) as storage:
        first, second = await create(storage, data), await create(storage, data)
        assert first == second
        assert len(await storage.list_content()) == 3


async def test_case_068_what_two_packages_share_is_referenced_by_each_of_their_leases(workspace: Workspace) -> None:
    data = tar([("rootfs/p", b"x" * 100_000, {})])
    async with storage_of(workspace) as storage:
        await create(storage, data)
        await storage.create_lease("other")
        package = await create_package(ImportContext(storage.under("other"), "other", SNAPSHOTTER, "s2"), pieces(data))
        await storage.delete_lease("test", collect=True)
        await storage.create_lease("test")
        assert len(await storage.list_content()) == 3
        assert [each.name for each in await storage.list_snapshots(SNAPSHOTTER)] == [package.chain]
        await storage.delete_lease("other")


async def test_d02_a_package_that_is_refused_does_not_wait_for_its_sender(workspace: Workspace) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"not a tar" * 10_000
        await anyio.sleep_forever()

    async with storage_of(workspace) as storage:
        with anyio.fail_after(limit(10)), pytest.raises(errors.Invalid, match="no whole tar stream"):
            await create_package(ImportContext(storage, "test", SNAPSHOTTER, "scratch"), slow())


async def test_d02_an_empty_root_is_a_root(workspace: Workspace) -> None:
    async with storage_of(workspace) as storage:
        await create(storage, tar([]))


def wrong() -> Iterator[tuple[bytes, str]]:
    yield tar([], config=None), "config not found"
    yield tar([], root=False), "no rootfs found"
    yield tar([("config.json", b"{}", {})]), "two files config.json"
    yield tar([], config=b"x" * (1024 * 1024 + 1)), "more than 1048576 bytes"
    yield tar([], config=b"{"), "config.json"
    yield tar([("/rootfs/../../p", b"", {})]), r"'/rootfs/\.\./\.\./p' leads out of it"
    yield tar([("rootfs/../p", b"", {})]), r"'rootfs/\.\./p' leads out of it"
    yield tar([("rootfs/h", b"", {"type": tarfile.LNKTYPE, "linkname": "../x"})]), "'rootfs/h' leads out of it"
    yield tar([("rootfs/h", b"", {"type": tarfile.LNKTYPE, "linkname": "config.json"})]), "a link to a file outside"
    yield tar([("rootfs/x", b"", {"type": b"Z"})]), "is of a kind"
    yield tar([("rootfs", b"a file", {})], root=False), "its rootfs is not a directory"
    yield tar([("rootfs/p", b"x" * 100_000, {})])[:50_000], "no whole tar stream"
    damaged = bytearray(tar([("rootfs/p", b"x" * 512, {}), ("rootfs/q", b"", {})]))
    damaged[512 * 6 : 512 * 6 + 8] = b"\xff" * 8
    yield bytes(damaged), "no whole tar stream"
    yield b"not a tar" * 1000, "no whole tar stream"
    yield gzip.compress(tar([("rootfs/p", os.urandom(100_000), {})]))[:50_000], "no whole tar stream"
    yield b"", "no whole tar stream"


@pytest.mark.parametrize(("data", "text"), list(wrong()), ids=lambda value: value if isinstance(value, str) else "")
async def test_d02_what_is_no_package_is_refused_by_name_and_leaves_nothing(
    workspace: Workspace, data: bytes, text: str
) -> None:
    async with storage_of(workspace) as storage:
        with pytest.raises(errors.Invalid, match=text):
            await create(storage, data)
        await no_upload_is_left(storage)


async def test_d01_a_body_that_breaks_off_leaves_nothing(workspace: Workspace) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield tar([("rootfs/p", os.urandom(3_000_000), {})])[:2_000_000]
        raise errors.Unavailable("the client broke off")

    async with storage_of(workspace) as storage:
        with pytest.raises(errors.Unavailable, match="the client broke off"):
            await create_package(ImportContext(storage, "test", SNAPSHOTTER, "scratch"), broken())
        await no_upload_is_left(storage)

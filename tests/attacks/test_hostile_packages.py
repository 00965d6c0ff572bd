"""Tars made by an attacker: refused with a clear text, or taken for what they are, and never a traceback."""

import gzip
import io
import json
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from support.contents import contents_of, wait_for
from support.engines import EngineProcess, Refused, actor, config, engine, root_of
from support.layouts import Layout, files_of, layer_tar
from support.limits import limit
from support.packages import Blob, digest_of, layer, make, push
from support.registries import Served

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "docker-registry")]

TAR = {"Content-Type": "application/x-tar"}
BLOCK = 512


@pytest.fixture(scope="module")
def shared_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        made.create("trial")  # so that what is made once exists
        made.remove("trial")
        yield made


@pytest.fixture
def house(shared_house: EngineProcess) -> Iterator[EngineProcess]:
    """An engine without plugins before and after, which has logged no traceback."""
    before = contents_of(shared_house)
    yield shared_house
    for plugin in shared_house.plugins():
        shared_house.remove(plugin["Id"], force=True)
    wait_for(shared_house, before)
    assert "Traceback" not in shared_house.log.read_text()


# ------------------------------------------------------------------------------------------------ headers, row S13


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def entry(name: str, data: bytes = b"", form: Literal[0, 1, 2] = tarfile.PAX_FORMAT, **fields: Any) -> bytes:
    made = tarfile.TarInfo(name)
    made.size = len(data)
    for key, value in fields.items():
        setattr(made, key, value)
    return made.tobuf(form, "utf-8", "surrogateescape") + padded(data)


def pax(**records: str | bytes) -> bytes:
    """A header before an entry, with these records."""
    text = b""
    for key, value in records.items():
        raw = value if isinstance(value, bytes) else value.encode()
        line = b" " + key.replace("__", ".").encode() + b"=" + raw + b"\n"
        length = len(line) + len(str(len(line)))
        length = len(line) + len(str(length))
        text += str(length).encode() + line
    return raw_pax(text)


def raw_pax(text: bytes) -> bytes:
    return entry("x", text, type=tarfile.XHDTYPE)


def patched(block: bytes, at: int, data: bytes, *, checksum: bool = True) -> bytes:
    """A header with other bytes at an offset, and its checksum corrected."""
    header = bytearray(block[:BLOCK])
    header[at : at + len(data)] = data
    if checksum:
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + block[BLOCK:]


FILE = entry("rootfs/victim", b"v" * 10)
HEADERS: dict[str, bytes] = {
    "3000 pax headers": pax(comment="x") * 3000 + FILE,
    "3000 global headers": entry("x", b"11 a=12345\n", type=tarfile.XGLTYPE) * 3000 + FILE,
    "3000 long names": entry("././@LongLink", b"rootfs/n\0", type=tarfile.GNUTYPE_LONGNAME) * 3000 + FILE,
    "mtime beyond numbers": pax(mtime="1e400") + FILE,
    "mtime below numbers": pax(mtime="-1e400") + FILE,
    "mtime that is none": pax(mtime="nan") + FILE,
    "a control byte in a number": patched(FILE, 100, b"00\x010644\0"),
    "a control byte in a size": patched(FILE, 124, b"0000\x010000012"),
    "a negative size": pax(size="-1") + FILE,
    "a negative size in base 256": patched(FILE, 124, b"\xff" * 12),
    "a huge size": pax(size=str(10**30)) + FILE,
    "a huge size in base 256": patched(FILE, 124, b"\x80" + b"\x7f" * 11),
    "a size in letters": pax(size="many") + FILE,
    "a size of 5000 digits": pax(size="9" * 5000) + FILE,
    "a uid of minus one": pax(uid="-1") + FILE,
    "a uid that means no change": pax(uid=str(2**32 - 1)) + FILE,
    "a huge gid": pax(gid=str(10**40)) + FILE,
    "a bad checksum": patched(FILE, 0, b"rootfs/w", checksum=False),
    "a pax length below zero": raw_pax(b"-9 a=b\n") + FILE,
    "a pax record without an end": raw_pax(b"999 a=b") + FILE,
    "a pax length of nothing": raw_pax(b"0 a=b\n") + FILE,
    "a pax length of 5000 digits": raw_pax(b"9" * 5000 + b" a=b\n") + FILE,
    "a NUL in a pax name": pax(path=b"rootfs/a\0b") + FILE,
    "a sparse file of an exabyte": pax(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize=str(2**60))
    + entry("rootfs/s", padded(b"1\n0\n0\n")),
    "a sparse map in letters": pax(GNU__sparse__map="a,b", GNU__sparse__size="9") + FILE,
    "a device of no kernel": patched(entry("rootfs/d", type=tarfile.CHRTYPE), 329, b"\x80" + b"\xff" * 7),
    "a header of a gigabyte": patched(pax(comment="x"), 124, b"10000000000\0") + FILE,
    "a kind of no file system": entry("rootfs/z", type=b"Z"),
}


IGNORED = {
    "mtime in letters": pax(mtime="soon") + FILE,
}
"""Records that are left out of account, as GNU tar does."""


def trailer(*parts: bytes) -> bytes:
    return b"".join(parts) + bytes(2 * BLOCK)


def package_with(middle: bytes) -> bytes:
    raw = json.dumps(config()).encode()
    begin = entry("config.json", raw) + entry("rootfs/actor", actor(), mode=0o755)
    return trailer(begin, middle)


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_s13_a_hostile_header_in_a_package_is_400_with_a_text(
    house: EngineProcess, kind: str, pack: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(Refused) as refused:
        house.request_json("POST", "/plugins/create?name=hostile", pack(package_with(HEADERS[kind])), headers=TAR)
    assert refused.value.status == 400, refused.value
    assert refused.value.message.startswith(("cannot read the package: ", "cannot unpack layer "))
    assert refused.value.message.isprintable()


@pytest.mark.parametrize("kind", IGNORED)
def test_s13_a_damaged_record_that_is_left_out_harms_nothing(house: EngineProcess, kind: str) -> None:
    house.request_json("POST", "/plugins/create?name=lenient", package_with(IGNORED[kind]), headers=TAR)
    house.enable("lenient")
    assert (root_of(house, "lenient") / "victim").read_bytes() == b"v" * 10


@pytest.mark.parametrize("kind", [*HEADERS, *IGNORED])
@pytest.mark.parametrize("path", ["/moorage/v1/load", "/moorage/v1/create?name=hostile"])
def test_s13_a_hostile_header_in_an_archive_is_400_or_passed_over(house: EngineProcess, kind: str, path: str) -> None:
    layout = Layout()
    layout.list(layout.plugin(config(), [layer_tar({"actor": (actor(), 0o755)})]), "docker.io/s13/p:1")
    whole = layout.tar(config_json=json.dumps(config()).encode())
    status, raw = house.request("POST", path, (HEADERS | IGNORED)[kind] + whole, headers=TAR)
    assert status in (200, 400), raw
    assert b"internal error" not in raw


def test_s13_names_that_are_no_utf8_are_names(house: EngineProcess) -> None:
    name = b"\xff\xfe\x80".decode("utf-8", "surrogateescape")
    made = entry(f"rootfs/{name}", b"1", tarfile.GNU_FORMAT) + entry(f"rootfs/{name}2", b"2")
    house.request_json("POST", "/plugins/create?name=odd", package_with(made), headers=TAR)
    house.enable("odd")
    names = os.listdir(os.fsencode(root_of(house, "odd")))
    assert {b"\xff\xfe\x80", b"\xff\xfe\x802"} <= set(names)
    with pytest.raises(Refused) as refused:
        house.request_json("POST", "/moorage/v1/load", entry(f"{name}/x", b"1", tarfile.GNU_FORMAT), headers=TAR)
    assert refused.value.status == 400
    assert refused.value.message.isprintable()


# -------------------------------------------------------------------------------------------- absolute names, case 237


@pytest.mark.parametrize("prefix", ["/", "./", "//", "/./"])
def test_case_237_absolute_names_are_relative_to_the_package(house: EngineProcess, prefix: str) -> None:
    raw = json.dumps(config()).encode()
    body = trailer(
        entry(f"{prefix}config.json", raw),
        entry(f"{prefix}rootfs/", type=tarfile.DIRTYPE, mode=0o755),
        entry(f"{prefix}rootfs/actor", actor(), mode=0o755),
        entry(f"{prefix}rootfs/hard", type=tarfile.LNKTYPE, linkname=f"{prefix}rootfs/actor", mode=0o755),
        entry(f"{prefix}rootfs/soft", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    )
    house.request_json("POST", "/plugins/create?name=absolute", body, headers=TAR)
    house.enable("absolute")
    root = root_of(house, "absolute")
    assert (root / "hard").stat().st_ino == (root / "actor").stat().st_ino
    assert os.readlink(root / "soft") == "/etc/passwd", "a symbolic link is what it is"


@pytest.mark.parametrize("name", ["/../x", "/rootfs/../../x", "rootfs/..", "../rootfs/x", "/rootfs/a/../../../x"])
def test_case_237_dots_are_refused_by_name(house: EngineProcess, name: str) -> None:
    for made in (entry(name, b"1"), entry("rootfs/l", type=tarfile.LNKTYPE, linkname=name)):
        with pytest.raises(Refused, match=r"^400: cannot read the package: entry .* leads out of it by \.\."):
            house.request_json("POST", "/plugins/create?name=dots", package_with(made), headers=TAR)


def test_case_237_an_archive_with_absolute_names_loads(house: EngineProcess) -> None:
    house.create("whole")
    files = files_of(house.request("GET", "/moorage/v1/save?name=whole")[1])
    house.remove("whole")
    body = trailer(*(entry(f"/{name}", data) for name, data in files.items()))
    house.request_json("POST", "/moorage/v1/load?name=again", body, headers=TAR)
    house.enable("again")


# ------------------------------------------------------------------- layers of a registry: attacks that are withstood


def raw_layer(*parts: bytes) -> Blob:
    return Blob(gzip.compress(trailer(*parts), 1, mtime=0), "application/vnd.docker.image.rootfs.diff.tar.gzip")


ESCAPES: dict[str, bytes] = {
    "dots": entry("../../../../../../../../TARGET", b"gotcha"),
    "absolute": entry("/TARGET", b"gotcha"),
    "symlink and through it": entry("up", type=tarfile.SYMTYPE, linkname="/") + entry("upTARGET", b"gotcha"),
    "relative symlink": entry("up", type=tarfile.SYMTYPE, linkname="../" * 20) + entry("upTARGET", b"gotcha"),
    "hard link out": entry("hard", type=tarfile.LNKTYPE, linkname="../../../../../../../../etc/shadow"),
    "hard link to an absolute path": entry("hard", type=tarfile.LNKTYPE, linkname="/etc/shadow"),
    "hard link through a symlink": entry("e", type=tarfile.SYMTYPE, linkname="/etc")
    + entry("hard", type=tarfile.LNKTYPE, linkname="e/shadow"),
    "whiteout of dots": entry(".wh...", b""),
    "whiteout of a dot": entry(".wh..", b""),
    "whiteout outside": entry("../../../../../../../.wh.TARGET", b""),
    "opaque outside": entry("../../../../../../../TARGET/.wh..wh..opq", b""),
    "whiteout through a symlink": entry("up", type=tarfile.SYMTYPE, linkname="/") + entry("up/.wh.TARGET", b""),
}


@pytest.mark.parametrize("kind", ESCAPES)
def test_withstood_a_layer_touches_nothing_outside_its_root(
    house: EngineProcess, registry: Served, tmp_path: Path, kind: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").write_text("mine")
    target = str(victim / "new") if "gotcha" in ESCAPES[kind].decode("latin-1") else str(victim)
    raw = b"".join(
        entry(each.name.replace("TARGET", target), data, type=each.type, linkname=each.linkname)
        for each, data in entries_of(ESCAPES[kind])
    )
    shadow = os.stat("/etc/shadow")
    tag = digest_of(raw)[7:20]
    push(registry.host, "withstood/escape", tag, make(config(), raw_layer(raw), base=layer({"actor": actor()})))
    try:
        house.install(f"{registry.host}/withstood/escape:{tag}")
        house.enable(f"{registry.host}/withstood/escape:{tag}")
    except Refused as refused:
        if "cannot unpack layer" not in refused.message:
            raise
    assert os.listdir(victim) == ["kept"]
    assert (victim / "kept").read_text() == "mine"
    after = os.stat("/etc/shadow")
    assert (shadow.st_nlink, shadow.st_mtime_ns) == (after.st_nlink, after.st_mtime_ns)


def entries_of(raw: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(trailer(raw))) as archive:
        for each in archive:
            file = archive.extractfile(each) if each.isreg() else None
            yield each, file.read() if file is not None else b""


def test_withstood_devices_of_a_package_open_nothing_on_the_host(house: EngineProcess) -> None:
    made = entry("rootfs/disk", type=tarfile.BLKTYPE, devmajor=7, devminor=0, mode=0o666)
    made += entry("rootfs/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    house.request_json("POST", "/plugins/create?name=devices", package_with(made), headers=TAR)
    house.enable("devices")
    root = root_of(house, "devices")
    assert stat.S_ISCHR(os.lstat(root / "null").st_mode)
    with pytest.raises(PermissionError):
        os.open(root / "null", os.O_WRONLY)  # nodev in the host's view


def test_withstood_a_gzip_bomb_takes_no_memory_of_the_engine(house: EngineProcess) -> None:
    assert house.child is not None

    def peak() -> int:
        status = Path(f"/proc/{house.child.pid}/status").read_text()  # type: ignore[union-attr]
        return int(status.partition("VmHWM:")[2].split()[0])

    before = peak()
    big = 300 << 20
    raw = json.dumps(config()).encode()
    head = tarfile.TarInfo("rootfs/bomb")
    head.size = big
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=9) as packed:
        packed.write(entry("config.json", raw) + entry("rootfs/actor", actor(), mode=0o755))
        packed.write(head.tobuf())
        for _ in range(big >> 20):
            packed.write(bytes(1 << 20))
        packed.write(bytes(2 * BLOCK))
    assert len(stream.getvalue()) < 2 << 20
    house.request_json("POST", "/plugins/create?name=bomb", stream.getvalue(), headers=TAR, timeout=limit(200))
    assert peak() - before < 64 << 10, "KiB"


def test_withstood_a_sparse_file_becomes_what_it_says(house: EngineProcess, tmp_path: Path) -> None:
    made = pax(
        GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__name="rootfs/s", GNU__sparse__realsize="70000"
    )
    made += entry("rootfs/GNUSparseFile.0/s", padded(b"1\n69990\n10\n") + b"0123456789")
    house.request_json("POST", "/plugins/create?name=sparse", package_with(made), headers=TAR)
    house.enable("sparse")
    assert (root_of(house, "sparse") / "s").read_bytes() == bytes(69990) + b"0123456789"


def test_withstood_a_foreign_layer_is_refused_before_anything_is_fetched(house: EngineProcess) -> None:
    layout = Layout()
    foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    blob = layout.add_json(config(), "application/vnd.docker.plugin.v1+json")
    here = layout.add(b"x", foreign, urls=["http://169.254.169.254/latest"])
    layout.list(layout.manifest(blob, [here]), "docker.io/withstood/foreign:1")
    with pytest.raises(Refused, match=r"400: .*a layer of type .*foreign.* cannot be unpacked"):
        house.request_json("POST", "/moorage/v1/load", layout.tar(), headers=TAR)


def test_withstood_squatted_temporary_directories_are_not_used(house: EngineProcess) -> None:
    temporary = house.root / "tmp"
    assert stat.S_IMODE(os.stat(temporary).st_mode) == 0o700, "of nobody else"
    assert os.stat(temporary).st_uid == 0
    assert stat.S_IMODE(os.stat(house.root / "plugins").st_mode) == 0o700

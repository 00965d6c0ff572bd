"""Changes to inputs: bytes without a format, JSON documents, tar archives, lines of text."""

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any

MOST_BYTES = 256 * 1024
"""No input gets longer; size limits of the readers have tests of their own."""

_NUMBERS = (0, 1, 7, 63, 64, 127, 128, 255, 256, 511, 512, 4096, 32767, 65535, 65536, 2**31 - 1, 2**32, 2**63, 2**64)
_ODD_BYTES = (
    b"\0",
    b"\n",
    b"\r\n",
    b"\xff",
    b"\x1b[2K",
    b" ",
    b"%00",
    b"%2F",
    b"..",
    b"/",
    b"\xed\xa0\x80",
    b"\\ud800",
)


def mutate_bytes(data: bytes, random: Random, words: Sequence[bytes] = ()) -> bytes:
    """One change to bytes of any format."""
    made = bytearray(data)
    at = random.randrange(len(made) + 1)
    to = min(len(made), at + random.choice((1, 1, 2, 4, 16, 64, 512)))
    match random.randrange(9 if words else 8):
        case 0 if made:
            index = random.randrange(len(made))
            made[index] ^= 1 << random.randrange(8)
        case 1 if made:
            made[random.randrange(len(made))] = random.randrange(256)
        case 2:
            del made[at:to]
        case 3:
            made[at:at] = made[at:to] * random.choice((1, 2, 16, 300))
        case 4:
            made[at:at] = random.choice(_ODD_BYTES) * random.choice((1, 1, 1, 2, 1000))
        case 5:
            made[at:to] = str(random.choice((-1, 1)) * random.choice(_NUMBERS)).encode()
        case 6:
            number = random.choice(_NUMBERS)
            size = random.choice((1, 2, 4, 8))
            made[at : at + size] = (number & (256**size - 1)).to_bytes(size, random.choice(("little", "big")))
        case 8:
            made[at : random.choice((at, to))] = random.choice(words)
        case _:
            del made[random.randrange(len(made) + 1) :]
    return bytes(made[:MOST_BYTES])


# --------------------------------------------------------------------------------------------------------- JSON

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**30, 1.5, 1e300, "", "a", "0", "-1", "true", "*",
    "/", "..", "/../..", "\0", "\n", "\x1b[2J", "a" * 5000, "ä€😀", "sha256:" + "0" * 64, "=", "A=b", [], {}, [[]], [None],
    {"": None}, {"a": {"a": []}}, "localhost:5000/a/b:c", "CAP_SYS_ADMIN", "rbind", "\u202e", "\ud800",
)  # fmt: skip
_RAW = (
    b"1e999",
    b"-1e999",
    b"9" * 5000,
    b"1." + b"0" * 5000 + b"1",
    b"NaN",
    b"Infinity",
    b'"\\ud800"',
    b"-0",
    b"1e-999",
)


def mutate_json(data: bytes, random: Random, keys: Sequence[str] = ()) -> bytes:
    """One change to a JSON document: to its values and keys, or, now and then, to its text."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, random)
    if random.random() < 0.15:
        return mutate_bytes(data, random, _RAW)
    try:
        made = _change(document, random, keys)
        return json.dumps(made, ensure_ascii=True, indent=random.choice((None, None, 1))).encode()[:MOST_BYTES]
    except RecursionError:
        return data


def _change(node: Any, random: Random, keys: Sequence[str]) -> Any:
    if isinstance(node, dict) and node and random.random() < 0.85:
        made = dict(node)
        key = random.choice(list(made))
        match random.randrange(8):
            case 0:
                del made[key]
            case 1:
                made[random.choice(keys) if keys and random.random() < 0.8 else key.swapcase() + "_"] = made[key]
            case 2:
                made[random.choice((*keys, key, "\0", "\u017focket"))] = random.choice(_VALUES)
            case _:
                made[key] = _change(made[key], random, keys)
        return made
    if isinstance(node, list) and node and random.random() < 0.85:
        items = list(node)
        at = random.randrange(len(items))
        match random.randrange(6):
            case 0:
                del items[at]
            case 1:
                items = (items[: at + 1] + items)[:200]
            case 2:
                items[at] = random.choice(_VALUES)
            case _:
                items[at] = _change(items[at], random, keys)
        return items
    if isinstance(node, str) and node and random.random() < 0.5:
        at = random.randrange(len(node))
        return (
            node[:at]
            + str(random.choice(("", "/", "..", "\0", ":", "=", " ", "'", "\x1b", "é", "9" * 40)))
            + node[at + 1 :]
        )
    if random.random() < 0.05:
        for _ in range(random.choice((3, 62, 70, 500))):
            node = random.choice(([node], {"a": node}))
        return node
    return random.choice(_VALUES)


# ---------------------------------------------------------------------------------------------------------- tar

_FIELDS = (
    (0, 100),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (156, 1),
    (157, 100),
    (257, 8),
    (329, 8),
    (337, 8),
    (345, 155),
)
_KINDS = b"\001234567gxLKXNSVMDA\xff"
_OCTALS = (
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"-1",
    b"7" * 12,
    b" ",
    b"",
    b"9",
    b"\x80" + b"\0" * 7 + b"\x7f\xff\xff\xff",
    b"00000001000",
)
_NAMES = (
    b"config.json", b"rootfs", b"rootfs/a", b"../a", b"/etc/passwd", b"rootfs/../../a", b"./rootfs/./b", b"", b"\xff\xfe",
    b"rootfs/.wh.a", b"rootfs/.wh..wh..opq", b"blobs/sha256/" + b"0" * 64, b"index.json", b"a" * 100, b"rootfs/\n\x1b[2J",
)  # fmt: skip
_PAX = (
    b"mtime=1e400", b"mtime=nan", b"size=-1", b"size=99999999999999999999", b"size=1", b"path=../../a", b"path=rootfs/x",
    b"linkpath=/", b"uid=x", b"uid=-1", b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.map=0,1,2", b"GNU.sparse.size=9",
    b"GNU.sparse.name=rootfs/s", b"GNU.sparse.realsize=99999999999", b"GNU.sparse.numblocks=4", b"SCHILY.xattr.user.a=\0\xff",
    b"hdrcharset=BINARY", b"=", b"path=", b"atime=1", b"mtime=1." + b"9" * 400, b"mtime=-1e300", b"size=1.5",
)  # fmt: skip


def mutate_tar(data: bytes, random: Random) -> bytes:
    """One change to an archive: to a field of a header (its checksum made right), to its order, or to its bytes."""
    packed = data[:2] == b"\x1f\x8b"
    if packed:
        try:
            data = gzip.decompress(data)[:MOST_BYTES]
        except (OSError, EOFError, ValueError, zlib.error):
            return mutate_bytes(data, random)
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)] or [b""]
    at = random.randrange(len(blocks))
    heads = [index for index, block in enumerate(blocks) if block[257:262] == b"ustar"]
    if heads and random.random() < 0.9:
        at = random.choice(heads)
    match random.randrange(10):
        case 0:
            return mutate_bytes(data, random)
        case 1:
            del blocks[at]
        case 2:
            blocks.insert(random.randrange(len(blocks) + 1), blocks[at])
        case 3:
            blocks[at:at] = _pax_header(random)
        case 4:
            blocks[at:at] = _pax_header(random) * random.choice((1, 2, 60))
        case _:
            blocks[at] = _changed_header(blocks[at], random)
    made = b"".join(blocks)[:MOST_BYTES]
    return gzip.compress(made, 1) if packed or random.random() < 0.05 else made


def _changed_header(block: bytes, random: Random) -> bytes:
    made = bytearray(block.ljust(512, b"\0"))
    for _ in range(random.choice((1, 1, 2))):
        start, size = random.choice(_FIELDS)
        if size == 1:
            value = bytes((random.choice(_KINDS),))
        elif size in (8, 12):
            value = random.choice((*_OCTALS, b"%o" % random.choice(_NUMBERS)))
        else:
            value = random.choice(_NAMES)
        made[start : start + size] = value[:size].ljust(size, b"\0")
    return with_checksum(bytes(made[:512]))


def with_checksum(header: bytes) -> bytes:
    """A header of a tar whose checksum is right."""
    made = bytearray(header)
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


def _pax_header(random: Random) -> list[bytes]:
    records = b""
    for _ in range(random.choice((1, 1, 2, 5))):
        body = random.choice(_PAX)
        if random.random() < 0.2:
            body = mutate_bytes(body, random)
        length = len(body) + 3
        length = len(body) + 2 + len(str(length))
        wrong = random.choice((b"", b"", b"", b"", b"", b"9" * 5000, b"-", b"0", b"1"))
        records += (wrong or b"%d" % length) + b" " + body + b"\n"
    entry = tarfile.TarInfo("pax")
    entry.size, entry.type = len(records), random.choice((b"x", b"x", b"x", b"g", b"L", b"K"))
    head = entry.tobuf(tarfile.USTAR_FORMAT)
    padded = records + bytes(-len(records) % 512)
    return [head, *(padded[at : at + 512] for at in range(0, len(padded), 512))]


def make_tar(files: dict[str, bytes | None], form: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive with these files; None is a directory."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data or b""), 0o755
            entry.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            archive.addfile(entry, io.BytesIO(data or b""))
    return stream.getvalue()


# -------------------------------------------------------------------------------------------------------- lines


def mutate_lines(data: bytes, random: Random) -> bytes:
    """One change to a text of lines: to their order and number, or to the bytes of one."""
    line_end = b"\r\n" if b"\r\n" in data else b"\n"
    lines = data.split(line_end)
    at = random.randrange(len(lines))
    match random.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(random.randrange(len(lines) + 1), lines[at])
        case 2:
            other = random.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines[at] = lines[at] * random.choice((2, 3, 500))
        case _:
            lines[at] = mutate_bytes(lines[at], random)
    return line_end.join(lines)[:MOST_BYTES]

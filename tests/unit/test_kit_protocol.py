"""What the kit reads and writes: JSON of the plugin protocol, HTTP, log entries."""

import base64
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.kit import CreateNetwork, EntryJoiner, FrameDecoder, InvalidCall, LogEntry, encode_frame
from moorage.kit.drivers.authz import AuthorizationRequest
from moorage.kit.drivers.ipam import IpamCapabilities
from moorage.kit.drivers.log import StartLogging
from moorage.kit.drivers.log_entry import decode_entry
from moorage.kit.drivers.network import IpamData, Joined
from moorage.kit.drivers.volume import CreateVolume, MountVolume, VolumeInfo
from moorage.kit.http1 import HEAD_BYTES, HttpError, HttpRequest, RequestParser
from moorage.kit.messages import decode, encode, parse_object, to_json

pytestmark = pytest.mark.quick

# ---- messages


def test_requests_have_gos_names_and_defaults() -> None:
    assert decode(MountVolume, {"Name": "a", "ID": "b", "More": 1}) == MountVolume("a", "b")
    assert decode(CreateVolume, {"Name": "a", "Opts": None}) == CreateVolume("a", {})
    pool = {"AddressSpace": "s", "Pool": "10.0.0.0/8", "Gateway": "10.0.0.1/8", "AuxAddresses": None}
    made = decode(CreateNetwork, {"NetworkID": "n", "IPv4Data": [pool], "IPv6Data": None})
    assert made == CreateNetwork("n", ipv4_data=(IpamData("s", "10.0.0.0/8", "10.0.0.1/8"),))
    started = decode(StartLogging, {"File": "/f", "Info": {"ContainerID": "c", "ContainerArgs": ["a"]}})
    assert (started.info.container_id, started.info.container_args) == ("c", ("a",))
    request = {"UserAuthNMethod": "TLS", "RequestBody": base64.b64encode(b"\0x").decode()}
    assert decode(AuthorizationRequest, request) == AuthorizationRequest(user_authn_method="TLS", request_body=b"\0x")


def test_answers_have_the_exact_names_of_the_protocol() -> None:
    assert to_json(VolumeInfo("a", "/m")) == {"Name": "a", "Mountpoint": "/m"}
    assert to_json(IpamCapabilities()) == {"RequiresMACAddress": False, "RequiresRequestReplay": False}
    assert set(to_json(Joined())) == {"Gateway", "GatewayIPv6", "StaticRoutes", "DisableGatewayService"}
    assert encode(None) == b"{}\n"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "the field Name is missing"),
        ({"Name": 5}, "the field Name must be a text, not 5"),
        ({"Name": "a", "Opts": []}, "the field Opts must be an object"),
        ({"Name": "a", "Opts": {"size": 1}}, "the field Opts.size must be a text"),
    ],
)
def test_a_request_of_another_shape_is_refused_by_field(document: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidCall, match=said):
        decode(CreateVolume, document)


@dataclass(frozen=True)
class Numbers:
    count: int = 0
    data: bytes = field(default=b"")


@pytest.mark.parametrize("document", [{"Count": True}, {"Count": "1"}, {"Data": "*"}, {"Data": 1}])
def test_numbers_and_bytes_are_checked(document: dict[str, Any]) -> None:
    with pytest.raises(InvalidCall, match="the field"):
        decode(Numbers, document)


@pytest.mark.parametrize("body", [b"[]", b"null", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidCall, match="the body is not"):
        parse_object(body)


@pytest.mark.parametrize("body", [b"", b" \r\n", b"{}"])
def test_a_missing_body_is_an_empty_object(body: bytes) -> None:
    assert parse_object(body) == {}


# ---- HTTP


def requests(data: bytes, size: int) -> list[HttpRequest]:
    """What comes out when the bytes arrive in pieces of this size."""
    parser = RequestParser(1000)
    found = []
    for at in range(0, len(data), size):
        request = parser.feed(data[at : at + size])
        while request is not None:
            found.append(request)
            request = parser.feed(b"")
    assert parser.is_empty
    return found


WIRE = (
    b"POST /A.B?c=d HTTP/1.1\r\nHost: plugin\r\ncontent-length: 2\r\n\r\n{}"
    b"\r\nPOST /C.D HTTP/1.1\r\n\r\n"
    b"POST /E.F HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nTrailer: t\r\n\r\n"
    b"GET /G HTTP/1.0\r\n\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_requests_are_found_in_whatever_pieces_they_arrive(size: int) -> None:
    assert requests(WIRE, size) == [
        HttpRequest("POST", "/A.B", b"{}", False),
        HttpRequest("POST", "/C.D", b"", False),
        HttpRequest("POST", "/E.F", b"abcd", False),
        HttpRequest("GET", "/G", b"", True),
    ]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST / HTTP/2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 413),
        (b"A" * (HEAD_BYTES + 1), 431),
    ],
)
def test_what_is_no_request_has_a_status(data: bytes, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        RequestParser(1000).feed(data)
    assert caught.value.status == status


def test_a_caller_that_waits_for_100_continue_is_noticed() -> None:
    parser = RequestParser(1000)
    assert parser.feed(b"POST /A HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n") is None
    assert parser.needs_continue
    assert parser.feed(b"x") == HttpRequest("POST", "/A", b"x", False)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_an_http_error(data: bytes) -> None:
    try:
        RequestParser(100).feed(data)
    except HttpError:
        pass


# ---- log entries

ENTRIES = st.builds(
    LogEntry,
    st.binary(max_size=100),
    st.sampled_from(["stdout", "stderr"]),
    st.integers(0, (1 << 63) - 1),
    st.booleans(),
    st.text(max_size=5),
    st.integers(0, 1000),
    st.booleans(),
    st.dictionaries(st.text(min_size=1, max_size=3), st.text(min_size=1, max_size=3), max_size=2),
)


@given(st.lists(ENTRIES, max_size=5), st.integers(1, 50))
def test_frames_are_decoded_in_whatever_pieces_they_arrive(entries: list[LogEntry], size: int) -> None:
    data = b"".join(map(encode_frame, entries))
    decoder = FrameDecoder()
    found = [each for at in range(0, len(data), size) for each in decoder.feed(data[at : at + size])]
    assert found == entries
    assert decoder.is_between_frames
    assert decoder.skipped_bytes == 0


def test_a_frame_has_the_bytes_of_mobys_encoder() -> None:
    # protoc's, of the entry.proto of moby: source "stdout", time_nano 1, line "hi", partial, metadata {last, "x", 2}
    message = bytes.fromhex("0a067374646f757410011a0268692001" + "2a07" + "0801120178" + "1802")
    entry = LogEntry(b"hi", "stdout", 1, True, "x", 2, True)
    assert decode_entry(message) == entry
    assert encode_frame(entry) == len(message).to_bytes(4, "big") + message


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 10, 20])
def test_a_reader_that_begins_within_a_frame_finds_the_next(cut: int) -> None:
    entries = [LogEntry(b"line %d" % number, "stdout", 1_700_000_000_000_000_000) for number in range(4)]
    data = b"".join(map(encode_frame, entries))[cut:]
    decoder = FrameDecoder()
    assert list(decoder.feed(data)) == entries[1:]
    assert decoder.skipped_bytes == len(encode_frame(entries[0])) - cut


def part(line: bytes, ordinal: int, *, is_last: bool = False, id: str = "p") -> LogEntry:
    return LogEntry(line, "stdout", ordinal, not is_last, id, ordinal, is_last)


def test_parts_of_lines_are_joined_by_their_id() -> None:
    joiner = EntryJoiner()
    assert joiner.join(part(b"a", 1)) is None
    assert joiner.join(part(b"x", 1, id="q")) is None
    assert joiner.join(LogEntry(b"whole")) == LogEntry(b"whole")
    assert joiner.join(part(b"b", 2, is_last=True)) == LogEntry(b"ab", "stdout", 1)
    assert list(joiner.flush()) == [LogEntry(b"x", "stdout", 1)]
    assert list(joiner.flush()) == []


def test_parts_without_metadata_are_joined_until_one_is_not_partial() -> None:
    joiner = EntryJoiner()
    assert joiner.join(LogEntry(b"a", is_partial=True)) is None
    assert joiner.join(LogEntry(b"b")) == LogEntry(b"ab")


def test_a_line_without_end_is_returned_in_pieces() -> None:
    joiner = EntryJoiner(line_bytes=10)
    found = [joiner.join(part(b"x" * 6, number)) for number in range(4)]
    assert [each.line if each else None for each in found] == [None, b"x" * 12, None, b"x" * 12]


@given(st.binary(max_size=200))
def test_any_bytes_are_skipped_or_entries(data: bytes) -> None:
    decoder = FrameDecoder()
    list(decoder.feed(data))
    json.dumps(decoder.skipped_bytes)

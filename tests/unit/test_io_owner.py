from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import errors
from moorage.containerd.calls.wire import runtime_options
from moorage.containerd.types import RuntimeOptions
from moorage.executor._io_owner import io_owner

pytestmark = pytest.mark.quick


def spec(uid: Any, gid: Any, uids: Any = None, gids: Any = None) -> dict[str, Any]:
    return {"process": {"user": {"uid": uid, "gid": gid}}, "linux": {"uidMappings": uids, "gidMappings": gids}}


def mapping(inside: int, host: int, size: int) -> dict[str, int]:
    return {"containerID": inside, "hostID": host, "size": size}


@pytest.mark.parametrize("empty", [{}, {"process": None}, {"process": {}}, {"process": {"user": None}}, {"linux": []}])
def test_a_spec_that_says_nothing_means_root(empty: dict[str, Any]) -> None:
    assert io_owner(empty) == (0, 0)


def test_without_a_user_namespace_the_user_is_the_owner() -> None:
    assert io_owner(spec(1000, 100)) == (1000, 100)
    assert io_owner(spec(1000, 100, [], [])) == (1000, 100)


def test_uid_and_gid_go_through_their_own_mapping() -> None:
    assert io_owner(spec(0, 0, [mapping(0, 100000, 65536)], [mapping(0, 200000, 65536)])) == (100000, 200000)


def test_the_first_range_that_contains_the_id_counts_and_its_end_is_outside() -> None:
    ranges = [mapping(0, 5000, 1), mapping(1, 7000, 10), mapping(1, 9000, 10)]
    assert [io_owner(spec(uid, 0, ranges))[0] for uid in (0, 1, 10, 11)] == [5000, 7000, 7009, 11]


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 2**31), st.integers(0, 2**16)), max_size=4),
)
def test_a_mapped_id_is_inside_a_host_range_and_an_unmapped_one_stays(uid: int, ranges: list[tuple[int, ...]]) -> None:
    found = io_owner(spec(uid, 0, [mapping(*each) for each in ranges]))[0]
    matching = [each for each in ranges if each[0] <= uid < each[0] + each[2]]
    if matching:
        inside, host, size = matching[0]
        assert found == host + uid - inside
        assert host <= found < host + size
    else:
        assert found == uid


@pytest.mark.parametrize("ranges", ["text", [None], [{}], [{"containerID": "x", "hostID": 1, "size": 2}], 5, {"a": 1}])
def test_a_mapping_that_is_none_is_left_for_the_runtime_to_refuse(ranges: Any) -> None:
    assert io_owner(spec(7, 8, ranges, ranges)) == (7, 8)


@pytest.mark.parametrize("uid", ["1000", None, 1.5, [1]])
def test_a_user_that_is_no_number_is_left_for_the_runtime_to_refuse(uid: Any) -> None:
    assert io_owner(spec(uid, uid)) == (0, 0)


@pytest.mark.parametrize("uid", [-1, 2**32])
def test_an_id_that_containerd_cannot_carry_is_invalid(uid: int) -> None:
    with pytest.raises(errors.Invalid, match=str(uid)):
        runtime_options(RuntimeOptions(io_uid=io_owner(spec(uid, 0))[0]))

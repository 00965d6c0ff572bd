"""What is on disk: whole or not at all, one document a plugin, a version that is checked."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import errors
from moorage.engine.lifecycle import RestartPolicy, Restarts
from moorage.engine.store import RETAINED, Store, list_retained, new_id
from moorage.engine.values import SCHEMA, Holder, LastExit, PluginRecord
from moorage.plugins import Overrides

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def make_record(name: str = "a:latest", **fields: object) -> PluginRecord:
    id = new_id()
    made = PluginRecord(id, name, name, '{"entrypoint": ["/p"]}', f"docker.io/{name}", "sha256:0", "overlayfs", id, AT)
    return PluginRecord(**{**{field: getattr(made, field) for field in PluginRecord.__struct_fields__}, **fields})


def make_store(root: Path) -> Store:
    store = Store(root / "data")
    os.close(store.lock(os.getpid()))
    return store


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
records = st.builds(
    make_record,
    config=text,
    overrides=st.builds(
        Overrides,
        env=st.lists(st.tuples(text, text), max_size=3).map(tuple),
        args=st.none() | st.lists(text, max_size=3).map(tuple),
        secrets=st.frozensets(text, max_size=3),
    ),
    policy=st.builds(RestartPolicy, st.sampled_from(Restarts), st.none() | st.integers(1, 9), st.none() | st.just(0.5)),
    last_exit=st.none()
    | st.builds(LastExit, st.none() | st.integers(0, 255), st.none() | text, st.booleans(), error=text),
    next_try_at=st.none() | st.just(AT),
    holders=st.lists(st.builds(Holder, text, text, st.just(AT)), max_size=2).map(tuple),
    enabled=st.booleans(),
    run=st.integers(0, 10**9),
)


@given(record=records)
def test_m10_a_record_comes_back_as_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory, record: PluginRecord
) -> None:
    store = make_store(tmp_path_factory.mktemp("store"))
    store.save(record)
    assert store.load().records == (record,)
    assert store.load().problems == ()


def test_m10_a_record_is_for_root_only(tmp_path: Path) -> None:
    store, record = make_store(tmp_path), make_record()
    store.save(record)
    path = store.directory(record.id) / "plugin.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["plugin.json"]


def test_m10_a_save_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    store, record = make_store(tmp_path), make_record()
    store.save(record)
    (store.directory(record.id) / ".plugin.json.new").mkdir()  # nothing can be written there
    with pytest.raises(errors.Unavailable, match="cannot write the record of plugin a:latest"):
        store.save(make_record(id=record.id, enabled=True))
    assert store.load().records == (record,)


def test_m10_what_a_killed_writer_left_is_replaced(tmp_path: Path) -> None:
    store, record = make_store(tmp_path), make_record()
    store.save(record)
    (store.directory(record.id) / ".plugin.json.new").write_text("{half")
    store.save(record)
    assert store.load().records == (record,)


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": "x"}', "\xff"])
def test_m08_a_damaged_record_is_named_and_the_others_are_there(tmp_path: Path, damage: str) -> None:
    store, good, bad = make_store(tmp_path), make_record(), make_record("b:latest")
    store.save(good)
    store.save(bad)
    path = store.directory(bad.id) / "plugin.json"
    path.write_bytes(damage.encode("latin-1"))
    loaded = store.load()
    assert loaded.records == (good,)
    assert len(loaded.problems) == 1
    assert str(path) in loaded.problems[0]
    assert not store.is_free(bad.id)
    store.sweep(frozenset({good.id}))
    assert path.exists()


def test_m08_a_record_at_the_wrong_path_is_refused(tmp_path: Path) -> None:
    store, record = make_store(tmp_path), make_record()
    store.save(record)
    store.directory(record.id).rename(store.plugins / new_id())
    assert "is of plugin" in store.load().problems[0]


def test_case_232_a_record_of_a_newer_version_is_skipped_and_the_others_are_there(tmp_path: Path) -> None:
    store, record, good = make_store(tmp_path), make_record(), make_record("b:latest")
    store.save(record)
    store.save(good)
    path = store.directory(record.id) / "plugin.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": SCHEMA + 1}))
    loaded = store.load()
    assert loaded.records == (good,)
    assert "newer moorage" in loaded.problems[0]
    store.sweep(frozenset({good.id}))
    assert path.exists()


def test_m19_a_data_directory_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (store.root / "engine.json").write_text(json.dumps({"schema": SCHEMA + 1}))
    with pytest.raises(errors.Unsupported, match="newer moorage"):
        store.settle(None, None)


def test_m19_an_older_version_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, record = make_store(tmp_path), make_record()
    store.save(record)
    path = store.directory(record.id) / "plugin.json"
    document = json.loads(path.read_text())
    document["alias"] = document.pop("name")
    path.write_text(json.dumps({**document, "schema": 0}))
    step = {0: lambda old: {**{key: value for key, value in old.items() if key != "alias"}, "name": old["alias"]}}
    monkeypatch.setattr("moorage.engine.store._MIGRATIONS", step)
    assert store.load().records == (record,)


def test_m11_the_directory_is_one_engines(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    lock = store.lock(os.getpid())
    assert Store(tmp_path / "data").is_locked()
    with pytest.raises(errors.Conflict, match=f"pid {os.getpid()}"):
        Store(tmp_path / "data").lock(os.getpid())
    os.close(lock)
    os.close(store.lock(os.getpid()))
    assert not store.is_locked()


def test_the_first_choice_stands(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    made = store.settle("system", "n1")
    assert (made.containerd, made.namespace) == ("system", "n1")
    assert store.settle(None, None) == made
    assert store.settle("private", "n2").engine_id == made.engine_id  # nothing was made with the first choice
    store.settle("system", "n1")
    store.claim()
    made = store.settle(None, None)
    assert (made.containerd, made.namespace, made.is_claimed) == ("system", "n1", True)
    with pytest.raises(errors.Conflict, match=r"containerd private: .* made with system"):
        store.settle("private", "n1")
    with pytest.raises(errors.Conflict, match=r"namespace n2: .* made with n1"):
        store.settle(None, "n2")


def test_case_230_what_an_earlier_version_has_settled_stands(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    document = {"engine_id": "e", "containerd": "system", "namespace": "n1", "schema": 1}
    (store.root / "engine.json").write_text(json.dumps(document))
    assert store.settle(None, None).namespace == "n1"
    with pytest.raises(errors.Conflict, match=r"namespace n2: .* made with n1"):
        store.settle(None, "n2")


def test_case_232_a_started_removal_is_finished(tmp_path: Path) -> None:
    store, record, other = make_store(tmp_path), make_record(), make_record("b:latest")
    store.save(record)
    store.directory(record.id).rename(store.plugins / f"{record.id}-removing")
    without = store.plugins / f"{new_id()}-removing"
    (without / "propagated-mount" / "x").mkdir(parents=True)
    store.save(other)
    (loaded,) = (each for each in store.load().records if each.id == record.id)
    assert (loaded.removing, loaded.enabled) == (True, False)
    assert store.directory(record.id).is_dir()
    store.sweep(frozenset({record.id, other.id}))
    assert sorted(each.name for each in store.plugins.iterdir()) == sorted([record.id, other.id])
    assert not (store.root / RETAINED).exists()


def test_case_232_a_removal_whose_record_cannot_be_read_stays_and_is_reported(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    directory = store.plugins / f"{new_id()}-removing"
    directory.mkdir()
    (directory / "plugin.json").write_text("{")
    assert str(directory) in store.load().problems[0]
    store.sweep(frozenset())
    assert (directory / "plugin.json").exists()


@pytest.mark.parametrize("name", ["propagated-mount/x", "propagated-mount/.hidden", "notes.txt", "other/y"])
def test_case_232_a_directory_that_may_contain_data_is_renamed(tmp_path: Path, name: str) -> None:
    store, id = make_store(tmp_path), new_id()
    for _ in range(2):
        (store.plugins / id / name).parent.mkdir(parents=True)
        (store.plugins / id / name).write_text("precious")
        store.sweep(frozenset())
    assert list(store.plugins.iterdir()) == []
    assert [(store.root / RETAINED / each / name).read_text() for each in (id, f"{id}.1")] == ["precious", "precious"]
    assert len(list_retained(store.root)) == 2


@pytest.mark.parametrize("name", ["backup", "notes.txt", "f" * 63])
def test_case_232_a_directory_with_a_foreign_name_is_renamed(tmp_path: Path, name: str) -> None:
    store = make_store(tmp_path)
    (store.plugins / name).mkdir()
    store.sweep(frozenset())
    assert [each.name for each in (store.root / RETAINED).iterdir()] == [name]


def test_m10_a_half_written_record_keeps_no_directory_from_being_removed(tmp_path: Path) -> None:
    store, record = make_store(tmp_path), make_record()
    store.save(record)
    (store.directory(record.id) / ".plugin.json.new").write_text("{half")
    store.forget(record.id)
    assert list(store.plugins.iterdir()) == []


def test_the_sweep_removes_what_has_no_record(tmp_path: Path) -> None:
    store, record = make_store(tmp_path), make_record()
    store.save(record)
    (store.propagated_mount(record.id)).mkdir()
    (store.plugins / new_id() / "propagated-mount").mkdir(parents=True)
    (store.temporary / "x").write_text("")
    store.sweep(frozenset({record.id}))
    assert [each.name for each in store.plugins.iterdir()] == [record.id]
    assert list(store.temporary.iterdir()) == []
    store.propagated_mount(record.id).rmdir()
    store.forget(record.id)
    assert list(store.plugins.iterdir()) == []

"""Machines that share no folder find in a store what others computed, and nothing half there."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from stores import empty_store

from permllm.errors import UserError
from permllm.runner.caching.leases import Lease
from permllm.runner.caching.memo import Stages
from permllm.runner.caching.object_store import ObjectStore, StoreError, place_of_cache
from permllm.runner.caching.store import Cache

KEY = "a" * 64


def machine(
    folder: Path, name: str, store: ObjectStore, warnings: list[str] | None = None
) -> Cache:
    """The cache of a machine that shares a store with others."""
    said = [] if warnings is None else warnings
    return Cache.at(ObjectStore.at(store.url), folder / name, warn=said.append)


def put(cache: Cache, content: str = "hello") -> Path:
    path = cache.put("tokens", KEY, ".json", lambda path: path.write_text(content) and None)
    assert path is not None
    return path


def find(cache: Cache) -> str | None:
    path = cache.find("tokens", KEY)
    return None if path is None else path.read_text()


def objects(store: ObjectStore) -> dict[str, bytes]:
    return {
        path.removeprefix(f"{store.root}/"): store.files.cat_file(path)
        for path in store.files.find(store.root)
    }


def write(store: ObjectStore, name: str, content: bytes) -> None:
    store.files.pipe_file(f"{store.root}/{name}", content)


def test_what_one_machine_computed_another_finds_and_keeps(
    store: ObjectStore, tmp_path: Path
) -> None:
    here, there = machine(tmp_path, "here", store), machine(tmp_path, "there", store)
    assert find(there) is None
    path = put(here)
    assert find(there) == "hello"
    assert store.sizes() == {"tokens": (1, 5)}
    assert objects(store) == {
        f"tokens/{KEY}": path.name.encode(),
        f"tokens/{path.name}": b"hello",
    }
    assert [entry.path.name for entry in there.entries()] == [path.name]
    store.files.rm(store.root, recursive=True)
    assert find(there) == "hello"


def test_what_was_not_finished_is_not_there(store: ObjectStore, tmp_path: Path) -> None:
    path = put(machine(tmp_path, "here", store))
    name = objects(store)[f"tokens/{KEY}"]
    store.files.rm_file(f"{store.root}/tokens/{KEY}")
    assert find(machine(tmp_path, "there", store)) is None
    write(store, f"tokens/{KEY}", name)
    store.files.rm_file(f"{store.root}/tokens/{path.name}")
    assert find(machine(tmp_path, "there", store)) is None


@pytest.mark.parametrize("content", [b"hellO", b"hell", b""])
def test_a_damaged_content_is_computed_again(
    store: ObjectStore, tmp_path: Path, content: bytes
) -> None:
    path = put(machine(tmp_path, "here", store))
    write(store, f"tokens/{path.name}", content)
    warnings: list[str] = []
    there = machine(tmp_path, "there", store, warnings)
    assert find(there) is None
    assert there.entries() == []
    [said] = warnings
    assert said.startswith(f"the cache entry {store.url}/tokens/{KEY} is damaged")
    put(there, "anew")
    assert find(machine(tmp_path, "elsewhere", store)) == "anew"


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"\xff",
        b"../../../etc/passwd",
        b"b" * 64 + b"." + b"0" * 16 + b".json",
        KEY.encode() + b"." + b"0" * 16 + b".pickle",
        KEY.encode() + b"/../x." + b"0" * 16 + b".json",
    ],
)
def test_a_name_that_no_cache_writes_is_not_followed(tmp_path: Path, name: bytes) -> None:
    store, warnings = empty_store("memory", tmp_path), []
    write(store, f"tokens/{KEY}", name)
    assert find(machine(tmp_path, "here", store, warnings)) is None
    assert len(warnings) == 1


def test_two_machines_compute_what_both_want_once(store: ObjectStore, tmp_path: Path) -> None:
    computed: list[str] = []
    found = {}

    def want(name: str) -> None:
        def compute() -> dict[str, float]:
            computed.append(name)
            time.sleep(0.5)
            return {"x": 1.5}

        stages = Stages(machine(tmp_path, name, store))
        found[name] = stages.figures("figures", KEY, compute, stage="a stage")

    threads = [threading.Thread(target=want, args=(name,)) for name in ("here", "there")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1
    assert found == {"here": {"x": 1.5}, "there": {"x": 1.5}}
    assert not [name for name in objects(store) if "lease" in name]


def test_one_alone_gets_a_lease(store: ObjectStore) -> None:
    got: list[int] = []
    begin = threading.Barrier(8)

    def want(number: int) -> None:
        begin.wait()
        try:
            store.create("x.lease", str(number).encode())
        except FileExistsError:
            return
        got.append(number)

    threads = [threading.Thread(target=want, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if store.files.protocol != "memory":  # which only one thread at a time is meant to use
        assert len(got) == 1
    sign = store.read("x.lease")
    assert sign is not None
    assert int(sign[0]) in got


def test_a_store_that_can_be_used_holds_nothing_afterwards(store: ObjectStore) -> None:
    store.check()
    store.check()
    assert objects(store) == {}


class Broken:
    """A file system of which one call fails, or does something else."""

    def __init__(self, store: ObjectStore, name: str, call: Any) -> None:
        self.store, self.name, self.call = store, name, call
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        if name == self.name:
            self.asked += 1
            return self.call
        return getattr(self.store.files, name)


def fail(*words: Any, **options: Any) -> None:
    raise PermissionError("Access Denied to https://me:secret@host/\nand more")


@pytest.mark.parametrize(
    ("call", "does", "said"),
    [
        ("cat_file", fail, "reading leases/probe-"),
        ("open", fail, "writing leases/probe-"),
        ("rm_file", fail, "removing leases/probe-"),
        ("cat_file", lambda path: b"x", "it holds what nobody has written"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused(
    tmp_path: Path, call: str, does: Any, said: str
) -> None:
    whole = empty_store("memory", tmp_path)
    store = ObjectStore(whole.url, Broken(whole, call, does), whole.root)
    with pytest.raises(UserError) as caught:
        store.check()
    assert caught.value.message.startswith(f"--cache {store.url}: {said}")
    assert "secret" not in str(caught.value)
    assert "\nand more" not in caught.value.message
    if does is fail:
        assert "PermissionError: Access Denied" in caught.value.message


def test_a_store_that_makes_anew_what_is_there_is_refused(tmp_path: Path) -> None:
    whole = empty_store("memory", tmp_path)
    overwrites = Broken(whole, "open", lambda path, mode: whole.files.open(path, "wb"))
    with pytest.raises(UserError, match="does not refuse to make anew what is there"):
        ObjectStore(whole.url, overwrites, whole.root).check()


def test_a_store_that_does_not_answer_is_refused_in_time(tmp_path: Path) -> None:
    whole, late = empty_store("memory", tmp_path), threading.Event()
    store = ObjectStore(whole.url, Broken(whole, "cat_file", lambda path: late.wait()), whole.root)
    with pytest.raises(UserError, match=r"no answer within 0\.2 seconds"):
        store.check(patience=0.2)
    late.set()


@pytest.mark.parametrize("call", ["cat_file", "put_file", "get_file", "pipe_file"])
def test_a_store_that_is_gone_is_a_warning_and_work_goes_on(tmp_path: Path, call: str) -> None:
    whole, warnings = empty_store("memory", tmp_path), []
    if call == "get_file":
        Stages(machine(tmp_path, "before", whole)).figures(
            "figures", KEY, lambda: {"x": 1.5}, stage="a stage"
        )
    broken = Broken(whole, call, fail)
    cache = Cache(tmp_path / "here", warn=warnings.append)
    cache.store = ObjectStore(whole.url, broken, whole.root)
    cache.leases = Cache(tmp_path, store=cache.store).leases
    for key in (KEY, "b" * 64):
        found = Stages(cache).figures("figures", key, lambda: {"x": 1.5}, stage="a stage")
        assert found == {"x": 1.5}
    [said] = warnings
    assert said.startswith(f"the cache {whole.url} cannot be used any more, and is left alone: ")
    assert "Access Denied" in said
    assert "secret" not in said
    assert broken.asked == 1
    assert len(cache.entries()) == 2


def test_nothing_is_asked_of_a_store_that_was_lost(tmp_path: Path) -> None:
    whole = empty_store("memory", tmp_path)
    broken = Broken(whole, "cat_file", fail)
    store = ObjectStore(whole.url, broken, whole.root)
    for _ in range(2):
        with pytest.raises(StoreError, match="Access Denied"):
            store.name_of("tokens", KEY)
        assert store.read("x.lease") is None
        with pytest.raises(StoreError):
            store.create("x.lease", b"mine")
    assert broken.asked == 1
    assert Lease("x.lease", Cache(tmp_path, store=store).leases).asked(0, lambda whose, over: None)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:secret@bucket/x", r"--cache s3://\*\*\*@bucket/x: .* password"),
        ("s3://bucket/x?token=secret", r"--cache s3://bucket/x\?token=\*\*\*: .* token"),
        ("nobody://bucket", "--cache nobody://bucket: this is no URL of a store"),
        ("s3://", "no URL of a store"),
        ("simplecache::s3://bucket/x", "no URL of a store"),
        ("smb://host/x", "--cache smb://host/x needs smb"),
    ],
)
def test_what_is_no_url_of_a_store_is_said(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        place_of_cache(url)
    assert "secret" not in str(caught.value)
    assert caught.value.hint


def test_a_folder_is_named_by_its_path(tmp_path: Path) -> None:
    assert place_of_cache(None) is None
    assert place_of_cache("kept") == place_of_cache(Path("kept")) == Path("kept")
    store = place_of_cache("memory://bucket/x")
    assert isinstance(store, ObjectStore)
    assert str(store) == "memory://bucket/x"
    assert Cache.at(store, tmp_path).folder == tmp_path
    assert Cache.at(Path("kept"), tmp_path).folder == Path("kept")
    assert Cache.at(None, tmp_path).store is None

"""One engine at a time owns a file; the others are told whose it is."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import durable
from durable import AlreadyRunning, Client, Engine
from durable.store.lock import FileLock
from tests.processes.programs import Program
from tests.support import PATIENCE, Gate

OWNS = """\
engine = Engine(sys.argv[1]).open()
print("open")
sys.stdin.readline()
engine.close()
print("closed")
"""

_gate = Gate()


@durable.step
def at_gate() -> int:
    _gate.pass_through()
    return 1


@durable.workflow
def drains() -> int:
    return at_gate()


def refused(path: str, owner: int) -> None:
    """A further engine on the file gets AlreadyRunning, which says whose it is."""
    with pytest.raises(AlreadyRunning) as caught:
        Engine(path).open()
    assert caught.value.pid == owner
    assert str(owner) in str(caught.value)
    assert "durable.Client" in str(caught.value)


def test_a_second_engine_in_the_same_process_is_refused(engine: Engine, path: str) -> None:
    """Also with the same pid: two engines would run each workflow twice."""
    refused(path, os.getpid())


def test_an_engine_in_another_process_is_refused(path: str) -> None:
    """It is told the process that owns the file, and may have it when that has closed."""
    with Program(OWNS, path) as owner:
        assert owner.line() == "open"
        refused(path, owner.pid)

        owner.say("close")
        assert owner.line() == "closed"
        Engine(path).open().close()


def test_a_refused_engine_disturbs_nobody(engine: Engine, path: str) -> None:
    """The owner goes on, its lock stays, and the refused one can be opened later."""
    late = Engine(path)
    for _ in range(3):
        with pytest.raises(AlreadyRunning):
            late.open()
    assert Path(f"{path}.lock").exists()
    assert engine.start(free).result(PATIENCE) == 1

    engine.close()
    with late:
        assert late.start(free).result(PATIENCE) == 1


@durable.workflow
def free() -> int:
    return 1


def test_a_path_through_a_link_is_the_same_file(engine: Engine, path: str, tmp_path: Path) -> None:
    """A symbolic link to the file, or to its folder, leads to the same owner."""
    (tmp_path / "link.db").symlink_to(path)
    (tmp_path / "folder").symlink_to(tmp_path, target_is_directory=True)

    refused(str(tmp_path / "link.db"), os.getpid())
    refused(str(tmp_path / "folder" / "test.db"), os.getpid())


def test_a_relative_path_is_the_same_file(
    engine: Engine, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the folder in which a program runs."""
    monkeypatch.chdir(Path(path).parent)

    refused("test.db", os.getpid())
    refused("./../" + Path(path).parent.name + "/test.db", os.getpid())


def test_the_path_may_be_relative_though_the_folder_changes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine stays with its file and its lock after os.chdir()."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with Engine("test.db") as engine:
        monkeypatch.chdir(tmp_path / "other")
        assert engine.start(free).result(PATIENCE) == 1
        refused(str(tmp_path / "test.db"), os.getpid())
        assert engine.workflows()

    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", "test.db"]
    assert not list((tmp_path / "other").iterdir())


def test_the_lock_and_the_file_are_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the program changes its folder between making an engine and opening it."""
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    engine = Engine("test.db")
    monkeypatch.chdir(tmp_path / "second")
    with engine:
        folders = {each.parent for each in tmp_path.rglob("test.db*")}

    assert len(folders) == 1


def test_the_lock_is_gone_after_close(path: str, tmp_path: Path) -> None:
    """No file but the database stays behind."""
    engine = Engine(path).open()
    assert Path(f"{path}.lock").read_text().split() == [str(os.getpid())]

    engine.close()
    assert [each.name for each in tmp_path.iterdir()] == ["test.db"]


def test_the_file_of_a_killed_owner_can_be_opened(path: str, tmp_path: Path) -> None:
    """The lock dies with its process, although its file stays; nobody has to remove it."""
    with Program(OWNS, path) as owner:
        assert owner.line() == "open"
        owner.kill()
    assert Path(f"{path}.lock").exists()

    with Engine(path) as engine:
        assert engine.start(free).result(PATIENCE) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["test.db"]


def test_an_engine_that_could_not_open_leaves_no_lock(tmp_path: Path) -> None:
    """After an error the file is nobody's."""
    (tmp_path / "test.db").write_text("not SQLite, and long enough to be looked at: " + "x" * 999)
    for _ in range(2):
        with pytest.raises(durable.NotADurableFile):
            Engine(tmp_path / "test.db").open()
    assert [each.name for each in tmp_path.iterdir()] == ["test.db"]


def test_clients_need_no_lock(engine: Engine, path: str) -> None:
    """Any number of clients, beside the engine and without one."""
    with Client(path) as first, Client(path) as second:
        assert first.workflows() == second.workflows() == []
    engine.close()
    with Client(path) as client:
        assert client.workflows() == []


def test_n07_an_engine_is_refused_while_the_first_one_drains(path: str) -> None:
    """N07: until the first has closed, the second gets AlreadyRunning; nothing is stranded."""
    engine = Engine(path).open()
    handle = engine.start(drains)
    _gate.wait_reached()
    closing = threading.Thread(target=engine.close, name="closing")
    closing.start()
    refused(path, os.getpid())
    assert closing.is_alive()

    _gate.open()
    closing.join(PATIENCE)
    with Engine(path) as second:
        assert second.handle(handle.id).result(PATIENCE) == 1


def test_of_many_that_open_at_once_one_gets_the_file(path: str) -> None:
    """Also while the lock file is being removed and made again by those before them."""
    for _ in range(30):
        barrier = threading.Barrier(4)
        owners: list[FileLock] = []

        def take(barrier: threading.Barrier = barrier, owners: list[FileLock] = owners) -> None:
            lock = FileLock(path)
            barrier.wait(PATIENCE)
            try:
                lock.acquire()
            except AlreadyRunning:
                return
            owners.append(lock)

        threads = [threading.Thread(target=take, name="takes") for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(owners) == 1
        owners[0].release()


def test_the_lock_passes_from_hand_to_hand(path: str) -> None:
    """Threads that take and release it in turn never hold it together."""
    holders: list[int] = []
    most: list[int] = []
    mutex = threading.Lock()

    def take_turns() -> None:
        for _ in range(200):
            lock = FileLock(path)
            try:
                lock.acquire()
            except AlreadyRunning:
                continue
            with mutex:
                holders.append(1)
                most.append(len(holders))
            with mutex:
                holders.pop()
            lock.release()

    threads = [threading.Thread(target=take_turns, name="takes turns") for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert set(most) == {1}

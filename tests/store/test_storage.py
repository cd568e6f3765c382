"""Files that cannot be used: full, read-only, damaged, locked, or no files at all."""

from __future__ import annotations

import logging
import random
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import (
    Client,
    CorruptFile,
    DurableError,
    Engine,
    NotADurableFile,
    ReadOnlyFile,
    StorageError,
    StorageFull,
)
from durable.clock import SystemClock
from durable.store.database import Database
from durable.store.tx import Tx
from tests.processes.programs import Program
from tests.support import PATIENCE, Gate

_ran: list[str] = []
_gate = Gate()
narrow = durable.Queue("tests.store.test_storage", concurrency=2)


@durable.step
def small(name: str) -> str:
    _ran.append(name)
    return name


@durable.step
def large(name: str) -> str:
    _ran.append(name)
    return "x" * 200_000


@durable.step
def at_gate() -> None:
    _gate.pass_through()


@durable.workflow
def writes_much(name: str) -> int:
    small(name)
    at_gate()
    return len(large(name))


@durable.workflow
def writes_little() -> int:
    return len(small("little"))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    global _gate
    _gate = Gate()
    _ran.clear()


# ---------------------------------------------------------------------- paths that are no files


@pytest.mark.parametrize("opener", [Engine, Client])
def test_a_folder_is_no_file(tmp_path: Path, opener: type[Client]) -> None:
    """NotADurableFile says that it is a folder; nothing appears in it or beside it."""
    folder = tmp_path / "folder"
    folder.mkdir()

    with pytest.raises(NotADurableFile, match="is a folder") as caught, opener(folder):
        pass
    assert caught.value.path == str(folder)
    assert list(tmp_path.rglob("*")) == [folder]


@pytest.mark.parametrize("opener", [Engine, Client])
def test_a_missing_folder_is_named(tmp_path: Path, opener: type[Client]) -> None:
    """StorageError says which folder is missing, and does not call it read-only."""
    path = tmp_path / "missing" / "test.db"

    with pytest.raises(StorageError, match="does not exist") as caught, opener(path):
        pass
    assert not isinstance(caught.value, ReadOnlyFile)
    assert str(path.parent) in str(caught.value)
    assert not path.parent.exists()


def test_a_missing_file_is_made_by_an_engine_only(path: str) -> None:
    """A client says so, and does not make one."""
    with pytest.raises(NotADurableFile, match="does not exist; an Engine makes it"):
        Client(path)
    assert not Path(path).exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="has no folder that refuses root")
def test_a_folder_that_takes_no_files_is_named() -> None:
    """ReadOnlyFile, also for a user who may write everywhere else."""
    with pytest.raises(ReadOnlyFile, match=r"/proc/x\.db") as caught:
        Engine("/proc/x.db").open()
    assert caught.value.path == "/proc/x.db"


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    """A file is no folder: StorageError that names the path."""
    (tmp_path / "file").touch()

    with pytest.raises(StorageError, match=r"file/test\.db"):
        Engine(tmp_path / "file" / "test.db").open()


# ---------------------------------------------------------------------- no space left


class Disk:
    """A limit on the size of an engine's file, as a full disk would set it."""

    def __init__(self, engine: Engine) -> None:
        self._database = engine._open_engine().database
        self._whole = self._pragma("max_page_count")

    def _pragma(self, text: str) -> int:
        return int(self._database._writer.execute(f"PRAGMA {text}").fetchone()[0])

    def fill(self) -> None:
        """No page more than there is."""
        self._pragma(f"max_page_count = {self._pragma('page_count')}")

    def clear(self) -> None:
        """Space again."""
        self._pragma(f"max_page_count = {self._whole}")


def test_a_full_disk_is_a_clear_error(engine: Engine, path: str) -> None:
    """Whoever waits for the run gets StorageFull, which names the file and what is kept."""
    handle = engine.start(writes_much, "a")
    _gate.wait_reached()
    Disk(engine).fill()
    _gate.open()

    with pytest.raises(StorageFull, match="no space left") as caught:
        handle.result(PATIENCE)
    assert caught.value.path == path
    assert handle.info().status == "PENDING"


def test_what_was_recorded_before_the_disk_was_full_stays(engine: Engine) -> None:
    """And when there is space again, `recover` makes the run go on from there."""
    handle = engine.start(writes_much, "a")
    _gate.wait_reached()
    disk = Disk(engine)
    disk.fill()
    _gate.open()
    with pytest.raises(StorageFull):
        handle.result(PATIENCE)
    assert [step.value for step in handle.steps()] == ["a", None]

    disk.clear()
    assert [each.id for each in engine.recover()] == [handle.id]
    assert handle.result(PATIENCE) == 200_000
    assert _ran == ["a", "a", "a"]  # small once, large twice: its first result was not recorded


def test_a_full_disk_does_not_outlive_the_engine(engine: Engine, path: str) -> None:
    """The run also goes on when the engine is opened again."""
    handle = engine.start(writes_much, "a")
    _gate.wait_reached()
    Disk(engine).fill()
    _gate.open()
    with pytest.raises(StorageFull):
        handle.result(PATIENCE)
    engine.close()

    with Engine(path) as again:
        assert again.handle(handle.id).result(PATIENCE) == 200_000


def test_starting_and_sending_on_a_full_disk_fail_whole(engine: Engine) -> None:
    """StorageFull, and the file has nothing of them."""
    handle = engine.start(writes_little)
    handle.result(PATIENCE)
    disk = Disk(engine)
    disk.fill()
    with pytest.raises(StorageFull):
        handle.send("x" * 200_000)
    with pytest.raises(StorageFull):
        engine.start(writes_much, "x" * 200_000)
    assert [each.id for each in engine.workflows()] == [handle.id]

    disk.clear()
    assert engine.start(writes_little).result(PATIENCE) == len("little")


def test_on_a_full_disk_a_run_on_this_thread_raises(engine: Engine) -> None:
    """`engine.run` raises StorageFull itself; the run is unfinished, and can be taken up."""
    disk = Disk(engine)
    disk.fill()
    _gate.open()
    with pytest.raises(StorageFull):
        engine.run(writes_much, "a")
    disk.clear()

    for handle in engine.recover():
        assert handle.result(PATIENCE) == 200_000


FULL = """\
import tempfile
from pathlib import Path

@step
def large(n):
    return os.urandom(50_000).hex()

@workflow
def fills():
    return sum(len(large(n)) for n in range(100))

with Engine(sys.argv[1]) as engine:
    handle = fills.options(id="fills").start()
    try:
        handle.result()
    except durable.StorageFull as error:
        print("full" if sys.argv[1] in str(error) else error)
    print(len(handle.steps()))
    Path(sys.argv[2]).unlink()
    engine.recover()
    print(handle.result())
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 4 MB: StorageFull, and after something was deleted the run goes on."""
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        (disk / "ballast").write_bytes(bytes(20 << 20))
        with Program(FULL, str(disk / "test.db"), str(disk / "ballast")) as program:
            assert program.line() == "full"
            assert int(program.line()) > 3
            assert program.succeed() == ["10000000"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---------------------------------------------------------------------- read-only


READ_ONLY = """\
import logging, traceback
path = sys.argv[1]

@workflow
def one():
    return 1

with Engine(path) as engine:  # as the owner, for what is imported on the way
    one.options(id="before").start().result()
os.chmod(path, 0o444)
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)

for opener in (Engine, Client):
    try:
        with opener(path) as opened:
            print(opener.__name__, [each.id for each in opened.workflows()])
            opened.send("before", "x")
    except durable.ReadOnlyFile as error:
        print(opener.__name__, "ReadOnlyFile", path in str(error))
"""


@pytest.fixture
def open_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that other users may enter, which pytest's own are not."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_read_only_file_in_a_read_only_folder(open_folder: Path) -> None:
    """An engine says ReadOnlyFile with the path; so does a client, at the latest when it writes."""
    with Program(READ_ONLY, str(open_folder / "test.db")) as program:
        lines = program.succeed()
    assert lines[0] == "Engine ReadOnlyFile True"
    assert lines[-1] == "Client ReadOnlyFile True"
    assert lines[1:-1] in ([], ["Client ['before']"])


def test_a_read_only_file_in_a_folder_that_can_be_written(open_folder: Path) -> None:
    """The same, where the lock can be made and the file not changed; the lock does not stay."""
    open_folder.chmod(0o777)
    with Program(READ_ONLY, str(open_folder / "test.db")) as program:
        lines = program.succeed()
    assert lines[0] == "Engine ReadOnlyFile True"
    assert lines[-1] == "Client ReadOnlyFile True"
    assert not (open_folder / "test.db.lock").exists()


# ---------------------------------------------------------------------- damaged


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with runs, finished and not, and in a queue, to be damaged."""
    path = tmp_path_factory.mktemp("whole") / "whole.db"
    engine = Engine(path).open()
    for number in range(20):
        handle = durable_runs.options(id=f"w{number:03}", tags=["t"]).start(number)
        handle.send("first")
        handle.result(PATIENCE)
    for number in range(5):
        durable_runs.options(id=f"waits{number}").start(number)
    for number in range(5):
        narrow.enqueue(durable_runs.options(id=f"queued{number}"), number)
    engine.close(timeout=0)
    return path


@durable.workflow
def durable_runs(number: int) -> str:
    durable.set_event("number", {"number": number, "text": "e" * 300})
    small(f"s{number}" * (50 if number % 2 else 500))  # the long ones have a table of their own
    return durable.recv()


def use_all(path: Path) -> list[DurableError]:
    """Open the file and use all of it; the errors that came, which are all DurableErrors."""
    errors: list[DurableError] = []

    def attempt(action: Any) -> Any:
        try:
            return action()
        except DurableError as error:
            errors.append(error)
            return None

    engine = attempt(Engine(path).open)
    if engine is not None:
        try:
            listed = attempt(engine.workflows) or []
            for run in [*listed, engine.handle("w000"), engine.handle("waits1")]:
                handle = engine.handle(run.id)
                for action in (handle.info, handle.steps, handle.events):
                    attempt(action)
                attempt(lambda handle=handle: handle.send("go"))
                if not run.id.startswith("queued"):  # those may not have begun
                    attempt(lambda handle=handle: handle.event("number", timeout=0))
                if run.id.startswith("w0"):
                    attempt(lambda handle=handle: handle.result(timeout=0))
            attempt(lambda: engine.run(writes_little))
            attempt(lambda: engine.cancel("waits2"))
            attempt(lambda: engine.cancel("queued0"))
            attempt(lambda: narrow.enqueue(writes_little).info())
            attempt(lambda: engine.fork("w001", step=2).cancel())
            attempt(engine.recover)
        finally:
            attempt(lambda: engine.close(timeout=0))
    attempt(lambda: look(path))
    return errors


def look(path: Path) -> None:
    with Client(path) as client:
        client.workflows()
        client.handle("w000").steps()


def test_a_whole_file_gives_no_errors(whole: Path, tmp_path: Path) -> None:
    """What the tests below do is right where nothing is damaged."""
    path = Path(shutil.copy(whole, tmp_path / "test.db"))
    assert use_all(path) == []


def test_a_file_that_lost_its_header_is_no_durable_file(whole: Path, tmp_path: Path) -> None:
    """NotADurableFile or CorruptFile when it is opened, and not one byte is changed."""
    path = Path(shutil.copy(whole, tmp_path / "test.db"))
    damaged = b"\0" * 100 + whole.read_bytes()[100:]
    path.write_bytes(damaged)

    for opener in (Engine, Client):
        with pytest.raises((NotADurableFile, CorruptFile), match=r"test\.db"), opener(path):
            pass
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_file_cut_short_is_corrupt(whole: Path, tmp_path: Path, share: float) -> None:
    """CorruptFile with the path, as soon as what is missing is wanted."""
    path = Path(shutil.copy(whole, tmp_path / "test.db"))
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))

    errors = use_all(path)
    assert any(isinstance(error, CorruptFile) for error in errors)
    assert any(str(path) in str(error) for error in errors)


def damage(path: Path, rng: random.Random) -> None:
    """Overwrite the middle of some pages."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(rng.choice([1, 3, 10, 30])):
            page = rng.randrange(size // 4096)
            offset = page * 4096 + rng.randrange(100 if page == 0 else 0, 4096 - 64)
            file.seek(offset)
            file.write(rng.choice([rng.randbytes(64), b"\0" * 64, b"\xff" * 64, b"{x" * 32]))


def damaged_files(whole: Path, folder: Path, seed: int, count: int) -> None:
    rng = random.Random(seed)
    for number in range(count):
        path = Path(shutil.copy(whole, folder / f"{number}.db"))
        damage(path, rng)
        try:
            use_all(path)
        except BaseException as error:
            error.add_note(f"damaged file number {number}")
            raise


UNREADABLE = [
    "UPDATE durable_workflow SET status = 'LOST'",
    "UPDATE durable_workflow SET created_at = 1e300",
    "UPDATE durable_workflow SET wake_at = 1e300",
    "UPDATE durable_workflow SET tags = '{'",
    "UPDATE durable_workflow SET input = '1'",
    "UPDATE durable_workflow SET input = '[1, 2]'",
    "UPDATE durable_workflow SET waits_for = 'x'",
    "UPDATE durable_step SET lane = 'x'",
    "UPDATE durable_step SET started_at = 1e300",
    "UPDATE durable_workflow SET input = '{'",
    "UPDATE durable_workflow SET result = '{', error = '{'",
    "UPDATE durable_workflow SET name = CAST(x'FF' AS TEXT), id = CAST(x'FF' AS TEXT) || id",
    "UPDATE durable_step SET value = '{'",
    "UPDATE durable_step SET name = CAST(x'FF' AS TEXT)",
    "UPDATE durable_step_by_time SET lane = 'x'",
    "UPDATE durable_step_by_time SET started_at = 1e300",
    "UPDATE durable_step_by_time SET value = '{'",
    "UPDATE durable_step_by_time SET name = CAST(x'FF' AS TEXT)",
    "UPDATE durable_event SET value = '{', key = CAST(x'FF' AS TEXT)",
    "UPDATE durable_message SET value = CAST(x'FF' AS TEXT), taken_by = NULL",
]


@pytest.mark.parametrize("sql", UNREADABLE)
def test_rows_that_cannot_be_read_give_no_bare_errors(
    whole: Path, tmp_path: Path, sql: str
) -> None:
    """Damage that SQLite does not see: each call works, or raises an error of the tree."""
    path = Path(shutil.copy(whole, tmp_path / "test.db"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        assert connection.execute(sql).rowcount > 0

    use_all(path)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"durable_signal", id="named"),
        pytest.param(b"\xff" * 14, id="nameless"),
    ],
)
def test_a_damaged_schema_is_corrupt(whole: Path, tmp_path: Path, name: bytes) -> None:
    """Where a table is described there is no SQL any more: CorruptFile, when it is opened."""
    path = Path(shutil.copy(whole, tmp_path / "test.db"))
    content = whole.read_bytes().replace(b"tabledurable_signal", b"table" + name)
    path.write_bytes(content.replace(b"CREATE TABLE durable_signal", b"\xff" * 27))

    for opener in (Engine, Client):
        with pytest.raises(CorruptFile, match=r"test\.db"), opener(path):
            pass


@pytest.mark.slow
def test_many_damaged_files_give_no_bare_errors(whole: Path, tmp_path: Path, seed: int) -> None:
    """The same, for hundreds."""
    damaged_files(whole, tmp_path, seed, 400)


def test_a_file_that_is_damaged_while_it_is_open_is_corrupt(whole: Path, tmp_path: Path) -> None:
    """Runs and clients get CorruptFile, and closing works."""
    path = Path(shutil.copy(whole, tmp_path / "test.db"))
    engine = Engine(path, recover="manual").open()
    client = Client(path)
    try:
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
        errors = []
        for action in (
            engine.workflows,
            client.workflows,
            lambda: engine.run(writes_little),
            lambda: client.send("w000", 1),
            lambda: client.handle("waits0").result(timeout=0.1),
        ):
            try:
                action()
            except StorageError as error:
                errors.append(error)
        assert any(isinstance(error, CorruptFile) for error in errors)
    finally:
        client.close()
        engine.close(timeout=0)


def test_whoever_watches_a_damaged_file_is_told(whole: Path, tmp_path: Path) -> None:
    """The look whether another process has changed the file fails as all else does."""
    path = Path(shutil.copy(whole, tmp_path / "test.db"))
    with Client(path) as client:
        watch = client._open_file().database.watch()
        watch._connection.close()
        with pytest.raises(StorageError):
            watch.changed()


# ---------------------------------------------------------------------- locked by others

HOLDS = """\
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked")
if sys.argv[2] == "until told":
    sys.stdin.readline()
else:
    time.sleep(float(sys.argv[2]))
connection.execute("COMMIT")
print("unlocked")
"""


@durable.workflow
def five() -> int:
    return sum(len(small("x")) for _ in range(5))


@pytest.mark.slow
def test_n33_a_lock_held_by_another_process_delays_a_workflow(engine: Engine, path: str) -> None:
    """N33: a second of `BEGIN IMMEDIATE` in the sqlite3 shell, and no workflow fails."""
    handles = [engine.start(five) for _ in range(3)]
    with Program(HOLDS, path, "1.0") as holder:
        assert holder.line() == "locked"
        handles += [engine.start(five) for _ in range(3)]
        assert engine.run(five) == 5
        assert holder.succeed() == ["unlocked"]
    assert [handle.result(PATIENCE) for handle in handles] == [5] * 6


@pytest.mark.slow
def test_reading_does_not_wait_for_a_lock(engine: Engine, path: str) -> None:
    """While another process writes, durable reads."""
    handle = engine.start(five)
    handle.result(PATIENCE)
    with Program(HOLDS, path, "until told") as holder:
        assert holder.line() == "locked"
        with Client(path) as client:
            assert client.handle(handle.id).result(timeout=0) == 5
            assert [run.id for run in engine.workflows()] == [handle.id]
        holder.say("go")
        holder.succeed()


@pytest.mark.slow
def test_an_engine_opens_and_closes_beside_a_lock(path: str) -> None:
    """Opening waits for the lock; what was unfinished goes on then."""
    Engine(path).open().close()
    with Program(HOLDS, path, "0.7") as holder:
        assert holder.line() == "locked"
        with Engine(path) as engine:
            assert engine.run(five) == 5
        assert holder.succeed() == ["unlocked"]


@pytest.mark.slow
def test_a_new_file_is_made_though_another_process_has_it_locked(path: str) -> None:
    """An empty file that somebody has open in a transaction delays the engine, too."""
    with Program(HOLDS, path, "0.7") as holder:
        assert holder.line() == "locked"
        with Engine(path) as engine:
            assert engine.run(five) == 5
        assert holder.succeed() == ["unlocked"]


@pytest.mark.slow
def test_closing_does_not_wait_for_a_lock(path: str) -> None:
    """close(timeout=0) returns while another process holds the lock; nothing is lost."""
    engine = Engine(path).open()
    handle = engine.start(five)
    handle.result(PATIENCE)
    with Program(HOLDS, path, "until told") as holder:
        assert holder.line() == "locked"
        closing = threading.Thread(target=lambda: engine.close(timeout=0), name="closing")
        closing.start()
        closing.join(2)
        closed = not closing.is_alive()
        holder.say("go")
        holder.succeed()
        closing.join(PATIENCE)
    assert closed
    with Engine(path) as again:
        assert again.handle(handle.id).result(PATIENCE) == 5


class Heard(logging.Handler):
    """Sets an event when a line with a word comes."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word = word
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._word in record.getMessage():
            self.event.set()


@pytest.mark.slow
def test_n33_a_long_lock_is_told_in_the_log(engine: Engine, path: str) -> None:
    """N33: after five seconds a line says what is waited for; no workflow fails."""
    heard = Heard("locked by another process")
    logging.getLogger("durable").addHandler(heard)
    try:
        with Program(HOLDS, path, "until told") as holder:
            assert holder.line() == "locked"
            thread = threading.Thread(target=lambda: engine.run(five), name="runs")
            thread.start()
            assert heard.event.wait(PATIENCE)
            assert thread.is_alive()
            holder.say("go")
            holder.succeed()
        thread.join(PATIENCE)
        assert [run.status for run in engine.workflows()] == ["SUCCESS"]
    finally:
        logging.getLogger("durable").removeHandler(heard)


# ---------------------------------------------------------------------- N37


def write_many(path: str, count: int) -> int:
    """The size that the write-ahead log reached during so many writes, beside a reader."""
    largest = 0
    database = Database(
        path, clock=SystemClock(), synchronous="normal", create=True, on_commit=lambda keys: None
    ).open()
    database.write("table", lambda tx: tx.execute("CREATE TABLE t (x)"))
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            database.read(lambda tx: tx.rows("SELECT x FROM t LIMIT 100", {}))

    reader = threading.Thread(target=read, name="reads")
    reader.start()
    try:
        for number in range(count):
            database.write("add", lambda tx, number=number: add(tx, number))
            if number % 100 == 0:
                largest = max(largest, Path(f"{path}-wal").stat().st_size)
    finally:
        stop.set()
        reader.join(PATIENCE)
        database.close()
    return largest


def add(tx: Tx, number: int) -> None:
    tx.execute("INSERT INTO t VALUES (:x)", {"x": f"{number}" * 50})


def left_behind(path: str) -> list[str]:
    return sorted(each.name for each in Path(path).parent.iterdir())


@pytest.mark.slow
def test_n37_the_write_ahead_log_stays_small(path: str, tmp_path: Path) -> None:
    """N37: 5,000 writes beside a reader; after close there is one file, and the folder can go."""
    assert write_many(path, 5_000) < 16 << 20
    assert left_behind(path) == ["test.db"]
    shutil.rmtree(tmp_path)
    assert not tmp_path.exists()


@pytest.mark.slow
def test_n37_the_write_ahead_log_stays_small_for_long(path: str) -> None:
    """N37: 100,000 writes, of 400 MB: it holds what came during the longest look of the reader."""
    assert write_many(path, 100_000) < 64 << 20
    assert left_behind(path) == ["test.db"]


def test_n37_an_engine_leaves_one_file(path: str) -> None:
    """N37: after runs on many threads, with clients that closed before."""
    with Engine(path) as engine, Client(path) as client:
        for handle in [engine.start(five) for _ in range(20)]:
            assert client.handle(handle.id).result(PATIENCE) == 5
    assert left_behind(path) == ["test.db"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)

"""N36: what a forked child inherits of an engine does no harm, and is of no use there."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest

from tests.processes.programs import Program

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")

# Forking in a process with threads is what these tests are about; Python 3.12 warns of it.
WARNINGS = "ignore::DeprecationWarning"

FORKS = """\
import gc, multiprocessing

path, how = sys.argv[1:]
report = os.pipe()

@step
def before():
    return "before"

@workflow
def other():
    return 1

def child():
    gc.collect()
    answers = []
    for use in (
        lambda: engine.start(other),
        lambda: engine.run(other),
        lambda: engine.workflows(),
        lambda: engine.handle("forks").result(),
        lambda: engine.send("forks", 1),
        lambda: engine.recover(),
        lambda: client.workflows(),
        lambda: client.send("forks", 1),
    ):
        try:
            answers.append(f"no error: {use()}")
        except durable.EngineClosed as error:
            answers.append("closed" if "fork" in str(error) else str(error))
        except BaseException as error:
            answers.append(f"{type(error).__name__}: {error}")
    engine.close()
    client.close()
    os.write(report[1], repr(answers).encode() + b"\\n")
    gc.collect()

def fork_in_c():
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(0)
    return pid

def fork_and_return():
    pid = os.fork()
    if pid == 0:
        child()
        sys.exit(0)  # through all that is registered for the end of the process
    return pid

@step
def forks():
    if how == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        return process.exitcode
    pid = fork_in_c() if how == "os._exit" else fork_and_return()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@step
def after():
    return "after"

@workflow
def parent():
    first = {before() for _ in range(8)}  # so many that the connection keeps its read lock
    return [*first, forks(), after()]

with Engine(path) as engine, Client(path) as client:
    handles = [other.start() for _ in range(20)]
    if how == "sys.exit":
        print(parent.options(id="forks")())  # on the main thread, whose stack the child unwinds
    else:
        print(parent.options(id="forks").start().result())
    print(os.read(report[0], 100_000).decode().strip())
    print([handle.result() for handle in handles] == [1] * 20)
    print(engine.run(other), len(client.workflows()), os.path.exists(path + ".lock"))
print(os.listdir(os.path.dirname(path)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["os._exit", "sys.exit", "multiprocessing"])
def test_n36_a_fork_in_a_step_harms_nothing(path: str, how: str) -> None:
    """The child is told why it cannot use the engine; the parent goes on; the file is whole."""
    with Program(FORKS, path, how, warnings=WARNINGS) as program:
        result, answers, others, last, left = program.succeed()

    assert result == "['before', 0, 'after']"
    assert answers == repr(["closed"] * 8)
    assert others == "True"
    assert last == "1 22 True"
    assert left == "['test.db']"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


CLIENT_FORKS = """\
client = Client(sys.argv[1])
client.workflows()
if os.fork() == 0:
    try:
        client.workflows()
    except durable.EngineClosed as error:
        print("child", "fork" in str(error))
    sys.exit(0)
print("parent", os.waitstatus_to_exitcode(os.wait()[1]))
client.send("w", "sent after the fork")
print("sent")
sys.stdin.readline()
client.close()
"""


@pytest.mark.slow
def test_n36_a_fork_of_a_client_harms_nothing(path: str) -> None:
    """A process that has a client only, beside an engine: the same."""
    from durable import Engine, workflow

    with Engine(path) as engine:
        handle = workflow(name="tests:receives")(_receives).options(id="w").start()
        with Program(CLIENT_FORKS, path, warnings=WARNINGS) as program:
            assert program.line() == "child True"
            assert program.line() == "parent 0"
            assert program.line() == "sent"
            assert handle.result(20) == "sent after the fork"
            program.say("end")
            program.succeed()
        assert engine.workflows()[0].status == "SUCCESS"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _receives() -> str:
    import durable

    return durable.recv(timeout=20)


MANY_FORKS = """\
path = sys.argv[1]

@step
def forks(n):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@step
def writes(n):
    return n

@workflow
def family(n):
    return [(forks(i), writes(i)) for i in range(5)]

with Engine(path) as engine:
    handles = [engine.start(family, n) for n in range(8)]
    print(all(handle.result() == [(0, i) for i in range(5)] for handle in handles))
"""


@pytest.mark.slow
def test_n36_forks_while_others_write(path: str) -> None:
    """Forty forks on eight threads, at whatever moment the others are."""
    with Program(MANY_FORKS, path, warnings=WARNINGS) as program:
        assert program.succeed() == ["True"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


CHILD_OPENS_ITS_OWN = """\
path = sys.argv[1]

@workflow
def receives():
    return durable.recv(timeout=20)

@step
def sends_from_a_child():
    pid = os.fork()
    if pid == 0:
        with Client(path) as client:
            client.send("receives", "from the child")
        try:
            Engine(path).open()
        except durable.AlreadyRunning as error:
            os._exit(0 if error.pid == os.getppid() else 1)
        os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@workflow
def parent():
    return sends_from_a_child()

with Engine(path) as engine:
    handle = receives.options(id="receives").start()
    print(engine.run(parent))
    print(handle.result())
"""


@pytest.mark.slow
def test_n36_a_child_may_open_a_client_of_its_own(path: str) -> None:
    """As the error advises; an engine of its own it may not have while its parent lives."""
    with Program(CHILD_OPENS_ITS_OWN, path, warnings=WARNINGS) as program:
        assert program.succeed() == ["0", "from the child"]

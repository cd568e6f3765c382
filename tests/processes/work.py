"""The program that is killed: ``python work.py FILE LOG COUNT``.

It starts COUNT workflows of each kind, unless the file has them, and runs until all have ended. A
step that has an effect appends a line to LOG, its `step_key`, in one write.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from typing import Any

import durable
from durable import Engine, Retry, step, transaction, workflow

LOG = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
MESSAGES = 8


def effect() -> str:
    key = durable.step_key()
    os.write(LOG, f"{key}\n".encode())
    time.sleep(0.003)  # what a death may fall into: it has acted, and is not recorded
    return key


@step
def acts(number: int) -> int:
    effect()
    return number * number


@step(retry=Retry(attempts=4, delay=0.01))
def flaky() -> int:
    effect()
    attempt = durable.current().attempt
    assert attempt is not None
    if attempt < 3:
        raise ConnectionError(f"attempt {attempt}")
    return attempt


@transaction
def counts(cursor: sqlite3.Cursor, name: str) -> int:
    cursor.execute("CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, n INTEGER)")
    cursor.execute(
        "INSERT INTO counter VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET n = n + 1", (name,)
    )
    return int(cursor.execute("SELECT n FROM counter WHERE name = ?", (name,)).fetchone()[0])


@workflow
def steps(count: int) -> int:
    return sum(acts(number) for number in range(count))


@workflow
def retries() -> list[int]:
    return [flaky() for _ in range(3)]


@workflow
def sleeps(count: int) -> int:
    for number in range(count):
        durable.sleep(0.01)
        acts(number)
    return count


@workflow
def books(name: str, count: int) -> list[int]:
    return [counts(name) for _ in range(count)]


@workflow
def receives() -> list[Any]:
    got = []
    for _ in range(MESSAGES):
        got.append(durable.recv("work"))
        acts(len(got))
    return got


@workflow
def parent(count: int) -> list[int]:
    handles = [child.start(number) for number in range(count)]
    durable.set_event("children", [handle.id for handle in handles])
    durable.wait(handles, first=True)
    return [handle.result() for handle in handles]


@workflow
def child(number: int) -> int:
    return acts(number) + acts(number)


@workflow
def shows(count: int) -> int:
    for number in range(count):
        durable.set_event("number", acts(number))
    return count


@workflow
def watches(workflow_id: str, count: int) -> int:
    while (number := durable.get_event(workflow_id, "number")) != (count - 1) ** 2:
        durable.sleep(0.005)
    return number


@workflow
def sends(receiver: str) -> int:
    for number in range(MESSAGES):
        durable.send(receiver, ["from a workflow", number], "work")
        acts(number)
    return MESSAGES


@workflow
def wide(count: int) -> list[int]:
    return durable.map(acts, range(count), workers=3)


EXPECTED: dict[str, Any] = {}


def start(n: int) -> list[durable.Handle[Any]]:
    """One of each kind, with what it must return."""
    started = [
        (steps.options(id=f"steps{n}").start(12), sum(i * i for i in range(12))),
        (retries.options(id=f"retries{n}").start(), [3, 3, 3]),
        (sleeps.options(id=f"sleeps{n}").start(6), 6),
        (books.options(id=f"books{n}").start(f"books{n}", 10), list(range(1, 11))),
        (parent.options(id=f"parent{n}").start(4), [2 * i * i for i in range(4)]),
        (shows.options(id=f"shows{n}").start(6), 6),
        (watches.options(id=f"watches{n}").start(f"shows{n}", 6), 25),
        (
            receives.options(id=f"inbox{n}").start(),
            [["from a workflow", i] for i in range(MESSAGES)],
        ),
        (sends.options(id=f"sends{n}").start(f"inbox{n}"), MESSAGES),
        (receives.options(id=f"outside{n}").start(), list(range(MESSAGES))),
        (wide.options(id=f"wide{n}").start(10), [i * i for i in range(10)]),
    ]
    EXPECTED.update({handle.id: expected for handle, expected in started})
    return [handle for handle, _ in started]


def main() -> None:
    with Engine(sys.argv[1]) as engine:
        handles = [handle for n in range(int(sys.argv[3])) for handle in start(n)]
        sys.stdout.write("started\n")
        sys.stdout.flush()
        for handle in handles:
            result = handle.result()
            assert result == EXPECTED[handle.id], (handle.id, result)
        engine.recover()
    sys.stdout.write("finished\n")


if __name__ == "__main__":
    main()

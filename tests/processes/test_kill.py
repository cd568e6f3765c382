"""SIGKILL at random moments, again and again, until all is done; then the books are audited."""

from __future__ import annotations

import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from durable import Client, DurableError, NotADurableFile, Step
from tests.processes.programs import Program
from tests.support import until

WORK = Path(__file__).with_name("work.py")
MESSAGES = 8
KINDS = 11
CHILDREN = 4

Recorded = dict[str, dict[str, tuple[str, Any, str]]]


class Killed:
    """A file whose program is killed, what was seen of it in between, and what the parent sent."""

    def __init__(self, folder: Path, seed: int, count: int) -> None:
        self.path = str(folder / "work.db")
        self.log = folder / "log"
        self.count = count
        self.rng = random.Random(seed)
        self.kills = 0
        self.seen: Recorded = {}
        self.acted: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()

    def run(self, *, kill_after: float | None) -> bool:
        """Run the program; kill it after so many seconds. True if it has finished before."""
        with Program(WORK, self.path, str(self.log), str(self.count)) as program:
            if kill_after is None:
                self.feed(until=lambda: not program.running())
                assert program.succeed()[-1] == "finished"
                return True
            program.line()
            end = time.monotonic() + kill_after
            self.feed(until=lambda: time.monotonic() >= end)
            finished = not program.running()
            program.kill()
            if finished:
                assert "AssertionError" not in program.errors(), program.errors()
        self.kills += not finished
        return finished

    def feed(self, until: Callable[[], bool]) -> None:
        """Send numbered messages from outside, one by one, while the program runs."""
        with Client(self.path) as client:
            while not until():
                name = f"outside{self.rng.randrange(self.count)}"
                if self.sent[name] < MESSAGES:
                    client.send(name, self.sent[name], "work")
                    self.sent[name] += 1
                time.sleep(self.rng.uniform(0, 0.02))

    # ------------------------------------------------------------------ audits

    def look(self) -> None:
        """After a death: what was recorded is whole, and nothing of it has changed or run again."""
        acted = self.effects()
        recorded: Recorded = {}
        with Client(self.path) as client:
            for run in client.workflows(limit=100_000):
                steps = client.handle(run.id).steps()
                check_prefix(run.id, steps)
                recorded[run.id] = {
                    step.number: (step.name, step.value, str(step.outcome))
                    for step in steps
                    if step.outcome is not None
                }
        for workflow_id, before in self.seen.items():
            for number, record in before.items():
                assert recorded[workflow_id][number] == record, (workflow_id, number)
                key = f"{workflow_id}/{number}"
                again = acted[key] - self.acted[key]
                assert again == 0, f"{key} was recorded, and ran {again} times again"
        self.seen, self.acted = recorded, acted
        self.check_integrity()

    def effects(self) -> Counter[str]:
        """How often each step has acted, by its key."""
        text = self.log.read_text() if self.log.exists() else ""
        assert not text or text.endswith("\n")
        return Counter(text.splitlines())

    def check_integrity(self) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            twice = connection.execute(
                "SELECT workflow, lane, number FROM durable_checkpoint"
                " GROUP BY workflow, lane, number HAVING count(*) > 1"
            )
            assert twice.fetchall() == []

    def audit(self) -> None:
        """At the end: each workflow succeeded once, with each of its effects at least once."""
        self.look()
        with Client(self.path) as client:
            runs = client.workflows(limit=100_000)
        assert len(runs) == self.count * (KINDS + CHILDREN)
        assert all(run.status == "SUCCESS" for run in runs)
        for run in runs:
            if run.id.startswith("outside"):
                assert run.result == list(range(MESSAGES))
            if run.id.startswith("inbox"):
                assert run.result == [["from a workflow", i] for i in range(MESSAGES)]
        self.audit_counts()
        self.audit_effects()

    def audit_counts(self) -> None:
        """Transactions happened exactly once; no message is left or was taken twice."""
        with closing(sqlite3.connect(self.path)) as connection:
            counter = connection.execute("SELECT name, n FROM counter").fetchall()
            left = connection.execute(
                "SELECT count(*) FROM durable_message WHERE taken_by IS NULL"
            ).fetchone()
            all_messages = connection.execute("SELECT count(*) FROM durable_message").fetchone()
        assert dict(counter) == {f"books{n}": 10 for n in range(self.count)}
        assert left == (0,)
        assert all_messages == (2 * MESSAGES * self.count,)

    def audit_effects(self) -> None:
        """Each step acted at least once, and no more often than it was interrupted.

        A step acts once more for each death between its act and its record.
        """
        allowed = {"retries": 3}  # tries, by the kind of workflow
        for key, times in self.effects().items():
            kind = key.split("/")[0].rstrip("0123456789")
            tries = allowed.get(kind, 1)
            assert tries <= times <= tries + self.kills, (key, times)


def check_prefix(workflow_id: str, steps: list[Step]) -> None:
    """What is recorded in each lane are the numbers from 1 on, without a gap.

    Only the lanes of a `map` may have gaps between them, as its items run beside each other; and
    only the last step of a lane may be undecided.
    """
    lanes: dict[str, list[Step]] = {}
    for step in steps:
        lane, _, number = step.number.rpartition(".")
        lanes.setdefault(lane, []).append(step)
        assert int(number) > 0
    for lane, members in lanes.items():
        if lane == "":
            numbers = [int(step.number) for step in members]
            assert numbers == list(range(1, len(numbers) + 1)), (workflow_id, numbers)
            assert all(step.outcome is not None for step in members[:-1]), workflow_id


def kill_until_done(folder: Path, seed: int, *, kills: int, count: int) -> Killed:
    killed = Killed(folder, seed, count)
    while killed.kills < kills:
        if killed.run(kill_after=killed.rng.uniform(0.0, 0.2)):
            break
        killed.look()
    killed.run(kill_after=None)
    killed.audit()
    return killed


@pytest.mark.slow
def test_four_kills_lose_and_repeat_nothing(tmp_path: Path, seed: int) -> None:
    """Workflows of eleven kinds, killed again and again: every promise of the books holds."""
    kill_until_done(tmp_path, seed, kills=4, count=6)


@pytest.mark.slow
def test_a_hundred_kills_lose_and_repeat_nothing(tmp_path: Path, seed: int) -> None:
    """More of them, a hundred times."""
    killed = kill_until_done(tmp_path, seed, kills=100, count=60)
    assert killed.kills > 10


EARLY = """\
print("begins")
with Engine(sys.argv[1]) as engine:
    print("open")
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_a_kill_while_the_file_is_made_leaves_a_file_that_opens(tmp_path: Path, seed: int) -> None:
    """At whatever moment of the first opening: the next one works."""
    rng = random.Random(seed)
    for number in range(5):
        path = str(tmp_path / f"{number}.db")
        with Program(EARLY, path) as program:
            assert program.line() == "begins"
            time.sleep(rng.uniform(0, 0.05))
            program.kill()
        with suppress(NotADurableFile), Client(path) as client:
            assert client.workflows() == []
        with Program(EARLY, path) as program:
            assert [program.line(), program.line()] == ["begins", "open"]


# ---------------------------------------------------------------------- a poison workflow (N02)

POISON = """\
path = sys.argv[1]

@workflow(max_recoveries=2)
def poison():
    print("poison")
    os.kill(os.getpid(), signal.SIGKILL)

@step
def counts():
    return 1

@workflow
def good(n):
    for _ in range(3):
        counts()
    received = durable.recv("go")
    return received

with Engine(path) as engine:
    for n in range(2):
        good.options(id=f"good{n}").start(n)
    poison.options(id="poison").start()
    print("started")
    for n in range(2):
        engine.send(f"good{n}", n, "go", idempotency_key="once")
"""


@pytest.mark.slow
def test_n02_a_poison_workflow_is_given_up_and_the_others_finish(path: str) -> None:
    """N02: after two recoveries it is DEAD; then the program runs to its end."""
    deaths = 0
    while True:
        with Program(POISON, path) as program:
            lines = program.rest()
            if program.wait() == 0:
                break
            assert program.wait() == -9
            assert "poison" in lines
            deaths += 1
        assert deaths <= 3
    assert deaths == 3  # the start and two recoveries

    with Client(path) as client:
        dead = client.handle("poison")
        assert dead.info().status == "DEAD"
        assert dead.info().recoveries == 2
        assert [client.handle(f"good{n}").info().status for n in range(2)] == ["SUCCESS"] * 2
        with pytest.raises(DurableError, match="given up"):
            dead.result(timeout=1)


@pytest.mark.slow
def test_n02_a_dead_workflow_can_be_resumed(path: str) -> None:
    """It goes on when somebody says so, and dies again if nothing was mended."""
    for _ in range(3):
        with Program(POISON, path) as program:
            assert program.wait() == -9
    with Program(POISON, path) as program:
        program.succeed()
    with Client(path) as client:
        client.resume("poison")
        assert client.handle("poison").info().status == "PENDING"
    with Program(POISON, path) as program:
        assert program.wait() == -9


# ---------------------------------------------------------------------- deaths are counted (N05)

DIES_ONCE = """\
@step
def counts():
    return 1

@workflow(max_recoveries=1)
def goes_on():
    for n in range(20):
        counts()
        print(n)
        sys.stdin.readline()
    return "done"

with Engine(sys.argv[1]) as engine:
    goes_on.options(id="w").start()
"""


@pytest.mark.slow
def test_deaths_with_a_checkpoint_in_between_do_not_add_up(path: str) -> None:
    """A workflow that gets on is not given up, however often its process dies."""
    for number in range(6):
        with Program(DIES_ONCE, path) as program:
            for said in range(number + 1):
                assert program.line() == str(said)
                if said < number:
                    program.say("on")
            program.say("on")
            assert program.line() == str(number + 1)
            program.kill()
    with Client(path) as client:
        assert client.handle("w").info().status == "PENDING"
        assert client.handle("w").info().recoveries <= 1
        assert len(client.handle("w").steps()) == 7


MAPS = """
import os

log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@step(name="acts")
def acts(number):
    os.write(log, b"%d\\n" % number)
    return number * 2

@workflow(name="maps")
def maps(count):
    return durable.map(acts, range(count), workers=8)

with Engine(sys.argv[1]) as engine:
    print(maps.options(id="w").start(10_000).result() == [2 * n for n in range(10_000)])
"""


@pytest.mark.slow
def test_a_map_of_ten_thousand_items_killed_in_the_middle(path: str, tmp_path: Path) -> None:
    """Only what was not recorded runs again: no more items than there are workers."""
    log = tmp_path / "log"
    log.touch()
    with Program(MAPS, path, str(log)) as program:
        until(lambda: log.stat().st_size > 25_000)  # about half of the lines
        program.kill()
    with Program(MAPS, path, str(log)) as program:
        assert program.succeed() == ["True"]
    acted = Counter(map(int, log.read_text().splitlines()))
    assert sorted(acted) == list(range(10_000))
    assert 10_000 <= acted.total() <= 10_000 + 8

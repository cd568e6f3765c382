"""`replay`: the code of today against the records of yesterday, without running any step."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import (
    Engine,
    InvalidArgument,
    NonDeterminism,
    NotADurableFile,
    Retry,
    WorkflowNotFound,
    step,
    transaction,
    workflow,
)
from durable.runtime.registry import registry
from durable.testing import TestEngine, engine, replay

ran: list[str] = []
"""What bodies of steps did."""


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


@step
def reserve() -> str:
    ran.append("reserve")
    return "reserved"


@step
def charge() -> str:
    ran.append("charge")
    return "charged"


@step
def ship() -> str:
    ran.append("ship")
    return "shipped"


def declare(body: Callable[[], Any]) -> Any:
    """A workflow called "order" with that body: declared again, it is the code of a later day."""

    @workflow(name="order")
    def order() -> Any:
        return body()

    return order


def yesterday() -> str:
    reserve()
    charge()
    durable.recv("paid")
    return ship()


def record(path: str, body: Callable[[], Any] = yesterday, *, finished: bool = True) -> None:
    """A file in which "order" has ended, or is in flight after its first two steps."""
    with engine(path=path) as kept:
        handle = declare(body).options(id="17").start()
        kept.clock.settle()
        if finished:
            handle.send("now", "paid")
            handle.result()
    ran.clear()


def parts(path: str, today: Callable[[], Any]) -> NonDeterminism:
    declare(today)
    with pytest.raises(NonDeterminism) as caught:
        replay(path)
    return caught.value


# ---------------------------------------------------------------------- what fits


@pytest.mark.parametrize("finished", [True, False])
def test_unchanged_code_fits(path: str, finished: bool) -> None:
    """Every workflow of the file is followed, whether it has ended or is in flight."""
    record(path, finished=finished)
    report = replay(path)
    assert (report.replayed, report.skipped) == (["17"], {})
    assert ran == []


@pytest.mark.parametrize("finished", [True, False])
def test_what_comes_after_the_records_fits(path: str, finished: bool) -> None:
    """A step more at the end is one that no run has passed: all of them will take it."""

    def today() -> str:
        yesterday()
        return charge()

    record(path, finished=finished)
    declare(today)
    assert replay(path).replayed == ["17"]
    assert ran == []


def test_other_values_fit(path: str) -> None:
    """What a step does, or is given, may change: what was recorded counts."""

    def today() -> str:
        assert reserve() == "reserved"
        durable.set_event("new", 1) if charge() != "charged" else None
        durable.recv("paid", timeout=7)
        return ship() + "!"

    record(path)
    declare(today)
    replay(path)


def with_patch() -> str:
    reserve()
    if durable.patched("charge-twice"):
        charge()
    charge()
    durable.recv("paid")
    return ship()


@pytest.mark.parametrize("finished", [True, False])
def test_a_guarded_change_fits(path: str, finished: bool) -> None:
    """What `patched` guards is for later runs, and those that took it fit as well."""
    record(path, finished=finished)
    declare(with_patch)
    assert replay(path).replayed == ["17"]
    with engine(path=path):
        handle = declare(with_patch).options(id="18").start()
        handle.send("now", "paid")
        handle.result()
    assert [each for each in replay(path).replayed if each == "18"] == ["18"]


def test_a_marker_that_nobody_asks_for_any_more_fits(path: str) -> None:
    """When all old runs have ended, the guard goes: also where it was the last thing recorded."""

    def guarded_at_the_end() -> None:
        reserve()
        durable.patched("quietly")

    record(path, guarded_at_the_end, finished=False)
    declare(lambda: reserve())
    assert replay(path).replayed == ["17"]


# ---------------------------------------------------------------------- what parts


@pytest.mark.parametrize("finished", [True, False])
def test_a_step_that_was_inserted(path: str, finished: bool) -> None:
    """The place, what was recorded there, and what the code asks for."""

    def today() -> str:
        reserve()
        ship()
        charge()
        durable.recv("paid")
        return ship()

    record(path, finished=finished)
    error = parts(path, today)
    assert (error.workflow_id, error.workflow_name, error.step) == ("17", "order", "2")
    assert error.recorded == "tests.testing.test_replay:charge"
    assert error.asked == "tests.testing.test_replay:ship"
    assert "step 2 was recorded as 'tests.testing.test_replay:charge'" in str(error)
    assert ran == []


@pytest.mark.parametrize("finished", [True, False])
def test_a_step_that_was_removed(path: str, finished: bool) -> None:
    """The next one takes its number, and does not match."""

    def today() -> str:
        charge()
        durable.recv("paid")
        return ship()

    record(path, finished=finished)
    error = parts(path, today)
    assert (error.step, error.asked) == ("1", "tests.testing.test_replay:charge")


@pytest.mark.parametrize("finished", [True, False])
def test_a_step_that_was_renamed(path: str, finished: bool) -> None:
    """A name is what the file knows; giving the old one to the new function would have done."""

    def renamed(name: str | None) -> Callable[[], Any]:
        @step(name=name)
        def book() -> str:
            return "booked"

        def today() -> str:
            book()
            charge()
            durable.recv("paid")
            return ship()

        return today

    record(path, finished=finished)
    error = parts(path, renamed(None))
    assert error.step == "1"
    assert error.asked.endswith("renamed.<locals>.book")


def test_a_topic_that_was_renamed(path: str) -> None:
    """What durable itself records has a name, too."""

    def today() -> str:
        reserve()
        charge()
        durable.recv("money")
        return ship()

    record(path)
    error = parts(path, today)
    assert (error.step, error.recorded, error.asked) == (
        "3",
        "durable.recv:paid",
        "durable.recv:money",
    )


@pytest.mark.parametrize(("finished", "place"), [(True, "3"), (False, "2")])
def test_code_that_ends_too_early(path: str, finished: bool, place: str) -> None:
    """A step that was recorded and is not asked for any more would be lost."""
    record(path, finished=finished)
    error = parts(path, lambda: reserve() if place == "2" else (reserve(), charge()))
    assert (error.step, error.asked) == (place, "the end of the workflow")


def test_code_that_fails_too_early(path: str) -> None:
    """What the code raises is named, and at hand."""

    def today() -> str:
        reserve()
        return str({}["nothing"])

    record(path)
    error = parts(path, today)
    assert (error.step, error.asked) == ("2", "the end of the workflow in KeyError")
    assert isinstance(error.__cause__, KeyError)


def test_a_body_that_draws_a_random_number(path: str) -> None:
    """What decides otherwise today, by chance or by the day, is found."""
    days = iter(["monday", "tuesday"])

    def moody() -> None:
        reserve() if next(days) == "monday" else charge()

    record(path, moody, finished=False)
    error = parts(path, moody)
    assert (error.step, error.asked) == ("1", "tests.testing.test_replay:charge")


# ---------------------------------------------------------------------- nothing is done


@transaction
def book(cursor: sqlite3.Cursor) -> None:
    ran.append("book")
    cursor.execute("CREATE TABLE IF NOT EXISTS booking (n)")


@step(retry=Retry(attempts=3, delay=3600))
def fails() -> None:
    ran.append("fails")
    raise OSError("not yet")


@workflow
def child() -> str:
    ran.append("the body of the child")
    return reserve()


@step
def double(number: int) -> int:
    ran.append("double")
    return 2 * number


def all_there_is() -> list[Any]:
    durable.set_event("stage", 1)
    out: list[Any] = [durable.now(), durable.uuid4(), durable.random().random()]
    durable.sleep(30 * 86400)
    out.append(child.options(id="child").start().result())
    book()
    futures = [double.submit(n) for n in (1, 2)]
    out += [each.result() for each in futures]
    out += durable.map(double, [3, 4, 5])
    out.append(durable.recv("never", timeout=60, default=None))
    durable.send("child", "too late")
    durable.write_stream("log", "line")
    out.append(durable.run_step(len, "abc"))
    try:
        fails()
    except OSError as error:
        out.append(repr(error))
    return out


def test_nothing_is_run_or_waited_for(path: str) -> None:
    """No step, transaction or child; a sleep, a pause and a timeout are over at once."""
    record(path, all_there_is)
    assert replay(path).replayed == ["17", "child"]
    assert ran == ["the body of the child"]


def test_what_is_in_flight_is_not_run(path: str) -> None:
    """A step between two tries, and a child that has not ended, stay as they are."""

    def tries() -> None:
        child.options(id="child").start()
        fails()

    with engine(path=path) as kept:
        declare(tries).options(id="17").start()
        kept.clock.settle()
    ran.clear()
    report = replay(path, "17")
    assert report.replayed == ["17"]
    assert ran == []


def test_a_step_that_was_submitted_is_followed(path: str) -> None:
    """Also behind what ran beside the workflow, a change is found."""

    def recorded() -> None:
        future = double.submit(1)
        durable.map(double, [1, 2])
        future.result()
        charge()

    def today() -> None:
        future = double.submit(1)
        durable.map(double, [1, 2])
        future.result()
        ship()

    record(path, recorded)
    error = parts(path, today)
    assert (error.step, error.asked) == ("3", "tests.testing.test_replay:ship")
    assert ran == []


def test_a_step_that_was_still_under_way_is_passed(path: str) -> None:
    """What was submitted and not recorded holds up only who waits for it."""

    def recorded() -> None:
        future = double.submit(1)
        reserve()
        future.result()

    def today() -> None:
        double.submit(1)
        charge()

    record(path, recorded, finished=False)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM durable_step WHERE number = 1")
        connection.execute(
            "UPDATE durable_workflow SET status = 'PENDING', result = NULL, finished_at = NULL"
        )
    connection.close()
    assert replay(path).replayed == ["17"]
    assert parts(path, today).step == "2"
    assert ran == []


def test_the_map_of_an_item_that_changed(path: str) -> None:
    """A place in a lane is named like one."""

    def recorded() -> None:
        durable.map(double, [1, 2])

    record(path, recorded, finished=False)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE durable_step SET name = 'other' WHERE lane = '1' AND number = 2")
    connection.close()
    error = parts(path, recorded)
    assert (error.step, error.recorded) == ("1.2", "other")


def test_the_file_is_not_changed(path: str) -> None:
    """Byte for byte, and nothing is left beside it."""
    record(path, all_there_is)
    folder = Path(path).parent
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    replay(path)
    with pytest.raises(NonDeterminism):
        declare(charge.fn)
        replay(path)
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


def test_a_file_whose_process_has_died(path: str, tmp_path: Path) -> None:
    """What the dead process had committed last is in a file beside it, and is seen."""
    dead = tmp_path / "dead.db"
    with Engine(path):
        declare(lambda: reserve()).options(id="17").start().result()
        for end in ("", "-wal"):
            shutil.copyfile(f"{path}{end}", f"{dead}{end}")
    before = dead.read_bytes()
    assert replay(dead).replayed == ["17"]
    assert parts(str(dead), lambda: charge()).step == "1"
    assert dead.read_bytes() == before


def test_an_engine_may_have_it_open(path: str) -> None:
    """What the engine has committed is seen, and it goes on undisturbed."""
    with engine(path=path) as kept:
        handle = declare(yesterday).options(id="17").start()
        kept.clock.settle()
        assert replay(path).replayed == ["17"]
        error = parts(path, lambda: ship())
        assert error.step == "1"
        declare(yesterday)
        handle.send("now", "paid")
        assert handle.result() == "shipped"


def test_the_program_s_own_engine_is_left_alone(engine: Engine, tmp_path: Path) -> None:
    """It is the current one again, and has nothing of what was replayed."""
    path = str(tmp_path / "yesterday.db")
    record(path)
    replay(path)
    assert engine.workflows() == []
    assert child() == "reserved"
    assert len(engine.workflows()) == 1


# ---------------------------------------------------------------------- which


def test_one_of_many(path: str) -> None:
    """With an id that one alone is followed; the others may part as they like."""
    record(path)
    with engine(path=path):
        declare(reserve.fn).options(id="other").start().result()
    declare(yesterday)
    assert replay(path, "17").replayed == ["17"]
    assert replay(path, workflow_id="other").replayed == ["other"]


def test_the_first_that_parts_is_told(path: str) -> None:
    """All are followed in the order of their creation."""
    record(path)
    with engine(path=path):
        declare(lambda: charge()).options(id="18").start().result()
    assert parts(path, yesterday).workflow_id == "18"


def test_an_unknown_id(path: str) -> None:
    """There is no workflow of that name in the file."""
    record(path)
    with pytest.raises(WorkflowNotFound, match="'18'"):
        replay(path, "18")


def test_what_is_not_declared_is_left_out(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program lacks the code of some: they are told of, with the reason."""
    record(path)
    with engine(path=path):
        child.options(id="child").start().result()
    monkeypatch.delitem(registry._workflows, "order")
    report = replay(path)
    assert report.replayed == ["child"]
    assert list(report.skipped) == ["17"]
    assert "no workflow 'order' is declared in this program: import" in report.skipped["17"]


@pytest.mark.parametrize("workflow_id", [None, "17"])
def test_nothing_that_is_declared(
    path: str, monkeypatch: pytest.MonkeyPatch, workflow_id: str | None
) -> None:
    """A check that could check nothing does not pass: somebody forgot an import."""
    record(path)
    monkeypatch.delitem(registry._workflows, "order")
    with pytest.raises(InvalidArgument, match="nothing could be replayed: of workflow '17', no "):
        replay(path, workflow_id)


class Shop:
    def __init__(self, name: str) -> None:
        self.durable_key = name

    @workflow
    def sell(self) -> str:
        return self.durable_key + reserve()


def test_an_instance_that_is_not_known(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method is followed on its instance; without it, it is left out."""
    with engine(path=path):
        shop = Shop("corner")
        shop.sell.options(id="sale").start().result()
        child.options(id="child").start().result()
    assert replay(path).replayed == ["sale", "child"]
    monkeypatch.setattr(registry, "_instances", {})
    report = replay(path)
    assert report.replayed == ["child"]
    assert "its instance 'corner'" in report.skipped["sale"]


def test_workflows_that_were_stopped(path: str) -> None:
    """One that was cancelled is followed as far as it got: it may be resumed."""
    with engine(path=path) as kept:
        handle = declare(yesterday).options(id="17").start()
        kept.clock.settle()
        handle.cancel()
    assert replay(path).replayed == ["17"]
    assert parts(path, charge.fn).step == "1"


def test_a_file_without_workflows(path: str) -> None:
    """Nothing to be followed, and nothing wrong."""
    with engine(path=path):
        pass
    report = replay(path)
    assert (report.replayed, report.skipped) == ([], {})


def test_what_is_no_file_of_durable(tmp_path: Path) -> None:
    """The error names the path that was given."""
    text = tmp_path / "notes.txt"
    text.write_text("not a database" * 100)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (n)")
    connection.close()
    for path in (tmp_path / "nowhere.db", tmp_path, text, other):
        with pytest.raises(NotADurableFile) as caught:
            replay(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_a_test_engine_is_a_source(tmp_path: Path) -> None:
    """A run of today's code may be checked at once, also while it goes on."""

    def check(kept: TestEngine) -> None:
        declare(yesterday).options(id="17").start()
        kept.clock.settle()
        assert replay(kept.path).replayed == ["17"]

    with engine() as kept:
        check(kept)

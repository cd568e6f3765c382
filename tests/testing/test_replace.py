"""`replace`: another body for a step or a workflow, for one engine and a while."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

import durable
from durable import InvalidArgument, NoEngine, Retry, step, transaction, workflow
from durable.testing import TestEngine, replace
from durable.testing import engine as new_engine

ran: list[Any] = []
"""What the real bodies did."""


@pytest.fixture(autouse=True)
def engine() -> Iterator[TestEngine]:
    ran.clear()
    with new_engine() as engine:
        yield engine


@step
def charge(order: str, *, cents: int = 100) -> str:
    ran.append(order)
    return "charged"


@step(retry=Retry(attempts=3, delay=10, on=ConnectionError))
def fetch(url: str) -> str:
    ran.append(url)
    return "fetched"


@workflow
def checkout(order: str) -> str:
    return charge(order, cents=250)


@workflow
def download(url: str) -> str:
    return fetch(url)


@workflow
def parent(order: str) -> list[str]:
    return [checkout(order), checkout.start(order + "b").result()]


# ---------------------------------------------------------------------- what it answers


def test_it_returns_a_value() -> None:
    """The real body is not run; what is returned in its place is recorded as ever."""
    with replace(charge, returns="paid") as charged:
        handle = checkout.start("17")
        assert handle.result() == "paid"
    assert ran == []
    assert [each.value for each in handle.steps()] == ["paid"]
    assert len(charged.calls) == 1


def test_it_records_the_real_arguments() -> None:
    """Positional and by name, one entry for each try."""
    with replace(charge, returns="paid") as charged:
        checkout("17")
        checkout("18")
    assert [each.args for each in charged.calls] == [("17",), ("18",)]
    assert charged.calls[0].kwargs == {"cents": 250}
    assert charged.calls[0] == (("17",), {"cents": 250})


def test_it_returns_none() -> None:
    """None is a value like any other."""
    with replace(charge, returns=None):
        assert checkout("17") is None


def test_it_raises_an_exception() -> None:
    """An instance, or a class."""
    for raises in (ValueError("declined"), ValueError):
        with replace(charge, raises=raises), pytest.raises(ValueError):
            checkout.start("17").result()
    assert ran == []


def test_it_calls_a_function() -> None:
    """With the real arguments; what it returns, or raises, is the answer."""

    def cheap(order: str, *, cents: int) -> str:
        if cents > 200:
            raise ValueError(f"{order} costs too much")
        return order

    with replace(charge, calls=cheap), pytest.raises(ValueError, match="17 costs too much"):
        checkout("17")


def test_one_answer_for_each_try(engine: TestEngine) -> None:
    """A list is used up try by try; an exception in it is raised, and retried by the policy."""
    with replace(fetch, returns=[ConnectionError("down"), ConnectionResetError, "up"]) as fetched:
        handle = download.start("there")
        assert handle.result() == "up"
    assert [each.args for each in fetched.calls] == [("there",)] * 3
    assert handle.steps()[0].attempt == 3
    assert engine.clock.now() - handle.info().created_at.timestamp() == 10 + 20


def test_a_list_as_a_value() -> None:
    """A step that returns a list gets it as the one answer; a tuple is a value."""
    with replace(charge, returns=[["a", "b"]]):
        assert checkout("17") == ["a", "b"]
    with replace(charge, returns=("a", "b")):
        assert checkout("17") == ("a", "b")


def test_more_tries_than_answers() -> None:
    """The surplus one fails, and says how many there were."""
    with (
        replace(charge, returns=["once"]),
        pytest.raises(AssertionError, match=r"test_replace:charge' was called .* than the 1 ans"),
    ):
        checkout("17")
        checkout("18")


# ---------------------------------------------------------------------- what it replaces


def test_a_child_workflow() -> None:
    """Its body is replaced, wherever it is started; it is a run of its own all the same."""
    with replace(checkout, calls=lambda order: f"done {order}") as replaced:
        handle = parent.start("17")
        assert handle.result() == ["done 17", "done 17b"]
    assert [each.args for each in replaced.calls] == [("17",), ("17b",)]
    assert ran == []


def test_a_workflow_from_outside() -> None:
    """One that nobody's workflow starts can be replaced as well."""
    with replace(checkout, raises=ValueError("closed")), pytest.raises(ValueError, match="closed"):
        checkout.start("17").result()


def test_a_transaction() -> None:
    """The real arguments are those without the cursor, and nothing reaches the file."""

    @transaction
    def book(cursor: sqlite3.Cursor, entry: str) -> int:
        cursor.execute("CREATE TABLE booking (entry)")
        return 1

    @workflow
    def wf() -> int:
        return book("x")

    with replace(book, returns=7) as booked:
        assert wf() == 7
    assert booked.calls == [(("x",), {})]
    assert wf() == 1


class Till:
    durable_key = "till"

    @step
    def ring(self, cents: int) -> int:
        ran.append(cents)
        return cents

    @workflow
    def sell(self, cents: int) -> int:
        return self.ring(cents) + 1


def test_a_method() -> None:
    """For every instance; `self` is not among the recorded arguments."""
    till = Till()
    with replace(Till.ring, returns=5) as rung:
        assert till.sell(3) == 6
    with replace(till.sell, returns=8) as sold:
        assert Till().sell(4) == 8
    assert rung.calls == [((3,), {})]
    assert sold.calls == [((4,), {})]


def test_what_run_step_calls() -> None:
    """A function that is a step only on the spot."""

    @workflow
    def wf() -> int:
        return durable.run_step(len, "abc")

    with replace(len, returns=99) as measured:
        assert wf() == 99
    assert measured.calls == [(("abc",), {})]


def test_steps_beside_the_workflow() -> None:
    """Submitted and mapped, each item is a call."""

    @workflow
    def wf() -> list[str]:
        first = charge.submit("a")
        return [first.result(), *durable.map(charge, ["b", "c"])]

    with replace(charge, calls=lambda order: order.upper()) as charged:
        assert wf() == ["A", "B", "C"]
    assert sorted(each.args for each in charged.calls) == [("a",), ("b",), ("c",)]


# ---------------------------------------------------------------------- how long, and where


def test_afterwards_the_real_one_is_back() -> None:
    """Also after an error; and inside another replacement, that one is."""
    with pytest.raises(KeyError), replace(charge, returns="fake"):
        raise KeyError
    assert checkout("1") == "charged"
    with replace(charge, returns="outer"):
        with replace(charge, returns="inner"):
            assert checkout("2") == "inner"
        assert checkout("3") == "outer"
    assert checkout("4") == "charged"


def test_what_goes_on_later_gets_the_real_one(engine: TestEngine) -> None:
    """A workflow that reaches the step after the block has ended calls it for real."""

    @workflow
    def later() -> list[str]:
        first = charge("early")
        durable.sleep(60)
        return [first, charge("late")]

    with replace(charge, returns="fake"):
        handle = later.start()
        engine.clock.settle()
    assert handle.result() == ["fake", "charged"]


def test_one_engine_alone(engine: TestEngine) -> None:
    """Another engine in the same process calls the real one."""
    with new_engine() as other, replace(charge, returns="fake", engine=engine):
        assert engine.run(checkout, "17") == "fake"
        assert other.run(checkout, "18") == "charged"


def test_what_was_recorded_stays(path: str) -> None:
    """The answer is the step's result for good, whoever opens the file."""
    with new_engine(path=path), replace(charge, returns="fake"):
        checkout.options(id="17").start("17").result()
    with new_engine(path=path) as engine:
        assert engine.handle("17").result() == "fake"


def test_outside_a_workflow_a_step_is_itself() -> None:
    """There it is a plain function on no engine."""
    with replace(charge, returns="fake"):
        assert charge("17") == "charged"


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "wrong", [{}, {"returns": 1, "raises": ValueError}, {"raises": ValueError, "calls": print}]
)
def test_one_answer_and_no_other(wrong: dict[str, Any]) -> None:
    """Exactly one of the three is given."""
    with (
        pytest.raises(InvalidArgument, match="exactly one of returns=, raises= and calls="),
        replace(charge, **wrong),
    ):
        pass


def test_what_is_no_function() -> None:
    """The result of a step is not the step."""
    not_a_step: Any = "charge"
    with (
        pytest.raises(InvalidArgument, match="takes a step or a workflow, not 'charge'"),
        replace(not_a_step, returns=1),
    ):
        pass


def test_without_an_engine(engine: TestEngine) -> None:
    """There must be one, open or given."""
    engine.close()
    with pytest.raises(NoEngine, match="replace"), replace(charge, returns=1):
        pass
    with replace(charge, returns=1, engine=engine):
        pass

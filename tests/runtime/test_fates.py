"""What `result()` knows without a look at the file, and what only the file tells."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import durable
from durable import Client, Engine, Handle, NonDeterminism, Queue, Status, WaitTimeout, workflow
from durable.runtime.fates import LONGEST, Fates
from tests.support import PATIENCE, Gate, until


def waiting_for(handle: Handle[Any]) -> tuple[threading.Thread, list[Any]]:
    """A thread that waits for the result, and what it has got."""
    got: list[Any] = []

    def wait() -> None:
        try:
            got.append(handle.result())
        except Exception as error:
            got.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting = handle.file.waiting
    until(lambda: any("stop/" in key for key in waiting._waiters))
    return thread, got


@contextmanager
def stuck_run() -> Iterator[Handle[Any]]:
    """A run whose body goes on, whatever it is told, until the block has ended."""
    gate = Gate()

    @workflow
    def stuck() -> None:
        gate.pass_through()

    handle = stuck.start()
    gate.wait_reached()
    try:
        yield handle
    finally:
        gate.open()


def test_each_result_is_an_object_of_its_own(engine: Engine) -> None:
    """What one caller does with the list is nothing to the next one."""
    handle = workflow(lambda: [1], name="fates:list").start()
    handle.result(PATIENCE).append(2)
    assert handle.result() == [1]


def test_who_waits_hears_of_a_cancel_while_the_body_goes_on(engine: Engine) -> None:
    """A body that cannot be interrupted does not keep those who wait for it."""
    with stuck_run() as handle:
        thread, got = waiting_for(handle)
        handle.cancel()
        thread.join(PATIENCE)
    assert isinstance(got[0], durable.WorkflowCancelled)


def test_a_cancel_before_the_wait(engine: Engine) -> None:
    """It is known at once, although the body goes on."""
    with stuck_run() as handle:
        handle.cancel()
        with pytest.raises(durable.WorkflowCancelled):
            handle.result(PATIENCE)


def test_a_cancel_from_another_process_is_heard(engine: Engine, path: str) -> None:
    """As any other that has the file open."""
    with stuck_run() as handle:
        thread, got = waiting_for(handle)
        with Client(path) as client:
            client.cancel(handle.id)
        thread.join(PATIENCE)
    assert isinstance(got[0], durable.WorkflowCancelled)


def test_the_timeout_of_a_wait(engine: Engine) -> None:
    """It ends the wait and not the run."""
    gate = Gate()

    @workflow
    def slow() -> int:
        gate.pass_through()
        return 1

    handle = slow.start()
    with pytest.raises(WaitTimeout):
        handle.result(0.01)
    gate.open()
    assert handle.result(PATIENCE) == 1


def test_what_can_be_resumed_is_not_remembered(engine: Engine) -> None:
    """A handle from before gives the result of the run that went on."""
    names = iter(["a", "b", "a"])

    @workflow
    def changed() -> str:
        durable.run_step(int) if next(names) == "a" else durable.run_step(str)
        durable.recv()
        return "went on"

    handle = changed.start()
    until(lambda: handle.steps())
    engine.close(timeout=0)
    with Engine(engine._path, recover="manual") as again:
        handle = again.handle(handle.id)
        again.recover([handle.id])
        with pytest.raises(NonDeterminism):
            handle.result(PATIENCE)
        handle.resume()
        handle.send(None)
        assert handle.result(PATIENCE) == "went on"


def test_a_long_result_is_read_from_the_file(engine: Engine) -> None:
    """A handle that is kept does not keep megabytes."""
    handle = workflow(lambda: "x" * LONGEST, name="fates:long").start()
    assert len(handle.result(PATIENCE)) == LONGEST
    assert handle._fate.outcome is None


def test_a_run_that_is_left_unfinished(engine: Engine) -> None:
    """Who waits hears why; after it was taken up again, a handle from before has its result."""
    gate, tries = Gate(), iter([True, False])

    @workflow
    def leaves() -> int:
        gate.pass_through()
        if next(tries):
            raise SystemExit("mend me")
        return 1

    handle = leaves.start()
    gate.wait_reached()
    thread = threading.Thread(target=gate.open)
    thread.start()
    with pytest.raises(SystemExit):
        handle.result()
    thread.join()
    engine.recover([handle.id])
    assert handle.result(PATIENCE) == 1


def test_handles_of_runs_in_queues(engine: Engine) -> None:
    """Of one that waits for its turn, of one that runs, and of one that has ended."""
    gate = Gate()
    queue = Queue("fates", concurrency=1)

    @workflow
    def job(number: int) -> int:
        gate.pass_through()
        return number

    first, second = queue.enqueue(job, 1), queue.enqueue(job, 2)
    gate.wait_reached()
    thread, got = waiting_for(first)
    assert second.info().status is Status.ENQUEUED
    gate.open()
    assert second.result(PATIENCE) == 2
    thread.join(PATIENCE)
    assert got == [1]
    assert first.result() == 1


def test_nothing_is_kept_of_what_nobody_waits_for() -> None:
    """A fate is there as long as somebody has it."""
    fates = Fates()
    fate = fates.expect("a")
    assert fates.expect("a") is fate
    del fate
    assert fates.of("a") is None

"""Messages: accepted, received first in first out, each exactly once; a timeout is an outcome."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import durable
from durable import Engine, workflow
from tests.support import PATIENCE, Gate, dying, until


@workflow
def collect(topics: list[str | None]) -> list[Any]:
    return [durable.recv(topic, timeout=PATIENCE) for topic in topics]


@workflow
def two_waits() -> list[Any]:
    first = durable.recv("t", timeout=0.05, default="nothing")
    durable.recv("go")
    return [first, durable.recv("t", timeout=PATIENCE)]


def wait_for_steps(engine: Engine, workflow_id: str, count: int) -> None:
    handle = engine.handle(workflow_id)
    until(lambda: sum(each.outcome is not None for each in handle.steps()) >= count)


def test_first_in_first_out(engine: Engine) -> None:
    """Messages of one topic are received in the order in which they were sent."""
    handle = collect.start(["t"] * 5)
    for number in range(5):
        handle.send(number, "t")
    assert handle.result(PATIENCE) == [0, 1, 2, 3, 4]


def test_each_topic_is_its_own_queue(engine: Engine) -> None:
    """A topic's messages wait for that topic; no topic, and the empty one, are topics too."""
    handle = collect.start(["b", None, "a", ""])
    for topic in ("a", "b", None, ""):
        handle.send(f"to {topic!r}", topic)
    assert handle.result(PATIENCE) == ["to 'b'", "to None", "to 'a'", "to ''"]


def test_a_message_may_come_before_it_is_wanted(path: str) -> None:
    """What was sent before the receiver asks is kept, also over a restart."""
    with dying(path) as engine:
        collect.options(id="one").start(["go", "t"])
        engine.send("one", 1, "t")
    with Engine(path) as engine:
        engine.send("one", 0, "go")
        assert engine.handle("one").result(PATIENCE) == [0, 1]


def test_none_is_a_message(engine: Engine) -> None:
    """None is a value like any other."""
    handle = collect.start([None])
    handle.send(None)
    assert handle.result(PATIENCE) == [None]


def test_timeout_raises_or_gives_the_default(engine: Engine) -> None:
    """After its timeout `recv` raises WaitTimeout, or returns the default that was given."""

    @workflow
    def wf() -> list[Any]:
        default = durable.recv("t", timeout=0.01, default=None)
        with pytest.raises(durable.WaitTimeout, match="topic 't'"):
            durable.recv("t", timeout=0)
        return [default]

    handle = wf.start()
    assert handle.result(PATIENCE) == [None]
    assert [each.outcome for each in handle.steps()] == ["timeout", "timeout"]


def test_a_timeout_is_the_same_on_a_replay(path: str) -> None:
    """N14: timed out, crashed, replayed: still timed out, though a message has come since."""
    with dying(path) as engine:
        two_waits.options(id="one").start()
        wait_for_steps(engine, "one", 1)
        engine.send("one", "late", "t")
    with Engine(path) as engine:
        engine.send("one", None, "go")
        assert engine.handle("one").result(PATIENCE) == ["nothing", "late"]


def test_two_timeouts_in_a_row(engine: Engine) -> None:
    """N15: two waits that time out are two timeouts, and the message is for the third."""

    @workflow
    def wf() -> list[Any]:
        return [durable.recv("t", timeout=0.01, default=n) for n in (1, 2)] + [durable.recv("t")]

    handle = wf.start()
    wait_for_steps(engine, handle.id, 2)
    handle.send("now", "t")
    assert handle.result(PATIENCE) == [1, 2, "now"]


def test_the_deadline_is_recorded_when_the_wait_begins(path: str) -> None:
    """A restart does not begin the timeout anew."""

    @workflow
    def wf() -> str:
        return str(durable.recv("t", timeout=3600, default="none"))

    with dying(path) as engine:
        handle = wf.options(id="one").start()
        until(lambda: handle.steps())
        deadline = handle.steps()[0].until_at
        assert handle.info().wake_at == deadline
    with Engine(path) as engine:
        assert engine.handle("one").steps()[0].until_at == deadline
        engine.send("one", "came", "t")
        assert engine.handle("one").result(PATIENCE) == "came"


def test_sent_between_look_and_wait(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """N16: a message that comes after the look and before the wait wakes the receiver."""
    from durable.runtime.waiting import Listener

    gate = Gate()
    wait = Listener.wait

    def held_up(self: Listener, deadline: float | None) -> bool:
        if any(key.startswith("message/") for key in self.keys):
            gate.pass_through()
        return wait(self, deadline)

    monkeypatch.setattr(Listener, "wait", held_up)
    handle = collect.start(["t"])
    gate.wait_reached()
    handle.send("in the gap", "t")
    gate.open()
    assert handle.result(PATIENCE) == ["in the gap"]


def test_received_exactly_once_over_crashes(path: str) -> None:
    """N17: a message is in the record of one step for good: a replay sees the same one."""
    with dying(path) as engine:
        collect.options(id="one").start(["t"] * 3)
        engine.send("one", "first", "t")
        wait_for_steps(engine, "one", 1)
    with dying(path) as engine:
        engine.send("one", "second", "t")
        wait_for_steps(engine, "one", 2)
    with Engine(path) as engine:
        engine.send("one", "third", "t")
        assert engine.handle("one").result(PATIENCE) == ["first", "second", "third"]


def test_sent_from_a_workflow_exactly_once(path: str) -> None:
    """A replay does not send again what the run had sent."""

    @workflow
    def sender(to: str) -> None:
        durable.send(to, "hello", "t")
        durable.recv("go")
        durable.send(to, "bye", "t")

    with dying(path) as engine:
        collect.options(id="to").start(["t", "t"])
        sender.options(id="from").start("to")
        wait_for_steps(engine, "from", 1)
    with Engine(path) as engine:
        engine.send("from", None, "go")
        assert engine.handle("to").result(PATIENCE) == ["hello", "bye"]


def test_idempotency_key(engine: Engine) -> None:
    """From outside, the same key is the same message, also after it was received."""
    handle = collect.start(["t", "t"])
    for _ in range(3):
        handle.send("first", "t", idempotency_key="k1")
    wait_for_steps(engine, handle.id, 1)
    engine.send(handle.id, "first", "t", idempotency_key="k1")
    engine.send(handle.id, "second", "t", idempotency_key="k2")
    assert handle.result(PATIENCE) == ["first", "second"]


def test_to_an_unknown_workflow(engine: Engine) -> None:
    """Outside, and recorded inside a workflow: WorkflowNotFound."""

    @workflow
    def wf() -> str:
        try:
            durable.send("nobody", 1)
        except durable.WorkflowNotFound as error:
            return error.workflow_id
        return "?"

    with pytest.raises(durable.WorkflowNotFound, match="nobody"):
        durable.send("nobody", 1)
    handle = wf.start()
    assert handle.result(PATIENCE) == "nobody"
    assert handle.steps()[0].outcome == "error"


def test_sent_in_a_step(engine: Engine) -> None:
    """A step may send; its message is sent by each try."""

    @workflow
    def wf(to: str) -> None:
        durable.run_step(durable.send, to, "from a step", "t")

    handle = collect.start(["t"])
    wf(handle.id)
    assert handle.result(PATIENCE) == ["from a step"]


def test_many_senders(engine: Engine) -> None:
    """Two hundred threads send: every message is received once, each sender's in order."""
    handle = collect.start(["t"] * 600)

    def send(sender: int) -> None:
        for number in range(3):
            handle.send([sender, number], "t")

    threads = [threading.Thread(target=send, args=(n,)) for n in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    received = handle.result(PATIENCE)
    assert sorted(map(tuple, received)) == [(s, n) for s in range(200) for n in range(3)]
    assert all([n for s, n in received if s == sender] == [0, 1, 2] for sender in range(200))


def test_messages_of_a_finished_workflow_stay(engine: Engine) -> None:
    """A message that nobody will receive stays in the file to be seen."""
    handle = collect.start([])
    assert handle.result(PATIENCE) == []
    handle.send("too late", "t")
    count = engine._open_engine().database.read(
        lambda tx: tx.execute("SELECT count(*) FROM durable_message").fetchone()[0]
    )
    assert count == 1

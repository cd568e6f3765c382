"""The workflows of the examples, brought through every crash and many orders."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

import durable
from durable.testing import TestEngine, crashes, orders, replay, strict

agent_example = pytest.importorskip("examples.agent")
backup_example = pytest.importorskip("examples.backup")
checkout_example = pytest.importorskip("examples.checkout")
mirror_example = pytest.importorskip("examples.mirror")

Ledger = dict[str, str]


class Bank:
    """Does what it is asked for once for each idempotency key, as a real one; a ledger a run."""

    def __init__(self) -> None:
        self.ledgers: dict[Path, Ledger] = {}
        self.of_this_run: Ledger = {}

    def open(self, engine: TestEngine) -> None:
        """The run that has this file begins, or goes on."""
        self.of_this_run = self.ledgers.setdefault(engine.path, {})

    def ask(self, verb: str, order: str) -> str:
        """What `ask_bank` of the example does over HTTP."""
        self.of_this_run.setdefault(durable.step_key(), f"{verb} {order}")
        return f"https://bank.example/pay/{order}" if verb == "reserve" else "done"

    @property
    def entries(self) -> list[str]:
        return sorted(self.of_this_run.values())


@pytest.fixture
def bank(monkeypatch: pytest.MonkeyPatch) -> Bank:
    bank = Bank()
    monkeypatch.setattr(checkout_example, "ask_bank", bank.ask)
    return bank


def buys(engine: TestEngine, payment: str | None) -> Any:
    """Places order 17 and pays, as the shop does for its requests."""
    handle = checkout_example.checkout.options(id="order-17").start("17")
    assert handle.event("payment_url") == "https://bank.example/pay/17"
    if payment is not None:
        engine.send("order-17", payment, "payment_status", idempotency_key=payment)
    return handle.result()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("payment", "result", "entries"),
    [
        ("paid", "fulfilled", ["charge 17", "reserve 17"]),
        ("declined", "cancelled", ["cancel 17", "reserve 17"]),
        (None, "cancelled", ["cancel 17", "reserve 17"]),
    ],
)
def test_no_crash_confuses_the_checkout(
    bank: Bank, payment: str | None, result: str, entries: list[str]
) -> None:
    """One reservation and one charge, or one cancellation, wherever the shop dies."""

    def program(engine: TestEngine) -> None:
        bank.open(engine)
        with strict():
            assert buys(engine, payment) == result
        assert bank.entries == entries

    report = crashes(program)
    assert report.places >= 16
    assert len(bank.ledgers) == 2 + report.places


def test_no_order_confuses_the_checkout(bank: Bank) -> None:
    """Nor does any order of the threads, and its records fit its code."""

    def program(engine: TestEngine) -> None:
        bank.open(engine)
        assert buys(engine, "paid") == "fulfilled"
        assert bank.entries == ["charge 17", "reserve 17"]
        assert replay(engine.path).replayed == ["order-17"]

    orders(program, runs=20)


def test_no_crash_breaks_the_backup(tmp_path: Path) -> None:
    """Wherever it dies, the copy is the source in the end, and the manifest is whole."""
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "one.txt").write_text("one")
    (source / "folder" / "two.txt").write_text("two")

    def program(engine: TestEngine) -> None:
        target = engine.path.parent / "target"
        summary = backup_example.backup.options(id="backup").start(source, target).result()
        assert (summary.copied, summary.size) == (2, 6)
        assert (target / "one.txt").read_text() == "one"
        assert (target / "folder" / "two.txt").read_text() == "two"

    assert crashes(program).places >= 14


class Shelf(SimpleHTTPRequestHandler):
    """Serves a folder, and counts what it is asked for."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        super().do_GET()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server of two files, and of a list of them and of one that is not there."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "one").write_text("one")
    (folder / "two").write_text("two")
    (folder / "list.txt").write_text("one\ntwo\nthree\n")
    Shelf.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Shelf, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/list.txt"
        server.shutdown()
        thread.join()


def mirrors(engine: TestEngine, source: str, workers: int) -> None:
    """Mirrors the shelf, as the command does."""
    target = engine.path.parent / "target"
    mirror_example.settings.workers = workers
    handle = mirror_example.mirror.options(id="mirror").start(source, target)
    assert handle.event("files") == 3
    assert sorted(handle.stream("fetched")) == [3, 3]
    summary = handle.result()
    assert (summary.files, summary.size, len(summary.missing)) == (2, 6, 1)
    assert sorted(path.read_text() for path in target.iterdir()) == ["one", "two"]


@pytest.mark.slow
def test_no_crash_breaks_the_mirror(shelf: str) -> None:
    """Wherever it dies, the mirror is whole in the end, and at most one thing is asked twice."""
    report = crashes(partial(mirrors, source=shelf, workers=1))
    assert report.places >= 20
    assert Shelf.asked.total() <= 4 * (2 + report.places) + report.places


@pytest.mark.slow
def test_no_order_breaks_the_mirror(shelf: str) -> None:
    """Nor does any order of its workers."""
    orders(partial(mirrors, source=shelf, workers=3), runs=20)


@pytest.mark.slow
@pytest.mark.parametrize("approved", [True, False, None])
def test_no_crash_confuses_the_agent(
    approved: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it dies, its reader reads each item once; what nobody approves is not written."""
    short = {"calculate": "Well, well. ", "write_file": "Saving. "}
    monkeypatch.setattr(agent_example, "INTRODUCTIONS", short)
    asked = "What is 6 * 7? Save it to answer.txt"

    def program(engine: TestEngine) -> None:
        folder = engine.path.parent
        with strict():
            handle = agent_example.talk.options(id="talk").start(asked, str(folder))
            handle.event("waits_for_approval")
            if approved is not None:
                handle.send(approved, "approval", idempotency_key="answer")
            said = handle.result()
        assert ("sorry" in said) is not bool(approved)
        assert (folder / "answer.txt").exists() is bool(approved)
        items = list(handle.stream("talk"))
        tokens = [item["token"] for item in items if "token" in item]
        assert "".join(tokens) == f"Well, well. Saving. {said}"
        assert next(item["result"] for item in items if "result" in item) == "42"

    if approved:
        assert crashes(program).places > 30
    else:
        orders(program, runs=3)

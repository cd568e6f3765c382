"""Promises of examples/checkout.py, made to whoever runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from durable import Client
from examples.checkout import post

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
CAREFUL = {"PYTHONWARNINGS": "error"}
COMMAND = (sys.executable, "-m", "examples.checkout")


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What a command printed, and its exit code."""
    if env is None:
        env = {**os.environ, **CAREFUL}
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The example in a process, which gets SIGKILL at the end of the block."""
    env = {**os.environ, **CAREFUL}
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


@contextmanager
def shop(file: Path) -> Iterator[str]:
    """The URL of a shop, which gets SIGKILL at the end of the block."""
    with process("--serve", "--file", str(file)) as child:
        assert child.stdout is not None
        yield child.stdout.readline().strip()


def result(file: Path, order: str) -> str:
    """How an order ended."""
    with Client(file) as client:
        return str(client.handle(f"order-{order}").result(timeout=PATIENCE))


def ledger(file: Path, order: str) -> list[str]:
    """What the bank of a shop has booked for an order."""
    entries = file.with_name(f"{file.name}.ledger").read_text().splitlines()
    booked = [re.fullmatch(r"\S+\t(\w+) order (\w+)", entry) for entry in entries]
    return [each[1] for each in booked if each is not None and each[2] == order]


# ---------------------------------------------------------------------- the story


@pytest.mark.slow
def test_the_story_is_told_to_its_end(tmp_path: Path) -> None:
    """It exits 0, has numbered moments, and the card is charged once though asked for twice."""
    file = tmp_path / "story.db"
    done = run(*COMMAND, "--file", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    moments = re.findall(r"^ ?(\d+)\. .", done.stdout, re.MULTILINE)
    assert moments == [str(number) for number in range(1, 11)]
    assert done.stdout.count("asked to reserve under key order-17/1: done\n") == 1
    assert done.stdout.count("asked to charge under key order-17/4: done\n") == 1
    assert done.stdout.count("asked to charge under key order-17/4: done already\n") == 1
    assert result(file, "17") == "fulfilled"
    assert ledger(file, "17") == ["reserve", "charge"]


@pytest.mark.slow
def test_the_story_needs_nothing_but_python() -> None:
    """It runs in an empty environment, where Python does not even know its own path."""
    bare = ("/usr/bin/env", "-i", "/usr/bin/env", "python3")
    if run(*bare, "-c", "import sys; assert sys.version_info >= (3, 11)").returncode:
        pytest.skip("the python3 of the system is missing or too old")
    done = run(*bare, "-m", "examples.checkout")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_broken_promise_is_said() -> None:
    """With a bank that looks at no key the card is charged twice: exit code 1 and a sentence."""
    program = """
import itertools, sys
from examples import checkout
book, number = checkout.Bank.book, itertools.count()
checkout.Bank.book = lambda bank, key, entry: book(bank, f"{next(number)}", entry)
sys.exit(checkout.main())
"""
    done = run(sys.executable, "-c", program)
    assert done.returncode == 1
    assert done.stderr == "\nThis is not what was promised: one reservation, one charge.\n"


def test_a_story_begins_with_a_new_file(tmp_path: Path) -> None:
    """A file that exists is refused, and left as it is."""
    file = tmp_path / "story.db"
    file.write_text("mine")
    refused = run(*COMMAND, "--file", str(file))
    assert refused.returncode == 2
    assert "exists, and the story begins with a new file" in refused.stderr
    assert file.read_text() == "mine"


@pytest.mark.slow
def test_a_story_that_is_stopped_leaves_no_shop_behind(tmp_path: Path) -> None:
    """SIGTERM ends the shop as well as the story."""
    with process("--file", str(tmp_path / "story.db")) as child:
        assert child.stdout is not None
        found = None
        while found is None:
            found = re.search(r"the shop is process (\d+)", child.stdout.readline())
        child.terminate()
        assert child.wait(PATIENCE) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(found[1]), 0)


# ---------------------------------------------------------------------- the shop


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL and the file of a shop that several tests share, each with an order of its own."""
    file = tmp_path_factory.mktemp("shop") / "shop.db"
    with shop(file) as url:
        yield url, file


def test_an_order_placed_twice_is_one_order(shared: tuple[str, Path]) -> None:
    """The same URL is answered, and the amount is reserved once."""
    url, file = shared
    answers = [post(f"{url}/checkout/1") for _ in range(3)]
    assert answers == [(200, "https://bank.example/pay/1")] * 3
    assert ledger(file, "1") == ["reserve"]


def test_a_webhook_posted_twice_is_one_message(shared: tuple[str, Path]) -> None:
    """Both are accepted, before the end and after it, and the card is charged once."""
    url, file = shared
    post(f"{url}/checkout/2")
    statuses = [post(f"{url}/webhook/2", "paid")[0] for _ in range(2)]
    assert result(file, "2") == "fulfilled"
    statuses.append(post(f"{url}/webhook/2", "paid")[0])
    assert statuses == [202, 202, 202]
    assert ledger(file, "2") == ["reserve", "charge"]


def test_a_declined_payment_cancels(shared: tuple[str, Path]) -> None:
    """The amount is given free, and nothing is charged."""
    url, file = shared
    post(f"{url}/checkout/3")
    post(f"{url}/webhook/3", "declined")
    assert result(file, "3") == "cancelled"
    assert ledger(file, "3") == ["reserve", "cancel"]


def test_wrong_requests_are_answered_clearly(shared: tuple[str, Path]) -> None:
    """An unknown order or path is 404, an unknown status 400, each with a sentence."""
    url, _ = shared
    post(f"{url}/checkout/4")
    assert post(f"{url}/webhook/99", "paid") == (404, "there is no order 99")
    for path in ("/", "/refund/4", "/checkout/", "/checkout/4/5", "/checkout/%2e"):
        assert post(url + path) == (404, f"there is nothing at {path}")
    status, text = post(f"{url}/webhook/4", "eaten by the dog")
    assert (status, text) == (400, "the body is paid or declined, not 'eaten by the dog'")


@pytest.mark.slow
def test_a_killed_shop_goes_on_by_itself(tmp_path: Path) -> None:
    """Opened again on its file, it hears the webhooks of the orders that it had before."""
    file = tmp_path / "shop.db"
    orders = ("17", "18", "19")
    with shop(file) as url:
        for order in orders:
            post(f"{url}/checkout/{order}")
    with shop(file) as url:
        for order in orders:
            post(f"{url}/webhook/{order}", "paid")
        assert {result(file, order) for order in orders} == {"fulfilled"}
    for order in orders:
        assert ledger(file, order) == ["reserve", "charge"]

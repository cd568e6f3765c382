"""A checkout behind an HTTP server, which kill -9 can stop but not confuse.

    python3 -m examples.checkout                        # the whole story, in a temporary folder
    python3 -m examples.checkout --file story.db        # the same, and its files stay
    python3 -m examples.checkout --serve --port 8000    # only the shop, on shop.db

    curl -X POST localhost:8000/checkout/17             # places order 17, answers its payment URL
    curl -X POST localhost:8000/webhook/17 -d paid      # what the bank calls: paid, or declined

What it shows: a workflow that waits for a message from outside (`recv`), HTTP handlers that start
it and talk to it (`options(id=…).start`, `event`, `send`), another process that looks at it
(`Client`), and the two ways in which a step survives the death of its process:

- A step that was recorded never runs again. So the amount is reserved once.
- A step that died between doing and recording runs again. Only the bank can tell that it did the
  work already, so each request has `step_key()` with it: the same for every try of this step, and
  for no other step. So the card is charged once.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import durable
from durable import Client, Engine, Retry, step, workflow

LOOPBACK = "127.0.0.1"

# ---------------------------------------------------------------------- the workflow


@workflow
def checkout(order: str) -> str:
    """Reserve the amount, wait for the customer to pay, then charge or cancel."""
    durable.set_event("payment_url", reserve(order))
    try:
        status = durable.recv("payment_status", timeout=120)
    except durable.WaitTimeout:
        status = "expired"
    if status == "paid":
        charge(order)
        return "fulfilled"
    cancel(order)
    return "cancelled"


TRY_AGAIN = Retry(attempts=5, delay=0.2, on=(OSError, HTTPException))


@step(retry=TRY_AGAIN)
def reserve(order: str) -> str:
    """Have the bank reserve the amount; the URL at which the customer pays."""
    return ask_bank("reserve", order)


@step(retry=TRY_AGAIN)
def charge(order: str) -> str:
    """Have the bank take the amount; what it says."""
    return ask_bank("charge", order)


@step(retry=TRY_AGAIN)
def cancel(order: str) -> str:
    """Have the bank give the amount free again; what it says."""
    return ask_bank("cancel", order)


def ask_bank(verb: str, order: str) -> str:
    """The bank's answer; called in a step, whose key makes it safe to ask twice."""
    url = f"{os.environ['BANK_URL']}/{verb}/{order}"
    status, answer = post(url, headers={"Idempotency-Key": durable.step_key()})
    if status != HTTPStatus.OK:
        raise OSError(f"the bank answered {status}: {answer}")
    return answer


# ---------------------------------------------------------------------- HTTP


class Handler(BaseHTTPRequestHandler, ABC):
    """Answers POST /<verb>/<order> with a line of text; the shop and the bank fill in `answer`."""

    def do_POST(self) -> None:
        """Read the request, answer it."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        route = re.fullmatch(r"/(\w+)/([\w-]{1,64})", self.path, re.ASCII)
        if route is None:
            status, text = HTTPStatus.NOT_FOUND, f"there is nothing at {self.path}"
        else:
            status, text = self.answer(route[1], route[2], body.decode(errors="replace").strip())
        with contextlib.suppress(ConnectionError):  # whoever asked may be gone
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.end_headers()
            self.wfile.write(f"{text}\n".encode())

    @abstractmethod
    def answer(self, verb: str, order: str, body: str) -> tuple[HTTPStatus, str]:
        """The status and the text for a request."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: who asks tells the story."""


def post(url: str, body: str = "", headers: Mapping[str, str] | None = None) -> tuple[int, str]:
    """The status and the text of the answer to a POST."""
    parts = urlsplit(url)
    with contextlib.closing(HTTPConnection(parts.netloc, timeout=30)) as connection:
        connection.request("POST", parts.path, body.encode(), dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read().decode().strip()


# ---------------------------------------------------------------------- the shop


class Shop(Handler):
    """Turns requests into calls of the engine, each on a thread of the server."""

    def answer(self, verb: str, order: str, body: str) -> tuple[HTTPStatus, str]:
        """The status and the text for a request."""
        if verb == "checkout":
            return self.place(order)
        if verb == "webhook":
            return self.forward(order, body)
        return HTTPStatus.NOT_FOUND, f"there is nothing at {self.path}"

    def place(self, order: str) -> tuple[HTTPStatus, str]:
        """Start the workflow; the same order placed again attaches to the one that there is."""
        handle = checkout.options(id=workflow_id(order)).start(order)
        try:
            return HTTPStatus.OK, handle.event("payment_url", timeout=20)
        except (durable.EventNotSet, durable.WaitTimeout) as error:
            return HTTPStatus.BAD_GATEWAY, f"the bank does not answer: {error}"

    def forward(self, order: str, payment: str) -> tuple[HTTPStatus, str]:
        """Send the status to the workflow; under one key it is one message, however often sent."""
        if payment not in ("paid", "declined"):
            return HTTPStatus.BAD_REQUEST, f"the body is paid or declined, not {payment!r}"
        try:
            durable.send(workflow_id(order), payment, "payment_status", idempotency_key=payment)
        except durable.WorkflowNotFound:
            return HTTPStatus.NOT_FOUND, f"there is no order {order}"
        return HTTPStatus.ACCEPTED, f"order {order} is told: {payment}"


def workflow_id(order: str) -> str:
    """The id of the workflow of an order."""
    return f"order-{order}"


def serve(file: Path, port: int) -> None:
    """Run the shop until Ctrl-C. Opening the engine is all that it takes to go on."""
    with contextlib.ExitStack() as stack:
        if "BANK_URL" not in os.environ:
            os.environ["BANK_URL"] = stack.enter_context(bank_in_background(ledger_of(file))).url
        stack.enter_context(Engine(file))
        server = stack.enter_context(ThreadingHTTPServer((LOOPBACK, port), Shop))
        print(f"http://{LOOPBACK}:{server.server_port}", flush=True)
        server.serve_forever()


# ---------------------------------------------------------------------- the bank


class Bank(ThreadingHTTPServer):
    """The payment provider, a stand-in for a real one: what has a known key it does not do again.

    `ledger` is a text file with a line for all that was done: the idempotency key, then what.
    """

    def __init__(self, ledger: Path) -> None:
        super().__init__((LOOPBACK, 0), BankHandler)
        self.url = f"http://{LOOPBACK}:{self.server_port}"
        self.ledger = ledger
        self.asked: Counter[str] = Counter()
        self.charged = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._mutex = threading.Lock()

    def book(self, key: str, entry: str) -> bool:
        """Write an entry to the ledger; False if its key is there already."""
        with self._mutex, self.ledger.open("a+", encoding="utf-8") as ledger:
            ledger.seek(0)
            if any(line.startswith(f"{key}\t") for line in ledger):
                return False
            ledger.write(f"{key}\t{entry}\n")
            return True


class BankHandler(Handler):
    """Books what is asked for."""

    def answer(self, verb: str, order: str, body: str) -> tuple[HTTPStatus, str]:
        """The status and the text for a request."""
        if verb not in ("reserve", "charge", "cancel"):
            return HTTPStatus.NOT_FOUND, f"there is nothing at {self.path}"
        bank, key = self.server, self.headers["Idempotency-Key"]
        assert isinstance(bank, Bank)
        bank.asked[verb] += 1
        booked = bank.book(key, f"{verb} order {order}")
        tell(f"the bank, asked to {verb} under key {key}: {'done' if booked else 'done already'}")
        if verb == "charge":
            bank.charged.set()
            bank.may_answer.wait()
        return HTTPStatus.OK, f"https://bank.example/pay/{order}" if verb == "reserve" else "done"


@contextlib.contextmanager
def bank_in_background(ledger: Path) -> Iterator[Bank]:
    """A bank that runs on a thread."""
    with Bank(ledger) as bank:
        thread = threading.Thread(target=bank.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield bank
        finally:
            bank.shutdown()
            thread.join()


def ledger_of(file: Path) -> Path:
    """Where the bank of a shop keeps its ledger."""
    return file.with_name(f"{file.name}.ledger")


# ---------------------------------------------------------------------- the story


@contextlib.contextmanager
def shop_process(file: Path, bank: Bank) -> Iterator[str]:
    """The URL of a shop in a process of its own, which gets SIGKILL at the end of the block."""
    command = [
        sys.executable or "python3",  # it is empty where there is no PATH to find python3 in
        *("-m", "examples.checkout", "--serve", "--file", str(file.resolve())),
    ]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "BANK_URL": bank.url},
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            url = child.stdout.readline().strip()
            if not url:
                raise SystemExit("the shop did not start")
            tell(f"the shop is process {child.pid}, at {url}")
            yield url
        finally:
            child.kill()


def story(file: Path) -> bool:
    """Tell the whole story; whether it went as promised: one reservation, one charge."""
    with bank_in_background(ledger_of(file)) as bank:
        tell_moment("The shop opens.")
        with shop_process(file, bank) as shop:
            tell_moment("A customer places order 17.")
            _, payment_url = tell_post(f"{shop}/checkout/17")
            tell_moment("She clicks again: the same id is the same workflow, so the same URL.")
            _, same_url = tell_post(f"{shop}/checkout/17")
            tell_moment("While the workflow waits for the payment, the shop dies of kill -9.")
        tell_what_is_known(file)

        tell_moment("The shop opens again. By itself the workflow waits on; the bank is not asked.")
        with shop_process(file, bank) as shop:
            tell_moment("The customer pays, and the bank tells the shop.")
            bank.may_answer.clear()
            tell_post(f"{shop}/webhook/17", "paid")
            if not bank.charged.wait(30):
                raise SystemExit("the bank was never asked to charge")
            tell_moment("kill -9 at the worst moment: the bank has charged, the shop not heard.")
        bank.may_answer.set()
        tell_what_is_known(file)

        tell_moment("The shop opens again. The charge is not recorded, so its step runs again.")
        with shop_process(file, bank) as shop, Client(file) as client:
            result = client.handle(workflow_id("17")).result(timeout=30)
            tell(f"the workflow ends: {result}")
            tell_moment("The bank heard no answer the first time, so it tells the shop again.")
            tell_post(f"{shop}/webhook/17", "paid")
        tell_what_is_known(file)

        tell_moment("The ledger of the bank.")
        entries = bank.ledger.read_text(encoding="utf-8").splitlines()
        for entry in entries:
            tell(entry.expandtabs(16))
        made = sum("charge" in entry for entry in entries)
        tell(f"times that it was asked to reserve: {bank.asked['reserve']}, as that was recorded")
        tell(f"times that it was asked to charge: {bank.asked['charge']}; charges made: {made}")
    promised = ("fulfilled", payment_url, 2, 1, {"reserve": 1, "charge": 2})
    return (result, same_url, len(entries), made, bank.asked) == promised


_moments = itertools.count(1)


def tell_moment(text: str) -> None:
    """Begin the next moment of the story."""
    say(f"\n{next(_moments):2}. {text}")


def tell(text: str) -> None:
    """Tell what somebody does."""
    say(f"      {text}")


def say(line: str) -> None:
    """Print a line in one piece: the bank tells what it does on threads of its own."""
    print(f"{line}\n", end="", flush=True)


def tell_post(url: str, body: str = "") -> tuple[int, str]:
    """Send a POST and tell how it was answered."""
    status, text = post(url, body)
    tell(f"POST {urlsplit(url).path} {body}".rstrip() + f": {status} {text}")
    return status, text


def tell_what_is_known(file: Path) -> None:
    """Tell what the file has of the order; any process may look at it."""
    with Client(file) as client:
        handle = client.handle(workflow_id("17"))
        tell(f"what {file.name} knows: {handle.id} is {handle.info().status}, and of its steps")
        for each in handle.steps():
            if each.outcome is not None:
                name = each.name.removeprefix("examples.checkout:")
                tell(f"  {each.number} {name}: {each.value}")


def main() -> int:
    """Read the arguments; serve, or tell the story."""
    parser = argparse.ArgumentParser(
        prog="python3 -m examples.checkout",
        description="A checkout that kill -9 can stop but not confuse. "
        "Without --serve it tells the whole story, which takes a few seconds.",
    )
    parser.add_argument("--serve", action="store_true", help="only run the shop")
    parser.add_argument("--port", type=int, default=0, help="for --serve; by default a free one")
    parser.add_argument("--file", type=Path, help="by default in a temporary folder, or shop.db")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no child is left behind
    try:
        if arguments.serve:
            serve(arguments.file or Path("shop.db"), arguments.port)
            return 0
        if arguments.file is not None and arguments.file.exists():
            parser.error(f"{arguments.file} exists, and the story begins with a new file")
        with tempfile.TemporaryDirectory(prefix="durable-checkout-") as folder:
            as_promised = story(arguments.file or Path(folder, "shop.db"))
    except KeyboardInterrupt:
        return 130
    except (durable.DurableError, OSError) as error:
        raise SystemExit(f"checkout: {error}") from error
    if not as_promised:
        raise SystemExit("\nThis is not what was promised: one reservation, one charge.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""An agent that streams what it says, uses tools, and waits for a person where it matters.

    python3 -m examples.agent ask "What is 17 * 23? Save it to answer.txt"

asks a language model. What the model says comes token by token; what it wants to have done (work
something out, read a file, write one) are steps. Before a file is written a person is asked: say
yes or no from any other terminal. There, one can also follow the talk, from its beginning:

    python3 -m examples.agent watch ID
    python3 -m examples.agent approve ID        (or reject ID)

Stop the first command anywhere, with Ctrl-C, kill -9 or the power switch, and run it again: the
talk goes on where it was. No tool is used twice once its result is recorded, the model is not asked
again for what it has said, and whoever watches has read each token once. The talk is kept in
agent.db; the same question gets the same talk, unless it is given another --id.

The model is made up: it runs in this program and knows arithmetic, reading and saving. To talk to a
real one, put a request in the place of `say`. Exit codes: 0 all is well, 1 it could not be done,
2 the arguments are of no use, 130 Ctrl-C.

What it shows: an async workflow, whose steps stream; `watch --live`, which shows tokens at once,
also of tries that fail; a message from a person, with a timeout; and `async with Engine`.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import hashlib
import operator
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import durable
from durable import Client, Engine, Retry, aio, step, workflow

STREAM = "talk"
APPROVAL = "approval"
MOST_TURNS = 10
PATIENCE = 7 * 86400.0

Message = dict[str, Any]
"""One message of a talk: its `role` (user, model or tool), its `text`, and what tool to `call`."""


# ---------------------------------------------------------------------- the workflow


@workflow
async def talk(question: str, folder: str) -> str:
    """Have the model answer, with the tools that it asks for; what it says last is the result."""
    messages: list[Message] = [{"role": "user", "text": question}]
    for turn in range(1, MOST_TURNS + 1):
        said = await think(messages, turn)
        messages.append(said)
        if said["call"] is None:
            return str(said["text"])
        result = await use(said["call"], folder)
        await aio.write_stream(STREAM, {"result": result})
        messages.append({"role": "tool", "text": result})
    return "I gave up: that takes more turns than I have."


@step(retry=Retry(attempts=5, delay=1, on=ConnectionError), timeout=120)
async def think(messages: list[Message], turn: int) -> Message:
    """Ask the model; each token goes to whoever listens, as soon as the model says it."""
    text, call = "", None
    async for token in say(messages):
        if isinstance(token, dict):
            call = token
            await aio.write_stream(STREAM, {"call": call})
            continue
        await aio.write_stream(STREAM, {"turn": turn, "first": text == "", "token": token})
        text += token
    return {"role": "model", "text": text, "call": call}


async def use(call: dict[str, str], folder: str) -> str:
    """What came of a call of a tool, for the model; what changes the world, a person decides."""
    if call["tool"] == "calculate":
        return await calculate(call["expression"])
    if call["tool"] == "read_file":
        return await aio.run_step(read_file, folder, call["path"])
    await aio.write_stream(STREAM, {"asks": call})
    await aio.set_event("waits_for_approval", call)
    approved = await aio.recv(APPROVAL, timeout=PATIENCE, default=False)
    await aio.set_event("waits_for_approval", None)
    if not approved:
        return "error: the person does not want that"
    return await aio.run_step(write_file, folder, call["path"], call["text"])


# ---------------------------------------------------------------------- tools

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


@step
async def calculate(expression: str) -> str:
    """Work out an expression; the model hears of errors, and may try another way."""
    try:
        return f"{value_of(ast.parse(expression, mode='eval').body):g}"
    except (SyntaxError, ValueError, ArithmeticError, RecursionError) as error:
        return f"error: {expression!r} cannot be worked out ({error})"


def value_of(node: ast.expr) -> float:
    """The value of numbers, + - * / and brackets, and of nothing else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return float(OPERATORS[type(node.op)](value_of(node.left), value_of(node.right)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return float(OPERATORS[type(node.op)](value_of(node.operand)))
    raise ValueError("only numbers and + - * / are known")


@step
def read_file(folder: str, path: str) -> str:
    """The beginning of a text file in the folder."""
    try:
        with inside(folder, path).open(encoding="utf-8", errors="replace") as file:
            return file.read(10_000)
    except OSError as error:
        return f"error: {path} cannot be read ({error.strerror or error})"


@step
def write_file(folder: str, path: str, text: str) -> str:
    """Write a file in the folder. It may run twice: the file is complete, or as it was."""
    try:
        place = inside(folder, path)
        part = place.with_name(f".{place.name}.part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(place)
    except OSError as error:
        return f"error: {path} cannot be written ({error.strerror or error})"
    return f"saved to {path}"


def inside(folder: str, path: str) -> Path:
    """The path in the folder; PermissionError if it leads out of it."""
    place = (Path(folder) / path).resolve()
    if not place.is_relative_to(Path(folder).resolve()):
        raise PermissionError(f"it is not in {folder}")
    return place


# ---------------------------------------------------------------------- the made-up model


async def say(messages: list[Message]) -> AsyncIterator[str | dict[str, str]]:
    """What the model answers: tokens, and last of all the call of a tool if it wants one."""
    words, call = answer(messages)
    for token in re.findall(r"\S+\s*", words):
        await asyncio.sleep(float(os.environ.get("AGENT_SECONDS_PER_TOKEN", "0.04")))
        yield token
    if call is not None:
        yield call


def answer(messages: list[Message]) -> tuple[str, dict[str, str] | None]:
    """What it says next, and the tool that it wants, if it has not got all that it needs."""
    question = messages[0]["text"]
    results = [message["text"] for message in messages if message["role"] == "tool"]
    calls = plan(question, results)
    if results and results[-1].startswith("error:"):
        return f"I am sorry, I could not do that: {results[-1][7:]}. ", None
    if len(calls) > len(results):
        call = calls[len(results)]
        return INTRODUCTIONS[call["tool"]].format_map(call), call
    if not calls:
        return "I can work things out, read files and save what I found. Ask me for that. ", None
    found = found_by(calls, results)
    if calls[-1]["tool"] == "write_file":
        return f"It is {found}; that is {results[-1]}. ", None
    return f"It is {found}. ", None


INTRODUCTIONS = {
    "calculate": "Let me work that out. ",
    "read_file": "Let me look into {path}. ",
    "write_file": "I would like to save that to {path}. ",
}


def plan(question: str, results: list[str]) -> list[dict[str, str]]:
    """The tools that the question needs, as far as the results so far tell."""
    calls: list[dict[str, str]] = []
    if file := re.search(r"\bread (\S+\w)", question, re.IGNORECASE):
        calls.append({"tool": "read_file", "path": file[1]})
    if expression := re.search(r"[\d(][\d\s.()]*[-+*/][-\d\s.+*/()]*[\d)]", question):
        calls.append({"tool": "calculate", "expression": expression[0].strip()})
    elif file and results and re.search(r"\b(sum|add|total)\b", question, re.IGNORECASE):
        numbers = re.findall(r"-?\d+(?:\.\d+)?", results[0])
        calls.append({"tool": "calculate", "expression": " + ".join(numbers) or "0"})
    if place := re.search(r"\b(?:save|write)\b.*?\bto (\S+\w)", question, re.IGNORECASE):
        calls.append({"tool": "write_file", "path": place[1], "text": found_by(calls, results)})
    return calls


def found_by(calls: list[dict[str, str]], results: list[str]) -> str:
    """The result of the last tool that found something."""
    found = [
        result for call, result in zip(calls, results, strict=False) if call["tool"] != "write_file"
    ]
    return found[-1].strip() if found else ""


# ---------------------------------------------------------------------- showing a talk


class Screen:
    """Shows a talk on the standard output, one item of its stream after the other."""

    def __init__(self, workflow_id: str) -> None:
        self._id = workflow_id
        self._begun: set[int] = set()

    def show(self, item: dict[str, Any]) -> None:
        """One more item; a turn that begins a second time is shown as what it is."""
        if "token" in item:
            if item["first"] and item["turn"] in self._begun:
                self._write("\n(again) ")
            self._begun.add(item["turn"])
            self._write(item["token"])
        elif "call" in item:
            call = item["call"]
            about = call.get("expression") or call.get("path")
            self._write(f"\n  [{call['tool']} {about}]\n")
        elif "result" in item:
            first, *more = item["result"].splitlines() or [""]
            self._write(f"  -> {first}{' …' if more else ''}\n")
        elif "asks" in item:
            self._write(
                f"  May it? python3 -m examples.agent approve {self._id}, or reject {self._id}\n"
            )

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


# ---------------------------------------------------------------------- the commands


async def ask(state: str, workflow_id: str, question: str) -> None:
    """Begin a talk, or go on with it, and show it to its end."""
    async with Engine(state, recover="manual"):
        chosen = talk.options(id=workflow_id)
        handle = await aio.start(chosen, question, str(Path.cwd()))
        screen = Screen(workflow_id)
        async for item in aio.read_stream(handle, STREAM):
            screen.show(item)
        await handle
        print()


def watch(client: Client, workflow_id: str, live: bool) -> None:
    """Follow a talk from its beginning to its end."""
    handle, screen = client.handle(workflow_id), Screen(workflow_id)
    items: Iterable[dict[str, Any]]
    if live:
        items = (each.value for each in handle.stream(STREAM, live=True))
    else:
        items = handle.stream(STREAM)
    for item in items:
        screen.show(item)
    handle.result()
    print()


def decide(client: Client, workflow_id: str, approved: bool) -> None:
    """Answer a talk that waits for a person; only one answer to one question."""
    handle = client.handle(workflow_id)
    call = handle.events().get("waits_for_approval")
    if handle.info().status.finished or call is None:
        raise SystemExit(f"{workflow_id} does not wait for anybody: {handle.info().status}")
    number = sum(each.name == f"durable.recv:{APPROVAL}" for each in handle.steps() if each.outcome)
    handle.send(approved, APPROVAL, idempotency_key=f"approval {number}")
    done = "approved" if approved else "rejected"
    print(f"{done}: {call['tool']} {call['path']}")


def show_all(client: Client) -> None:
    """All talks, with their questions' ids and where they are."""
    for each in client.workflows():
        waits = client.events(each.id).get("waits_for_approval")
        asks = f"  asks: {waits['tool']} {waits['path']}" if waits else ""
        print(f"{each.id}  {each.status}{asks}")


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments, and do what they say."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "ask":
            workflow_id = options.id or id_of(options.question)
            print(f"talk {workflow_id}", file=sys.stderr, flush=True)
            asyncio.run(ask(options.state, workflow_id, options.question))
            return 0
        with Client(options.state) as client:
            if options.command == "watch":
                watch(client, options.id, options.live)
            elif options.command == "list":
                show_all(client)
            else:
                decide(client, options.id, options.command == "approve")
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on", file=sys.stderr)
        return 130
    except durable.AlreadyRunning as error:
        raise SystemExit(
            f"process {error.pid} has {options.state} open: wait for it, or follow its talk "
            "with watch"
        ) from error
    except durable.DurableError as error:
        raise SystemExit(f"agent: {error}") from error
    return 0


def id_of(question: str) -> str:
    """The id of the talk about a question."""
    return f"talk-{hashlib.sha256(question.encode()).hexdigest()[:6]}"


def parser() -> argparse.ArgumentParser:
    """What the command understands."""
    parser = argparse.ArgumentParser(
        prog="python3 -m examples.agent",
        description="An agent that survives kill -9, streams, and asks before it writes.",
        epilog=(
            "examples:\n"
            '  python3 -m examples.agent ask "What is 17 * 23?"\n'
            '  python3 -m examples.agent ask "Read prices.txt, add them up, save it to sum.txt"\n'
            "  python3 -m examples.agent watch --live talk-1a2b3c\n"
            "  python3 -m examples.agent approve talk-1a2b3c\n"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--state", metavar="FILE", default="agent.db", help="the file of the talks (agent.db)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = commands.add_parser("ask", help="ask something, or go on with what was asked")
    one.add_argument("question", metavar="QUESTION")
    one.add_argument("--id", help="the id of the talk; else the same question has the same talk")
    one = commands.add_parser("watch", help="follow a talk, from any terminal")
    one.add_argument("id", metavar="ID")
    one.add_argument(
        "--live", action="store_true", help="show tokens at once, also of tries that fail later"
    )
    for name, what in (("approve", "let it do"), ("reject", "do not let it do")):
        one = commands.add_parser(name, help=f"{what} what it asks for")
        one.add_argument("id", metavar="ID")
    commands.add_parser("list", help="all talks, and which of them wait for you")
    return parser


if __name__ == "__main__":
    sys.exit(main())

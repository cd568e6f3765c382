"""The work of the comparison in durable."""

import json
import sys
from statistics import median
from time import perf_counter

import durable
from durable import Engine, Queue, step, workflow

LONE, MANY, STEPS, TRIPS, TASKS, WORKERS = 300, 64, 10, 5, 300, 8
moments: list[float] = []
trips: list[float] = []


@step
def empty() -> None:
    """Nothing."""


@workflow
def steps(count: int) -> float:
    begin = perf_counter()
    for _ in range(count):
        empty()
    moments.append(perf_counter())
    return moments[-1] - begin


@workflow
def ping() -> None:
    for number in range(TRIPS):
        begin = perf_counter()
        durable.send("pong", number)
        durable.recv()
        trips.append(perf_counter() - begin)


@workflow
def pong() -> None:
    for _ in range(TRIPS):
        durable.send("ping", durable.recv())


@workflow
def task() -> None:
    moments.append(perf_counter())


queue = Queue("tasks", concurrency=WORKERS)


def main(folder: str) -> None:
    with Engine(f"{folder}/durable.db") as engine:
        engine.run(steps, 10)
        lone = LONE / engine.run(steps, LONE)
        moments.clear()
        begin = perf_counter()
        for handle in [engine.start(steps, STEPS) for _ in range(MANY)]:
            handle.result()
        many = MANY * STEPS / (max(moments) - begin)
        pong.options(id="pong").start()
        ping.options(id="ping").start().result()
        moments.clear()
        begin = perf_counter()
        for handle in [queue.enqueue(task) for _ in range(TASKS)]:
            handle.result()
        queued = TASKS / (max(moments) - begin)
    figures = {"lone": lone, "many": many, "trip": median(trips), "queued": queued}
    sys.stdout.write(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1])

"""The work of the comparison in DBOS: on SQLite, or on the PostgreSQL server of the URL."""

import json
import sys
import threading
from statistics import median
from time import perf_counter
from uuid import uuid4

from dbos import DBOS, SetWorkflowID

LONE, MANY, STEPS, TRIPS, TASKS, WORKERS = 300, 64, 10, 5, 300, 8
# New ones each time: a database on a server has those of other rounds.
PING, PONG = f"ping {uuid4()}", f"pong {uuid4()}"
moments: list[float] = []
trips: list[float] = []


@DBOS.step()
def empty() -> None:
    """Nothing."""


@DBOS.workflow()
def steps(count: int) -> float:
    begin = perf_counter()
    for _ in range(count):
        empty()
    moments.append(perf_counter())
    return moments[-1] - begin


@DBOS.workflow()
def ping() -> None:
    for number in range(TRIPS):
        begin = perf_counter()
        DBOS.send(PONG, number)
        DBOS.recv(timeout_seconds=60)
        trips.append(perf_counter() - begin)


@DBOS.workflow()
def pong() -> None:
    for _ in range(TRIPS):
        DBOS.send(PING, DBOS.recv(timeout_seconds=60))


@DBOS.workflow()
def task() -> None:
    moments.append(perf_counter())


def main(folder: str, url: str | None) -> None:
    DBOS(
        config={
            "name": "benchmark",
            "system_database_url": url or f"sqlite:///{folder}/dbos.sqlite",
            "log_level": "ERROR",
        }
    )
    DBOS.launch()
    DBOS.register_queue("tasks", worker_concurrency=WORKERS, polling_interval_sec=0.1)
    steps(10)
    lone = LONE / steps(LONE)
    moments.clear()
    begin = perf_counter()
    for handle in [DBOS.start_workflow(steps, STEPS) for _ in range(MANY)]:
        handle.get_result()
    many = MANY * STEPS / (max(moments) - begin)
    handles = []
    for name, workflow in ((PONG, pong), (PING, ping)):
        with SetWorkflowID(name):
            handles.append(DBOS.start_workflow(workflow))
    for handle in handles:
        handle.get_result()
    moments.clear()
    begin = perf_counter()
    for _ in range(TASKS):
        DBOS.enqueue_workflow("tasks", task)
    pause = threading.Event()
    while len(moments) < TASKS:
        pause.wait(0.005)
    queued = TASKS / (max(moments) - begin)
    figures = {"lone": lone, "many": many, "trip": median(trips), "queued": queued}
    sys.stdout.write(json.dumps(figures))
    DBOS.destroy()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)

"""The program that is killed while its queues are busy: ``python queue_work.py FILE LOG COUNT``.

It puts COUNT runs into each of its queues, unless the file has them, and ends when all are done.
What a step does is two lines of LOG, each one write: that it begins, and that it ends.
"""

from __future__ import annotations

import os
import sys
import time

import durable
from durable import Engine, Handle, Queue, Rate, step, workflow

LOG = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

NARROW = Queue("narrow", concurrency=2, priority=True)
RATED = Queue("rated", rate=Rate(5, per=0.05))
PARTS = Queue("parts", concurrency=1, partitioned=True)


def tell(what: str) -> None:
    os.write(LOG, f"{what} {durable.step_key()} {os.getpid()}\n".encode())


@step
def acts(number: int) -> int:
    tell("begin")
    time.sleep(0.002)  # what a death may fall into
    tell("end")
    return number


@workflow
def job(number: int) -> int:
    return acts(number) + acts(number)


def enqueue(n: int) -> list[Handle[int]]:
    narrow = job.options(id=f"narrow{n}", priority=n % 3)
    part = job.options(id=f"parts{n}", partition="ab"[n % 2])
    late = job.options(id=f"late{n}", queue=NARROW, delay=0.05)
    rated = job.options(id=f"rated{n}")
    return [
        NARROW.enqueue(narrow, n),
        PARTS.enqueue(part, n),
        late.start(n),
        RATED.enqueue(rated, n),
    ]


def main() -> None:
    with Engine(sys.argv[1]):
        sys.stdout.write("begins\n")
        sys.stdout.flush()
        handles = [handle for n in range(int(sys.argv[3])) for handle in enqueue(n)]
        for index, handle in enumerate(handles):
            assert handle.result() == 2 * (index // 4)
    sys.stdout.write("finished\n")


if __name__ == "__main__":
    main()

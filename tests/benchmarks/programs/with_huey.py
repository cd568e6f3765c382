"""The work of the comparison in huey, which has tasks in a queue, and no workflows."""

import json
import sys
import threading
from time import perf_counter

from huey import SqliteHuey

TASKS, WORKERS = 300, 8
moments: list[float] = []


def main(folder: str) -> None:
    huey = SqliteHuey(filename=f"{folder}/huey.db", fsync=True)

    @huey.task()
    def task() -> None:
        moments.append(perf_counter())

    consumer = huey.create_consumer(workers=WORKERS, periodic=False)
    consumer.start()
    begin = perf_counter()
    for _ in range(TASKS):
        task()
    pause = threading.Event()
    while len(moments) < TASKS:
        pause.wait(0.005)
    consumer.stop(graceful=True)
    sys.stdout.write(json.dumps({"queued": TASKS / (max(moments) - begin)}))


if __name__ == "__main__":
    main(sys.argv[1])

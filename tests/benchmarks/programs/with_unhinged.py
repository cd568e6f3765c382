"""The work of the comparison in unhinged; its workers look for work every 0.25 s, its default."""

import json
import sys
import threading
from statistics import median
from time import perf_counter
from typing import Any

from unhinged import Unhinged

LONE, MANY, STEPS, TRIPS, TASKS, WORKERS = 300, 64, 10, 5, 300, 8
moments: list[float] = []
begun: dict[int, float] = {}
ended: dict[int, float] = {}


def main(folder: str) -> None:
    app = Unhinged(f"{folder}/unhinged.db", queue_name="benchmark")
    app.create_queue()

    @app.register_task("steps")
    def steps(params: Any, ctx: Any) -> Any:
        begin = perf_counter()
        for number in range(params["count"]):
            ctx.step(f"empty {number}", lambda: None)
        moments.append(perf_counter())
        return moments[-1] - begin

    @app.register_task("task")
    def task(params: Any, ctx: Any) -> Any:
        moments.append(perf_counter())

    @app.register_task("ping")
    def ping(params: Any, ctx: Any) -> Any:  # runs again from its first line after each wait
        for number in range(TRIPS):
            if number not in begun:
                begun[number] = perf_counter()
                ctx.emit_event(f"ping {number}", number)
            ctx.await_event(f"pong {number}")
            ended.setdefault(number, perf_counter())

    @app.register_task("pong")
    def pong(params: Any, ctx: Any) -> Any:
        for number in range(TRIPS):
            ctx.emit_event(f"pong {number}", ctx.await_event(f"ping {number}"))

    def work(
        count: int, concurrency: int, name: str, params: dict[str, int]
    ) -> tuple[float, list[Any]]:
        """How long that many tasks take from the first spawn to the last one's end."""
        moments.clear()
        worker = threading.Thread(
            target=app.start_worker, kwargs={"concurrency": concurrency}, daemon=True
        )
        worker.start()
        begin = perf_counter()
        spawned = [app.spawn(name, params) for _ in range(count)]
        results = [app.await_task_result(each["task_id"]) for each in spawned]
        app.stop_worker()
        worker.join()
        return max(moments) - begin, [each.result for each in results]

    _, [lone_seconds] = work(1, 1, "steps", {"count": LONE})
    many_seconds, _ = work(MANY, MANY, "steps", {"count": STEPS})
    queued_seconds, _ = work(TASKS, WORKERS, "task", {})
    threading.Thread(target=app.start_worker, kwargs={"concurrency": 2}, daemon=True).start()
    app.spawn("pong", {})
    app.spawn("ping", {})
    pause = threading.Event()
    while len(ended) < TRIPS:
        pause.wait(0.005)
    app.stop_worker()
    figures = {
        "lone": LONE / lone_seconds,
        "many": MANY * STEPS / many_seconds,
        "trip": median(ended[number] - begun[number] for number in range(TRIPS)),
        "queued": TASKS / queued_seconds,
    }
    sys.stdout.write(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1])

"""The same work in each engine, as a program that prints JSON: ``python with_x.py FOLDER [URL]``.

They are run by `tests.benchmarks.peers` with the Python of an environment that has the engine, so
they import nothing of durable but what the one for durable does. Each prints what it can measure::

    lone    steps per second of one workflow with 300 empty steps, from the first to the last
    many    steps per second of 64 workflows with 10 empty steps each, from the first start on
    trip    seconds from a message to the answer to it, between two workflows; the median of 5
    queued  empty tasks per second through a queue with 8 workers, of 300, from the first one on
"""

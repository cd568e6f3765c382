"""How fast durable is, against raw SQLite on the same disk: ``python3 -m tests.benchmarks``.

The modules, each of which imports only from those above it::

    figures     what a benchmark yields, and the list of all benchmarks
    raw         raw SQLite: the same one-row commits with the same pragmas
    measuring   rounds, medians, memory
    filling     files with many workflows, made by SQL
    steps workflows messages queues recovery memory imports
                the benchmarks, by subject
    peers       other engines, each in a virtual environment of its own, with their programs/
    report      the table, and the same as JSON
    __main__    runs each benchmark in a process of its own

A new benchmark is a function under ``@benchmark`` in the module of its subject; a new module is
named in `__main__`.

With ``--peers`` it compares durable with other engines instead; ``--only`` adds benchmarks to that.
"""

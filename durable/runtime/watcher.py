"""Sees what other processes did to the file, and passes it on as if this one had done it."""

from __future__ import annotations

from functools import partial

from durable.clock import Thread
from durable.errors import DurableError, EngineClosed
from durable.runtime.host import Host, log
from durable.store import signals
from durable.store.connections import Watch

FORGET_EVERY = 1000

# How often it looks. A look takes a few microseconds, but to wake a processor for it takes fifty:
# so it looks seldom while nobody writes, and often once somebody did, who may soon do so again.
LOOK_EVERY = 0.03
LOOK_OFTEN_EVERY = 0.01
LOOK_OFTEN_FOR = 1.0


class Watcher:
    """A thread that looks, 33 times a second or more, whether another connection has committed."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._bell = host.clock.bell()
        self._watch: Watch | None = None
        self._seen = 0
        self._forgotten = 0
        self._complained = False
        self._look_often_until = 0.0
        self._thread: Thread | None = None

    def look(self) -> None:
        """What is done from now on will be seen."""
        self._watch = self._host.database.watch()
        self._seen = self._host.database.read(signals.last)  # after it: nothing falls in between

    def start(self) -> None:
        """Have a thread watch."""
        assert self._watch is not None
        self._thread = self._host.clock.spawn("durable watcher", partial(self._run, self._watch))

    def close(self) -> None:
        """End the thread. May be called again where it was interrupted."""
        self._bell.ring()
        if self._thread is not None:
            self._thread.join()
        if self._watch is not None:
            self._watch.close()

    def turn(self) -> None:
        """One look: notify what was touched since the last one."""
        after = self._seen
        self._seen, keys = self._host.database.read(lambda tx: signals.after(tx, after))
        if keys:
            self._host.notified(keys)
            self._look_often_until = self._host.clock.now() + LOOK_OFTEN_FOR
        if self._seen - self._forgotten >= FORGET_EVERY:
            self.forget()

    def forget(self) -> None:
        """Drop the rows that were seen."""
        seen = self._seen
        self._host.database.write("forget signals", lambda tx: signals.forget(tx, seen))
        self._forgotten = seen

    def _run(self, watch: Watch) -> None:
        while self._pause():
            self._host.database.notify()  # what an interrupted thread did not tell of
            try:
                self._host.database.rest()
                if watch.changed():
                    self.turn()
                self._complained = False
            except EngineClosed:
                return
            except DurableError as error:
                self._complain(error)

    def _pause(self) -> bool:
        """Wait until the next look; False if there is none any more."""
        now = self._host.clock.now()
        often = now < self._look_often_until
        return not self._bell.wait(now + (LOOK_OFTEN_EVERY if often else LOOK_EVERY))

    def _complain(self, error: DurableError) -> None:
        """Log what is wrong with the file, once as long as it lasts."""
        if not self._complained:
            log.error("signals of other processes could not be read: %s", error)
        self._complained = True

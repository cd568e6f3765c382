"""When a failed step is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from durable.checks import check_count
from durable.clock import seconds
from durable.errors import InvalidArgument

Errors = type[Exception] | tuple[type[Exception], ...]


@dataclass(frozen=True)
class Retry:
    """How often, when, and after which exceptions a step is tried again.

    `attempts` counts all tries, the first too. Before try n + 1 there is a pause of
    ``delay * backoff ** (n - 1)`` seconds, never above `max_delay`, made longer or shorter by up to
    the share `jitter` (0.1 is 10 %). `on` is a class, a tuple of classes or a predicate on the
    exception; what is in `give_up_on` is never tried again. After the last try the exception is
    raised as it is, with no pause.

        @step(retry=Retry(attempts=5, delay=0.5, on=(ConnectionError, TimeoutError)))
    """

    attempts: int = 3
    delay: float | timedelta = 1.0
    backoff: float = 2.0
    max_delay: float | timedelta = 60.0
    jitter: float = 0.0
    on: Errors | Callable[[Exception], bool] = Exception
    give_up_on: Errors = ()

    def __post_init__(self) -> None:
        check_count(self.attempts, "Retry.attempts, which counts all tries,")
        seconds(self.delay, "Retry.delay")
        seconds(self.max_delay, "Retry.max_delay")
        if isinstance(self.backoff, timedelta):
            raise InvalidArgument(f"Retry.backoff is a factor, not a span ({self.backoff!r})")
        seconds(self.backoff, "Retry.backoff")
        if isinstance(self.jitter, timedelta) or not seconds(self.jitter, "Retry.jitter") <= 1:
            raise InvalidArgument(f"Retry.jitter is a share from 0 to 1, not {self.jitter!r}")
        _check_classes(self.give_up_on, "Retry.give_up_on")
        if isinstance(self.on, (type, tuple)):
            _check_classes(self.on, "Retry.on")
        elif not callable(self.on):
            raise InvalidArgument(f"Retry.on is a class, a tuple or a predicate, not {self.on!r}")

    def pause_after(
        self, attempt: int, error: Exception, luck: random.Random | None = None
    ) -> float | None:
        """Seconds to wait after try number `attempt` ended in `error`; None to give up.

        The jitter is drawn from `luck`.
        """
        if attempt >= self.attempts or isinstance(error, self.give_up_on):
            return None
        on = self.on
        wanted = isinstance(error, on) if isinstance(on, (type, tuple)) else on(error)
        return self._pause(attempt, luck or random.Random()) if wanted else None

    def _pause(self, attempt: int, luck: random.Random) -> float:
        longest = seconds(self.max_delay, "Retry.max_delay")
        try:
            pause = seconds(self.delay, "Retry.delay") * self.backoff ** (attempt - 1)
        except OverflowError:
            pause = longest
        return min(pause, longest) * (1 + self.jitter * luck.uniform(-1, 1))


def _check_classes(classes: Errors, what: str) -> None:
    for each in classes if isinstance(classes, tuple) else (classes,):
        if not (isinstance(each, type) and issubclass(each, Exception)):
            raise InvalidArgument(f"{what} holds exception classes, not {each!r}")

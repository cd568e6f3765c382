"""Debouncing: of many calls in a short time, one run, with the arguments of the last call."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Generic, ParamSpec, TypeVar

from durable.checks import check_text
from durable.declare import WorkflowFunction
from durable.errors import InvalidArgument
from durable.handle import Handle
from durable.runtime import enqueuing, starting
from durable.runtime.context import current_host, find_scope

P = ParamSpec("P")
R = TypeVar("R")


class Debouncer(Generic[P, R]):
    """Calls a workflow once things are quiet: `delay` seconds after the last call for a key.

    It starts `max_wait` seconds after the first call at the latest, if that is given. What is to
    come is in the file: calls before and after a restart, and of other processes, are of one kind.

        reindex = Debouncer(index_page, delay=5, max_wait=60)

        reindex.call(page.id, page.text)      # at each key press
    """

    def __init__(
        self,
        wf: WorkflowFunction[P, R],
        *,
        delay: float | timedelta,
        max_wait: float | timedelta | None = None,
    ) -> None:
        if not isinstance(wf, WorkflowFunction):
            raise InvalidArgument(f"a Debouncer calls a workflow, not {wf!r}")
        span, self._max_wait = enqueuing.check_spans(delay, max_wait)
        self._wf = wf._with_delay(span)

    def call(self, key: str, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """The run to come for this key, which gets these arguments unless another call comes.

        In the body of a workflow the call is recorded; the run is not its child.
        """
        check_text(key, "the key of a Debouncer")
        host = current_host(f"the debouncer of {self._wf.name!r}")
        scope = find_scope("Debouncer.call")
        new = starting.prepare(host, self._wf._invocation(args, kwargs), "any")
        run_id = enqueuing.debounce(
            host, scope, lambda new_id: replace(new, id=new_id), key, self._max_wait
        )
        return Handle(host, run_id)

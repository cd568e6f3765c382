"""Ctrl-C: the one thread that it comes to, and how it is known."""

from __future__ import annotations

import threading


def on_main_thread() -> bool:
    """Whether this is the thread where Python handles signals."""
    return threading.current_thread() is threading.main_thread()


def is_ctrl_c(error: BaseException) -> bool:
    """Whether it is this thread that was interrupted, and not code of the user's that raised."""
    return isinstance(error, KeyboardInterrupt) and on_main_thread()

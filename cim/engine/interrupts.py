"""Being told to stop: finish what is at hand, save, then go."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def polite_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM (a cluster's end of time) or Ctrl-C sets; a second Ctrl-C interrupts at once.

    Outside the main thread, where Python allows no signal handlers, nothing ever sets it.
    """
    event = threading.Event()

    def ask(number: int, _frame: Any) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    main = threading.current_thread() is threading.main_thread()
    old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
    try:
        yield event
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

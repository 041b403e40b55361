# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Who waits and who decodes, so that "Stop" stops one's own run, also while it waits in the queue."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from .engine import Engine, StopFlag


class Visitors:
    """
    Keeps the stop flags of all sessions.

    Args:
        engine ([`Engine`]): Where the flags live.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._waiting: Counter[str] = Counter()
        self._active: Counter[str] = Counter()
        self._lock = threading.Lock()

    def announce(self, session: str) -> None:
        """A run was asked for and queues up. An older wish to stop does not concern it."""
        with self._lock:
            if not self._waiting[session] and not self._active[session]:
                self._engine.stop_flag(session).clear()
            self._waiting[session] += 1

    @contextmanager
    def running(self, session: str) -> Iterator[StopFlag]:
        """Around a run; gives its stop flag."""
        flag = self._engine.stop_flag(session)
        with self._lock:
            if self._waiting[session]:
                self._waiting[session] -= 1
            elif not self._active[session]:  # a client that did not announce its run
                flag.clear()
            self._active[session] += 1
        try:
            yield flag
        finally:
            with self._lock:
                self._active[session] -= 1
                self._forget_idle(session)

    def stop(self, session: str) -> bool:
        """Returns whether there was anything to stop."""
        with self._lock:
            busy = bool(self._waiting[session] or self._active[session])
            if busy:
                self._engine.stop_flag(session).set()
            return busy

    def leave(self, session: str) -> None:
        """The visitor has closed the page."""
        self.stop(session)
        with self._lock:
            self._waiting[session] = 0
            self._forget_idle(session)

    def _forget_idle(self, session: str) -> None:
        if not self._waiting[session] and not self._active[session]:
            self._engine.stop_flag(session).clear()
            del self._waiting[session], self._active[session]

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

    A run is announced when its button is pressed, and then either begins or is refused, as when the queue is full. A
    wish to stop concerns what was announced before it. Should the word of a refusal be lost, the next announcement
    makes up for it: while nothing decodes, whoever asks for a run wants one.

    Args:
        engine ([`Engine`]): Where the flags live.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._waiting: Counter[str] = Counter()
        self._unwanted: Counter[str] = Counter()  # of those that wait, the first ones: stopped before they began
        self._active: Counter[str] = Counter()
        self._lock = threading.Lock()

    def announce(self, session: str) -> None:
        """A run was asked for and queues up. An older wish to stop does not concern it."""
        with self._lock:
            if not self._active[session]:
                self._engine.stop_flag(session).clear()
                self._unwanted[session] = 0
            self._waiting[session] += 1

    def refuse(self, session: str) -> None:
        """A run that was announced will not begin."""
        with self._lock:
            self._waiting[session] = max(self._waiting[session] - 1, 0)
            self._unwanted[session] = min(self._unwanted[session], self._waiting[session])
            self._forget_idle(session)

    @contextmanager
    def running(self, session: str) -> Iterator[StopFlag]:
        """Around a run; gives its stop flag."""
        flag = self._engine.stop_flag(session)
        with self._lock:
            if self._unwanted[session]:
                self._unwanted[session] -= 1
                flag.set()
            elif not self._active[session]:
                flag.clear()
            # A client that did not announce its run leaves nothing to count down.
            self._waiting[session] = max(self._waiting[session] - 1, 0)
            self._active[session] += 1
        try:
            yield flag
        finally:
            with self._lock:
                self._active[session] -= 1
                self._forget_idle(session)

    def busy(self, session: str) -> bool:
        """Whether anything of this visitor decodes or waits to."""
        with self._lock:
            return bool(self._waiting[session] or self._active[session])

    def stop(self, session: str) -> bool:
        """Returns whether there was anything to stop."""
        with self._lock:
            self._unwanted[session] = self._waiting[session]
            if self._active[session]:
                self._engine.stop_flag(session).set()
            busy = bool(self._waiting[session] or self._active[session])
            self._forget_idle(session)
            return busy

    def leave(self, session: str) -> None:
        """The visitor has closed the page."""
        self.stop(session)
        with self._lock:
            self._waiting[session] = self._unwanted[session] = 0
            self._forget_idle(session)

    def _forget_idle(self, session: str) -> None:
        if not self._waiting[session] and not self._active[session]:
            self._engine.stop_flag(session).clear()
            del self._waiting[session], self._unwanted[session], self._active[session]

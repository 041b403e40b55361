# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
from contextlib import ExitStack

import pytest
import torch

from ppow_hf.evaluation import stopwatches
from ppow_hf.evaluation.stopwatches import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by hand."""
    now = [0.0]
    monkeypatch.setattr(stopwatches.time, "perf_counter", lambda: now[0])
    return now


def test_a_stopwatch_counts_everything_once(clock):
    class Work:
        def outer(self):
            clock[0] += 1.0
            self.inner(0.5)
            clock[0] += 2.0
            self.inner(0.25)

        def inner(self, seconds):
            clock[0] += seconds

        def failing(self):
            clock[0] += 4.0
            raise KeyError

    watch, work = Stopwatch(torch.device("cpu")), Work()
    inner = Work.inner
    with ExitStack() as stack:
        watch.watch(stack, Work, "outer", "a", "outer")
        watch.watch(stack, Work, "inner", "a", lambda self, seconds: f"inner {seconds}")
        watch.watch(stack, work, "failing", "b", "failing")
        with watch.timing("b", "all"):
            clock[0] += 8.0
            work.outer()
            with pytest.raises(KeyError):
                work.failing()
    clock[0] += 16.0
    work.outer()
    assert watch.seconds == {
        ("b", "all"): 8.0,
        ("a", "outer"): 3.0,
        ("a", "inner 0.5"): 0.5,
        ("a", "inner 0.25"): 0.25,
        ("b", "failing"): 4.0,
    }
    assert Work.inner is inner and "failing" not in vars(work)

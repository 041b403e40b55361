# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import subprocess
import sys
import time

import psutil
import pytest

from ppow_hf.evaluation import contention, runner
from ppow_hf.evaluation.contention import LIMIT, OthersShare, disturbed, wait_for_calm
from ppow_hf.evaluation.measure import Generation
from ppow_hf.evaluation.report import render_report
from tests.evaluation.bench_utils import bench, tiny_models


@pytest.fixture
def processors(monkeypatch):
    """Two processors whose times are set by hand."""
    state = {"clock": 0.0, "busy": 0.0, "own": 0.0}
    monkeypatch.setattr(OthersShare, "_times", staticmethod(lambda: (state["clock"], state["busy"], state["own"])))
    monkeypatch.setattr(contention, "_sees_all_processors", lambda: True)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    return state


def share(processors, wall, own, others):
    with OthersShare() as measured:
        processors["clock"] += wall
        processors["own"] += own
        processors["busy"] += own + others
    return measured.share


def test_shares_by_hand(processors, monkeypatch):
    assert share(processors, wall=4.0, own=8.0, others=0.0) == 0.0
    assert share(processors, wall=4.0, own=4.0, others=2.0) == pytest.approx(0.25)
    assert share(processors, wall=4.0, own=8.0, others=-0.02) == 0.0  # counted coarsely
    assert share(processors, wall=0.1, own=0.1, others=0.1) is None
    monkeypatch.setattr(contention, "_sees_all_processors", lambda: False)
    assert share(processors, wall=4.0, own=4.0, others=2.0) is None
    assert [disturbed(value) for value in (None, 0.0, LIMIT, LIMIT + 0.01)] == [False, False, False, True]


def test_a_busy_process_is_seen():
    if not contention._sees_all_processors():
        pytest.skip("this process may not use all processors")
    busy = subprocess.Popen(
        [sys.executable, "-c", "print('up', flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    )
    try:
        busy.stdout.readline()
        with OthersShare() as measured:
            time.sleep(1.0)
    finally:
        busy.kill()
        busy.wait()
        busy.stdout.close()
    # One processor of all of them, where others leave it to it.
    assert measured.share > 0.4 / psutil.cpu_count()


def test_waiting_has_an_end(processors, monkeypatch):
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        processors["clock"] += seconds
        processors["busy"] += seconds if len(naps) < 3 else 0.0

    monkeypatch.setattr(contention.time, "sleep", sleep)
    monkeypatch.setattr(contention.time, "perf_counter", lambda: processors["clock"])
    assert wait_for_calm(10.0) and len(naps) == 3
    naps.clear()
    assert not wait_for_calm(0.9) and len(naps) == 2


class Timings:
    """Timings with given shares of others, in place of real ones."""

    def __init__(self, monkeypatch, shares, calm=True):
        self.shares, self.waits, self.calm = iter(shares), 0, calm
        monkeypatch.setattr(runner, "OthersShare", lambda: self)
        monkeypatch.setattr(runner, "wait_for_calm", self.wait)

    def wait(self, seconds):
        self.waits += 1
        return self.calm

    def __enter__(self):
        self.share = next(self.shares)
        return self

    def __exit__(self, *exc_info):
        pass


def timed(retries, timings, times=1):
    benchmark = runner.BenchmarkRunner(None, None, None, None, [], 8, 0, None, False, retries)
    benchmark._generate = lambda *args: Generation(tokens=[], seconds=timings.share or 0.0)
    return [benchmark._timed_generate(None, None, 0.0, None, 0) for _ in range(times)]


def test_disturbed_timings_are_made_again_and_the_calmest_counts(monkeypatch):
    for retries, shares, counted, waits in (
        (2, [0.01], 0.01, 0),
        (2, [None], None, 0),
        (0, [0.5], 0.5, 0),
        (2, [0.5, 0.02], 0.02, 1),
        (2, [0.3, 0.2, 0.4], 0.2, 2),
        (2, [0.2, None], None, 1),
    ):
        timings = Timings(monkeypatch, shares)
        (generation,) = timed(retries, timings)
        assert (generation.others, timings.waits) == (counted, waits), shares
        assert next(timings.shares, "all used") == "all used"


def test_where_others_stay_it_stops_waiting_for_them(monkeypatch):
    timings = Timings(monkeypatch, [0.5] * 100, calm=False)
    found = timed(2, timings, times=10)
    assert timings.waits == runner._IN_VAIN and all(generation.others == 0.5 for generation in found)


def test_the_report_says_how_often(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "OthersShare", lambda: Always(0.2))
    results = bench(tmp_path, models=tiny_models())
    assert results["disturbed"] == {"runs": 15, "of": 15}  # three methods on five prompts
    assert "Of 15 timings 15 were disturbed" in render_report(results)
    del results["disturbed"]  # as in results of before
    assert "disturbed" not in render_report(results)


class Always:
    def __init__(self, share):
        self.share = share

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

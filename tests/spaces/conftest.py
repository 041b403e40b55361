# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The Space's folder on the import path, as when `app.py` runs, and the page served with tiny models."""

import os
import sys
import time
from pathlib import Path

import pytest

SPACE = Path(__file__).resolve().parents[2] / "spaces" / "ppow_demo"
sys.path.insert(0, str(SPACE))
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# httpx and requests must not take the local server for something behind a proxy.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"


def make_engine(**kwargs):
    """An engine around a tiny target of characters and an untrained drafter."""
    from ppow_demo.engine import Engine
    from ppow_demo.models import DrafterEntry, Models

    from tests.data.data_testing_utils import char_target, char_tokenizer
    from tests.testing_utils import tiny_eagle3

    target = char_target()
    drafter = tiny_eagle3(target, draft_vocab_size=60)
    entries = [DrafterEntry("tiny", "Initialisation: tiny", "initialisation")]
    return Engine(Models(target, char_tokenizer(), entries, {"tiny": drafter}), **{"refresh": 0.05, **kwargs})


@pytest.fixture(scope="module")
def engine():
    return make_engine()


def slow_down(engine, seconds=0.03):
    """Makes every pass of the target take at least `seconds`; returns the handle that undoes it."""
    return engine.models.target.register_forward_pre_hook(lambda module, args: time.sleep(seconds))


@pytest.fixture(scope="module")
def served():
    """`(url, engine)` of the page on a free port."""
    pytest.importorskip("gradio", reason="the demo's packages are not installed: pip install -e .[demo]")
    from ppow_demo.app import build_demo
    from ppow_demo.serve import launch

    engine = make_engine(max_prompt_tokens=300)
    engine.warm_up()
    demo = launch(build_demo(engine), block=False)
    yield demo.local_url, engine
    demo.close()


@pytest.fixture(scope="module")
def small():
    """`(url, engine)` of a page where one run may wait behind the one that decodes."""
    pytest.importorskip("gradio", reason="the demo's packages are not installed: pip install -e .[demo]")
    from ppow_demo.app import build_demo
    from ppow_demo.serve import launch

    engine = make_engine()
    engine.warm_up()
    demo = launch(build_demo(engine, queue_length=1), block=False)
    yield demo.local_url, engine
    demo.close()


@pytest.fixture
def crowd(small):
    """Two other visitors, one of whom decodes and one of whom waits; gives what lets them finish."""
    from tests.spaces.test_app import client, race, wait_for_text

    url, engine = small
    visitors = [client(url) for _ in range(2)]
    handle = slow_down(engine, 0.1)
    jobs = [race(visitors[0], "Count to ten.", new_tokens=256)]
    wait_for_text(jobs[0])
    jobs.append(race(visitors[1], "Name a colour.", new_tokens=16))
    end = time.time() + 30
    while jobs[1].status().rank is None and time.time() < end:
        time.sleep(0.02)

    def finish():
        handle.remove()
        for job in jobs:
            job.result(timeout=60)
        return jobs

    yield finish
    finish()

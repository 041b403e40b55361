# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""ZeroGPU: what asks for a GPU where the package `spaces` is there, and that it is without effect elsewhere."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the demo's packages are not installed: pip install -e .[demo]")

from tests.spaces.conftest import SPACE  # noqa: E402

ROOT = SPACE.parents[1]
# The package at its boundary: `GPU(duration=...)` gives a decorator. It notes what had been imported before it.
RECORDER = """
import inspect, sys
imported_before = sorted({"torch", "gradio"} & set(sys.modules))
decorated = []

def GPU(task=None, *, duration=None):
    def decorate(function):
        decorated.append([function.__qualname__, duration, inspect.isgeneratorfunction(function)])
        return function
    return decorate(task) if callable(task) else decorate
"""
# What app.py does, with tiny models in place of the real ones; then one race through the decorated function.
VISIT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from ppow_demo import serve, zerogpu
sys.path.append(sys.argv[2])
from tests.spaces.conftest import make_engine
import ppow_demo.app, gradio_client, spaces
engine = make_engine()
demo = serve.launch(ppow_demo.app.build_demo(engine), block=False)
client = gradio_client.Client(demo.local_url, verbose=False)
job = client.submit("Count to ten.", 0, 16, "fixed", 4, 1, 12, 0, api_name="/race")
job.result(timeout=120)
said = [output[0] for output in job.outputs() if isinstance(output[0], str)][-1]
demo.close()
print("RESULT " + json.dumps({
    "said": said, "active": zerogpu.ACTIVE, "package": getattr(spaces, "__file__", None),
    "decorated": getattr(spaces, "decorated", None), "before": getattr(spaces, "imported_before", None),
}))
"""


def visit(tmp_path: Path, package: Path) -> dict:
    environment = {k: v for k, v in os.environ.items() if k not in ("SPACES_ZERO_GPU", "PYTHONPATH")}
    environment["PYTHONPATH"] = str(package)
    command = [sys.executable, "-c", VISIT, str(SPACE), str(ROOT)]
    # From elsewhere: the repository's own folder `spaces/` must not be what is found.
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, result.stdout + result.stderr
    return json.loads(lines[0].removeprefix("RESULT "))


@pytest.mark.slow
def test_decoding_asks_for_a_gpu_where_the_package_is(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "spaces.py").write_text(RECORDER)
    found = visit(tmp_path, tmp_path / "package")
    assert found["decorated"] == [
        ["Engine.race", 60, True],
        ["Engine.compare", 60, True],
        ["Engine.check_float32", 60, False],
    ]
    assert found["before"] == []  # the real one must come before anything touches CUDA
    assert "Done" in found["said"] and not found["active"]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("spaces.zero") is None, reason="the package `spaces` is not installed: pip install spaces"
)
def test_the_real_package_changes_nothing_elsewhere(tmp_path):
    package = Path(importlib.util.find_spec("spaces.zero").origin).parents[2]
    found = visit(tmp_path, package)
    assert Path(found["package"]).is_relative_to(package)
    assert "Done" in found["said"] and not found["active"]


def test_the_page_runs_without_the_package(served):
    from ppow_demo import zerogpu

    assert zerogpu.ACTIVE is False
    if zerogpu.GPU is None:
        assert zerogpu.on_gpu(visit) is visit

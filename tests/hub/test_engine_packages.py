# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Runs `vllm_checks.py` and `sglang_checks.py` where the real packages are: in the folder of `make engines`, over the
environment of `make speculators`, whose transformers both take. The packages are hundreds of megabytes and need no GPU
for this, so they are fetched on request and not in continuous integration.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINES = Path(os.environ.get("PPOW_ENGINES") or Path(sys.prefix) / "engines")
PYTHON = Path(os.environ.get("PPOW_SPECULATORS_PYTHON") or Path(sys.prefix) / "speculators" / "bin" / "python")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("engine", "cases"), [("vllm", 23), ("sglang", 11)])
def test_the_engine_reads_what_is_exported(engine, cases):
    """Its own code builds the drafter from config.json and loads the weights; every parameter is as it should be."""
    if not (ENGINES / engine / "__init__.py").exists() or not PYTHON.exists():
        pytest.skip(f"the package {engine} is not there: run `make engines` (downloads about 400 MB)")
    command = [str(PYTHON), "-m", "pytest", "-p", "no:cacheprovider", f"tests/hub/{engine}_checks.py"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(ENGINES)
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(rf"^{cases} passed\b(?!.*skipped)", result.stdout, flags=re.M), result.stdout

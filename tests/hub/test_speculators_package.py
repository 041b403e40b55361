# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Runs `speculators_checks.py` where the real `speculators` package is: in the environment of `make speculators`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = Path(__file__).with_name("speculators_checks.py")
PYTHON = Path(os.environ.get("PPOW_SPECULATORS_PYTHON") or Path(sys.prefix) / "speculators" / "bin" / "python")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not PYTHON.exists(), reason="no environment with the speculators package: run `make speculators`")
def test_exports_in_the_real_package():
    """Loads every kind of export there and compares the logits of six draft steps with ours to 1e-5."""
    command = [str(PYTHON), "-m", "pytest", "-p", "no:cacheprovider", str(CHECKS)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^10 passed\b(?!.*skipped)", result.stdout, flags=re.M), (
        result.stdout
    )  # and none of them skipped

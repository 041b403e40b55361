# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The Makefile's set-up, and the Python it needs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ppow_hf import cli
from ppow_hf.evaluation.methods import parse_methods

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def outside_make() -> dict[str, str]:
    """The environment without what `make test` hands on to a make below it: that one would speak of its folders."""
    return {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_old_python_is_refused_before_anything_is_set_up(tmp_path):
    python = tmp_path / "old-python"
    # This Python, saying of itself what 3.10 says. It makes no environment: that would fetch gigabytes.
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || {{ echo "made an environment" >&2; exit 1; }}\n'
        f'exec {sys.executable} -c "import sys; sys.version_info = (3, 10, 14); exec(sys.argv[1])" "$2"\n'
    )
    python.chmod(0o755)
    command = ["make", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}", "quickstart"]
    done = subprocess.run(command, cwd=ROOT, env=outside_make(), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "Python >= 3.11 is needed" in done.stderr and "is 3.10" in done.stderr
    assert "made an environment" not in done.stderr


def test_the_python_required_is_one_the_dependencies_run_on():
    required = SpecifierSet(PROJECT["requires-python"])
    (oldest,) = re.findall(r"^>=(3\.\d+)$", str(required))
    for dependency in PROJECT["dependencies"]:
        theirs = metadata(Requirement(dependency).name)["Requires-Python"]
        assert theirs is None or oldest in SpecifierSet(theirs), (dependency, theirs)
    assert f"Python >= {oldest} is needed" in (ROOT / "Makefile").read_text()


def test_every_variable_of_the_makefile_is_used():
    text = (ROOT / "Makefile").read_text()
    for name in re.findall(r"^(\w+) [?:]?=", text, flags=re.M):
        assert f"$({name})" in text, name


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("assistant", [None, "some/model"])
def test_the_race_is_one_that_bench_takes(assistant, tmp_path):
    """Its methods are known, and so are its options."""
    (tmp_path / ".installed").touch()
    given = [
        f"VENV={tmp_path}",
        "SUITES=a.jsonl b.jsonl",
        "LIMIT=8",
        *([f"ASSISTANT={assistant}"] if assistant else []),
    ]
    # Nothing is set up again: the mark is newer than what it is made from.
    command = ["make", "--no-print-directory", "-n", *given, "bench"]
    done = subprocess.run(command, cwd=ROOT, env=outside_make(), capture_output=True, text=True, timeout=60)
    command = shlex.split(done.stdout.replace("\\\n", " "))
    assert command[:2] == [f"{tmp_path}/bin/ppow", "bench"], done.stdout + done.stderr
    options = (
        typer.main.get_command(cli.app).commands["bench"].make_context("bench", command[2:], resilient_parsing=False)
    )
    values = options.params
    assert values["suite"] == ["a.jsonl", "b.jsonl"] and values["limit"] == 8 and values["assistant"] == assistant
    assert (values["temperature"], values["max_new_tokens"]) == ("0,1", 128)
    names = [method.name for method in parse_methods(values["method"])]
    assert {"prompt_lookup:5", "fixed:2", "fixed:8", "confidence", "cost_aware", "mixed", "tree"} <= set(names)
    assert ("hf_dynamic" in names) == (assistant is not None)

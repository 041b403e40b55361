# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How well it works: suites, methods, the benchmark, its report and pictures, and the acceptance metric."""

from .acceptance import acceptance_statistics
from .benchmark import run_benchmark
from .calibration import Reliability
from .methods import DEFAULT_METHODS, METHOD_NAMES, Method, MethodError, parse_method, parse_methods
from .records import ResumeError
from .report import render_report, write_report
from .suites import SUITES, Example, SuiteError, SuiteUnavailableError, load_suite, read_suite_file

__all__ = [
    "DEFAULT_METHODS",
    "METHOD_NAMES",
    "SUITES",
    "Example",
    "Method",
    "MethodError",
    "Reliability",
    "ResumeError",
    "SuiteError",
    "SuiteUnavailableError",
    "acceptance_statistics",
    "load_suite",
    "parse_method",
    "parse_methods",
    "read_suite_file",
    "render_report",
    "run_benchmark",
    "write_report",
]

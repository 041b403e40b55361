# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How reports write figures and tables in Markdown."""

from collections.abc import Sequence
from typing import Any

NOTHING = "-"


def environment_list(environment: dict[str, Any]) -> str:
    support = environment["dtype_support"]
    dtypes = [name for name in ("bfloat16", "float16") if support[name]]
    lines = [
        f"- device: {environment['device']} ({environment['device_name']})",
        f"- CPU: {environment['cpu']}, {environment['cpu_cores']} cores available, {environment['torch_threads']} "
        "torch threads",
        f"- dtypes that run: float32{''.join(', ' + name for name in dtypes)}; CPU instructions: "
        f"{', '.join(support['cpu_instructions']) or 'none of the listed'}",
        f"- platform: {environment['platform']}",
        "- versions: " + ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
    ]
    if "decoding_code" in environment:  # not in results of earlier versions
        lines.append(f"- decoding code: {environment['decoding_code']}")
    return "\n".join(lines)


def number(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def times(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}x"


def percent(value: float | None, digits: int = 0) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f}%"


def interval(value: Sequence[float] | None) -> str:
    return "" if value is None else f" [{value[0]:.2f}, {value[1]:.2f}]"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    left = ["---" if index == 0 else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, left, *lines])

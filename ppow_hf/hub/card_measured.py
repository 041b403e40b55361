# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What was measured of a drafter: benchmarks in its folder, and checks in float32 that texts are the target's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.aggregate import summarize
from ..evaluation.lossless import CHECK_FILE, CHECK_REPORT, differing
from ..evaluation.methods import MethodError, is_own_fixed, parse_method
from ..json_files import read_json_object

# Where they lie in the drafter's folder, at any depth.
MEASURED_FOLDER = "benchmarks"


@dataclass
class Benchmark:
    """
    One `results.json`.

    Args:
        path (`str`): Its path in the folder, with `/`.
        results (`dict`): Its content.
        report (`str`, *optional*): Path of the `report.md` beside it.
    """

    path: str
    results: dict[str, Any]
    report: str | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.results["results"]

    @property
    def summary(self) -> list[dict[str, Any]]:
        """Means over suites."""
        return self.results.get("summary") or summarize(self.rows)

    def window_rows(self) -> list[dict[str, Any]]:
        """Rows of the methods in which this drafter drafts."""
        return [row for row in self.rows if is_window(row["method"])]

    def best_fixed(self) -> int | None:
        """The fixed window that was fastest on the mean over suites, at the lowest temperature."""
        fixed = [row for row in self.summary if is_own_fixed(row["method"]) and row["speedup"] is not None]
        if not fixed:
            return None
        best = max(fixed, key=lambda row: (-row["temperature"], row["speedup"]))
        return int(best["method"].partition(":")[2])


@dataclass
class LosslessCheck:
    """
    One `lossless.json` of `python -m ppow_hf.scripts.check_lossless`.

    Args:
        path (`str`): Its path in the drafter's folder, with `/`.
        results (`dict`): Its content.
        report (`str`, *optional*): Path of the `lossless.md` beside it.
    """

    path: str
    results: dict[str, Any]
    report: str | None = None

    def introduction(self) -> str:
        """What was checked, in a sentence."""
        arguments = self.results["arguments"]
        plain = self._of(arguments["methods"][0])
        prompts, tokens = (sum(row[name] for row in plain) for name in ("num_prompts", "new_tokens"))
        report = f", [report]({self.report})" if self.report else ""
        return (
            f"Checked in float32 against plain `generate`, token for token: {prompts} prompts of "
            f"{', '.join(arguments['suites'])}, {tokens} new tokens, at most {arguments['max_new_tokens']} a turn. "
            f"[`{self.path}`]({self.path}){report}"
        )

    def rows(self) -> list[list[str]]:
        """A row for every method in which this drafter has a part: its name, prompts, and how many are identical."""
        rows = []
        for method in self.results["arguments"]["methods"][1:]:
            prompts, same = (sum(row[name] for row in self._of(method)) for name in ("num_prompts", "identical"))
            rows.append([f"`{method}`", str(prompts), str(same)])
        return rows

    def warnings(self) -> list[str]:
        """A sentence for every method that changed a text."""
        return [
            f"**Not lossless**: in float32 `{method}` gave another text than plain `generate` on "
            f"{', '.join(name for row in self._of(method) for name in row['different'])} (`{self.path}`)."
            for method in differing(self.results)
        ]

    def _of(self, method: str) -> list[dict[str, Any]]:
        return [row for row in self.results["results"] if row["method"] == method]


def read_benchmarks(folder: Path) -> list[Benchmark]:
    """
    The benchmarks in a drafter's folder, the main one first.

    Args:
        folder (`Path`): The drafter's folder.

    Raises:
        OSError: If a file is truncated, or was not written by `ppow bench`.
    """
    keys = ("environment", "arguments", "results")
    return [Benchmark(*found) for found in _measured(folder, "results.json", "report.md", keys, "ppow bench")]


def read_lossless(folder: Path) -> list[LosslessCheck]:
    """
    The checks in float32 in a drafter's folder.

    Args:
        folder (`Path`): The drafter's folder.

    Raises:
        OSError: If a file is truncated, or was not written by `check_lossless`.
    """
    keys = ("arguments", "results", "drafter_hash")
    return [LosslessCheck(*found) for found in _measured(folder, CHECK_FILE, CHECK_REPORT, keys, "check_lossless")]


def is_window(method: str) -> bool:
    """Whether a benchmark's method is this drafter under a window policy."""
    try:
        parsed = parse_method(method)
        return parsed.kind == "window" and parsed.drafter is None
    except MethodError:
        return False


def read_drafter_config(folder: Path) -> dict[str, Any]:
    """
    The `config.json` of a saved drafter.

    Args:
        folder (`Path`): The drafter's folder.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFileError: If it is truncated, or something else.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"`{folder}` holds no config.json. Give a folder that `drafter.save_pretrained` wrote."
        )
    return read_json_object(path, "Save the drafter again.")


def read_json(path: Path) -> dict[str, Any] | None:
    """
    A JSON object from a file, or `None` where there is no file.

    Raises:
        OSError: If it is truncated, or something else.
    """
    if not path.is_file():
        return None
    return read_json_object(path, "Write it again, or delete it.")


def _measured(
    folder: Path, name: str, report_name: str, keys: tuple[str, ...], command: str
) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """Path, content and report of every such file, those nearest to the folder first."""
    for path in sorted((folder / MEASURED_FOLDER).rglob(name), key=lambda path: (len(path.parts), path)):
        results = read_json(path)
        if missing := set(keys) - results.keys():
            raise OSError(f"`{path}` lacks {sorted(missing)}: it was not written by `{command}`.")
        report = path.with_name(report_name)
        has_report = report.is_file()
        yield (
            path.relative_to(folder).as_posix(),
            results,
            report.relative_to(folder).as_posix() if has_report else None,
        )

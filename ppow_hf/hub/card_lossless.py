# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the check in float32 says on a card: whether texts are the target's own, on all of its prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.lossless import CHECK_FILE, CHECK_REPORT, differing

PLACE = "benchmarks"


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


def read_lossless(folder: Path) -> list[LosslessCheck]:
    """
    The checks in a drafter's folder, under `benchmarks/`.

    Args:
        folder (`Path`): The drafter's folder.

    Raises:
        OSError: If a file is truncated, or no check of ours.
    """
    checks = []
    for path in sorted((folder / PLACE).rglob(CHECK_FILE), key=lambda path: (len(path.parts), path)):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            missing = {"arguments", "results", "drafter_hash"} - results.keys()
        except (ValueError, AttributeError) as error:
            raise OSError(f"`{path}` is truncated or not JSON ({error}). Make it again, or remove it.") from None
        if missing:
            raise OSError(f"`{path}` lacks {sorted(missing)}: it was not written by `check_lossless`.")
        report = path.with_name(CHECK_REPORT)
        checks.append(
            LosslessCheck(
                path.relative_to(folder).as_posix(),
                results,
                report.relative_to(folder).as_posix() if report.is_file() else None,
            )
        )
    return checks

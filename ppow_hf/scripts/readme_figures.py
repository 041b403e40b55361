# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Writes the README's figures from a benchmark's `results.json`, so that no number is typed by hand.

    python -m ppow_hf.scripts.readme_figures model_cards/smollm2-135m-instruct-eagle3/benchmarks/results.json
"""

import json
import sys
from pathlib import Path

from ppow_hf.whole_files import write_text_whole

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def figures_section(results: dict, folder: str) -> str:
    """
    The Markdown between the README's markers.

    Args:
        results (`dict`): Contents of `results.json`.
        folder (`str`): Folder of the benchmark, as linked from the README.

    Returns:
        `str`: A table of speedup and acceptance length per suite and method, and what it was measured on.
    """
    rows = [row for row in results["results"] if row["temperature"] == 0 and row["method"] != "target"]
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cell = {(row["suite"], row["method"]): row for row in rows}
    mean = {row["method"]: row for row in results["summary"] if row["temperature"] == 0}
    lines = [
        "| decoding | " + " | ".join(suites) + " | mean |",
        "|---|" + "---|" * (len(suites) + 1),
    ]
    best = max(methods, key=lambda method: mean[method]["speedup"])
    for method in methods:
        columns = [cell.get((suite, method)) for suite in suites] + [mean[method]]
        shown = ["-" if row is None else _cell(row["speedup"], row["acceptance_length"]) for row in columns]
        name = f"**`{method}`**" if method == best else f"`{method}`"
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    environment, arguments = results["environment"], results["arguments"]
    prompts = sorted({row["num_prompts"] for row in rows})
    lines += [
        "",
        f"Speedup over plain `generate` (acceptance length tau, the target's own token included), temperature 0, "
        f"{arguments['max_new_tokens']} new tokens, {'-'.join(str(p) for p in prompts)} prompts a suite, "
        f"{rows[0]['dtype']}{', prepacked' if arguments.get('prepack') else ''}, {environment['device_name']}. "
        f"From [`results.json`]({folder}/results.json); protocol, intervals and losslessness in the "
        f"[report]({folder}/report.md).",
    ]
    return "\n".join(lines)


def _cell(speedup: float, tau: float | None) -> str:
    return f"{speedup:.2f}x" + (f" ({tau:.2f})" if tau is not None else "")


def replace_figures(readme: str, section: str) -> str:
    """The README with the text between its markers replaced."""
    if BEGIN not in readme or END not in readme:
        raise ValueError(f"The README needs the markers {BEGIN} and {END} around its figures.")
    before, rest = readme.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{section}\n{END}{rest.split(END, 1)[1]}"


def main(results_path: str, readme_path: str = "README.md") -> None:
    """Rewrites the README in place."""
    path = Path(results_path)
    readme = Path(readme_path)
    section = figures_section(json.loads(path.read_text()), path.parent.as_posix())
    write_text_whole(readme, replace_figures(readme.read_text(encoding="utf-8"), section))


if __name__ == "__main__":
    main(*sys.argv[1:])

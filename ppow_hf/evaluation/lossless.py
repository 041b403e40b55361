# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Is the text the target's own, token for token? Every method against plain `generate` in float32, at temperature 0.

Times play no part here. So the work can be shared among processes, stopped, and taken up again on another machine, and
may run beside anything else; `ppow bench` is for speed.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..drafters import DrafterModel
from ..whole_files import write_json_whole, write_text_whole
from .aggregate import sum_or_none
from .environment import decoding_code, describe_environment
from .markdown import number, table
from .methods import PLAIN, Method, check_methods, parse_methods
from .precision import cast_floating, content_hash, fingerprint, public_name, settings_hash
from .records import RecordLog
from .runner import BenchmarkRunner, check_room, taking_turns
from .suites import Example, check_distinct

LOGS = "records-*.jsonl"
CHECK_FILE, CHECK_REPORT = "lossless.json", "lossless.md"


def check_lossless(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drafter: DrafterModel | None,
    examples: Sequence[Example],
    methods: Sequence[str],
    output_dir: str | os.PathLike,
    *,
    max_new_tokens: int = 128,
    part: int = 1,
    parts: int = 1,
    target_name: str | None = None,
    drafter_name: str | None = None,
    progress: bool = True,
) -> dict[str, Any] | None:
    """
    Decodes every example with every method in float32 and compares the tokens with plain `generate`'s.

    Finished examples are kept in `output_dir/records-PART-of-PARTS.jsonl`. An example that any of the folder's logs
    holds is not decoded again; when none is left, `lossless.json` and `lossless.md` are written. Source: ours.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        drafter (`DrafterModel`, *optional*): The drafter.
        examples (`Sequence[Example]`): Of all suites. The suites take turns, so that a half-done run has seen all.
        methods (`Sequence[str]`): As for [`run_benchmark`].
        output_dir (`str` or `os.PathLike`): Folder of the logs and results.
        max_new_tokens (`int`): Most new tokens per turn.
        part, parts (`int`): This process's share of the examples: every `parts`-th, from the `part`-th on, from 1.
        target_name, drafter_name (`str`, *optional*): Names for the report.
        progress (`bool`): Show a progress bar.

    Returns:
        `dict`, *optional*: the content of `lossless.json`; None while other parts have examples to do.

    Raises:
        ValueError: `part` is not one of `parts`, or a log in the folder belongs to another check.
    """
    if not 1 <= part <= parts:
        raise ValueError(f"`part` must lie between 1 and `parts`; got part {part} of {parts}.")
    check_distinct(examples)
    method_list = parse_methods(methods)
    check_methods(method_list, target, drafter, None)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    arguments = {
        "target": public_name(target, target_name),
        "drafter": public_name(drafter, drafter_name),
        "suites": list(dict.fromkeys(example.suite for example in examples)),
        "methods": [method.name for method in method_list],
        "max_new_tokens": max_new_tokens,
    }
    identity = {
        **arguments,
        "prompts_hash": content_hash(sorted([example.suite, example.id, list(example.turns)] for example in examples)),
        "target_hash": fingerprint(target),
        "drafter_hash": fingerprint(drafter),
        "drafter_settings": settings_hash(drafter),
    }
    log = RecordLog(output_dir / f"records-{part}-of-{parts}.jsonl", identity)
    examples = taking_turns(examples)
    check_room(target, tokenizer, examples, max_new_tokens)
    done = _finished(output_dir, identity)
    mine = [example for example in examples[part - 1 :: parts] if (example.suite, example.id) not in done]
    runner = BenchmarkRunner(target, tokenizer, drafter, None, method_list, max_new_tokens, 0, log, progress)
    with cast_floating((target, drafter), torch.float32):
        for example in tqdm(mine, desc=f"float32, part {part} of {parts}", unit="prompt", disable=not progress):
            log.append(_compare(runner, example, method_list))
    done = _finished(output_dir, identity)
    if len(done) < len(examples):
        return None
    results = {
        "environment": describe_environment(target.device),
        "arguments": arguments,
        "drafter_hash": identity["drafter_hash"],
        "decoding_code": dict(Counter(record.get("decoding_code", "not recorded") for record in done.values())),
        "results": _rows([done[example.suite, example.id] for example in examples], arguments),
    }
    write_json_whole(output_dir / CHECK_FILE, results)
    write_text_whole(output_dir / CHECK_REPORT, render_lossless(results))
    return results


def _finished(folder: Path, identity: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The examples of all logs in the folder, each of which must belong to this check."""
    return {
        (record["suite"], record["id"]): record
        for path in sorted(folder.glob(LOGS))
        for record in RecordLog(path, identity, read_only=True).records
    }


def _compare(runner: BenchmarkRunner, example: Example, methods: Sequence[Method]) -> dict[str, Any]:
    runs = runner.run_example(example, 0.0)
    plain = [turn.tokens for turn in runs[PLAIN]]
    record: dict[str, Any] = {
        "kind": "lossless",
        "suite": example.suite,
        "id": example.id,
        "tokens": sum(map(len, plain)),
        "decoding_code": decoding_code(),
        "methods": {},
    }
    for method in methods:
        turns = runs[method.name]
        record["methods"][method.name] = {
            "identical": [turn.tokens for turn in turns] == plain,
            "committed": sum_or_none([turn.committed for turn in turns]),
            "verifications": sum_or_none([turn.verifications for turn in turns]),
        }
    return record


def _rows(records: Sequence[dict[str, Any]], arguments: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for suite in arguments["suites"]:
        chosen = [record for record in records if record["suite"] == suite]
        for method in arguments["methods"]:
            runs = [record["methods"][method] for record in chosen]
            verifications = sum_or_none([run["verifications"] for run in runs])
            rows.append(
                {
                    "suite": suite,
                    "method": method,
                    "num_prompts": len(runs),
                    "new_tokens": sum(record["tokens"] for record in chosen),
                    "identical": sum(run["identical"] for run in runs),
                    "different": [r["id"] for r in chosen if not r["methods"][method]["identical"]],
                    "acceptance_length": sum(run["committed"] for run in runs) / verifications
                    if verifications
                    else None,
                }
            )
    return rows


def render_lossless(results: dict[str, Any]) -> str:
    """
    The report.

    Args:
        results (`dict`): Content of `lossless.json`.

    Returns:
        `str`: Markdown.
    """
    arguments, rows = results["arguments"], results["results"]
    suites = arguments["suites"]
    prompts = sum(row["num_prompts"] for row in rows if row["method"] == PLAIN)
    tokens = sum(row["new_tokens"] for row in rows if row["method"] == PLAIN)
    lines = []
    for method in arguments["methods"]:
        mine = {row["suite"]: row for row in rows if row["method"] == method}
        same = sum(row["identical"] for row in mine.values())
        cells = [f"{mine[suite]['identical']} of {mine[suite]['num_prompts']}" for suite in suites]
        taus = [mine[suite]["acceptance_length"] for suite in suites]
        lines.append([f"`{method}`", *cells, f"{same / prompts:.1%}", *map(number, taus)])
    text = (
        f"Target **{arguments['target']}**, drafter **{arguments['drafter']}**, float32, temperature 0: prompts whose "
        f"tokens all equal plain `generate`'s. {prompts} prompts, {tokens} new tokens, at most "
        f"{arguments['max_new_tokens']} a turn. tau is the acceptance length, bonus token included; where the window "
        "adapts it depends on the costs of the machine, the text does not."
    )
    if versions := results.get("decoding_code"):  # not in results of earlier versions
        text += f" Decoding code (prompts): {', '.join(f'{code} ({count})' for code, count in versions.items())}."
    different = [
        f"`{row['method']}` on {row['suite']}: {', '.join(row['different'])}" for row in rows if row["different"]
    ]
    header = ["method", *suites, "identical", *(f"tau, {suite}" for suite in suites)]
    parts = ["# Is the text the target's own?", text, table(header, lines)]
    if different:
        parts.append("Different: " + "; ".join(different) + ".")
    return "\n\n".join(parts) + "\n"


def differing(results: dict[str, Any]) -> list[str]:
    """Methods of ours with a text that is not the target's; transformers' own are its own affair."""
    windows = {method.name for method in parse_methods(results["arguments"]["methods"]) if method.kind == "window"}
    found = {row["method"] for row in results["results"] if row["different"]}
    return [name for name in results["arguments"]["methods"] if name in windows & found]

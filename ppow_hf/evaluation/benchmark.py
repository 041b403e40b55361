# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The benchmark: every method on every prompt, interleaved, measured against plain `generate`.

Protocol. Batch 1, the tokenizer's chat template, one process. All methods answer a prompt before the next one begins,
in an order that rotates from prompt to prompt, so that drift of the machine favours none; the suites take turns. In a
conversation of several turns the history holds plain `generate`'s answers for every method: all of them see identical
prompts. tau = tokens committed / verifications, the target's bonus token included. Speedup = mean over prompts of the
method's tokens per second over plain `generate`'s on the same prompt.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..json_files import read_json_object
from ..whole_files import write_json_whole
from .aggregate import BOOTSTRAP, calibration_rows, compare_with_fixed, result_row, summarize
from .contention import disturbed_runs
from .environment import describe_environment
from .methods import (
    DEFAULT_METHODS,
    check_methods,
    load_assistant,
    parse_method,
    parse_methods,
    resolve_assistant,
)
from .precision import (
    cast_floating,
    content_hash,
    dtype_name,
    fingerprint,
    parse_dtype,
    prepacked,
    public_name,
    settings_hash,
)
from .records import RecordLog
from .runner import BenchmarkRunner, check_room, taking_turns
from .sittings import cost_models, predicted_speedup, sitting_facts
from .suites import Example, check_distinct, first_of_each_suite, load_suite


def run_benchmark(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drafter: torch.nn.Module | None,
    suites: Sequence[str | os.PathLike | Sequence[Example]],
    methods: Sequence[str] = DEFAULT_METHODS,
    output_dir: str | os.PathLike = "runs/bench",
    *,
    temperatures: Sequence[float] = (0.0,),
    max_new_tokens: int = 256,
    limit: int | None = None,
    seed: int = 0,
    dtype: str | torch.dtype | None = None,
    assistant: PreTrainedModel | str | os.PathLike | None = None,
    other_drafters: Mapping[str, torch.nn.Module] | None = None,
    check_float32: int | str = 0,
    max_seconds: float | None = None,
    prepack: bool = False,
    retries: int = 2,
    target_name: str | None = None,
    drafter_name: str | None = None,
    progress: bool = True,
    plots: bool = True,
) -> dict[str, Any]:
    """
    Run a benchmark and write `results.json`, `report.md`, two PNGs and `records.jsonl` into `output_dir`.

    A run that was interrupted goes on where it stopped when it is started again with the same arguments, on another
    machine too: every speedup compares two runs of one sitting.

    Args:
        target ([`~transformers.PreTrainedModel`]): The model whose text is produced.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer; prompts go through its chat template.
        drafter (`DrafterModel`, *optional*): Needed by the window methods.
        suites (`Sequence`): Suite names, JSONL paths, or lists of [`Example`].
        methods (`Sequence[str]`): See `METHOD_NAMES`. Plain `generate` is always among them.
        output_dir (`str` or `os.PathLike`): Created when missing.
        temperatures (`Sequence[float]`): 0 for greedy decoding, otherwise sampling from the whole distribution.
        max_new_tokens (`int`): Most new tokens per turn.
        limit (`int`, *optional*): At most this many prompts of each suite (a sample drawn with `seed`).
        seed (`int`): Seed of the sample of prompts, of sampling, and of the bootstrap intervals.
        dtype (`str` or `torch.dtype`, *optional*): Hold the models in this dtype for the run. Default: the target's.
        assistant ([`~transformers.PreTrainedModel`] or `str`, *optional*):
            Causal LM for the hf_* methods, or where to load it from. Default: the one inside a `CausalLMDrafter`.
        other_drafters (`Mapping[str, DrafterModel]`, *optional*):
            Drafters to compare with, by name: the method `"cost_aware@cst"` is the window of the one named `"cst"`.
        check_float32 (`int` or `"all"`): Prompts per suite, of those measured, that are decoded once more in float32,
            where the text of every method must equal plain `generate`'s exactly.
        max_seconds (`float`, *optional*):
            Begin no further prompt after this time, in float32 neither, and report what has been measured.
        prepack (`bool`): Prepack the target, and the assistant of the hf_* methods, for all methods alike (see
            [`prepack_weights`]); a bfloat16 run on a CPU is then faster, with and without a drafter.
        retries (`int`): Time a text so often again, after waiting for calm, while other processes take more than a
            twentieth of the processors' time; the least disturbed timing counts.
        target_name, drafter_name (`str`, *optional*): Names for the report; by default taken from the models.
        progress (`bool`): Show progress bars.
        plots (`bool`): Draw the pictures.

    Returns:
        `dict`: the content of `results.json`.

    Raises:
        ValueError: an argument is not valid, a method cannot run with what was given, or `output_dir` holds a run with
            other arguments.
        NotADirectoryError: `output_dir` is a file.
        ConnectionError: a named suite cannot be downloaded.
    """
    method_list = parse_methods(methods)
    temperature_list = _check_temperatures(temperatures)
    _check_count("max_new_tokens", max_new_tokens, 1)
    _check_count("retries", retries, 0)
    if check_float32 != "all":
        _check_count("check_float32", check_float32, 0, ' or "all"')
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"`max_seconds` must be greater than 0; got {max_seconds!r}.")
    bench_dtype = parse_dtype(dtype, target.dtype)
    if isinstance(assistant, (str, os.PathLike)):
        assistant_name, assistant = assistant, load_assistant(assistant, target)
    else:
        assistant_name = None
    assistant = resolve_assistant(drafter, assistant)
    others = dict(other_drafters or {})
    check_methods(method_list, target, drafter, assistant, others)
    _check_used(others, method_list)
    examples = taking_turns(_collect(suites, limit, seed))
    check_room(target, tokenizer, examples, max_new_tokens)
    models = (target, drafter, assistant, *others.values())
    for model in models:
        if model is not None:
            model.eval()
    for name in dict.fromkeys(method.drafter for method in method_list if method.kind == "window"):
        (drafter if name is None else others[name]).bind_target(target)

    arguments = {
        "target": public_name(target, target_name),
        "drafter": public_name(drafter, drafter_name),
        "suites": list(dict.fromkeys(example.suite for example in examples)),
        "methods": [method.name for method in method_list],
        "temperatures": temperature_list,
        "max_new_tokens": max_new_tokens,
        "limit": limit,
        "seed": seed,
        "dtype": dtype_name(bench_dtype),
        "check_float32": check_float32,
        "assistant": _assistant_name(method_list, drafter, assistant, drafter_name, assistant_name),
        "chat_template": tokenizer.chat_template is not None,
    }
    if prepack:
        arguments["prepack"] = True
    if others:
        arguments["other_drafters"] = {name: public_name(other, None) for name, other in others.items()}
    identity = {
        **arguments,
        # Two versions must not end up in one table; two machines may, in sittings of their own.
        "versions": describe_environment(target.device)["versions"],
        "prompts_hash": content_hash([[example.suite, example.id, example.turns] for example in examples]),
        "target_hash": fingerprint(target),
        "drafter_hash": fingerprint(drafter),
        "drafter_settings": settings_hash(drafter),
        "assistant_hash": fingerprint(assistant) if arguments["assistant"] else None,
    }
    if others:
        identity["other_drafter_hashes"] = {name: fingerprint(other) for name, other in others.items()}
        identity["other_drafter_settings"] = {name: settings_hash(other) for name, other in others.items()}
    output_dir = Path(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise NotADirectoryError(f"`output_dir` (`--output`) is {str(output_dir)!r}, a file: give a folder.")
    output_dir.mkdir(parents=True, exist_ok=True)
    log = RecordLog(output_dir / "records.jsonl", identity)
    runner = BenchmarkRunner(
        target, tokenizer, drafter, assistant, method_list, max_new_tokens, seed, log, progress, retries, others
    )
    before, started = len(runner.prompts()), time.monotonic()
    with cast_floating(models, bench_dtype), prepacked((target, assistant) if prepack else ()):
        runner.run(examples, temperature_list, max_seconds)
        picture = runner.picture(examples, temperature_list[0])
    if bench_dtype == torch.float32 and 0.0 in temperature_list:
        float32_records = [_float32_from(record) for record in runner.prompts() if record["temperature"] == 0.0]
    else:
        measured = {(record["suite"], record["id"]) for record in runner.prompts()}
        chosen = [e for e in first_of_each_suite(examples, check_float32) if (e.suite, e.id) in measured]
        left = None if max_seconds is None else max_seconds - (time.monotonic() - started)
        with cast_floating(models, torch.float32):
            float32_records = runner.check_float32(chosen, left)

    results = _results(arguments, log.records, float32_records, seed)
    results["measured"] = {"prompts": len(runner.prompts()), "of": len(examples) * len(temperature_list)}
    results["disturbed"] = disturbed_runs(runner.prompts())
    results["trace"] = picture
    if len(runner.prompts()) == before and (oracle := _oracle_of(output_dir / "results.json")) is not None:
        results["oracle"] = oracle  # its texts and costs are still those of the benchmark
    # So that figures are never shown beside other weights.
    results["drafter_hash"] = identity["drafter_hash"]
    if others:
        results["other_drafter_hashes"] = identity["other_drafter_hashes"]
    write_json_whole(output_dir / "results.json", results)
    from .report import write_report

    images = {}
    if plots:
        from .plots import write_plots

        images = write_plots(results, output_dir)
    write_report(results, output_dir / "report.md", images)
    return results


def _results(arguments, records, float32_records, seed) -> dict[str, Any]:
    prompts = [record for record in records if record["kind"] == "prompt"]
    sittings = sitting_facts(records)
    parsed = {method: parse_method(method) for method in arguments["methods"]}
    models = {name: cost_models(records, name) for name in {method.drafter for method in parsed.values()}}
    rows = []
    for temperature in arguments["temperatures"]:
        for suite in arguments["suites"]:
            chosen = [r for r in prompts if (r["temperature"], r["suite"]) == (temperature, suite)]
            checked = [r for r in float32_records if r["suite"] == suite] if temperature == 0 else []
            for method in arguments["methods"]:
                row = result_row(suite, method, temperature, arguments["dtype"], chosen, checked, seed)
                if parsed[method].is_chain and row["acceptance_length"] is not None:
                    row["predicted_speedup"] = predicted_speedup(
                        models[parsed[method].drafter], chosen, row["acceptance_length"], row["mean_window"]
                    )
                rows.append(row)
    summary = summarize(rows)
    return {
        "environment": sittings[0]["environment"],
        "arguments": arguments,
        "results": rows,
        "summary": summary,
        "comparison": compare_with_fixed(rows, summary),
        "calibration": calibration_rows(prompts, arguments["methods"]),
        "bootstrap": BOOTSTRAP,
        "cost_model": sittings[0]["cost_model"],
        "sittings": sittings,
    }


def _oracle_of(path: Path) -> dict[str, Any] | None:
    """What [`add_oracle`] has added to a benchmark's results."""
    return read_json_object(path, "Delete it, and start again.").get("oracle") if path.is_file() else None


def _collect(suites: Sequence[Any], limit: int | None, seed: int) -> list[Example]:
    if isinstance(suites, (str, os.PathLike)):
        suites = [suites]
    examples: list[Example] = []
    for suite in suites:
        examples += load_suite(suite, limit, seed) if isinstance(suite, (str, os.PathLike)) else list(suite)
    check_distinct(examples)
    return examples


def _check_used(others: Mapping[str, Any], methods: Sequence[Any]) -> None:
    unused = [name for name in others if all(method.drafter != name for method in methods)]
    if unused:
        raise ValueError(
            f"`other_drafters` has {', '.join(map(repr, unused))}, of which no method is a window: add for example "
            f"`cost_aware@{unused[0]}` to `methods` (`--method`), or leave the drafter out."
        )


def _assistant_name(methods, drafter, assistant, drafter_name, given) -> str | None:
    if not any(method.kind == "assistant" for method in methods):
        return None
    if assistant is getattr(drafter, "model", None):
        return public_name(drafter, drafter_name)
    return public_name(assistant, given and str(given))


def _float32_from(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "lossless": {name: run["lossless"] for name, run in record["methods"].items()}}


def _check_temperatures(temperatures: Sequence[float] | float) -> list[float]:
    values = [temperatures] if isinstance(temperatures, (int, float)) else list(temperatures)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ValueError(f"`temperatures` must be numbers >= 0 (0 is greedy decoding); got {value!r}.")
    if not values:
        raise ValueError("`temperatures` is empty; pass at least one, 0 for greedy decoding.")
    return list(dict.fromkeys(float(value) for value in values))


def _check_count(name: str, value: Any, least: int, alternative: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be a whole number >= {least}{alternative}; got {value!r}.")

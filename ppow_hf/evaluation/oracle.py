# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
The oracle line: how fast the drafter would be under a window policy that knows in advance what will be accepted.

The gap to it is all that a better policy could still gain; what is beyond it needs a better drafter. Everything in
this comparison is modelled by one cost model on the same texts (see [`simulate`]): the oracle, the fixed windows and
the adaptive policies. Measured speeds stand beside it, with the prompt's share added to the modelled ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..drafters import DrafterModel
from ..end_tokens import eos_token_ids_of
from ..generation import CostModel, WindowConfig
from ..json_files import read_json_object
from ..whole_files import write_json_whole
from .aggregate import bootstrap_interval, measured_so_far
from .measure import measure_generation
from .methods import PLAIN, parse_method
from .precision import cast_floating, content_hash, fingerprint, parse_dtype, settings_hash
from .records import RecordLog
from .runner import cost_fields, encode_messages, padding_token
from .simulation import Walk
from .suites import Example, SuiteError, load_suite
from .window_comparison import ORACLE, walks_of_text

LOG_FILE = "oracle.jsonl"


def add_oracle(
    folder: str | os.PathLike,
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drafter: DrafterModel,
    suites: Sequence[str | os.PathLike | Sequence[Example]],
    *,
    max_size: int | None = None,
    progress: bool = True,
    plots: bool = True,
) -> dict[str, Any]:
    """
    Adds the oracle line to a finished benchmark: an entry `oracle` in its `results.json`, a section in its report, and
    a line in its picture. An interrupted run goes on where it stopped.

    Args:
        folder (`str` or `os.PathLike`): Output folder of [`run_benchmark`], with a run at temperature 0.
        target, tokenizer, drafter: As in the benchmark.
        suites (`Sequence`): The benchmark's suites, given as there.
        max_size (`int`, *optional*): Largest window of the oracle and of the fixed windows. Default: the drafter's.
        progress (`bool`): Show a progress bar.
        plots (`bool`): Draw the benchmark's pictures anew.

    Returns:
        `dict`: the content of `results.json`.

    Raises:
        FileNotFoundError: `folder` holds no `results.json`.
        ValueError: the benchmark ran other suites, other prompts or another drafter, or not at temperature 0.
    """
    folder = Path(folder)
    results = _read_results(folder)
    arguments = results["arguments"]
    examples = _benchmark_examples(results, suites)
    if results.get("drafter_hash", fingerprint(drafter)) != fingerprint(drafter):
        raise ValueError(
            f"`drafter` is not the one of the benchmark in {folder} ({arguments['drafter']}): give its folder, or run "
            "the benchmark again."
        )
    drafter.bind_target(target)
    target.eval()
    drafter.eval()
    with cast_floating((target, drafter), parse_dtype(arguments["dtype"], target.dtype)):
        stored = results["cost_model"]
        cost_model = CostModel.for_models(target, drafter) if stored is None else CostModel.from_dict(stored)
        # Windows of another drafter of the benchmark are none that this one could be replayed with.
        methods = [parse_method(name) for name in arguments["methods"]]
        chains = [m.name for m in methods if m.is_chain and m.drafter is None and ":" not in m.name]
        if "cost_aware" not in chains:
            chains.append("cost_aware")
        configs = {name: window_of(name, drafter) for name in chains}
        size = max_size or configs["cost_aware"].max_size
        configs |= {f"fixed:{k}": window_of(f"fixed:{k}", drafter) for k in range(1, size + 1)}
        identity = {
            "oracle_of": arguments,
            "prompts_hash": _prompts_hash(examples),
            "drafter_hash": fingerprint(drafter),
            "drafter_settings": settings_hash(drafter),
            "cost_model": cost_fields(cost_model),
            "configs": {name: config.to_dict() for name, config in configs.items()},
            "max_size": size,
        }
        log = RecordLog(folder / LOG_FILE, identity)
        done = {(record["suite"], record["id"]) for record in log.records}
        todo = [example for example in examples if (example.suite, example.id) not in done]
        for example in tqdm(todo, desc="oracle", unit="prompt", disable=not progress or not todo):
            log.append(
                {
                    "suite": example.suite,
                    "id": example.id,
                    **_replay(example, target, tokenizer, drafter, configs, cost_model, size, arguments),
                }
            )
    results["oracle"] = {
        "max_size": size,
        "cost_model": cost_fields(cost_model),
        "same_texts": _same_texts(folder, log.records),
        "rows": oracle_rows(log.records, results),
    }
    write_json_whole(folder / "results.json", results)
    from .report import write_report

    images = {}
    if plots:
        from .plots import write_plots

        images = write_plots(results, folder)
    write_report(results, folder / "report.md", images)
    return results


def window_of(name: str, drafter: DrafterModel) -> WindowConfig:
    """The window that the benchmark's method of this name decodes with."""
    with parse_method(name).generate_kwargs(drafter, None) as kwargs:
        return kwargs["window"]


def _read_results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"`folder` is {str(folder)!r}, which holds no results.json: run `ppow bench` first.")
    results = read_json_object(path, "Run `ppow bench` again, which writes it anew.")
    if 0.0 not in results["arguments"]["temperatures"]:
        raise ValueError(
            f"The benchmark in {folder} did not run at temperature 0: only greedy texts can be replayed. Run it with "
            "`--temperature 0`."
        )
    return results


def _benchmark_examples(results: Mapping[str, Any], suites: Sequence[Any]) -> list[Example]:
    if (measured := measured_so_far(results)) is not None:
        raise SuiteError(f"The benchmark is not finished ({measured} prompts): start it again, and it goes on.")
    arguments = results["arguments"]
    if isinstance(suites, (str, os.PathLike)):
        suites = [suites]
    examples: list[Example] = []
    for suite in suites:
        if isinstance(suite, (str, os.PathLike)):
            suite = load_suite(suite, arguments["limit"], arguments["seed"])
        examples += suite
    counts = {name: sum(example.suite == name for example in examples) for name in arguments["suites"]}
    ran = {row["suite"]: row["num_prompts"] for row in results["results"]}
    if counts != ran or len(examples) != sum(ran.values()):
        raise SuiteError(
            f"`suites` hold {_counts(examples)} prompts, the benchmark ran {ran}: give the same suites, in full."
        )
    return examples


def _counts(examples: Sequence[Example]) -> dict[str, int]:
    names = dict.fromkeys(example.suite for example in examples)
    return {name: sum(example.suite == name for example in examples) for name in names}


def _prompts_hash(examples: Sequence[Example]) -> str:
    return content_hash([[example.suite, example.id, example.turns] for example in examples])


def _replay(example, target, tokenizer, drafter, configs, cost_model, size, arguments) -> dict[str, Any]:
    """The walks of every policy over one conversation, and a hash of the target's answers in it."""
    eos = eos_token_ids_of(target.generation_config)
    walks: dict[str, Walk] = {}
    answers: list[list[int]] = []
    messages: list[dict[str, str]] = []
    pad = padding_token(tokenizer)
    budget = arguments["max_new_tokens"]
    for message in example.turns:
        messages.append({"role": "user", "content": message})
        ids = encode_messages(tokenizer, messages, target.device)
        run = measure_generation(parse_method(PLAIN), target, None, None, ids, max_new_tokens=budget, pad_token_id=pad)
        answers.append(run.tokens)
        messages.append({"role": "assistant", "content": tokenizer.decode(run.tokens, skip_special_tokens=True)})
        text = [*ids[0].tolist(), *run.tokens]
        found = walks_of_text(
            target, drafter, text, ids.shape[1], configs, cost_model, max_size=size, budget=budget, eos_token_ids=eos
        )
        walks = {name: walks.get(name, Walk()) + walk for name, walk in found.items()}
    return {
        "text_hash": content_hash(answers),
        "walks": {name: walk.totals() for name, walk in walks.items()},
    }


def _same_texts(folder: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    """On how many prompts the replayed text is the one of the benchmark; None where its records are not there."""
    path = folder / "records.jsonl"
    if not path.is_file():
        return None
    hashes = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "prompt" and record["temperature"] == 0:
            hashes[record["suite"], record["id"]] = record["methods"][PLAIN]["text_hash"]
    same = sum(hashes.get((record["suite"], record["id"])) == record["text_hash"] for record in records)
    return {"same": same, "prompts": len(records)}


def oracle_rows(records: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    Figures per suite and policy, and (suite None) their means over suites.

    Args:
        records (`Sequence[Mapping]`): One per prompt: `suite`, and `walks` of every policy.
        results (`Mapping`): Content of the benchmark's `results.json`.

    Returns:
        `list[dict]`: `suite`, `policy`, `num_prompts`, `speedup` (mean over prompts, modelled, prompt left out) and
        its interval, `share_of_oracle`, `acceptance_length`, `mean_window`, `speedup_with_prompt` (the same with the
        time plain decoding spends on the prompt on both sides; None where that was not measured) and `measured`, the
        benchmark's own figure for a method of this name.

    Raises:
        ValueError: a suite has no text of two tokens or more.
    """
    plain = {row["suite"]: row for row in results["results"] if row["temperature"] == 0 and row["method"] == PLAIN}
    measured = {
        (row["suite"], row["method"]): row["speedup"]
        for row in [*results["results"], *({**row, "suite": None} for row in results["summary"])]
        if row["temperature"] == 0
    }
    rows: list[dict[str, Any]] = []
    for suite in results["arguments"]["suites"]:
        walks = [record["walks"] for record in records if record["suite"] == suite]
        walks = [entry for entry in walks if entry[ORACLE]["verifications"]]
        if not walks:
            raise ValueError(f"No answer on {suite!r} is longer than a token: there is nothing to draft for.")
        for policy in walks[0]:
            own = [entry[policy] for entry in walks]
            speedups = [walk["committed"] / walk["cost"] for walk in own]
            cycles = sum(walk["verifications"] for walk in own)
            speedup = sum(speedups) / len(speedups)
            rows.append(
                {
                    "suite": suite,
                    "policy": policy,
                    "num_prompts": len(own),
                    "speedup": speedup,
                    "speedup_interval": bootstrap_interval(
                        speedups, [1.0] * len(speedups), results["arguments"]["seed"]
                    ),
                    "acceptance_length": sum(walk["committed"] for walk in own) / cycles,
                    "mean_window": sum(walk["drafted"] for walk in own) / cycles,
                    "speedup_with_prompt": _with_prompt(speedup, plain[suite]["seconds"]),
                }
            )
    if len(results["arguments"]["suites"]) > 1:
        rows += [_mean_row([row for row in rows if row["policy"] == policy]) for policy in walks[0]]
    oracles = {row["suite"]: row["speedup"] for row in rows if row["policy"] == ORACLE}
    for row in rows:
        row["share_of_oracle"] = row["speedup"] / oracles[row["suite"]]
        row["measured"] = measured.get((row["suite"], row["policy"]))
    return rows


def _with_prompt(speedup: float, seconds: Mapping[str, float | None]) -> float | None:
    if any(value is None for value in (seconds["prefill"], seconds["verify"], seconds["other"])):
        return None
    share = seconds["prefill"] / (seconds["prefill"] + seconds["verify"] + seconds["other"])
    return 1.0 / (share + (1.0 - share) / speedup)


def _mean_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        values = [row[name] for row in rows]
        return None if any(value is None for value in values) else sum(values) / len(values)

    return {
        "suite": None,
        "policy": rows[0]["policy"],
        "num_prompts": sum(row["num_prompts"] for row in rows),
        "speedup": mean("speedup"),
        "speedup_interval": None,
        "acceptance_length": mean("acceptance_length"),
        "mean_window": mean("mean_window"),
        "speedup_with_prompt": mean("speedup_with_prompt"),
    }

# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The sections of a card: facts of a drafter's folder as the text and table cells the template puts in place."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from transformers import TrainingArguments

from ..drafters import Eagle3DrafterConfig
from ..evaluation.markdown import number, percent
from .card_facts import CardFacts, begins_fresh, public_text, training_runs
from .card_measured import Benchmark
from .card_results import benchmark_section, lossless_rows, other_methods, own_summary
from .card_window import describe_window
from .portability import check_portable

_ABSENT = "not recorded"
_FAMILIES = {
    "ppow_eagle3": "EAGLE-3",
    "ppow_causal_lm": "causal language model",
    "ppow_lookup": "lookup in the text, without weights",
}
# A drafter without weights is nothing an engine could load.
_ENGINES = {"ppow_eagle3": ("eagle3", "EAGLE3"), "ppow_causal_lm": ("draft_model", "STANDALONE")}
# Of transformers' own training arguments only these say something about the result.
_COMMON_SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "bf16",
    "fp16",
    "seed",
)
_COST_WINDOWS = (1, 4, 8)


def _engines_of(facts: CardFacts) -> tuple[str | None, str | None]:
    """What vLLM and SGLang call this kind of drafter; None for an engine that `ppow export` refuses it to."""
    names = _ENGINES.get(facts.config["model_type"], (None, None))
    if facts.config["model_type"] != "ppow_eagle3":
        return names
    config = Eagle3DrafterConfig.from_dict(facts.config)
    taken = []
    for name, export_format in zip(names, ("vllm", "sglang"), strict=True):
        try:
            check_portable(config, export_format)
        except ValueError:
            name = None
        taken.append(name)
    return taken[0], taken[1]


def card_context(facts: CardFacts, title: str, repo: str) -> dict[str, Any]:
    """
    Everything the template asks for.

    Args:
        facts ([`CardFacts`]): From [`~ppow_hf.hub.card_facts.read_facts`].
        title (`str`): The card's title.
        repo (`str`): The repository the examples name.
    """
    target = public_text(facts.config.get("target_name_or_path") or "the target")
    vllm_method, sglang_algorithm = _engines_of(facts)
    main = facts.benchmarks[0] if facts.benchmarks else None
    served = (main.best_fixed() if main else None) or (facts.window.size if facts.window is not None else 1)
    tokens = main.results["arguments"].get("max_new_tokens") if main else None
    cost_rows = [_cost_row(entry) for entry in facts.costs]
    data_rows = [_data_row(entry) for entry in facts.responses]
    runs = training_runs(facts.provenance)
    return {
        "title": title,
        "repo": repo,
        "target": target,
        "target_link": f"[{target}](https://huggingface.co/{target})" if facts.target_id else f"`{target}`",
        "custom_generate": facts.custom_generate,
        "max_new_tokens": f", max_new_tokens={tokens}" if tokens else "",
        "window_example": f"fixed:{served}",
        "vllm_method": vllm_method,
        "sglang_algorithm": sglang_algorithm,
        "served_window": served,
        # SGLang counts the root of the draft tree.
        "served_window_and_root": served + 1,
        "headline": _headline(facts, main),
        "description": _description(facts),
        "benchmarks": [benchmark_section(benchmark) for benchmark in facts.benchmarks],
        "others": other_methods(facts),
        "lossless": [row for benchmark in facts.benchmarks for row in lossless_rows(benchmark)],
        "checks": [{"text": check.introduction(), "rows": check.rows()} for check in facts.checks],
        "cost_header": ["machine", "dtype", "versions", "gamma"]
        + [f"v({n})" for n in _COST_WINDOWS]
        + ["overhead", "target step"],
        "costs": cost_rows,
        "data_header": ["source", "rows", "response tokens", "answered by", "checksum", "licence"],
        "data": data_rows,
        "stages": [
            _stage("Supervised stage", runs.get("supervised", []), _log_of("supervised", facts)),
            _stage("PPOW stage (window-level reinforcement learning)", runs.get("ppow", []), _log_of("ppow", facts)),
        ],
        "calibration": _calibration(facts),
        "resources": _resources(facts),
        "notes": [public_text(note) for note in facts.notes],
        "limitations": _limitations(facts),
        "licences": _licences(facts, target),
    }


def _headline(facts: CardFacts, main: Benchmark | None) -> str | None:
    row = own_summary(facts, main) if main else None
    if row is None or row["speedup"] is None:
        return None
    arguments, environment = main.results["arguments"], main.results["environment"]
    return (
        f"`{row['method']}` window: {row['speedup']:.2f}x the speed of plain `generate`, acceptance length "
        f"{number(row['acceptance_length'])} (mean over {', '.join(arguments['suites'])}; {row['num_prompts']} "
        f"prompts, temperature {row['temperature']:g}, {arguments['dtype']}, {environment['device_name']})."
    )


def _description(facts: CardFacts) -> list[tuple[str, str]]:
    config, weights, window = facts.config, facts.weights, facts.window
    target = public_text(config.get("target_name_or_path") or _ABSENT)
    layers = config.get("num_hidden_layers") or (config.get("causal_lm_config") or {}).get("num_hidden_layers")
    rows = [
        ("Target (base model)", f"`{target}`, revision {public_text(_revision(facts))}"),
        ("Family", _FAMILIES[config["model_type"]] + (f", {layers} layer(s)" if layers else "")),
        (
            "Size",
            f"{weights.parameters / 1e6:.1f}M parameters, {weights.bytes / 1e6:.1f} MB in {weights.dtype}"
            + ("; the target's embedding is shared, not stored" if _shares_embedding(config) else ""),
        ),
    ]
    if config.get("aux_layer_ids"):
        ids = ", ".join(str(k) for k in config["aux_layer_ids"])
        rows.append(("Target features read", f"residual stream entering layers {ids}"))
    if config.get("draft_vocab_size"):
        rows.append(("Draft vocabulary", f"{config['draft_vocab_size']} of {config['vocab_size']} tokens"))
    if window is not None:
        rows.append(("Window", describe_window(window)))
    supervised = "supervised, with PPOW's window reward in closed form" if _window_reward(facts) else "supervised"
    trained = [name for name, stage in ((supervised, facts.supervised), ("PPOW", facts.ppow)) if stage]
    rows.append(("Training stages", ", ".join(trained) if trained else _ABSENT))
    return rows


def _window_reward(facts: CardFacts) -> float:
    """Largest weight of the exact window reward in any supervised run."""
    runs = training_runs(facts.provenance).get("supervised", [])
    return max(((run.get("training") or {}).get("window_reward_weight") or 0.0 for run in runs), default=0.0)


def _shares_embedding(config: dict[str, Any]) -> bool:
    return config["model_type"] == "ppow_eagle3" and config.get("hidden_size") == config.get("target_hidden_size")


def _revision(facts: CardFacts) -> str:
    stage = facts.ppow or facts.supervised or {}
    found = facts.provenance.get("target_revision") or (stage.get("arguments") or {}).get("target_revision")
    return found or _ABSENT


# ---- costs and training --------------------------------------------------------------------------------------------


def _cost_row(entry: dict[str, Any]) -> list[str]:
    device, dtypes, versions = ([*(entry.get("key") or "").split(" | "), "", "", ""])[:3]
    curve, step = entry.get("verify_curve") or [], entry.get("target_step_seconds")
    return [
        device or _ABSENT,
        dtypes.replace("/", " target, ") + " drafter" if "/" in dtypes else dtypes or _ABSENT,
        versions or _ABSENT,
        number(entry.get("gamma"), 3),
        *(number(curve[n] if n < len(curve) else None) for n in _COST_WINDOWS),
        number(entry.get("overhead"), 3),
        "-" if step is None else f"{1000 * step:.1f} ms",
    ]


def _data_row(entry: dict[str, Any]) -> list[str]:
    sources = [public_text(name) for name in entry.get("sources") or {}] or [entry.get("imported_from") or _ABSENT]
    settings = entry.get("settings") or {}
    target = entry.get("target") or settings.get("target") or settings.get("model") or _ABSENT
    checksum = entry.get("sha256") or entry.get("settings_hash")
    cells = [
        ", ".join(f"`{public_text(source)}`" for source in sources),
        *(str(entry.get(name, _ABSENT)) for name in ("rows", "response_tokens")),
        public_text(target),
        f"`{checksum}`" if checksum else _ABSENT,
        public_text(entry.get("license") or _ABSENT),
    ]
    return [cell.replace("|", "\\|") for cell in cells]


def _log_of(stage: str, facts: CardFacts) -> dict[str, Any]:
    """The training log, if it is this stage's: the last run's."""
    return facts.log if facts.provenance.get("stage") == stage else {}


def _stage(title: str, runs: list[dict[str, Any]], log: dict[str, Any]) -> dict[str, Any]:
    if not runs:
        absent = "Not recorded." if title.startswith("Supervised") else "Not run, or not recorded."
        return {"title": title, "rows": [], "absent": absent}
    stage = runs[0]
    rows = []
    if len(runs) > 1:
        rows.append(("what is shown", f"the last of {len(runs)} runs, each from the one before (`provenance.json`)"))
    rows += [
        (label, str(stage[name]))
        for name, label in (("train_rows", "training rows"), ("train_response_tokens", "response tokens"))
        if name in stage
    ]
    coverage = stage.get("draft_vocabulary_coverage")
    if coverage is not None:
        rows.append(("response tokens the draft vocabulary covers", f"{100 * coverage:.1f}%"))
    steps = stage.get("steps") or log.get("global_step")
    if steps:
        rows.append(("optimiser steps", str(steps)))
    arguments = stage.get("arguments") or {}
    rows += [
        (name, _setting(arguments[name]))
        for name in ("initialization", "target_dtype", "rewards")
        # A run that went on from a drafter did not start from anything else.
        if name in arguments and not (name == "initialization" and arguments.get("drafter"))
    ]
    initial = (stage.get("initial") or {}).get("acceptance_length")
    if initial is not None:
        rows.append(("held-out acceptance length before the first step", number(initial, 3)))
    best = stage.get("best") or {}
    if best.get("metric") is not None:
        metric = (stage.get("training") or {}).get("metric_for_best_model") or "metric"
        # Where no checkpoints are saved, the step is not known.
        at = "" if best.get("step") is None else f", at step {best['step']}"
        rows.append((f"best `{metric}` during training{at}", number(best["metric"], 3)))
    return {"title": title, "rows": rows + _settings(stage.get("training") or {}), "absent": ""}


def _settings(training: dict[str, Any]) -> list[tuple[str, str]]:
    """Hyper-parameters: the stage's own fields, and of transformers' those that shape the result."""
    common = {f.name for f in dataclasses.fields(TrainingArguments)} | {"train_batch_size", "eval_batch_size"}
    own = [name for name in training if name not in common and not name.endswith(("_dir", "_path"))]
    own = [name for name in own if not name.startswith("eval_")]
    return [
        (f"`{name}`", _setting(training[name]))
        for name in (*_COMMON_SETTINGS, *own)
        if name in training
        and training[name] not in (None, "None", False)
        and (name, training[name]) != ("max_steps", -1)
    ]


def _setting(value: Any) -> str:
    text = public_text(value) if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|")


def _calibration(facts: CardFacts) -> list[list[str]]:
    figures = (facts.provenance.get("calibration") or {}).get("figures") or {}
    return [
        [
            mode,
            str(values.get("outcomes", _ABSENT)),
            number(values.get("mean_acceptance")),
            number(values.get("brier_draft_confidence"), 4),
            number(values.get("brier_fitted"), 4),
        ]
        for mode, values in figures.items()
    ]


def _training_seconds(run: dict[str, Any]) -> float | None:
    """Of all sessions where they were counted; `train_runtime` is that of the last one."""
    counted = (run.get("cost") or {}).get("seconds")
    return counted if counted is not None else (run.get("result") or {}).get("train_runtime")


def _resources(facts: CardFacts) -> list[str]:
    lines = []
    runs = training_runs(facts.provenance)
    for name, own in (("Supervised stage", runs.get("supervised")), ("PPOW stage", runs.get("ppow"))):
        if not own:
            continue
        times = [_training_seconds(run) for run in own]
        together = f" in {len(own)} runs" if len(own) > 1 else ""
        lines.append(f"{name}: " + ("time not measured" if None in times else f"{sum(times):.0f} seconds{together}"))
    if not lines:
        lines.append("Training time: not measured")
    carbon = facts.provenance.get("co2_eq_emissions")
    emitted = carbon.get("emissions") if isinstance(carbon, dict) else carbon
    lines.append("Carbon: not measured" if emitted is None else f"Carbon: {emitted} g CO2 equivalents")
    return lines


# ---- what to know --------------------------------------------------------------------------------------------------


def _limitations(facts: CardFacts) -> list[str]:
    target = public_text(facts.config.get("target_name_or_path") or "its target")
    by_lookup = facts.config["model_type"] == "ppow_lookup"
    made_for = (
        f"Made for `{target}`. With a fine-tuned sibling the text stays that model's own, but drafts are accepted "
        "less often; with another tokenizer it is refused."
    )
    if by_lookup:
        made_for = "It proposes what the text has said before: one that does not repeat itself is written no faster."
    lines = [
        made_for,
        "One prompt at a time; beam search is refused.",
        "Speed depends on the machine, the dtype and the text. On another machine, measure with `ppow bench`.",
    ]
    for benchmark in facts.benchmarks:
        wrong = [r for r in benchmark.window_rows() if r.get("lossless_float32") not in (None, 1.0)]
        for row in wrong:
            lines.append(
                f"**Not lossless**: in float32 `{row['method']}` gave another text than plain `generate` on "
                f"{row['suite']} ({percent(row['lossless_float32'])} identical, `{benchmark.path}`)."
            )
        arguments = benchmark.results["arguments"]
        if arguments.get("limit") is not None:
            lines.append(
                f"`{benchmark.path}` took at most {arguments['limit']} prompts a suite: its intervals are wide."
            )
        own = own_summary(facts, benchmark)
        if own and own["speedup"] is not None:
            faster = [
                r for r in benchmark.summary if r["temperature"] == own["temperature"] and r["speedup"] is not None
            ]
            names = [f"`{r['method']}` ({r['speedup']:.2f}x)" for r in faster if r["speedup"] > own["speedup"]]
            if names:
                lines.append(
                    f"Faster than the `{own['method']}` window ({own['speedup']:.2f}x) on the mean of "
                    f"`{benchmark.path}`: {', '.join(names)}."
                )
        if own is None and facts.window is not None:
            lines.append(
                f"`{benchmark.path}` did not measure this drafter's own window, only others: what it says is not what "
                "a call without `window=` gives."
            )
    lines += [warning for check in facts.checks for warning in check.warnings()]
    if not facts.benchmarks:
        lines.append("Neither speed nor acceptance nor losslessness was measured.")
    elif not any(row["temperature"] for benchmark in facts.benchmarks for row in benchmark.rows):
        lines.append("Sampling (temperature above zero): not measured.")
    if not facts.ppow and not by_lookup:
        lines.append(_without_rollouts(facts))
    return lines


def _without_rollouts(facts: CardFacts) -> str:
    """On what else a drafter without a record of the PPOW stage was trained. That there was none must be recorded."""
    weight = _window_reward(facts)
    exact = f"trained on PPOW's expected reward in closed form (weight {weight:g})."
    if begins_fresh(facts.provenance):
        return (
            f"No PPOW stage with rollouts: {exact}"
            if weight
            else "No PPOW stage: this drafter was not trained on windows."
        )
    return f"A PPOW stage with rollouts: {_ABSENT}; {exact}" if weight else f"Training on windows: {_ABSENT}."


def _licences(facts: CardFacts, target: str) -> list[str]:
    lines = [
        f"This drafter: {facts.provenance.get('license') or _ABSENT}",
        f"Target `{target}`: {facts.provenance.get('target_license') or _ABSENT}",
    ]
    data = {entry.get("license") or _ABSENT for entry in facts.responses} or {_ABSENT}
    return [*(public_text(line) for line in lines), f"Training data: {', '.join(sorted(map(public_text, data)))}"]

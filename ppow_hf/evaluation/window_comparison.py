# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Window policies compared on the same texts of the target, greedy or sampled, and charged by one cost model (ours).

Timing tells policies apart that differ by a tenth, this by a hundredth: nothing of it is timed, and all policies see
the same texts and, where those were sampled, the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..drafters import DrafterModel
from ..generation import CostModel, WindowConfig
from .aggregate import BOOTSTRAP, percentile_interval
from .methods import AT, is_own_fixed
from .sampled_windows import record_sampled_windows
from .simulation import Walk, cheapest_walk, oracle_walk, record_windows, simulate

ORACLE, CHEAPEST = "oracle", "cheapest"


def walks_of_text(
    target: PreTrainedModel,
    drafter: DrafterModel,
    token_ids: Sequence[int],
    prompt_length: int,
    configs: Mapping[str, WindowConfig],
    cost_model: CostModel,
    *,
    max_size: int,
    budget: int,
    temperature: float = 0.0,
    draws: int = 1,
    generator: torch.Generator | None = None,
    eos_token_ids: frozenset[int] = frozenset(),
) -> dict[str, Walk]:
    """
    What every policy would have made of one text.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter, bound to it.
        token_ids (`Sequence[int]`): Prompt and the target's response.
        prompt_length (`int`): Tokens of the prompt.
        configs (`Mapping[str, WindowConfig]`): The policies by name; chains of the drafter's own.
        cost_model ([`CostModel`]): Costs of a cycle.
        max_size (`int`): Largest window of the oracle.
        budget (`int`): Tokens the response could have had: `max_new_tokens`.
        temperature (`float`, *optional*, defaults to 0.0): The response was sampled at; 0 for a greedy one.
        draws (`int`, *optional*, defaults to 1): How often windows are drawn for a sampled text.
        generator (`torch.Generator`, *optional*): Of the draws.
        eos_token_ids (`frozenset[int]`, *optional*): Tokens after which nothing is drafted.

    Returns:
        `dict[str, Walk]`: By policy, and `"oracle"` and `"cheapest"` (see [`oracle_walk`], [`cheapest_walk`]); without
        a cycle where the response has fewer than two tokens.
    """
    first = prompt_length + 1  # the response's first token comes with the prompt
    walks = {name: Walk() for name in (ORACLE, CHEAPEST, *configs)}
    if len(token_ids) <= first:
        return walks
    kl = any(config.divergence_metric == "kl" for config in configs.values())
    width = max(max_size, *(config.limit for config in configs.values()))
    text = torch.tensor([list(token_ids)], device=target.device)
    for _ in range(draws if temperature else 1):
        if temperature:
            windows = record_sampled_windows(target, drafter, text, first, width, temperature, generator, kl)
        else:
            windows = record_windows(target, drafter, text, first, width, kl)
        walks[ORACLE] += oracle_walk(windows.accepted, max_size, cost_model)
        walks[CHEAPEST] += cheapest_walk(windows.accepted, max_size, cost_model)
        for name, config in configs.items():
            walks[name] += simulate(windows, config, cost_model, budget - 1, eos_token_ids, sampling=bool(temperature))
    return walks


def comparison_rows(records: Sequence[Mapping[str, Any]], baseline: str | None = None, seed: int = 0) -> list[dict]:
    """
    Figures per suite and policy, and their means over suites.

    Args:
        records (`Sequence[Mapping]`): One per prompt: `suite`, and `walks`, by policy `committed`, `verifications`,
            `drafted`, `accepted` and `cost`. Those of another drafter are called `POLICY@DRAFTER`, its oracle too.
        baseline (`str`, *optional*): The policy others are compared with. Default: the first drafter's fixed window
            that is fastest in the mean over suites.
        seed (`int`, *optional*, defaults to 0): Of the bootstrap.

    Returns:
        `list[dict]`: `suite` (None for the mean over suites), `policy`, `num_prompts`, `speedup` (mean over prompts of
        committed tokens over cost; modelled, the prompt left out), `interval`, `acceptance_length`, `mean_window`,
        `share_of_oracle`, and `over_baseline` with `over_baseline_interval`, the ratio of speedups (prompts drawn in
        pairs); None for the baseline itself.

    Raises:
        ValueError: If no text of a suite has a cycle, or the baseline is unknown.
    """
    used = [record for record in records if record["walks"][ORACLE]["verifications"]]
    suites = list(dict.fromkeys(record["suite"] for record in records))
    policies = list(records[0]["walks"]) if records else []
    rng = np.random.default_rng(seed)
    speeds: dict[str, np.ndarray] = {}  # (policies, prompts)
    drawn: dict[str, np.ndarray] = {}  # (policies, samples)
    totals: dict[str, np.ndarray] = {}  # (policies, committed / verifications / drafted)
    for suite in suites:
        own = [record["walks"] for record in used if record["suite"] == suite]
        if not own:
            raise ValueError(f"No answer on {suite!r} is longer than a token: there is nothing to draft for.")
        table = np.array(
            [
                [[walk[policy][name] for name in ("committed", "verifications", "drafted", "cost")] for walk in own]
                for policy in policies
            ],
            dtype=float,
        )
        speeds[suite] = table[..., 0] / table[..., 3]
        prompts = rng.integers(0, len(own), (BOOTSTRAP["samples"], len(own)))
        drawn[suite] = speeds[suite][:, prompts].mean(-1)
        totals[suite] = table[..., :3].sum(1)
    mean = np.mean([speeds[suite].mean(-1) for suite in suites], axis=0)
    if baseline is None:
        fixed = [policy for policy in policies if is_own_fixed(policy)]
        baseline = max(fixed, key=lambda policy: mean[policies.index(policy)]) if fixed else policies[-1]
    if baseline not in policies:
        raise ValueError(f"`baseline` is {baseline!r}, but the policies are {', '.join(policies)}.")
    base = policies.index(baseline)
    # Every policy is compared with the oracle of its own drafter.
    oracle = [policies.index(ORACLE + at + name) for _, at, name in (policy.partition(AT) for policy in policies)]
    places: list[str | None] = [*suites, *([None] if len(suites) > 1 else [])]
    rows = []
    for place in places:
        speed = mean if place is None else speeds[place].mean(-1)
        samples = np.mean([drawn[s] for s in suites], axis=0) if place is None else drawn[place]
        parts = suites if place is None else [place]
        for index, policy in enumerate(policies):
            ratio = samples[index] / samples[base]
            other = index != base
            rows.append(
                {
                    "suite": place,
                    "policy": policy,
                    "num_prompts": sum(speeds[s].shape[1] for s in parts),
                    "speedup": float(speed[index]),
                    "interval": percentile_interval(samples[index]),
                    "acceptance_length": float(np.mean([totals[s][index, 0] / totals[s][index, 1] for s in parts])),
                    "mean_window": float(np.mean([totals[s][index, 2] / totals[s][index, 1] for s in parts])),
                    "share_of_oracle": float(speed[index] / speed[oracle[index]]),
                    "baseline": baseline,
                    "over_baseline": float(speed[index] / speed[base]) if other else None,
                    "over_baseline_interval": percentile_interval(ratio) if other else None,
                }
            )
    return rows

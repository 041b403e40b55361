# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Sittings: a long benchmark is measured on more than one occasion, and not always on the same machine.

Every speedup compares two runs on one prompt in one sitting, so prompts of several sittings can share a table. Every
sitting notes the costs its windows were chosen by, those of its machine; tokens per second mix the machines.
"""

from collections.abc import Sequence
from typing import Any

from ..generation import CostModel
from .records import RecordLog


def open_sitting(log: RecordLog, environment: dict[str, Any]) -> int:
    """
    The number of the sitting that prompts measured from now on belong to. A run that goes on in the environment of an
    earlier sitting goes on with that sitting. Source: ours.

    Args:
        log ([`RecordLog`]): The benchmark's records; a new sitting is written there.
        environment (`dict`): Of [`describe_environment`].

    Returns:
        `int`: counted from 0.
    """
    known = environments(log.records)
    if environment in known:
        return known.index(environment)
    log.append({"kind": "sitting", "environment": environment})
    return len(known)


def environments(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The environment of every sitting, in order."""
    return [record["environment"] for record in records if record["kind"] == "sitting"]


def cost_models(records: Sequence[dict[str, Any]], drafter: str | None = None) -> dict[int, CostModel]:
    """
    The costs measured in every sitting, by its number; none where no window was measured.

    Args:
        records (`Sequence[dict]`): The benchmark's log.
        drafter (`str`, *optional*): Which of its other drafters is meant; None for its own one.
    """
    return {
        record["sitting"]: CostModel.from_dict(record["cost_model"])
        for record in records
        if record["kind"] == "cost_model" and record.get("drafter") == drafter
    }


def sitting_facts(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    What `results.json` says of the sittings, the one with most prompts first.

    Returns:
        `list[dict]`: `environment`, `cost_model` (None without windows), `other_cost_models` by the names of other
        drafters, if there are any, and `num_prompts`, over all temperatures.
    """
    measured = [record["sitting"] for record in records if record["kind"] == "prompt"]
    costs: dict[str | None, dict[int, Any]] = {}
    for record in records:
        if record["kind"] == "cost_model":
            costs.setdefault(record.get("drafter"), {})[record["sitting"]] = record["cost_model"]
    own = costs.pop(None, {})
    facts = [
        {
            "environment": environment,
            "cost_model": own.get(number),
            **({"other_cost_models": {name: of.get(number) for name, of in costs.items()}} if costs else {}),
            "num_prompts": measured.count(number),
        }
        for number, environment in enumerate(environments(records))
    ]
    return sorted((fact for fact in facts if fact["num_prompts"]), key=lambda fact: -fact["num_prompts"])


def predicted_speedup(
    models: dict[int, CostModel], prompts: Sequence[dict[str, Any]], acceptance_length: float, mean_window: float
) -> float:
    """What the costs of the prompts' sittings predict, every prompt with the costs of its own sitting."""
    return sum(models[prompt["sitting"]].speedup(acceptance_length, mean_window) for prompt in prompts) / len(prompts)

# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
PPOW stage: train a supervised drafter further, on its own speculative windows.

    ppow train --config trainers/configs/ppow_smollm2_cpu.yaml
    accelerate launch --config_file trainers/accelerate/fsdp_8gpu.yaml trainers/ppow.py \
        --config trainers/configs/ppow_8b_8gpu.yaml

Every field of `PPOWConfig` and of the script arguments below is an option.
"""

from dataclasses import asdict, dataclass, field

import torch
from transformers import set_seed
from trl import TrlParser

from ppow_hf import AutoDrafter, PPOWConfig, PPOWTrainer, load_target
from ppow_hf.hub.card_facts import read_provenance
from ppow_hf.quickstart import reference_drafter_path
from ppow_hf.rl import ProximityReward, measured_speedup_reward, speedup_reward, token_agreement_reward
from ppow_hf.scripts.training_run import (
    hold_out,
    load_all_responses,
    run_training,
    warn_of_other_held_out_rows,
    warn_of_other_targets,
)
from ppow_hf.targets import DEFAULT_TARGET

REWARDS = ("speedup", "measured_speedup", "proximity", "token_agreement")


@dataclass
class PPOWScriptArguments:
    """What to train, for which target, on which responses, for which rewards."""

    responses: list[str] = field(metadata={"help": "Folders written by `ppow data`, of the target's own responses."})
    drafter: str | None = field(
        default=None, metadata={"help": "The supervised drafter to start from. Default: the reference drafter."}
    )
    target: str = field(default=DEFAULT_TARGET, metadata={"help": "Target: Hub id, folder, or the embedded default."})
    target_dtype: str = field(default="auto", metadata={"help": "Dtype of the frozen target, e.g. bfloat16."})
    rewards: list[str] | None = field(
        default=None,
        metadata={"help": f"Reward functions, of {', '.join(REWARDS)}. Default: speedup, and proximity for eta > 0."},
    )
    holdout: int = field(
        default=64,
        metadata={"help": "Responses held out for evaluation, whole prompts at a time; data_seed says which."},
    )


def choose_rewards(names: list[str] | None, args: PPOWConfig) -> list | None:
    """Reward functions by name, or `None` for the trainer's default."""
    if names is None:
        return None
    known = {
        "speedup": speedup_reward,
        "measured_speedup": measured_speedup_reward,
        "proximity": ProximityReward(args.proximity_eta, args.proximity_epsilon),
        "token_agreement": token_agreement_reward,
    }
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"`rewards` must name some of {list(REWARDS)}, got {names}.")
    return [known[name] for name in names]


def main(script_args: PPOWScriptArguments, training_args: PPOWConfig) -> None:
    set_seed(training_args.seed)
    rewards = choose_rewards(script_args.rewards, training_args)
    target, tokenizer = load_target(script_args.target, dtype=script_args.target_dtype)
    responses, provenance = load_all_responses(script_args.responses)
    warn_of_other_targets(provenance, script_args.responses, target)
    train_dataset, eval_dataset, held_out = hold_out(responses, script_args.holdout, training_args)
    start = script_args.drafter or str(reference_drafter_path())
    record = read_provenance(start)
    warn_of_other_held_out_rows(record, held_out, provenance)
    trainer = PPOWTrainer(
        model=AutoDrafter.from_pretrained(start, dtype=torch.float32),
        target_model=target,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        reward_funcs=rewards,
    )
    facts = {
        "stage": "ppow",
        "arguments": asdict(script_args),
        "responses": provenance,
        "held_out": held_out,
        "started_from": record,
    }
    run_training(trainer, training_args, facts)


def make_parser() -> TrlParser:
    """The command line: script arguments and every field of `PPOWConfig`, from options or a YAML file."""
    return TrlParser((PPOWScriptArguments, PPOWConfig), prog="ppow train")

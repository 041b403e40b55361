# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Supervised stage: train a drafter on its target's own responses.

    ppow sft --config trainers/configs/sft_smollm2_cpu.yaml
    accelerate launch --num_processes 8 trainers/sft_drafter.py --target Qwen/Qwen3-8B --responses runs/responses \
        --output_dir runs/sft

The responses come from `ppow data`. Every field of `DrafterSFTConfig` and of the script arguments below is an option.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import set_seed
from trl import TrlParser

from ppow_hf import AutoDrafter, CausalLMDrafter, DrafterSFTConfig, DrafterSFTTrainer, Eagle3Drafter, load_target
from ppow_hf.data import (
    build_draft_vocabulary,
    count_response_tokens,
    draft_vocabulary_coverage,
    special_token_ids,
)
from ppow_hf.hub.card_facts import read_provenance
from ppow_hf.scripts.training_run import (
    hold_out,
    load_all_responses,
    run_training,
    warn_of_other_held_out_rows,
    warn_of_other_targets,
)
from ppow_hf.targets import DEFAULT_TARGET


@dataclass
class DrafterScriptArguments:
    """What to train, for which target, on which responses."""

    responses: list[str] = field(metadata={"help": "Folders written by `ppow data`, of the target's own responses."})
    target: str = field(default=DEFAULT_TARGET, metadata={"help": "Target: Hub id, folder, or the embedded default."})
    target_dtype: str = field(default="auto", metadata={"help": "Dtype of the frozen target, e.g. bfloat16."})
    family: str = field(
        default="eagle3", metadata={"help": "Drafter family for a fresh drafter.", "choices": ["eagle3", "causal_lm"]}
    )
    drafter: str | None = field(default=None, metadata={"help": "Continue from this drafter instead of a fresh one."})
    draft_vocab_size: int | None = field(
        default=None, metadata={"help": "Tokens an EAGLE-3 drafter can propose, counted from the responses."}
    )
    drafter_layers: int = field(
        default=1, metadata={"help": "Decoder layers of a fresh drafter (for causal_lm: target layers kept)."}
    )
    initialization: str = field(
        default="target",
        metadata={"help": "Start from the target's weights, or random.", "choices": ["target", "random"]},
    )
    holdout: int = field(
        default=64,
        metadata={"help": "Responses held out for evaluation, whole prompts at a time; data_seed says which."},
    )


def build_drafter(script_args: DrafterScriptArguments, target, tokenizer, train_dataset, seed: int):
    """A fresh drafter for the target, or the one to continue from, and the facts to record about its vocabulary."""
    if script_args.drafter is not None:
        return AutoDrafter.from_pretrained(script_args.drafter, dtype=torch.float32), {}
    if script_args.family == "causal_lm":
        return CausalLMDrafter.from_target(target, num_layers=script_args.drafter_layers).float(), {}
    vocab_size = target.config.get_text_config().vocab_size
    counts = count_response_tokens(train_dataset, vocab_size)
    ids = None
    if script_args.draft_vocab_size is not None and script_args.draft_vocab_size < vocab_size:
        ids = build_draft_vocabulary(
            counts, script_args.draft_vocab_size, special_token_ids(tokenizer, target.generation_config)
        )
    drafter = Eagle3Drafter.from_target(
        target,
        draft_token_ids=ids,
        initialization=script_args.initialization,
        num_hidden_layers=script_args.drafter_layers,
        seed=seed,
    )
    coverage = 1.0 if ids is None else draft_vocabulary_coverage(counts, ids)
    return drafter, {"draft_vocab_size": drafter.config.draft_vocab_size, "draft_vocabulary_coverage": coverage}


def build_trainer(
    script_args: DrafterScriptArguments, training_args: DrafterSFTConfig
) -> tuple[DrafterSFTTrainer, dict[str, Any]]:
    """The trainer that the arguments ask for, and the facts to record beside what it knows."""
    set_seed(training_args.seed)
    target, tokenizer = load_target(script_args.target, dtype=script_args.target_dtype)
    responses, provenance = load_all_responses(script_args.responses)
    warn_of_other_targets(provenance, script_args.responses, target)
    train_dataset, eval_dataset, held_out = hold_out(responses, script_args.holdout, training_args)
    drafter, vocabulary = build_drafter(script_args, target, tokenizer, train_dataset, training_args.seed)
    trainer = DrafterSFTTrainer(
        model=drafter,
        target_model=target,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )
    facts = {
        "stage": "supervised",
        "arguments": asdict(script_args),
        **vocabulary,
        "responses": provenance,
        "held_out": held_out,
    }
    if script_args.drafter is not None:
        facts["continued_from"] = read_provenance(script_args.drafter)
        warn_of_other_held_out_rows(facts["continued_from"], held_out, provenance)
    return trainer, facts


def main(script_args: DrafterScriptArguments, training_args: DrafterSFTConfig) -> None:
    trainer, facts = build_trainer(script_args, training_args)
    run_training(trainer, training_args, facts)


def make_parser() -> TrlParser:
    """The command line: script arguments and every field of `DrafterSFTConfig`, from options or a YAML file."""
    return TrlParser((DrafterScriptArguments, DrafterSFTConfig), prog="ppow sft")

# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
The drafter that the supervised stage starts from, balanced to what the target's hidden states look like.

    python trainers/recipes/gemma3_270m/initial_drafter.py --responses runs/gemma/responses \
        --output_dir runs/gemma/init

A last layer of Gemma cannot be copied into an EAGLE-3 drafter as one of Llama can: it has norms behind attention and
MLP and on queries and keys, which the drafter lacks, and a final norm whose gains differ by a factor of hundreds. So
here every feature is scaled to unit size by the drafter's feature norms, and the drafter's states are the target's
times the gain of its final norm: one step of the optimizer moves every logit alike. Attention and MLP start small.
Ours.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser, PreTrainedModel

from ppow_hf import Eagle3Drafter, load_target
from ppow_hf.data import build_draft_vocabulary, count_response_tokens, special_token_ids, split_holdout
from ppow_hf.drafters import gather_features
from ppow_hf.scripts.training_run import load_all_responses


@dataclass
class InitialArguments:
    """For which target, on which responses."""

    responses: list[str] = field(metadata={"help": "Folders written by `ppow data`."})
    output_dir: str = field(metadata={"help": "Folder to write the drafter to."})
    target: str = field(default="gemma3-270m", metadata={"help": "The target."})
    draft_vocab_size: int = field(default=10240, metadata={"help": "Tokens the drafter can propose."})
    rows: int = field(default=32, metadata={"help": "Responses whose hidden states are looked at."})
    holdout: int = field(default=32, metadata={"help": "As in the training: these are not looked at."})
    data_seed: int = field(default=0, metadata={"help": "As in the training: which rows are held out."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights and of the rows that are looked at."})


@torch.no_grad()
def balanced_drafter(
    target: PreTrainedModel, rows: list[list[int]], draft_token_ids: torch.Tensor | None, seed: int = 0
) -> Eagle3Drafter:
    """
    Args:
        target ([`~transformers.PreTrainedModel`]): A decoder-only target that ends with an RMSNorm and a bare head.
        rows (`list[list[int]]`): Token ids of texts of the target, to measure its hidden states on.
        draft_token_ids (`torch.Tensor`, *optional*): Target ids the drafter proposes.
        seed (`int`, *optional*, defaults to 0): Seed of what is random.

    Returns:
        [`Eagle3Drafter`] in float32, whose first predictions read the deepest feature as if it were the last layer's.
    """
    drafter = Eagle3Drafter.from_target(
        target, draft_token_ids=draft_token_ids, initialization="random", seed=seed, fc_norm=True
    )
    layer_ids, width = drafter.feature_layer_ids, drafter.config.target_hidden_size
    features, finals = [], []
    for row in rows:
        ids = torch.tensor([row], device=target.device)
        output = target.base_model(ids, use_cache=False, output_hidden_states=list(layer_ids))
        # The first position is where models leave what they do not need: its states are unlike all others.
        features.append(gather_features(output.hidden_states, layer_ids)[0, 1:].float())
        finals.append(output.last_hidden_state[0, 1:].float())
    for norm, feature in zip(drafter.fc_norm, torch.cat(features).split(width, dim=-1), strict=True):
        # The norm takes out the length of each position's state; its weights then even out the dimensions.
        size = (feature / feature.square().mean(-1, keepdim=True).sqrt()).square().mean(0).sqrt()
        size = size.clamp_min(1e-3 * size.median())
        norm.weight.copy_(1 / size)

    final_norm = target.base_model.norm
    gain = final_norm(torch.ones(1, 1, width, dtype=target.dtype, device=target.device))[0, 0].float()
    scale = gain * size  # of the deepest feature
    drafter.fc.weight.mul_(0.1)
    drafter.fc.weight[:, -width:] += torch.diag(scale / scale.square().mean().sqrt())
    drafter.norm.weight.fill_(torch.cat(finals).square().mean(-1).sqrt().median())
    head = target.get_output_embeddings().weight
    drafter.lm_head.weight.copy_(head if draft_token_ids is None else head[draft_token_ids.to(head.device)])
    for projection in (drafter.midlayer.self_attn.o_proj, drafter.midlayer.mlp.down_proj):
        projection.weight.mul_(0.1)
    return drafter


def main(args: InitialArguments) -> None:
    target, tokenizer = load_target(args.target)
    responses, _ = load_all_responses(args.responses)
    train, _ = split_holdout(responses, args.holdout, seed=args.data_seed)
    counts = count_response_tokens(train, target.config.get_text_config().vocab_size)
    ids = build_draft_vocabulary(counts, args.draft_vocab_size, special_token_ids(tokenizer, target.generation_config))
    some = train.shuffle(seed=args.seed).select(range(min(args.rows, len(train))))
    drafter = balanced_drafter(target, some["input_ids"], ids, seed=args.seed)
    drafter.save_pretrained(Path(args.output_dir))
    print(f"{args.output_dir}: {sum(p.numel() for p in drafter.parameters()) / 1e6:.1f} million parameters")


if __name__ == "__main__":
    main(HfArgumentParser(InitialArguments).parse_args_into_dataclasses()[0])

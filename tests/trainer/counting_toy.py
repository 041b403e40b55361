# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A target that counts, and drafters taught to count by other steps."""

import torch
from datasets import Dataset

from ppow_hf.rl import target_prefix
from tests.testing_utils import tiny_target

TOKENS, WINDOW = 10, 3


@torch.no_grad()
def counting_target():
    """Attention and MLP add nothing, embeddings are one-hot: the logits are a table, read by the last token."""
    target = tiny_target(vocab_size=TOKENS, num_hidden_layers=3)
    for layer in target.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    width = target.config.hidden_size
    target.model.embed_tokens.weight.copy_(torch.eye(TOKENS, width))
    target.lm_head.weight.zero_()
    for token in range(TOKENS):
        # The norm scales a one-hot vector of this width by the root of the width.
        target.lm_head.weight[(token + 1) % TOKENS, token] = 6 / width**0.5
        target.lm_head.weight[(token + 2) % TOKENS, token] = 3 / width**0.5
    return target


def counting_rows(num_rows=8, length=12) -> Dataset:
    rows = [[(first + n) % TOKENS for n in range(length)] for first in range(num_rows)]
    return Dataset.from_list([{"input_ids": row, "loss_mask": [0] * 3 + [1] * (length - 3)} for row in rows])


def fit(drafter, target, jumps: tuple[int, ...], steps: int = 120, seed: int = 0):
    """Teaches the drafter, by cross-entropy along windows, to go on with any of these jumps, equally often."""
    rows = torch.tensor(counting_rows(TOKENS)["input_ids"])
    prefix = target_prefix(target, rows, torch.ones_like(rows), drafter.feature_layer_ids)
    starts = torch.arange(3, 9).expand(len(rows), -1)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(drafter.parameters(), lr=1e-2)
    for _ in range(steps):
        drawn = torch.randint(len(jumps), (*starts.shape, 1, WINDOW), generator=generator)
        tokens = (last_token(starts) + torch.tensor(jumps)[drawn].cumsum(-1)) % TOKENS
        logits = drafter(prefix.input_ids, prefix.features, starts=starts, window_tokens=tokens).logits
        log_q = torch.stack(logits, dim=3).log_softmax(-1)
        before = torch.cat([last_token(starts), tokens[..., :-1]], dim=-1)
        loss = -torch.stack([log_q.gather(-1, (before + jump)[..., None] % TOKENS) for jump in jumps]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return drafter


def last_token(starts):
    """The token before each start; row `r` of the text counts from `r`."""
    return (starts + torch.arange(len(starts))[:, None] - 1)[..., None, None] % TOKENS

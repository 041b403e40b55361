# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, List, Value

from ppow_hf.trainer.decoding_evaluation import decode_held_out, prompt_of
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import sft_trainer, token_rows
from tests.trainer.ppow_common import ppow_trainer

FEATURES = Features({"input_ids": List(Value("int64")), "loss_mask": List(Value("int64"))})


@pytest.mark.parametrize(
    ("mask", "length"), [([0, 0, 1, 1, 0, 1], 2), ([0] * 6, 6), ([1] * 6, 1), ([0] * 5 + [1], 5), ([], 0)]
)
def test_prompt_of(mask, length):
    ids = list(range(3, 3 + len(mask)))
    assert prompt_of({"input_ids": ids, "loss_mask": mask}) == ids[:length]


@torch.no_grad()
def naive_tau(target, drafter, prompts, new_tokens, window):
    """Greedy speculative decoding by single forward passes over the whole text."""
    committed = verifications = 0
    for prompt in prompts:
        # The first token comes from the target alone, with the pass over the prompt.
        text = prompt + [target(torch.tensor([prompt])).logits[0, -1].argmax().item()]
        while len(text) < len(prompt) + new_tokens:
            size = min(window, len(prompt) + new_tokens - len(text) - 1)
            drafts: list[int] = []
            for _ in range(size):
                drafts.append(drafter.model(torch.tensor([text + drafts])).logits[0, -1].argmax().item())
            best = target(torch.tensor([text + drafts])).logits[0, len(text) - 1 :].argmax(-1).tolist()
            k = 0
            while k < size and drafts[k] == best[k]:
                k += 1
            text += best[: k + 1]
            committed, verifications = committed + k + 1, verifications + 1
    return committed / verifications


def test_acceptance_length_of_texts_without_a_prompt(tmp_path):
    """They are decoded from their first token on; rows without any are left out."""
    target = tiny_target(seed=3)
    drafter = tiny_causal_drafter(target, 3)
    drafter.bind_target(target)
    whole = [{"input_ids": list(range(5 + i, 25 + i)), "loss_mask": [1] * 20} for i in range(3)]
    rows = Dataset.from_list([*whole, {"input_ids": [], "loss_mask": []}], features=FEATURES)
    figures = decode_held_out(
        Accelerator(cpu=True), drafter, target, rows, num_prompts=4, max_new_tokens=12, window="fixed:3"
    )
    assert figures["acceptance_length"] == pytest.approx(naive_tau(target, drafter, [[5], [6], [7]], 12, 3))


@pytest.mark.parametrize("family", ["eagle3", "causal_lm"])
@pytest.mark.parametrize("make_trainer", [sft_trainer, ppow_trainer])
def test_both_trainers_evaluate_on_them(tmp_path, make_trainer, family):
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=48) if family == "eagle3" else tiny_causal_drafter(target)
    rows = Dataset.from_list([{"input_ids": list(range(2, 22)), "loss_mask": [1] * 20}, *token_rows(1)])
    trainer = make_trainer(tmp_path, drafter, target, eval_dataset=rows)
    assert trainer.evaluate()["eval_acceptance_length"] >= 1.0

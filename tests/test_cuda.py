# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The same on a GPU: decoding, responses, both trainers and packed verification, each against the CPU or plain passes.

Skipped where there is none.
"""

import copy

import pytest
import torch

from ppow_hf.data import Prompt, generate_responses
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.generation import CostModel, WindowConfig
from ppow_hf.rl import target_prefix, target_windows, verify_windows
from ppow_hf.row_blocks import ROWS_ON_GPU, rows_per_block
from tests.data.data_testing_utils import char_tokenizer
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import sft_trainer, token_rows
from tests.trainer.ppow_common import ppow_trainer

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def prompt(length=12):
    return torch.randint(2, 96, (1, length), generator=torch.Generator().manual_seed(3)).to(DEVICE)


def test_blocks_are_large_on_a_gpu_and_small_on_a_cpu():
    assert rows_per_block(torch.device("cpu"), 64, 49_152) == 64
    assert rows_per_block(torch.device("cuda"), 64, 49_152) == ROWS_ON_GPU
    assert rows_per_block(torch.device("cuda"), 2 * ROWS_ON_GPU, 49_152) == 2 * ROWS_ON_GPU
    # Of a wide vocabulary fewer: a block in float32 stays below 1 GiB.
    assert 1500 < rows_per_block(torch.device("cuda"), 64, 151_936) < 2**28 / 151_936


@cuda
@pytest.mark.parametrize(
    "window",
    ["fixed:4", "heuristic", "confidence", "divergence", "cost_aware", "tree", "lookup", "mixed", "mixed_tree"],
)
@pytest.mark.parametrize("make_drafter", [tiny_eagle3, tiny_causal_drafter])
def test_greedy_text_is_that_of_plain_generate(window, make_drafter):
    target = tiny_target()
    drafter = make_drafter(target).to(DEVICE)
    target.to(DEVICE)
    plain = target.generate(prompt(), max_new_tokens=40, do_sample=False)
    found = target.generate(
        prompt(), max_new_tokens=40, do_sample=False, assistant_model=drafter, window=WindowConfig.parse(window)
    )
    assert torch.equal(found, plain)
    assert drafter.last_trace.cycles


@cuda
def test_sampling_repeats_with_a_seed():
    target = tiny_target()
    drafter = tiny_eagle3(target).to(DEVICE)
    target.to(DEVICE)
    texts = []
    for _ in range(2):
        torch.manual_seed(5)
        texts.append(target.generate(prompt(), max_new_tokens=30, do_sample=True, assistant_model=drafter))
    assert torch.equal(*texts)


@cuda
def test_costs_are_measured():
    target = tiny_target()
    drafter = tiny_eagle3(target).to(DEVICE)
    costs = CostModel.measure(target.to(DEVICE), drafter, max_window=4, repetitions=2)
    assert costs.gamma > 0 and torch.cuda.get_device_name() in costs.key
    assert describe_environment(torch.device(DEVICE))["device_name"] == torch.cuda.get_device_name()


@cuda
def test_responses_are_those_of_the_cpu(tmp_path):
    tokenizer = char_tokenizer()
    prompts = [Prompt((text,)) for text in ("abc", "a longer one", "x")]
    rows = []
    for device in ("cpu", DEVICE):
        target = tiny_target(vocab_size=len(tokenizer)).to(device)
        dataset = generate_responses(
            target, tokenizer, prompts, tmp_path / device, max_new_tokens=12, batch_size=2, progress=False
        )
        rows.append(dataset["input_ids"])
    assert rows[0] == rows[1]


@cuda
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3_text"])
def test_packed_verification_is_window_by_window(family):
    target = tiny_target(family).to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(2, 96, (3, 20), generator=generator).to(DEVICE)
    prefix = target_prefix(target, input_ids, torch.ones_like(input_ids))
    starts = torch.tensor([[3, 20], [13, -1], [1, 6]], device=DEVICE)
    windows = torch.randint(2, 96, (3, 2, 3, 5), generator=generator).to(DEVICE)
    packed, plain = (verify_windows(target, prefix, starts, windows, packed=packed) for packed in (True, False))
    torch.testing.assert_close(packed.log_probs, plain.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.draft_probs, plain.draft_probs, atol=1e-5, rtol=0)
    assert torch.equal(packed.argmax, plain.argmax)
    own = [target_windows(target, prefix, starts, 5, packed=packed) for packed in (True, False)]
    assert torch.equal(own[0][0], own[1][0])
    torch.testing.assert_close(own[0][1], own[1][1], atol=1e-5, rtol=0)


@cuda
@pytest.mark.parametrize(
    "options",
    [{}, {"window_reward_weight": 1.0, "distillation_weight": 0.3}, {"loss_type": "mixed"}],
    ids=["supervised", "exact reward", "mixed"],
)
def test_supervised_steps_are_those_of_the_cpu(tmp_path, options):
    weights = []
    for use_cpu in (True, False):
        trainer = sft_trainer(tmp_path / str(use_cpu), use_cpu=use_cpu, eval_decode_prompts=0, **options)
        trainer.train()
        assert trainer.model.device.type == ("cpu" if use_cpu else "cuda")
        weights.append({name: value.cpu() for name, value in trainer.model.state_dict().items()})
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=2e-4, rtol=1e-3, msg=lambda text, n=name: n + text)


@cuda
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"baseline": "survivors", "credit": "prefix", "greedy_window": True, "kl_weighting": "reach"},
        {"acceptance": "sampled", "anchor_weight": 0.5},
        {"acceptance": "expected", "expected_length_weight": 0.5, "num_iterations": 2},
    ],
    ids=["paper", "survivors", "sampled", "expected"],
)
@pytest.mark.parametrize("bf16", [False, True])
def test_ppow_steps_train(tmp_path, options, bf16):
    trainer = ppow_trainer(tmp_path, use_cpu=False, bf16=bf16, **options)
    before = copy.deepcopy(trainer.model).cpu().state_dict()
    trainer.train()
    after = trainer.model.state_dict()
    assert trainer.state.global_step == 3
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    assert any(not torch.equal(value.cpu(), before[name]) for name, value in after.items())


@cuda
def test_supervised_steps_in_bfloat16_with_decoding(tmp_path):
    target = tiny_target().bfloat16()
    trainer = sft_trainer(
        tmp_path,
        target=target,
        use_cpu=False,
        bf16=True,
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset=token_rows(4),
    )
    trainer.train()
    figures = [entry for entry in trainer.state.log_history if "eval_acceptance_length" in entry]
    assert len(figures) == 2 and all(entry["eval_acceptance_length"] >= 1 for entry in figures)

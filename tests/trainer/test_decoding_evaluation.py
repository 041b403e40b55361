# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, List, Value

from ppow_hf import CausalLMDrafter
from ppow_hf.trainer.decoding_evaluation import decode_held_out, prompt_of
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import sft_trainer, token_rows
from tests.trainer.counting_toy import counting_target
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


def test_a_text_that_ends_on_an_accepted_draft_token_has_no_bonus_token():
    """4 5 6, then 7 by the target alone; the drafter knows that 8 and 9 come next, and 9 ends the text."""
    target = counting_target()
    drafter = tiny_causal_drafter(target, 3)
    drafter.bind_target(target)
    rows = Dataset.from_list([{"input_ids": [4, 5, 6, 7], "loss_mask": [0, 0, 0, 1]}])
    options = {"num_prompts": 1, "max_new_tokens": 9, "window": "fixed:5"}
    without_end = decode_held_out(Accelerator(cpu=True), drafter, target, rows, **options)
    assert without_end["acceptance_length"] == 4.0, "8 new tokens in windows of 5 and 1, one verification each"
    target.generation_config.eos_token_id = 9
    figures = decode_held_out(Accelerator(cpu=True), drafter, target, rows, **options)
    assert figures == {"acceptance_length": 2.0, "acceptance_rate": 1.0, "mean_window": 2.0, "skipped_prompts": 0.0}


def with_prompts(*lengths: int) -> Dataset:
    return Dataset.from_list(
        [{"input_ids": list(range(2, 3 + length)), "loss_mask": [0] * length + [1]} for length in lengths]
    )


def short_pair(family: str, drafter_family: str):
    target = tiny_target(family, **{"n_positions" if family == "gpt2" else "max_position_embeddings": 20})
    drafter = tiny_eagle3(target, draft_vocab_size=48) if drafter_family == "eagle3" else tiny_causal_drafter(target)
    return target, drafter


@pytest.mark.parametrize("drafter_family", ["eagle3", "causal_lm"])
@pytest.mark.parametrize("make_trainer", [sft_trainer, ppow_trainer])
def test_prompts_are_decoded_as_far_as_learned_positions_go(tmp_path, make_trainer, drafter_family, caplog):
    """20 positions, and a last token that no model reads: a text of 21."""
    target, drafter = short_pair("gpt2", drafter_family)
    options = {"dataset": token_rows(8, length=20), "eval_decode_prompts": 5, "max_length": 20}
    with caplog.at_level("WARNING"):
        trainer = make_trainer(tmp_path, drafter, target, eval_dataset=with_prompts(3, 15, 19, 20, 25), **options)
    assert "2 of the first 5 prompts of `eval_dataset`" in caplog.text and "more than the 19 behind" in caplog.text
    decoded = []
    generate = target.generate

    def noting(input_ids, **kwargs):
        output = generate(input_ids, **kwargs)
        decoded.append((input_ids.shape[1], output.shape[1]))
        return output

    target.generate = noting
    figures = trainer.evaluate()
    assert decoded == [(3, 11), (15, 21), (19, 21)], "8 new tokens, or as many as there is room for"
    assert figures["eval_skipped_prompts"] == 2.0 and figures["eval_acceptance_length"] >= 1.0
    # Rotary positions have no end.
    target, drafter = short_pair("llama", drafter_family)
    trainer = make_trainer(tmp_path, drafter, target, eval_dataset=with_prompts(20, 25), **options)
    assert trainer.evaluate()["eval_skipped_prompts"] == 0.0


@pytest.mark.parametrize("make_trainer", [sft_trainer, ppow_trainer])
def test_prompts_none_of_which_can_be_decoded_are_refused(tmp_path, make_trainer):
    target, drafter = short_pair("gpt2", "eagle3")
    options = {"dataset": token_rows(8, length=20), "eval_dataset": with_prompts(20, 25), "max_length": 20}
    with pytest.raises(ValueError, match="2 of the first 2 prompts of `eval_dataset`.*set `eval_decode_prompts=0`"):
        make_trainer(tmp_path, drafter, target, **options)
    make_trainer(tmp_path, drafter, target, **options, eval_decode_prompts=0)


def test_rows_longer_than_learned_positions_have_no_loss(tmp_path):
    target, drafter = short_pair("gpt2", "eagle3")
    short, long = token_rows(8, length=20), token_rows(8, length=24)
    for name, options in (
        ("train_dataset", {"dataset": long}),
        ("eval_dataset", {"dataset": short, "eval_dataset": long}),
    ):
        with pytest.raises(ValueError, match=f"`{name}` has rows of 24 tokens.*the target has 20 positions"):
            sft_trainer(tmp_path, drafter, target, **options)
    trainer = sft_trainer(tmp_path, drafter, target, long, long, max_length=20, eval_decode_prompts=0)
    assert trainer.evaluate()["eval_loss"] > 0
    # Of a target without an end of its positions, they have.
    target, drafter = short_pair("llama", "eagle3")
    assert sft_trainer(tmp_path, drafter, target, long, long).evaluate()["eval_loss"] > 0


def test_the_table_of_a_drafter_that_wraps_a_model_counts():
    target, (short, _) = tiny_target(), short_pair("gpt2", "eagle3")
    drafter = CausalLMDrafter.from_causal_lm(short)
    drafter.bind_target(target)
    rows = with_prompts(19, 20)
    figures = decode_held_out(
        Accelerator(cpu=True), drafter, target, rows, num_prompts=2, max_new_tokens=8, window="fixed:3"
    )
    assert figures["skipped_prompts"] == 1.0


@pytest.mark.parametrize("make_trainer", [sft_trainer, ppow_trainer])
def test_prompts_of_a_stream_are_not_decoded(tmp_path, make_trainer):
    stream = token_rows(4).to_iterable_dataset()
    message = "`eval_dataset` is streamed .IterableDataset.*`eval_decode_prompts=0`"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, eval_dataset=stream)
    trainer = make_trainer(tmp_path, eval_dataset=token_rows(4))
    with pytest.raises(ValueError, match=message):
        trainer.evaluate(stream)
    trainer = make_trainer(tmp_path, eval_dataset=stream, eval_decode_prompts=0, eval_on_start=False)
    figures = trainer.evaluate()
    assert ("eval_loss" in figures) == (make_trainer is sft_trainer)


@pytest.mark.parametrize("family", ["eagle3", "causal_lm"])
@pytest.mark.parametrize("make_trainer", [sft_trainer, ppow_trainer])
def test_both_trainers_evaluate_on_them(tmp_path, make_trainer, family):
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=48) if family == "eagle3" else tiny_causal_drafter(target)
    rows = Dataset.from_list([{"input_ids": list(range(2, 22)), "loss_mask": [1] * 20}, *token_rows(1)])
    trainer = make_trainer(tmp_path, drafter, target, eval_dataset=rows)
    assert trainer.evaluate()["eval_acceptance_length"] >= 1.0

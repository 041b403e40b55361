# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest
import torch

from ppow_hf.generation.acceptance import FEATURES
from ppow_hf.scripts.finish_drafter import FinishArguments, calibrate_acceptance, main
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import tiny_eagle3, tiny_target


def prompts(count: int) -> list[list[int]]:
    return torch.randint(2, 96, (count, 6), generator=torch.Generator().manual_seed(0)).tolist()


def test_calibration_is_no_worse_than_it_says_and_repeats():
    target = tiny_target()
    drafter = tiny_eagle3(target)
    runs = [calibrate_acceptance(target, drafter, prompts(4), window="fixed:3", max_new_tokens=16) for _ in range(2)]
    weights, figures = runs[0]
    assert runs[0] == runs[1]
    assert set(weights) == {"greedy", "sampling"}
    for mode, values in figures.items():
        assert len(weights[mode]) == len(FEATURES)
        assert values["outcomes"] > 0 and 0 <= values["mean_acceptance"] <= 1
        assert 0 <= values["brier_fitted"] <= 1 and 0 <= values["brier_draft_confidence"] <= 1


def test_one_prompt_is_too_few_to_check_the_fit():
    target = tiny_target()
    with pytest.raises(ValueError, match="`prompts` holds 1 prompts"):
        calibrate_acceptance(target, tiny_eagle3(target), prompts(1))


def test_a_missing_drafter_leaves_the_old_folder_alone(tmp_path):
    output = tmp_path / "published"
    output.mkdir()
    (output / "config.json").write_text("{}")
    char_target().save_pretrained(tmp_path / "target")
    char_tokenizer().save_pretrained(tmp_path / "target")
    arguments = FinishArguments(
        drafter=str(tmp_path / "missing"),
        responses=[],
        output_dir=str(output),
        target=str(tmp_path / "target"),
        dtype="float32",
    )
    with pytest.raises(OSError, match="missing"):
        main(arguments)
    assert [path.name for path in output.iterdir()] == ["config.json"]


def test_prompts_behind_which_learned_positions_leave_no_room_are_left_out():
    target = tiny_target("gpt2", n_positions=20)
    drafter = tiny_eagle3(target)
    short, long = prompts(2), [list(range(1, 21))]
    weights, figures = calibrate_acceptance(target, drafter, short + long, window="fixed:3", max_new_tokens=64)
    assert (weights, figures) == calibrate_acceptance(target, drafter, short, window="fixed:3", max_new_tokens=64)
    assert figures["greedy"]["outcomes"] > 0
    with pytest.raises(ValueError, match="holds 1 prompts that can be decoded, of 2"):
        calibrate_acceptance(target, drafter, short[:1] + long)

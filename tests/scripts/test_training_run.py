# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Which prompts the stages hold out: of the same responses the same for every seed and stage, but for `data_seed`."""

import json

import pytest

from ppow_hf.data import generate_responses, split_holdout
from ppow_hf.scripts import finish_drafter, sft_drafter, train_ppow
from ppow_hf.scripts.training_run import load_all_responses, recorded_held_out_seed
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import tiny_eagle3

STAGES = (sft_drafter, train_ppow)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target, the responses it gave, and a drafter of it."""
    root = tmp_path_factory.mktemp("stages")
    target, tokenizer = char_target(), char_tokenizer()
    target.save_pretrained(root / "target")
    tokenizer.save_pretrained(root / "target")
    prompts = [f"Say {i}." for i in range(12)]
    generate_responses(target, tokenizer, prompts, root / "responses", max_new_tokens=12, progress=False)
    tiny_eagle3(target, draft_vocab_size=80).save_pretrained(root / "drafter")
    return root


def held_out(folders, output, stage, monkeypatch, *options) -> tuple[list, list, dict]:
    """Token ids to train on and to evaluate on, and what would be recorded. Nothing is trained."""
    begun = []
    monkeypatch.setattr(stage, "run_training", lambda *arguments: begun.append(arguments))
    arguments = ["--target", folders / "target", "--responses", folders / "responses", "--output_dir", output]
    arguments += ["--holdout", 3, "--use_cpu", *options]
    arguments += [] if "--drafter" in options else ["--drafter", folders / "drafter"]
    arguments += ["--window_size", 3] if stage is train_ppow else []
    stage.main(*stage.make_parser().parse_args_and_config([str(part) for part in arguments]))
    ((trainer, _, facts),) = begun
    return trainer.train_dataset["input_ids"][:], trainer.eval_dataset["input_ids"][:], facts


def test_all_seeds_and_stages_hold_out_the_same(folders, tmp_path, monkeypatch):
    responses, _ = load_all_responses([str(folders / "responses")])
    expected = [part["input_ids"][:] for part in split_holdout(responses, 3, seed=0)]
    for stage in STAGES:
        for seed in (0, 1, 42):
            *parts, facts = held_out(folders, tmp_path, stage, monkeypatch, "--seed", seed)
            assert parts == expected, (stage.__name__, seed)
            assert facts["held_out"] == {"rows": 3, "seed": 0}


def test_data_seed_chooses_others(folders, tmp_path, monkeypatch):
    responses, _ = load_all_responses([str(folders / "responses")])
    expected = [part["input_ids"][:] for part in split_holdout(responses, 3, seed=2)]
    assert expected[1] != split_holdout(responses, 3, seed=0)[1]["input_ids"][:]
    for stage in STAGES:
        *parts, facts = held_out(folders, tmp_path, stage, monkeypatch, "--data_seed", 2)
        assert parts == expected and facts["held_out"] == {"rows": 3, "seed": 2}


def recorded(folder, **facts):
    """The reference to a drafter whose training recorded this."""
    tiny_eagle3(char_target(), draft_vocab_size=80).save_pretrained(folder)
    (folder / "training_provenance.json").write_text(json.dumps({"stage": "supervised", **facts}))
    return ("--drafter", folder)


@pytest.mark.parametrize("stage", STAGES)
def test_a_drafter_that_may_have_been_trained_on_what_is_held_out(folders, tmp_path, monkeypatch, caplog, stage):
    _, provenance = load_all_responses([str(folders / "responses")])
    licensed = [{**provenance[0], "license": "mit"}]
    same = {"held_out": {"rows": 3, "seed": 0}, "responses": licensed}
    other = [{**provenance[0], "settings_hash": "another"}]

    def warnings(folder, *options, **facts):
        caplog.clear()
        with caplog.at_level("WARNING"):
            held_out(folders, tmp_path, stage, monkeypatch, *recorded(tmp_path / folder, **facts), *options)
        return [text for text in caplog.messages if "may have been trained on prompts" in text]

    assert not warnings("same", **same)
    assert not warnings("unrecorded", training={"data_seed": "None", "seed": 0})
    (said,) = warnings("seed", "--data_seed", 2, **same)
    assert "supervised training held out 3 rows by `data_seed` 0, and now it is 3 rows by `data_seed` 2." in said
    assert "other responses" not in said
    (said,) = warnings("fewer", **{**same, "held_out": {"rows": 2, "seed": 0}})
    assert "held out 2 rows by `data_seed` 0, and now it is 3 rows by `data_seed` 0" in said
    (said,) = warnings("responses", **{**same, "responses": other})
    assert "supervised training took other responses, of which other prompts are held out." in said
    assert "Use the same `responses`, `holdout` and `data_seed`" in said
    # The training before the last one counts too.
    (said,) = warnings("chain", **same, stage="ppow", started_from={"stage": "supervised", "responses": other})
    assert "supervised training took other responses" in said


@pytest.mark.parametrize(
    ("record", "seed"),
    [
        ({}, 0),
        ({"stage": "supervised", "training": {"seed": 5}, "held_out": {"rows": 3, "seed": 2}}, 2),
        # Before it was recorded.
        ({"stage": "supervised", "training": {"seed": 5, "data_seed": "None"}}, 5),
        ({"stage": "ppow", "training": {"seed": 5, "data_seed": "None"}}, 0),
        ({"stage": "ppow", "training": {"seed": 5, "data_seed": 2}}, 2),
    ],
)
def test_the_seed_is_found_in_the_record(record, seed):
    assert recorded_held_out_seed(record) == seed


class Seen(Exception):
    """Ends a calibration before it begins."""


def calibrated_on(folders, tmp_path, monkeypatch, **options) -> list[list[int]]:
    """The prompts that the drafter in `tmp_path / "trained"` would be calibrated on."""
    seen = []

    def see(target, drafter, prompts, **rest):
        seen.extend(prompts)
        raise Seen

    monkeypatch.setattr(finish_drafter, "calibrate_acceptance", see)
    arguments = finish_drafter.FinishArguments(
        drafter=str(tmp_path / "trained"),
        responses=[str(folders / "responses")],
        output_dir=str(tmp_path / "finished"),
        target=str(folders / "target"),
        dtype="float32",
        **options,
    )
    with pytest.raises(Seen):
        finish_drafter.main(arguments)
    return seen


@pytest.mark.parametrize(("given", "seed"), [(None, 2), (4, 4)])
def test_a_drafter_is_calibrated_on_what_its_training_held_out(folders, tmp_path, monkeypatch, given, seed):
    tiny_eagle3(char_target(), draft_vocab_size=80).save_pretrained(tmp_path / "trained")
    (tmp_path / "trained" / "training_provenance.json").write_text('{"held_out": {"rows": 3, "seed": 2}}')
    seen = calibrated_on(folders, tmp_path, monkeypatch, holdout=3, data_seed=given, seed=11)
    responses, _ = load_all_responses([str(folders / "responses")])
    assert seen == [finish_drafter.prompt_of(row) for row in split_holdout(responses, 3, seed=seed)[1]]


def test_checkpoints_of_a_run_that_began_otherwise_are_not_gone_on_from(folders, tmp_path):
    """They hold that run's weights: what is asked for now would be recorded of them, and not be so."""
    tiny_eagle3(char_target(), draft_vocab_size=80, seed=1).save_pretrained(tmp_path / "other")

    def train(drafter, steps, *options):
        arguments = ["--target", folders / "target", "--responses", folders / "responses", "--drafter", drafter]
        arguments += ["--output_dir", tmp_path / "run", "--holdout", 3, "--use_cpu", "--max_steps", steps]
        arguments += ["--save_steps", 1, "--eval_strategy", "no", "--eval_on_start", "false", "--report_to", "none"]
        arguments += ["--eval_decode_prompts", 0, *options]
        sft_drafter.main(*sft_drafter.make_parser().parse_args_and_config([str(part) for part in arguments]))
        return json.loads((tmp_path / "run" / "training_provenance.json").read_text())

    assert train(folders / "drafter", 1)["steps"] == 1
    with pytest.raises(ValueError, match="`output_dir` is .*`drafter` was '.*drafter', now '.*other'.*another `outp"):
        train(tmp_path / "other", 2)
    (tmp_path / "run" / "run.json").unlink()  # of a run before there was one
    with pytest.raises(ValueError, match="`drafter` was '.*drafter', now '.*other'"):
        train(tmp_path / "other", 2)
    assert train(folders / "drafter", 2)["steps"] == 2
    named = ("--resume_from_checkpoint", tmp_path / "run" / "checkpoint-2")
    assert train(tmp_path / "other", 3, *named)["steps"] == 3


@pytest.mark.parametrize("stage", STAGES)
def test_responses_of_another_target_are_told(folders, tmp_path, monkeypatch, caplog, stage):
    """Its tokens fit, and nothing else would tell."""
    drafter = tmp_path / "drafter"
    tiny_eagle3(char_target(seed=1), draft_vocab_size=80).save_pretrained(drafter)
    for name, seed in (("same", 0), ("other", 1)):
        char_target(seed=seed).save_pretrained(tmp_path / name)
        char_tokenizer().save_pretrained(tmp_path / name)
        caplog.clear()
        held_out(folders, tmp_path, stage, monkeypatch, "--target", tmp_path / name, "--drafter", drafter)
        assert ("were given by another target" in caplog.text) == (name == "other"), name
    # In another precision the weights cannot be told apart, and are not.
    caplog.clear()
    held_out(folders, tmp_path, stage, monkeypatch, "--target_dtype", "bfloat16")
    assert "another target" not in caplog.text


@pytest.mark.parametrize("budget", [("--max_steps", 2), ("--max_steps", -1, "--max_seconds", 0.3)])
def test_a_finished_training_is_not_trained_further(folders, tmp_path, budget, caplog):
    def train(*options):
        arguments = ["--target", folders / "target", "--responses", folders / "responses"]
        arguments += ["--drafter", folders / "drafter", "--output_dir", tmp_path / "run", "--holdout", 3, "--use_cpu"]
        arguments += ["--save_steps", 1, "--eval_strategy", "no", "--eval_on_start", "false", "--report_to", "none"]
        arguments += ["--eval_decode_prompts", 0, "--num_train_epochs", 50, *options]
        sft_drafter.main(*sft_drafter.make_parser().parse_args_and_config([str(part) for part in arguments]))
        record = json.loads((tmp_path / "run" / "training_provenance.json").read_text())
        return record["steps"], (tmp_path / "run" / "model.safetensors").read_bytes()

    before = train(*budget)
    assert "nothing is left to do" not in caplog.text
    assert train(*budget) == before and "nothing is left to do" in caplog.text
    assert train("--max_steps", before[0] + 1)[0] == before[0] + 1


@pytest.mark.parametrize(("given", "warned"), [(None, False), (2, False), (6, True)])
def test_a_finished_drafter_is_calibrated_on_what_its_training_held_out(folders, tmp_path, monkeypatch, given, warned):
    responses, _ = load_all_responses([str(folders / "responses")])
    recorded(tmp_path / "trained", held_out={"rows": 3, "seed": 0})

    said = []
    monkeypatch.setattr(finish_drafter.logger, "warning", said.append)
    seen = calibrated_on(folders, tmp_path, monkeypatch, holdout=given)
    assert seen == [finish_drafter.prompt_of(row) for row in split_holdout(responses, given or 3, seed=0)[1]]
    assert bool(said) == warned and (not warned or "the training held out 3 rows" in said[0])

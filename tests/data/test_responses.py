# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import errno
import hashlib
import json
import multiprocessing
import os
import signal

import pytest
import torch
from filelock import FileLock
from transformers import T5Config, T5ForConditionalGeneration

from ppow_hf.data import files, shards
from ppow_hf.data.prompts import Prompt, select_prompts
from ppow_hf.data.responses import generate_responses

from .data_testing_utils import EOS, REWRITING_TEMPLATE, char_target, char_tokenizer

PROMPTS = [Prompt((f"{'what ' * (i % 5)}is {i}?",), source="mine") for i in range(14)]
CONVERSATIONS = [
    Prompt((f"Say {i}", *(["And then?", "Why?"][: i % 3])), system="Be brief." if i % 2 else None) for i in range(9)
]
MIXED = {"max_new_tokens": 12, "batch_size": 4, "temperatures": {0.0: 0.5, 1.0: 0.5}, "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def target():
    return char_target()


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer()


def own_tokens(row):
    return [token for token, own in zip(row["input_ids"], row["loss_mask"], strict=True) if own]


def greedy(target, ids, max_new_tokens):
    """One prompt on its own, without padding."""
    with torch.no_grad():
        output = target.generate(
            torch.tensor([ids]), max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=EOS, eos_token_id=EOS
        )
    return output[0, len(ids) :].tolist()


def test_greedy_responses_are_the_targets_own(target, tokenizer, tmp_path):
    dataset = generate_responses(
        target, tokenizer, PROMPTS, tmp_path / "out", max_new_tokens=10, batch_size=4, progress=False
    )
    assert len(dataset) == len(PROMPTS)
    for prompt, row in zip(PROMPTS, dataset, strict=True):
        text = f"<|im_start|>user\n{prompt.turns[0]}<|im_end|>\n<|im_start|>assistant\n"
        prompt_ids = tokenizer(text).input_ids
        response = greedy(target, prompt_ids, 10)
        assert row["input_ids"] == prompt_ids + response
        assert row["loss_mask"] == [0] * len(prompt_ids) + [1] * len(response)
        assert row["prompt"] == [{"role": "user", "content": prompt.turns[0]}]
        assert row["completion"] == tokenizer.decode(response, skip_special_tokens=True)
        assert (row["temperature"], row["source"]) == (0.0, "mine")
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["rows"] == provenance["answers"] == 14 and provenance["sources"] == {"mine": 14}
    assert provenance["response_tokens"] == sum(map(sum, dataset["loss_mask"]))
    assert provenance["settings"]["max_new_tokens"] == 10 and provenance["tokens_per_second"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_kept_out_is_recorded(target, tokenizer, tmp_path):
    names = ["first.jsonl", "second.jsonl"]
    for name, texts in zip(names, (["is 3?", "never asked"], ["what is 1?", "is 3?", "what what is 2?"]), strict=True):
        (tmp_path / name).write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    chosen = select_prompts(PROMPTS, exclude=[tmp_path / name for name in names])
    # "is 3?" is no part of "what what what is 3?": texts as short as these are looked for as a whole.
    generate_responses(target, tokenizer, chosen, tmp_path / "out", max_new_tokens=2, progress=False)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    hashes = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names]
    removed = [0, 2]
    assert provenance["excluded"] == [
        {"name": name, "sha256": sha256, "prompts_removed": number}
        for name, sha256, number in zip(names, hashes, removed, strict=True)
    ]
    assert provenance["prompts"] == len(PROMPTS) - 2 and str(tmp_path) not in json.dumps(provenance["excluded"])
    generate_responses(target, tokenizer, PROMPTS[:1], tmp_path / "other", max_new_tokens=2, progress=False)
    assert json.loads((tmp_path / "other" / "provenance.json").read_text())["excluded"] == []


def test_plain_text_without_chat_template(target, tmp_path):
    tokenizer = char_tokenizer(chat_template=None)
    dataset = generate_responses(target, tokenizer, ["Once", "Twice "], tmp_path / "out", max_new_tokens=5)
    assert dataset["prompt"][:] == ["Once", "Twice "]
    ids = tokenizer("Once").input_ids
    assert dataset[0]["input_ids"] == ids + greedy(target, ids, 5)
    with pytest.raises(ValueError, match="no chat template"):
        generate_responses(target, tokenizer, CONVERSATIONS, tmp_path / "other")


def test_responses_end_with_the_end_token(target, tokenizer, tmp_path):
    prompts = [Prompt((f"prompt {i}",)) for i in range(40)]
    dataset = generate_responses(
        target, tokenizer, prompts, tmp_path / "out", max_new_tokens=60, temperatures={1.0: 1.0}, progress=False
    )
    responses = [own_tokens(row) for row in dataset]
    ended = [response for response in responses if response[-1] == EOS]
    assert 0 < len(ended) < len(responses)
    assert all(EOS not in response[:-1] for response in responses)
    assert all(len(response) == 60 for response in responses if response[-1] != EOS)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["answers_cut_off"] == 40 - len(ended)


def test_temperature_shares(target, tokenizer, tmp_path):
    prompts = [Prompt((f"prompt {i}",)) for i in range(200)]
    shares = {0.0: 0.7, 1.0: 0.2, 0.5: 0.1}
    arguments = {"max_new_tokens": 2, "batch_size": 64, "temperatures": shares, "progress": False}
    dataset = generate_responses(target, tokenizer, prompts, tmp_path / "a", **arguments)
    assert sum(t == 0.0 for t in dataset["temperature"]) == pytest.approx(140, abs=25)
    assert sum(t == 1.0 for t in dataset["temperature"]) == pytest.approx(40, abs=20)
    # The temperature of a prompt does not hang on the other prompts, and does on the seed.
    fewer = generate_responses(target, tokenizer, prompts[50:], tmp_path / "b", **arguments)
    assert fewer["temperature"][:] == dataset["temperature"][50:]
    other = generate_responses(target, tokenizer, prompts, tmp_path / "c", **arguments, seed=1)
    assert other["temperature"][:] != dataset["temperature"][:]
    # Greedy answers are the same whatever else is in the run.
    greedy_rows = [i for i in range(150) if fewer[i]["temperature"] == 0.0]
    assert all(fewer[i]["input_ids"] == dataset[i + 50]["input_ids"] for i in greedy_rows)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 1, "top_p": 0.1, "temperature": 0.2, "do_sample": True},
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 2},
        {"min_p": 0.9},
        {"typical_p": 0.1},
        {"epsilon_cutoff": 0.02},
        {"suppress_tokens": list(range(10, 60))},
        {"begin_suppress_tokens": list(range(3, 90))},
        {"bad_words_ids": [[token] for token in range(10, 60)]},
        {"min_new_tokens": 8},
        {"forced_eos_token_id": EOS},
        {"sequence_bias": [[[20], 50.0]]},
        {"exponential_decay_length_penalty": (0, 9.0)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_sampling_ignores_the_targets_own_cut_offs(tokenizer, tmp_path, settings, temperature):
    target = char_target()
    target.generation_config.update(**settings)
    arguments = {"max_new_tokens": 8, "progress": False, "temperatures": {temperature: 1.0}}
    reference = generate_responses(char_target(), tokenizer, PROMPTS, tmp_path / "plain", **arguments)
    own = target.generation_config
    dataset = generate_responses(target, tokenizer, PROMPTS, tmp_path / "own", **arguments)
    assert dataset["input_ids"][:] == reference["input_ids"][:]
    assert target.generation_config is own and own.to_dict().items() >= settings.items()


def test_the_targets_generation_config_comes_back_after_an_error(tokenizer, tmp_path, monkeypatch):
    target = char_target()
    own = target.generation_config

    def failing(self, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(target), "generate", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate_responses(target, tokenizer, PROMPTS, tmp_path / "out", progress=False)
    assert target.generation_config is own


def test_multi_turn_continues_with_the_targets_answers(target, tokenizer, tmp_path):
    dataset = generate_responses(
        target, tokenizer, CONVERSATIONS, tmp_path / "out", max_new_tokens=6, batch_size=3, progress=False
    )
    assert len(dataset) == len(CONVERSATIONS)
    for prompt, row in zip(CONVERSATIONS, dataset, strict=True):
        messages, ids, mask, answer = prompt.opening(), [], [], ""
        for turn, user in enumerate(prompt.turns):
            if turn:
                messages = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": user}]
            added = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
            if turn == 0 and prompt.system:
                added = f"<|im_start|>system\n{prompt.system}<|im_end|>\n{added}"
            if turn:
                # The template closes the answer; an end token the target wrote is its own and counts.
                added = ("\n" if ids[-1] == EOS else "<|im_end|>\n") + added
            added = tokenizer(added).input_ids
            response = greedy(target, ids + added, 6)
            answer = tokenizer.decode(response, skip_special_tokens=True)
            ids, mask = ids + added + response, mask + [0] * len(added) + [1] * len(response)
        assert row["input_ids"] == ids
        assert row["loss_mask"] == mask
        assert row["prompt"] == messages and row["completion"] == answer


def test_template_that_rewrites_earlier_turns_gives_a_row_per_turn(target, tmp_path):
    tokenizer = char_tokenizer(REWRITING_TEMPLATE)
    prompt = Prompt(("One?", "Two?"))
    dataset = generate_responses(target, tokenizer, [prompt], tmp_path / "out", max_new_tokens=6, progress=False)
    assert len(dataset) == 2
    first, second = dataset
    assert first["prompt"] == prompt.opening() and second["prompt"][1]["content"] == first["completion"]
    text = tokenizer.apply_chat_template(second["prompt"], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text).input_ids
    assert "said" in text and second["input_ids"] == ids + greedy(target, ids, 6)
    assert sum(first["loss_mask"]) == sum(second["loss_mask"]) == 6


def test_long_prompts_are_left_out_and_long_conversations_end(target, tokenizer, tmp_path):
    prompts = [Prompt(("short", "x" * 200)), Prompt(("y" * 200,))]
    dataset = generate_responses(
        target, tokenizer, prompts, tmp_path / "out", max_new_tokens=4, max_prompt_tokens=100, progress=False
    )
    assert [row["prompt"] for row in dataset] == [[{"role": "user", "content": "short"}]]
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["prompts_too_long"] == 1
    with pytest.raises(ValueError, match="`prompts`: all 1 are longer than 100 tokens"):
        generate_responses(target, tokenizer, prompts[1:], tmp_path / "none", max_prompt_tokens=100)


def test_token_budget_makes_smaller_batches_with_the_same_answers(target, tokenizer, tmp_path, monkeypatch):
    sizes = []
    generate = type(target).generate

    def recording(self, input_ids, **kwargs):
        sizes.append(input_ids.shape)
        return generate(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(target), "generate", recording)
    arguments = {"max_new_tokens": 6, "batch_size": 14, "progress": False}
    dataset = generate_responses(target, tokenizer, PROMPTS, tmp_path / "a", max_batch_tokens=400, **arguments)
    assert len(sizes) > 1 and all(rows * (length + 6) <= 400 for rows, length in sizes)
    assert [length for _, length in sizes] == sorted((length for _, length in sizes), reverse=True)
    reference = generate_responses(target, tokenizer, PROMPTS, tmp_path / "b", **arguments)
    assert sizes[-1][0] == 14 and dataset["input_ids"][:] == reference["input_ids"][:]


# --------------------------------------------------------------------------------------------------------------------
# Killed, resumed, refused
# --------------------------------------------------------------------------------------------------------------------


def _generate_and_die(folder, writes, prompts=CONVERSATIONS):
    """Run as a child process: killed while it writes batch number `writes`, before the file has its name."""
    replace, seen = os.replace, []

    def dying(source, destination):
        if "batch" in str(destination):
            seen.append(destination)
            if len(seen) > writes:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, destination)

    files.os.replace = dying
    generate_responses(char_target(), char_tokenizer(), prompts, folder / "out", **MIXED)


def test_killed_run_resumes_to_the_same_dataset(target, tokenizer, tmp_path, monkeypatch, capsys):
    whole = generate_responses(target, tokenizer, CONVERSATIONS, tmp_path / "whole", **MIXED)
    context = multiprocessing.get_context("fork")
    partial = tmp_path / "out.partial"
    for writes, total in ((2, 2), (1, 3)):  # killed twice: the second run goes on from the first
        process = context.Process(target=_generate_and_die, args=(tmp_path, writes))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert len(list(partial.glob("turn*.json"))) == total
        assert not (tmp_path / "out").exists()

    before = {path.name: path.stat().st_mtime_ns for path in partial.glob("turn*.json")}
    calls = []
    generate = type(target).generate
    monkeypatch.setattr(type(target), "generate", lambda self, **kw: calls.append(1) or generate(self, **kw))
    monkeypatch.setattr(shards.ShardFolder, "remove", lambda self: None)
    resumed = generate_responses(target, tokenizer, CONVERSATIONS, tmp_path / "out", **{**MIXED, "progress": True})
    assert resumed[:] == whole[:]
    bar = capsys.readouterr().err
    assert "18/18" in bar and "tokens/s" in bar
    after = {path.name: path.stat().st_mtime_ns for path in partial.glob("turn*.json")}
    assert len(calls) == len(after) - 3
    assert all(after[name] == written for name, written in before.items())


def test_unfinished_run_gives_the_answers_it_has(target, tokenizer, tmp_path):
    whole = generate_responses(target, tokenizer, PROMPTS, tmp_path / "whole", **MIXED)
    process = multiprocessing.get_context("fork").Process(target=_generate_and_die, args=(tmp_path, 1, PROMPTS))
    process.start()
    process.join(120)
    part = generate_responses(target, tokenizer, PROMPTS, tmp_path / "out", finish=False, **MIXED)
    assert 0 < len(part) < len(whole)
    answers = {str(row["prompt"]): row for row in whole}
    assert all(row == answers[str(row["prompt"])] for row in part)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["answers_missing"] == len(whole) - len(part)
    with pytest.raises(FileExistsError, match="`output_dir`"):  # it does not pass for the finished one
        generate_responses(target, tokenizer, PROMPTS, tmp_path / "out", **MIXED)


def test_unfinished_run_without_a_batch_is_an_error(target, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no finished batch"):
        generate_responses(target, tokenizer, PROMPTS, tmp_path / "out", finish=False, **MIXED)
    assert not (tmp_path / "out").exists()


def test_finished_run_is_not_repeated(target, tokenizer, tmp_path, monkeypatch):
    dataset = generate_responses(target, tokenizer, PROMPTS, tmp_path / "out", **MIXED)
    monkeypatch.setattr(type(target), "generate", None)
    assert generate_responses(target, tokenizer, PROMPTS, tmp_path / "out", **MIXED)[:] == dataset[:]
    with pytest.raises(FileExistsError, match="`output_dir`.*not empty"):
        generate_responses(target, tokenizer, PROMPTS, tmp_path / "out", **{**MIXED, "seed": 4})


def _stop_at(monkeypatch, number, error):
    write, seen = files.os.fsync, []

    def failing(descriptor):
        seen.append(descriptor)
        if len(seen) > number:
            raise error
        write(descriptor)

    monkeypatch.setattr(files.os, "fsync", failing)


def test_full_disk_keeps_what_was_finished(target, tokenizer, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _stop_at(patch, 3, OSError(errno.ENOSPC, "No space left on device"))  # settings, two batches, then full
        with pytest.raises(OSError, match="disk is full.*2 batches finished before are safe.*same command"):
            generate_responses(target, tokenizer, PROMPTS, tmp_path / "out", **MIXED)
    assert sorted(path.name for path in (tmp_path / "out.partial").iterdir() if path.suffix) == [
        "settings.json",
        "turn00-batch000000.json",
        "turn00-batch000001.json",
    ]
    resumed = generate_responses(target, tokenizer, PROMPTS, tmp_path / "out", **MIXED)
    whole = generate_responses(target, tokenizer, PROMPTS, tmp_path / "whole", **MIXED)
    assert resumed[:] == whole[:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_changed_settings_are_named(target, tokenizer, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _stop_at(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            generate_responses(target, tokenizer, PROMPTS, tmp_path / "out", **MIXED)
    with pytest.raises(ValueError, match="`seed` was 3, now 4"):
        generate_responses(target, tokenizer, PROMPTS, tmp_path / "out", **{**MIXED, "seed": 4})
    with pytest.raises(ValueError, match="`prompts` was"):
        generate_responses(target, tokenizer, PROMPTS[1:], tmp_path / "out", **MIXED)
    with pytest.raises(ValueError, match="`target_weights` was"):
        generate_responses(char_target(seed=1), tokenizer, PROMPTS, tmp_path / "out", **MIXED)
    other_ends = char_target()
    other_ends.generation_config.eos_token_id = [EOS, 40]
    with pytest.raises(ValueError, match=r"`eos_token_ids` was \[2\], now \[2, 40\]"):
        generate_responses(other_ends, tokenizer, PROMPTS, tmp_path / "out", **MIXED)


def test_two_processes_on_one_folder(target, tokenizer, tmp_path):
    (tmp_path / "out.partial").mkdir()
    with FileLock(tmp_path / "out.partial" / ".lock"):
        with pytest.raises(RuntimeError, match="Another process is writing"):
            generate_responses(target, tokenizer, PROMPTS, tmp_path / "out", **MIXED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0"),
        ({"max_new_tokens": 512}, "`max_new_tokens` is 512: the target has only 512 positions"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"max_batch_tokens": 0}, "`max_batch_tokens` is 0"),
        ({"max_prompt_tokens": 0}, "`max_prompt_tokens` is 0"),
        ({"temperatures": {}}, "`temperatures`"),
        ({"temperatures": {-1.0: 1.0}}, "`temperatures`"),
        ({"temperatures": {1.0: 0.0}}, "`temperatures`"),
        ({"top_p": 0.0}, "`top_p` is 0.0"),
        ({"top_k": -1}, "`top_k` is -1"),
    ],
)
def test_arguments_out_of_range(target, tokenizer, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_responses(target, tokenizer, PROMPTS, tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_unfit_inputs(target, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="`prompts` is empty"):
        generate_responses(target, tokenizer, [], tmp_path / "out")
    with pytest.raises(ValueError, match="`tokenizer` has 99 tokens and `target` only 50"):
        generate_responses(char_target(vocab_size=50), tokenizer, PROMPTS, tmp_path / "out")
    config = T5Config(vocab_size=104, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="encoder-decoder"):
        generate_responses(T5ForConditionalGeneration(config), tokenizer, PROMPTS, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_failed_before_its_first_batch_binds_nobody(target, tokenizer, tmp_path):
    for options, match in (
        ({"max_new_tokens": 4, "max_prompt_tokens": 1}, "longer than 1 tokens, which is `max_prompt_tokens` or what"),
        ({"max_new_tokens": 5, "finish": False}, "no finished batch"),
    ):
        with pytest.raises(ValueError, match=match):
            generate_responses(target, tokenizer, ["abc"], tmp_path / "out", progress=False, **options)
    assert len(generate_responses(target, tokenizer, ["abc"], tmp_path / "out", max_new_tokens=6, progress=False)) == 1
    assert not (tmp_path / "out.partial").exists()


def test_a_prompt_that_the_chat_template_refuses_is_named(tmp_path):
    target, tokenizer = char_target(), char_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    prompts = [Prompt(("Fine.",)), Prompt(("Hello there",), system="Be brief.")]
    with pytest.raises(ValueError, match="number 2 of 2, which begins 'Hello there': System role not supported"):
        generate_responses(target, tokenizer, prompts, tmp_path / "out", max_new_tokens=4, progress=False)


def test_the_current_folder_is_refused_as_any_that_holds_something(target, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError):
        generate_responses(target, tokenizer, ["abc"], ".", max_new_tokens=4, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

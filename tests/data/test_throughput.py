# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json
import statistics
import sys

import pytest
import torch

from ppow_hf.data import throughput
from ppow_hf.data.prompts import Prompt
from ppow_hf.data.throughput import measure_throughput
from ppow_hf.scripts import data_throughput
from ppow_hf.scripts.command_line import run

from .data_testing_utils import EOS, char_target, char_tokenizer

PROMPTS = [Prompt((f"{'what ' * (i % 5)}is {i}?",)) for i in range(14)]


@pytest.fixture(scope="module")
def target():
    return char_target()


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer()


def answers(target, tokenizer, ends, new_tokens=24):
    """Token by token, from single forward passes."""
    found = []
    for prompt in PROMPTS:
        text = tokenizer.apply_chat_template(prompt.opening(), tokenize=False, add_generation_prompt=True)
        ids, answer = tokenizer(text).input_ids, []
        while len(answer) < new_tokens and not (answer and answer[-1] in ends):
            with torch.no_grad():
                answer.append(target(torch.tensor([ids + answer])).logits[0, -1].argmax().item())
        found.append(answer)
    return found


def test_measure_throughput(target, tokenizer):
    figures = measure_throughput(target, tokenizer, PROMPTS, max_new_tokens=8, batch_size=7, rounds=1)
    assert figures["ratio"] == pytest.approx(figures["tokens_per_second"] / figures["bare_tokens_per_second"])
    assert figures["bare_tokens_per_second"] > 0
    with pytest.raises(ValueError, match="`rounds`"):
        measure_throughput(target, tokenizer, PROMPTS, rounds=0)


def test_tokens_count_up_to_the_first_of_the_targets_end_tokens(tokenizer):
    """A target that ends its answers with two tokens, neither of them the tokenizer's own."""
    target = char_target()
    plain = answers(target, tokenizer, ends=())
    common = statistics.mode(answer[5] for answer in plain)
    other = statistics.mode(answer[9] for answer in plain)
    ends = sorted({common, other} - {EOS})
    target.generation_config.eos_token_id = ends
    expected = sum(map(len, answers(target, tokenizer, ends)))
    assert expected < sum(map(len, plain))
    assert throughput._bare_loop(target, tokenizer, PROMPTS, 24, 4) == expected
    figures = measure_throughput(target, tokenizer, PROMPTS, max_new_tokens=24, batch_size=4, rounds=1)
    assert figures["response_tokens"] == figures["bare_response_tokens"] == expected


def test_both_orders_are_timed_and_the_median_counts(target, tokenizer, monkeypatch):
    order = []
    for name in ("_with_library", "_bare_loop"):
        function = getattr(throughput, name)
        monkeypatch.setattr(
            throughput, name, lambda *a, function=function, name=name: order.append(name) or function(*a)
        )
    figures = measure_throughput(target, tokenizer, PROMPTS[:3], max_new_tokens=3, batch_size=3, rounds=3)
    ours, bare = "_with_library", "_bare_loop"
    assert order == [bare, ours, bare, bare, ours, ours, bare]  # the first is the warm-up
    assert len(figures["ratios"]) == 3 and figures["ratio"] == statistics.median(figures["ratios"])


def test_from_the_command_line(target, tokenizer, tmp_path, monkeypatch, capsys):
    target.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"task": f"Say {i}."}) + "\n" for i in range(9)))
    output = tmp_path / "runs" / "throughput.json"
    arguments = ["--target", tmp_path / "target", "--prompts", f"{prompts}::task", "--limit", 5, "--rounds", 2]
    arguments += ["--max-new-tokens", 4, "--output", output, "--dtype", "float32", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["data_throughput", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        run(data_throughput.main)
    assert not exit_.value.code
    content = json.loads(output.read_text())
    assert content["results"]["ratio"] == statistics.median(content["results"]["ratios"])
    assert len(content["results"]["ratios"]) == 2
    assert content["arguments"]["num_prompts"] == 5 and content["arguments"]["target"] == "target"
    assert content["environment"]["versions"]["torch"] and str(tmp_path) not in output.read_text()
    assert "tokens/s" in capsys.readouterr().out

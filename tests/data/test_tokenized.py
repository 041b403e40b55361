# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import hashlib
import json

import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig

from ppow_hf.data.tokenized import (
    DrafterDataCollator,
    build_draft_vocabulary,
    check_responses,
    count_response_tokens,
    draft_vocabulary_coverage,
    import_responses,
    load_responses,
    special_token_ids,
    split_holdout,
)

from .data_testing_utils import EOS, char_tokenizer


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tokenizer():
    return char_tokenizer()


def test_import_responses_uses_the_chat_template_and_masks_the_prompt(tmp_path, tokenizer):
    answer = tokenizer("fine").input_ids + [EOS]
    rows = [
        {"prompt": "How?", "response_ids": answer, "temperature": 1.0},
        {"prompt": [{"role": "user", "content": "How?"}], "response_ids": answer[:2], "source": "mine"},
    ]
    path = write_jsonl(tmp_path / "given.jsonl", rows)
    dataset = import_responses(path, tokenizer, tmp_path / "out")
    expected = tokenizer("<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n").input_ids
    assert dataset[0]["input_ids"] == expected + answer
    assert dataset[0]["loss_mask"] == [0] * len(expected) + [1] * 5
    assert dataset[0]["completion"] == "fine" and dataset[0]["temperature"] == 1.0
    assert dataset[0]["prompt"] == dataset[1]["prompt"] == [{"role": "user", "content": "How?"}]
    assert dataset["source"][:] == ["given", "mine"] and dataset[1]["temperature"] == 0.0

    assert load_responses(tmp_path / "out")[:] == dataset[:]
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["rows"] == 2 and provenance["response_tokens"] == 7
    assert str(tmp_path) not in json.dumps(provenance)
    with pytest.raises(FileExistsError, match="`output_dir`"):
        import_responses(path, tokenizer, tmp_path / "out")


def test_import_responses_leaves_evaluation_prompts_out(tmp_path, tokenizer):
    question = "How many apples are left when three of ten are eaten?"
    prompts = ["How?", f"Now: {question.upper()}", [{"role": "user", "content": "Why?"}], "Who?"]
    path = write_jsonl(tmp_path / "given.jsonl", [{"prompt": prompt, "response_ids": [9]} for prompt in prompts])
    suites = [
        write_jsonl(tmp_path / "gsm8k.jsonl", [{"question": question}, {"question": "why"}]),
        write_jsonl(tmp_path / "other.jsonl", [{"question": "What?"}]),
    ]
    dataset = import_responses(path, tokenizer, tmp_path / "out", exclude=suites)
    assert [prompt[0]["content"] for prompt in dataset["prompt"]] == ["How?", "Who?"]
    assert load_responses(tmp_path / "out")[:] == dataset[:]
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    found = [(entry["name"], entry["prompts_removed"], entry["sha256"]) for entry in provenance["excluded"]]
    digests = [hashlib.sha256(suite.read_bytes()).hexdigest() for suite in suites]
    assert found == [("gsm8k.jsonl", 2, digests[0]), ("other.jsonl", 0, digests[1])]
    everything = write_jsonl(tmp_path / "all.jsonl", [{"question": question} for question in ("How", "why", "who")])
    with pytest.raises(ValueError, match="every prompt is one of `exclude`"):
        import_responses(path, tokenizer, exclude=[everything, suites[0]])
    with pytest.raises(FileNotFoundError, match="`exclude` is .*nowhere"):
        import_responses(path, tokenizer, exclude=[tmp_path / "nowhere.jsonl"])


def test_import_responses_without_chat_template(tmp_path):
    tokenizer = char_tokenizer(chat_template=None)
    path = write_jsonl(tmp_path / "given.jsonl", [{"prompt": "Once", "response_ids": [9]}])
    dataset = import_responses(path, tokenizer)
    assert dataset[0]["prompt"] == "Once"
    assert dataset[0]["input_ids"] == tokenizer("Once").input_ids + [9]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "", "response_ids": [5]}, "line 2: `prompt`"),
        ({"response_ids": [5]}, "line 2: `prompt`"),
        ({"prompt": "a", "response_ids": []}, "line 2: `response_ids`"),
        ({"prompt": "a", "response_ids": [1.5]}, "line 2: `response_ids`"),
        ({"prompt": "a", "response_ids": [5000]}, "another tokenizer"),
    ],
)
def test_import_responses_refuses_malformed_rows(tmp_path, tokenizer, row, message):
    path = write_jsonl(tmp_path / "given.jsonl", [{"prompt": "a", "response_ids": [5]}, row])
    with pytest.raises(ValueError, match=message):
        import_responses(path, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": None}, "line 1: `temperature` must be a number of at least 0"),
        ({"temperature": -1}, "line 1: `temperature` must be a number of at least 0"),
        ({"prompt": [{"role": "user"}]}, "line 1: a message of `prompt` must have a `role` and a `content`"),
        ({"prompt": ["hi"]}, "line 1: a message of `prompt` must have"),
    ],
)
def test_import_responses_names_what_is_malformed_within_a_row(tmp_path, tokenizer, change, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "hi", "response_ids": [5, 6], **change}) + "\n")
    with pytest.raises(ValueError, match=message):
        import_responses(path, tokenizer)


def test_load_responses_refuses_other_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="ppow data"):
        load_responses(tmp_path / "none")
    with pytest.raises(ValueError, match="not a whole dataset"):
        load_responses(tmp_path)
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="no column.*input_ids"):
        load_responses(tmp_path / "other")
    with pytest.raises(ValueError, match="no rows"):
        check_responses(Dataset.from_dict({"input_ids": [], "loss_mask": []}))


def responses(num_prompts: int, copies: int = 2) -> Dataset:
    prompts = [f"question {i}" for i in range(num_prompts) for _ in range(copies)]
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": prompt}] for prompt in prompts],
            "input_ids": [[1, 2, 3]] * len(prompts),
            "loss_mask": [[0, 1, 1]] * len(prompts),
        }
    )


@pytest.mark.parametrize("size", [10, 0.1])
def test_split_holdout_never_parts_the_responses_to_one_prompt(size):
    dataset = responses(100)
    train, holdout = split_holdout(dataset, size)
    texts = [{row["prompt"][0]["content"] for row in part} for part in (train, holdout)]
    assert not texts[0] & texts[1]
    assert len(train) + len(holdout) == 200 and len(holdout) == 2 * len(texts[1])
    assert len(holdout) == 10 if size == 10 else 4 <= len(texts[1]) <= 20
    again = split_holdout(dataset, size)[1]
    assert again["prompt"][:] == holdout["prompt"][:]
    assert split_holdout(dataset, size, seed=1)[1]["prompt"][:] != holdout["prompt"][:]


def test_split_holdout_by_share_is_stable_when_the_dataset_grows():
    small = {row["prompt"][0]["content"] for row in split_holdout(responses(100), 0.1)[1]}
    large = {row["prompt"][0]["content"] for row in split_holdout(responses(150), 0.1)[1]}
    assert small <= large


@pytest.mark.parametrize("size", [0, -1, 1.0, 200, True, 1e-9])
def test_split_holdout_refuses_sizes(size):
    with pytest.raises(ValueError, match="`size`"):
        split_holdout(responses(100), size)


def test_count_response_tokens_counts_only_the_targets_tokens():
    dataset = Dataset.from_dict({"input_ids": [[3, 3, 5], [5, 5, 4, 1]], "loss_mask": [[0, 1, 1], [0, 1, 1, 0]]})
    assert count_response_tokens(dataset, 8).tolist() == [0, 0, 0, 1, 1, 2, 0, 0]
    assert count_response_tokens(dataset.select([1]), 8).tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="another target"):
        count_response_tokens(dataset, 4)


def test_draft_vocabulary_and_coverage():
    counts = torch.tensor([0, 5, 0, 5, 9, 1, 0, 5])
    # 4 is the most frequent; 1, 3 and 7 tie and the lowest ids win; 6 is required although it was never seen.
    ids = build_draft_vocabulary(counts, 4, always_include=[6])
    assert ids.dtype == torch.long and ids.tolist() == [1, 3, 4, 6]
    assert draft_vocabulary_coverage(counts, ids) == pytest.approx(19 / 25)
    # Fewer seen tokens than places: the lowest unseen ids fill up.
    assert build_draft_vocabulary(counts, 7).tolist() == [0, 1, 2, 3, 4, 5, 7]
    everything = build_draft_vocabulary(counts, 8)
    assert everything.tolist() == list(range(8)) and draft_vocabulary_coverage(counts, everything) == 1.0


@pytest.mark.parametrize(
    ("size", "always_include", "argument"),
    [(0, [], "`size`"), (9, [], "`size`"), (1, [2, 3], "`size`"), (4, [8], "`always_include`")],
)
def test_draft_vocabulary_refuses(size, always_include, argument):
    with pytest.raises(ValueError, match=argument):
        build_draft_vocabulary(torch.ones(8, dtype=torch.long), size, always_include)


def test_special_token_ids(tokenizer):
    assert special_token_ids(tokenizer) == [0, 1, 2]
    assert special_token_ids(tokenizer, GenerationConfig(eos_token_id=[2, 7], bos_token_id=4)) == [0, 1, 2, 4, 7]


def test_collator_pads_right_and_truncates():
    rows = [{"input_ids": [5, 6, 7, 8], "loss_mask": [0, 0, 1, 1]}, {"input_ids": [9], "loss_mask": [1]}]
    batch = DrafterDataCollator(pad_token_id=2, max_length=3)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [9, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["loss_mask"].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert all(tensor.dtype == torch.long for tensor in batch.values())
    assert DrafterDataCollator(0, pad_to_multiple_of=8)(rows)["input_ids"].shape == (2, 8)
    assert DrafterDataCollator(0, max_length=6, pad_to_multiple_of=8)(rows)["input_ids"].shape == (2, 6)
    tensors = [{name: torch.tensor(value) for name, value in row.items()} for row in rows]
    assert DrafterDataCollator(2)(tensors)["input_ids"].tolist() == [[5, 6, 7, 8], [9, 2, 2, 2]]


@pytest.mark.parametrize(
    "arguments", [{"pad_token_id": None}, {"pad_token_id": -1}, {"pad_token_id": 0, "max_length": 0}]
)
def test_collator_refuses(arguments):
    with pytest.raises(ValueError, match="pad_token_id|max_length"):
        DrafterDataCollator(**arguments)

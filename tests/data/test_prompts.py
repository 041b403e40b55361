# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import hashlib
import json

import pytest
from datasets import Dataset, DatasetDict

from ppow_hf.data.prompts import EvaluationPrompts, Prompt, load_prompts, select_prompts


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "their answer"},
    {"role": "user", "content": "Two?"},
]
SHAREGPT_STYLE = [
    {"from": "human", "value": "One?"},
    {"from": "gpt", "value": "x"},
    {"from": "human", "value": "Two?"},
]


@pytest.mark.parametrize(
    ("row", "turns", "system"),
    [
        ({"prompt": "One?"}, ("One?",), None),
        ({"prompt": MESSAGES}, ("One?", "Two?"), "Be brief."),
        ({"id": 3, "messages": MESSAGES}, ("One?", "Two?"), "Be brief."),
        ({"conversations": SHAREGPT_STYLE}, ("One?", "Two?"), None),
        ({"turns": ["One?", "Two?"], "text": "not this"}, ("One?", "Two?"), None),
        ({"question": "One?", "answer": "2"}, ("One?",), None),
    ],
)
def test_load_prompts_from_jsonl(tmp_path, row, turns, system):
    path = write_jsonl(tmp_path / "mine.jsonl", [row])
    assert load_prompts(path) == [Prompt(turns, system, "mine")]


TOOL_CALLS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]},
    {"role": "tool", "content": [{"type": "text", "text": "2"}], "tool_call_id": "a"},
    {"role": "assistant"},
    {"role": "user", "content": "Two?"},
]


@pytest.mark.parametrize("form", ["jsonl", "dataset"])
def test_conversations_with_tool_calls(tmp_path, form):
    """What the assistant and tools say is not used, and may be anything."""
    messages = TOOL_CALLS
    if form == "jsonl":
        path = write_jsonl(tmp_path / "mine.jsonl", [{"messages": messages}])
    else:  # where a missing field is None, and all fields have one type
        messages = [
            {**m, "content": m.get("content") if isinstance(m.get("content"), str) else None} for m in messages
        ]
        path = tmp_path / "mine"
        Dataset.from_list([{"messages": messages}]).save_to_disk(path)
    assert load_prompts(path) == [Prompt(("One?", "Two?"), "Be brief.", "mine")]


@pytest.mark.parametrize("role", ["user", "human", "system", "developer", None, 3])
def test_users_and_systems_messages_must_be_text(tmp_path, role):
    row = {"prompt": [{"role": "user", "content": "fine"}, {"role": role, "content": None}]}
    with pytest.raises(ValueError, match="line 1, column 'prompt': .*is not a message"):
        load_prompts(write_jsonl(tmp_path / "mine.jsonl", [row]))


def test_prompt_opening():
    prompt = Prompt(("One?", "Two?"), "Be brief.")
    assert prompt.opening() == MESSAGES[:2]
    assert prompt.opening(conversational=False) == "One?"


def test_load_prompts_arguments(tmp_path):
    rows = [{"task": "aaaa", "text": "b"}, {"task": ["cc", "dddd", "ee"]}, {"task": " "}, {"task": "f"}]
    path = write_jsonl(tmp_path / "mine.jsonl", rows)

    def turns(**arguments):
        return [prompt.turns for prompt in load_prompts(path, column="task", **arguments)]

    assert turns() == [("aaaa",), ("cc", "dddd", "ee"), ("f",)]
    assert turns(max_turns=1) == [("aaaa",), ("cc",), ("f",)]
    assert turns(max_chars=3) == [("cc",), ("f",)]
    assert turns(limit=2) == [("aaaa",), ("cc", "dddd", "ee")]
    for name in ("limit", "max_turns", "max_chars"):
        with pytest.raises(ValueError, match=f"`{name}` is 0"):
            turns(**{name: 0})


@pytest.mark.parametrize("form", ["dataset", "dict", "parquet", "csv"])
def test_load_prompts_from_datasets(tmp_path, form):
    dataset = Dataset.from_dict({"question": ["One?", "Two?"]})
    path = tmp_path / f"mine.{form}"
    if form == "dataset":
        dataset.save_to_disk(path)
    elif form == "dict":
        DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(path)
        assert len(load_prompts(path, split="test")) == 1
        with pytest.raises(ValueError, match="split 'dev'.*no such split; it has train, test"):
            load_prompts(path, split="dev")
    else:
        getattr(dataset, f"to_{form}")(path)
    assert [prompt.turns for prompt in load_prompts(path)] == [("One?",), ("Two?",)]


def test_load_prompts_from_conversational_dataset(tmp_path):
    Dataset.from_dict({"messages": [MESSAGES]}).save_to_disk(tmp_path / "mine")
    assert load_prompts(tmp_path / "mine") == [Prompt(("One?", "Two?"), "Be brief.", "mine")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"foo": "x"}, "line 2: there is no column 'prompt'; the columns are foo"),
        ({"prompt": 3}, "line 2, column 'prompt': a int, but a prompt is"),
        ({"prompt": [{"role": "user"}]}, "line 2, column 'prompt': .*is not a message"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "with text content"),
    ],
)
def test_malformed_rows_name_line_and_column(tmp_path, row, message):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"prompt": "fine"}, row])
    with pytest.raises(ValueError, match=message) as error:
        load_prompts(path)
    assert "mine.jsonl" in str(error.value)


def test_sources_without_prompts(tmp_path):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"foo": "x"}])
    with pytest.raises(ValueError, match="line 1: no column is called .*the columns are foo.*`column`"):
        load_prompts(path)
    path = write_jsonl(tmp_path / "mine.jsonl", [{"prompt": ""}])
    with pytest.raises(ValueError, match="none of its 1 rows holds a prompt"):
        load_prompts(path)
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        load_prompts(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_prompts(tmp_path / "none.parquet")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="bad.json.*could not be read"):
        load_prompts(tmp_path / "bad.json")
    with pytest.raises(OSError, match="could not be reached or does not exist. Without network, give a JSONL"):
        load_prompts("no-such-owner/no-such-dataset")


def test_select_prompts_drops_duplicates_and_evaluation_prompts(tmp_path):
    long_question = "How many apples does Anna have when she eats two of her five apples?"
    path = write_jsonl(tmp_path / "eval.jsonl", [{"id": 1, "turns": [long_question, "Why?"]}])
    prompts = [
        Prompt(("Keep me.",)),
        Prompt(("keep me",)),  # a duplicate but for case and punctuation
        Prompt(("Keep me.",), system="Be brief."),
        Prompt((f"Please answer this: {long_question.upper()}  Thanks",)),
        Prompt((long_question[:-10],)),
        Prompt(("Hello", "why")),
        Prompt(("Why not?",)),
    ]
    assert select_prompts(prompts, exclude=[path]) == [prompts[0], prompts[2], prompts[6]]
    (excluded,) = select_prompts(prompts, exclude=[path], limit=2, seed=0).excluded
    assert excluded == {
        "name": "eval.jsonl",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "prompts_removed": 3,
    }
    assert select_prompts(prompts).excluded == []
    with pytest.raises(ValueError, match="none are left"):
        select_prompts([Prompt((long_question,))], exclude=[path])


def test_select_prompts_shuffles_by_seed():
    prompts = [Prompt((f"prompt {i}",)) for i in range(20)]
    assert select_prompts(prompts) == prompts
    shuffled = select_prompts(prompts, seed=0)
    assert shuffled != prompts and sorted(shuffled, key=prompts.index) == prompts
    assert select_prompts(prompts, seed=0, limit=5) == shuffled[:5]
    assert select_prompts(prompts, seed=1) != shuffled
    with pytest.raises(ValueError, match="`limit`"):
        select_prompts(prompts, limit=0)


@pytest.mark.parametrize("name", ["prompts.jsonl.gz", "prompts.txt"])
def test_a_file_of_another_kind_is_there_all_the_same(name, tmp_path):
    (tmp_path / name).write_text("abc")
    with pytest.raises(ValueError, match="a file of a kind that is not read: give .jsonl.*Unpack it"):
        load_prompts(tmp_path / name)


def test_answers_in_the_rows_are_pointed_out(tmp_path, caplog):
    rows = [{"prompt": "One?", "response_ids": [5]}, {"prompt": "Two?"}]
    load_prompts(write_jsonl(tmp_path / "mine.jsonl", rows))
    assert "1 of 2 rows hold an answer already" in caplog.text and "--answered" in caplog.text
    caplog.clear()
    load_prompts(write_jsonl(tmp_path / "plain.jsonl", rows[1:]))
    assert not caplog.text
    EvaluationPrompts(write_jsonl(tmp_path / "kept_out.jsonl", rows))  # nothing of these is answered
    assert not caplog.text

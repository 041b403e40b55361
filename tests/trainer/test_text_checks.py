# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Token ids and lengths of datasets, before a training begins or batch by batch."""

import pytest
from datasets import Dataset, Features, IterableDataset, LargeList, List, Value

from ppow_hf.trainer import text_checks
from ppow_hf.trainer.start_checks import columns_of
from ppow_hf.trainer.text_checks import TextExtremes, check_masks, text_extremes
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import sft_trainer, token_rows
from tests.trainer.ppow_common import QUIET, ppow_trainer


def dataset_of(rows: list[list[int]], kind=None) -> Dataset:
    features = None
    if kind is not None:
        features = Features({"input_ids": kind, "loss_mask": List(Value("int64"))})
    columns = [{"input_ids": ids, "loss_mask": [0] * min(2, len(ids)) + [1] * (len(ids) - 2)} for ids in rows]
    return Dataset.from_list(columns, features=features)


ROWS = [[5, 2, 9, 4], [7], [], [3, 11, 6]]


@pytest.mark.parametrize("batch", [1, 3, 10_000])
@pytest.mark.parametrize("kind", [None, List(Value("int32")), List(Value("uint16")), LargeList(Value("int64"))])
def test_extremes(monkeypatch, batch, kind):
    monkeypatch.setattr(text_checks, "_ROWS", batch)
    assert text_extremes(dataset_of(ROWS, kind)) == TextExtremes(2, 11, 4)


def test_extremes_are_those_of_the_rows_that_were_selected(tmp_path):
    chosen = dataset_of(ROWS).select([3, 1])
    assert text_extremes(chosen) == TextExtremes(3, 11, 3)
    assert text_extremes(dataset_of(ROWS).filter(lambda row: len(row["input_ids"]) < 2)) == TextExtremes(7, 7, 1)
    # Whatever the format in which rows are read.
    assert text_extremes(dataset_of(ROWS[:1]).with_format("torch")) == TextExtremes(2, 9, 4)


def test_nothing_has_no_extremes():
    assert text_extremes(dataset_of([[], []])) == TextExtremes()
    assert text_extremes(dataset_of([[], []], List(Value("int64")))) == TextExtremes()


@pytest.mark.parametrize("column", [["a", "b"], [1, 2], [[0.5], [1.0]], [["a"], ["b"]]])
def test_what_is_no_list_of_ids_is_refused(column):
    with pytest.raises(ValueError, match="`input_ids` must be lists of token ids, got"):
        text_extremes(Dataset.from_dict({"input_ids": column}))


def with_token(token: int, num_rows: int = 8) -> Dataset:
    """Good rows, one of which has this token behind its others."""
    rows = list(token_rows(num_rows))
    rows[5] = {"input_ids": [*rows[5]["input_ids"], token], "loss_mask": [*rows[5]["loss_mask"], 1]}
    return Dataset.from_list(rows)


@pytest.mark.parametrize("make_trainer", [sft_trainer, ppow_trainer])
@pytest.mark.parametrize("family", ["eagle3", "causal_lm"])
def test_tokens_that_the_target_does_not_know_are_named(tmp_path, make_trainer, family):
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=48) if family == "eagle3" else tiny_causal_drafter(target)
    for token in (96, 50_000, -1):
        message = f"`train_dataset` holds token {token}, but the target's vocabulary has 96 tokens, 0 to 95"
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, drafter, target, with_token(token))
    with pytest.raises(ValueError, match="`eval_dataset` holds token 96"):
        make_trainer(tmp_path, drafter, target, token_rows(4), with_token(96))
    make_trainer(tmp_path, drafter, target, with_token(95), with_token(0))


@pytest.mark.parametrize("make_trainer", [sft_trainer, ppow_trainer])
@pytest.mark.parametrize("entries", [18, 30])
def test_masks_of_another_length_than_their_texts_are_named(tmp_path, monkeypatch, make_trainer, entries):
    monkeypatch.setattr(text_checks, "_ROWS", 4)
    rows = list(token_rows(8))
    rows[6] = {"input_ids": rows[0]["input_ids"], "loss_mask": [0] * 8 + [1] * (entries - 8)}
    uneven = Dataset.from_list(rows)
    message = f"has 24 `input_ids` and a `loss_mask` of {entries} entries"
    with pytest.raises(ValueError, match=f"Row 6 of `train_dataset` {message}"):
        make_trainer(tmp_path, dataset=uneven)
    with pytest.raises(ValueError, match=f"Row 6 of `eval_dataset` {message}"):
        make_trainer(tmp_path, eval_dataset=uneven)
    with pytest.raises(ValueError, match=f"Row 0 of `train_dataset` {message}"):
        make_trainer(tmp_path, dataset=uneven.select([6, 1, 2, 3]))
    make_trainer(tmp_path, dataset=uneven.select([0, 1, 2, 3]))
    options = QUIET if make_trainer is ppow_trainer else {"train_sampling_strategy": "random"}
    trainer = make_trainer(tmp_path, dataset=uneven.to_iterable_dataset(), max_steps=2, **options)
    with pytest.raises(ValueError, match=f"A row of `train_dataset` {message}"):
        trainer.train()


def test_masks_are_lists(tmp_path):
    check_masks(dataset_of(ROWS), "train_dataset")
    check_masks(dataset_of([[], []]), "train_dataset")
    check_masks(dataset_of([[1]]).select([]), "train_dataset")
    with pytest.raises(ValueError, match="`loss_mask` of `train_dataset` must be lists of 0 and 1, got int64"):
        check_masks(Dataset.from_dict({"input_ids": [[1, 2]], "loss_mask": [1]}), "train_dataset")


@pytest.mark.parametrize("column", ["input_ids", "loss_mask"])
def test_a_row_without_tokens_or_mask_is_named(column):
    rows = {"input_ids": [[1, 2], [3], [4, 5]], "loss_mask": [[0, 1], [1], [0, 1]]}
    rows[column][1] = None
    with pytest.raises(ValueError, match=rf"Row 1 of `train_dataset` has no `{column}` \(None\)"):
        check_masks(Dataset.from_dict(rows), "train_dataset")


@pytest.mark.parametrize("make_trainer", [sft_trainer, ppow_trainer])
@pytest.mark.parametrize("kind", ["generator", "map"])
def test_a_stream_that_does_not_know_its_columns_is_trained_on(tmp_path, make_trainer, kind):
    def good():
        yield from token_rows(8)

    def without_mask():
        yield {"input_ids": [1, 2, 3], "text": "a"}

    def stream_of(rows):
        stream = IterableDataset.from_generator(rows)
        return stream.map(lambda row: row) if kind == "map" else stream

    assert stream_of(good).column_names is None
    options = {"max_steps": 2, "eval_decode_prompts": 0}
    options |= QUIET if make_trainer is ppow_trainer else {"train_sampling_strategy": "random"}
    trainer = make_trainer(tmp_path, dataset=stream_of(good), **options)
    trainer.train()
    assert trainer.state.global_step == 2
    with pytest.raises(
        ValueError, match=r"`train_dataset` has no column \['loss_mask'\]; it has \['input_ids', 'text'\]"
    ):
        make_trainer(tmp_path, dataset=stream_of(without_mask), **options)


def test_columns_are_those_of_the_features_where_there_are_any():
    """No row is asked for."""

    def nothing():
        raise AssertionError
        yield

    features = Features({"input_ids": List(Value("int64")), "loss_mask": List(Value("int64"))})
    assert columns_of(IterableDataset.from_generator(nothing, features=features)) == ["input_ids", "loss_mask"]


@pytest.mark.parametrize("make_trainer", [sft_trainer, ppow_trainer])
def test_what_is_not_one_dataset_is_refused(tmp_path, make_trainer):
    with pytest.raises(ValueError, match=r"`eval_dataset` must be one `datasets.Dataset`, got \['a', 'b'\]. Give one"):
        make_trainer(tmp_path, eval_dataset={"b": token_rows(2), "a": token_rows(2)})
    with pytest.raises(ValueError, match="`train_dataset` must be one `datasets.Dataset`, got list"):
        make_trainer(tmp_path, dataset=list(token_rows(2)))


def test_a_stream_has_no_features_to_keep(tmp_path):
    rows = token_rows(8).to_iterable_dataset()
    with pytest.raises(ValueError, match="`feature_cache_dir` keeps the states of every row of `train_dataset`"):
        sft_trainer(tmp_path, dataset=rows, feature_cache_dir=str(tmp_path), train_sampling_strategy="random")


@pytest.mark.parametrize("make_trainer", [sft_trainer, ppow_trainer])
def test_streamed_texts_are_checked_batch_by_batch(tmp_path, make_trainer):
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "eval_decode_prompts": 0}
    if make_trainer is ppow_trainer:
        options |= QUIET
    else:
        options |= {"train_sampling_strategy": "random"}
    good = token_rows(8).to_iterable_dataset()
    assert isinstance(good, IterableDataset)
    trainer = make_trainer(tmp_path, dataset=good, **options)
    trainer.train()
    assert trainer.state.global_step == 2
    trainer = make_trainer(tmp_path, dataset=with_token(96).to_iterable_dataset(), **options)
    with pytest.raises(ValueError, match="`train_dataset` holds token 96"):
        trainer.train()


def test_nothing_to_learn_from_is_refused(tmp_path):
    """A training would go through all its steps with a loss of 0, or end in an index error."""
    rows = [{"input_ids": [5, 2, 9, 4, 7, 3], "loss_mask": mask} for mask in ([0] * 6, [0, 0, 0, 0, 1, 1])]
    with pytest.raises(ValueError, match="`train_dataset` has 1 rows, and none has a token of the target's own"):
        sft_trainer(tmp_path, dataset=Dataset.from_list(rows[:1] * 1))
    with pytest.raises(ValueError, match="among its first `max_length`=4"):
        sft_trainer(tmp_path, dataset=Dataset.from_list(rows), max_length=4)
    with pytest.raises(ValueError, match="`train_dataset` has no rows"):
        sft_trainer(tmp_path, dataset=Dataset.from_list(rows).select([]))
    sft_trainer(tmp_path, dataset=Dataset.from_list(rows), max_length=5)

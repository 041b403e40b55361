# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import copy
import errno
import os

import pytest
import torch

from ppow_hf.drafters.logits_head import logits_head
from ppow_hf.trainer.feature_cache import FeatureCache
from ppow_hf.trainer.target_pass import TargetPass
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.common import sft_trainer, token_rows
from tests.trainer.test_target_pass import batch

LENGTHS = [10, 7, 10]


class Runs:
    """Counts the forward passes of a target's layers."""

    def __init__(self, target):
        self.count = 0
        target.base_model.register_forward_hook(self._add)

    def _add(self, *_):
        self.count += 1


def test_cache_returns_what_the_target_gave_and_skips_it_afterwards(tmp_path):
    target = tiny_target()
    drafter = tiny_eagle3(target)
    input_ids, attention_mask, positions = batch()
    cache = FeatureCache(tmp_path, [10, 7, 10], target, drafter.feature_layer_ids, "data-1")
    target_pass = TargetPass(target, drafter, cache)
    features, teacher = target_pass(input_ids, attention_mask, positions, row_ids=[0, 1, 2])

    again = FeatureCache(tmp_path, [10, 7, 10], target, drafter.feature_layer_ids, "data-1")
    runs = []
    handle = target.base_model.register_forward_hook(lambda *_: runs.append(1))
    cached, cached_teacher = TargetPass(target, drafter, again)(input_ids, attention_mask, positions, [0, 1, 2])
    assert not runs, "a filled cache must not run the target's layers"
    real = attention_mask.bool()
    torch.testing.assert_close(cached[real], features[real])
    torch.testing.assert_close(cached_teacher.probs, teacher.probs)

    other = FeatureCache(tmp_path, [10, 7, 10], target, drafter.feature_layer_ids, "data-2")
    TargetPass(target, drafter, other)(input_ids, attention_mask, positions, [0, 1, 2])
    handle.remove()
    assert runs, "another dataset must not read this cache"


@torch.no_grad()
def test_another_target_of_the_same_configuration_has_a_cache_of_its_own(tmp_path):
    """Two fine-tunings of one model in one folder: the same name, the same sizes, other weights."""
    input_ids, attention_mask, positions = batch()
    for seed in (0, 1):
        target = tiny_target(seed=seed)
        target.config._name_or_path = "tuned"
        drafter = tiny_eagle3(target)
        cache = FeatureCache(tmp_path, LENGTHS, target, drafter.feature_layer_ids, "data-1")
        features, _ = TargetPass(target, drafter, cache)(input_ids, attention_mask, positions, [0, 1, 2])
        states = target(input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
        expected = torch.cat([states[k] for k in drafter.feature_layer_ids], dim=-1)
        torch.testing.assert_close(features, expected)
    assert len(list(tmp_path.iterdir())) == 2


def test_rows_are_kept_as_they_are_cut(tmp_path):
    target = tiny_target()
    drafter = tiny_eagle3(target)
    runs = Runs(target)
    input_ids, attention_mask, positions = batch()
    arguments = ([12, 7, 300], target, drafter.feature_layer_ids, "data-1")
    cache = FeatureCache(tmp_path, *arguments, max_length=10)
    target_pass = TargetPass(target, drafter, cache)
    features, _ = target_pass(input_ids, attention_mask, positions, row_ids=[0, 1, 2])
    assert cache.filled.tolist() == [1, 1, 1] and len(cache.states) == 10 + 7 + 10
    before = runs.count
    cached, _ = target_pass(input_ids, attention_mask, positions, row_ids=[0, 1, 2])
    assert runs.count == before
    real = attention_mask.bool()
    torch.testing.assert_close(cached[real], features[real])
    longer = FeatureCache(tmp_path, *arguments, max_length=12)
    assert longer.filled.tolist() == [0, 0, 0], "rows cut elsewhere are other rows"


def test_rows_cut_shorter_than_the_cache_are_not_kept(tmp_path):
    target = tiny_target()
    drafter = tiny_eagle3(target)
    cache = FeatureCache(tmp_path, [12, 7, 10], target, drafter.feature_layer_ids, "data-1")
    input_ids, attention_mask, positions = batch()
    TargetPass(target, drafter, cache)(input_ids, attention_mask, positions, row_ids=[0, 1, 2])
    assert cache.filled.tolist() == [0, 1, 1]
    assert cache.read([0, 1, 2], input_ids) is None


def test_later_epochs_of_cut_rows_do_not_run_the_target(tmp_path):
    target = tiny_target()
    start = tiny_eagle3(target, draft_vocab_size=48)
    logits_head(target, torch.arange(2, 10)[None])  # tries the target's head once
    runs, weights = Runs(target), []
    for folder in (None, str(tmp_path / "cache")):
        drafter = copy.deepcopy(start)
        # Rows of 24, 21 and 18 tokens, all of them cut; four steps are an epoch.
        trainer = sft_trainer(
            tmp_path / "out", drafter, target, token_rows(), max_length=16, max_steps=12, feature_cache_dir=folder
        )
        before = runs.count
        trainer.train()
        weights.append((runs.count - before, drafter.state_dict()))
    (plain, expected), (cached, found) = weights
    assert plain == 12 and cached == 4
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_a_cache_filled_beforehand_leaves_the_target_nothing_to_do(tmp_path):
    target = tiny_target()
    start = tiny_eagle3(target, draft_vocab_size=48)
    logits_head(target, torch.arange(2, 10)[None])
    runs, weights = Runs(target), []
    options = {"max_length": 16, "max_steps": 8, "per_device_eval_batch_size": 3}
    for folder in (None, str(tmp_path / "cache")):
        drafter = copy.deepcopy(start)
        trainer = sft_trainer(tmp_path / "out", drafter, target, token_rows(), feature_cache_dir=folder, **options)
        rows = len(trainer.train_dataset)
        if folder is not None:
            before = runs.count
            assert trainer.fill_feature_cache() == rows
            assert runs.count - before == -(-rows // 3) and bool(trainer.target_pass.cache.filled.all())
            assert trainer.fill_feature_cache() == 0
        before = runs.count
        trainer.train()
        weights.append((runs.count - before, drafter.state_dict()))
    (plain, expected), (cached, found) = weights
    assert plain == 8 and cached == 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_only_what_is_missing_is_filled(tmp_path):
    target = tiny_target()
    options = {"max_length": 16, "feature_cache_dir": str(tmp_path / "cache"), "per_device_eval_batch_size": 2}
    trainer = sft_trainer(tmp_path / "out", tiny_eagle3(target), target, token_rows(), **options)
    cache = trainer.target_pass.cache
    cache.filled[1:] = 1
    states = cache.states.clone()
    assert trainer.fill_feature_cache() == 1
    end = cache.offsets[1]
    assert torch.equal(cache.states[end:], states[end:]) and not torch.equal(cache.states[:end], states[:end])


def test_without_a_cache_there_is_none_to_fill(tmp_path):
    with pytest.raises(ValueError, match="set `feature_cache_dir`"):
        sft_trainer(tmp_path).fill_feature_cache()


# ---- the disk ------------------------------------------------------------------------------------------------------


def test_the_file_has_all_its_blocks_before_it_is_mapped(tmp_path):
    target = tiny_target()
    cache = FeatureCache(tmp_path, [5000, 3000], target, (1, 2, 3), "data-1")
    states = (cache.path / "states.bin").stat()
    assert states.st_size == 8000 * 4 * 32 * 4
    assert states.st_blocks * 512 >= states.st_size, "a sparse file ends the process when the disk fills up"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_before_training(tmp_path, monkeypatch, error):
    def full(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="disk is full.*`feature_cache_dir` takes .* GB.*free some space") as raised:
        sft_trainer(tmp_path / "out", feature_cache_dir=str(tmp_path / "cache"))
    assert raised.value.errno == error
    assert not list((tmp_path / "cache").rglob("*.bin")), "nothing that takes space is left"


def test_where_space_cannot_be_reserved_it_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    target = tiny_target()
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with pytest.raises(OSError, match="disk is full"):
        FeatureCache(tmp_path, [2 * free // 512], target, (1, 2, 3), "data-1")
    FeatureCache(tmp_path, LENGTHS, target, (1, 2, 3), "data-1")


def test_a_filled_cache_survives_being_opened_on_a_full_disk(tmp_path, monkeypatch):
    target = tiny_target()
    cache = FeatureCache(tmp_path, LENGTHS, target, (1, 2, 3), "data-1")
    cache.states.fill_(3.0)
    cache.filled.fill_(1)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="disk is full"):
            FeatureCache(tmp_path, LENGTHS, target, (1, 2, 3), "data-1")
    again = FeatureCache(tmp_path, LENGTHS, target, (1, 2, 3), "data-1")
    assert again.filled.tolist() == [1, 1, 1] and bool((again.states == 3.0).all())


# ---- heads ---------------------------------------------------------------------------------------------------------


def test_cache_with_a_capped_head(tmp_path):
    target = tiny_target("gemma2")
    drafter = tiny_eagle3(target)
    cache = FeatureCache(tmp_path, [10, 7, 10], target, drafter.feature_layer_ids, "data-1")
    input_ids, attention_mask, positions = batch()
    expected = torch.softmax(target(input_ids, attention_mask=attention_mask).logits[positions], dim=-1)
    for _ in range(2):  # written, then read
        _, rows = TargetPass(target, drafter, cache)(input_ids, attention_mask, positions, row_ids=[0, 1, 2])
        kept = expected if drafter.draft_token_ids is None else expected[:, drafter.draft_token_ids]
        torch.testing.assert_close(rows.probs, kept)


def test_cache_with_a_head_of_another_kind_is_refused(tmp_path):
    target = tiny_target("granite", logits_scaling=4.0)
    drafter = tiny_eagle3(target)
    cache = FeatureCache(tmp_path, [10, 7, 10], target, drafter.feature_layer_ids, "data-1")
    with pytest.raises(ValueError, match="feature_cache_dir"):
        TargetPass(target, drafter, cache)(*batch(), row_ids=[0, 1, 2])


def test_rows_of_a_formatted_dataset_are_kept_too(tmp_path):
    trained = []
    for name, rows in (("plain", token_rows(8)), ("torch", token_rows(8).with_format("torch"))):
        trainer = sft_trainer(
            tmp_path / name, dataset=rows, feature_cache_dir=str(tmp_path / f"{name}-f"), max_steps=2
        )
        trainer.train()
        trained.append((int(trainer.target_pass.cache.filled.sum()), trainer.model.state_dict()))
    assert trained[0][0] == trained[1][0] > 0
    for name, value in trained[0][1].items():
        assert torch.equal(value, trained[1][1][name])

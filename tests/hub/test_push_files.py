# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Which files are sent, what is refused before the Hub is asked, and that no message holds a token."""

import hashlib
import logging
import subprocess

import pytest
from huggingface_hub import RepoFile

from ppow_hf.hub.push import push_folder
from ppow_hf.hub.push_errors import HubPushError, scrub, with_retries
from ppow_hf.hub.push_files import git_blob_id, plan_files, select_files
from tests.hub.test_push import SENT, STAYS, contents

TOKEN = "hf_" + "x" * 34


def test_only_known_files_are_sent(drafter_folder):
    for path in (
        "model.py",
        "custom_generate/generate.py",
        "custom_generate/weights.pt",
        "tokenizer.json",
        "benchmarks/.cache/results.json",
        "benchmarks/records.pkl",
        "__pycache__/model.cpython-311.pyc",
        "hf_token",
        "adapter_model.safetensors",
        "logs/events.json",
        "scheduler.pt",
        ".git/config",
    ):
        (drafter_folder / path).parent.mkdir(exist_ok=True)
        (drafter_folder / path).write_text("content")
    selected = select_files(drafter_folder)
    assert set(selected.files) == SENT | {"model.py", "custom_generate/generate.py", "tokenizer.json"}
    assert {path for path, _ in selected.left_out} == STAYS | {
        "custom_generate/weights.pt",
        "benchmarks/.cache/",
        "benchmarks/records.pkl",
        "__pycache__/",
        "hf_token",
        "adapter_model.safetensors",
        "logs/",
        "scheduler.pt",
        ".git/",
    }
    assert dict(selected.left_out)["training_args.bin"] == "pickled arguments, which may hold a token"


def test_unchanged_by_the_names_git_and_lfs_give(tmp_path):
    small, large = tmp_path / "config.json", tmp_path / "model.safetensors"
    small.write_bytes(b'{"a": 1}\n')
    large.write_bytes(bytes(range(256)) * 8)
    named = subprocess.run(["git", "hash-object", "--no-filters", str(small)], capture_output=True, text=True)
    blob = named.stdout.strip()
    assert git_blob_id(small.read_bytes()) == blob
    lfs = {"oid": hashlib.sha256(large.read_bytes()).hexdigest(), "size": 2048, "pointerSize": 130}
    remote = {
        "config.json": RepoFile(path="config.json", size=9, oid=blob),
        "model.safetensors": RepoFile(path="model.safetensors", size=2048, oid="0" * 40, lfs=lfs),
        "model-00001-of-00002.safetensors": RepoFile(path="model-00001-of-00002.safetensors", size=1, oid="1" * 40),
        "other/model.safetensors": RepoFile(path="other/model.safetensors", size=1, oid="1" * 40),
    }
    files = {"config.json": small, "model.safetensors": large, "README.md": small}
    statuses = {file.path: file.status for file in plan_files(files, remote)}
    assert statuses == {
        "README.md": "new",
        "config.json": "unchanged",
        "model.safetensors": "unchanged",
        "model-00001-of-00002.safetensors": "deleted",
    }
    small.write_bytes(b'{"a": 2}\n')
    large.write_bytes(bytes(range(255, -1, -1)) * 8)
    statuses = {file.path: (file.status, file.mode) for file in plan_files(files, remote)}
    assert statuses["config.json"] == ("changed", "regular")
    assert statuses["model.safetensors"] == ("changed", "lfs")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_folder_without_a_drafter(drafter_folder, name):
    (drafter_folder / name).unlink()
    with pytest.raises(ValueError, match=f"holds no drafter: {name} is missing"):
        push_folder(drafter_folder, "alice/drafter", token=TOKEN)
    with pytest.raises(ValueError, match="no such folder"):
        push_folder(drafter_folder / "none", "alice/drafter", token=TOKEN)


def test_damaged_weights(drafter_folder):
    weights = drafter_folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-7])
    with pytest.raises(ValueError, match="model.safetensors` cannot be read.*truncated"):
        push_folder(drafter_folder, "alice/drafter", token=TOKEN)
    weights.rename(drafter_folder / "model-00001-of-00002.safetensors")
    (drafter_folder / "model-00001-of-00002.safetensors").write_bytes(content)
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (drafter_folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"shards that are not in .*00002-of-00002"):
        push_folder(drafter_folder, "alice/drafter", token=TOKEN)


@pytest.mark.parametrize(
    "written, token", [("hf_" + "y" * 34, TOKEN), ("secret-of-my-company", "secret-of-my-company")]
)
def test_files_with_a_token_are_refused(drafter_folder, written, token):
    (drafter_folder / "training_log.json").write_text(f'{{"hub_token": "{written}"}}')
    with pytest.raises(ValueError, match="training_log.json` contains a Hub token") as raised:
        push_folder(drafter_folder, "alice/drafter", token=token)
    assert written not in str(raised.value)


def test_no_token_and_offline(drafter_folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    before = contents(drafter_folder)
    with pytest.raises(HubPushError, match="no token.*hf auth login"):
        push_folder(drafter_folder, "alice/drafter")
    # The tests run with HF_HUB_OFFLINE=1, which is no passing fault: there is no second attempt.
    with pytest.raises(HubPushError, match="Unset HF_HUB_OFFLINE"):
        push_folder(drafter_folder, "alice/drafter", token=TOKEN, retry_wait=60)
    assert contents(drafter_folder) == before


def test_tokens_are_scrubbed(caplog):
    assert scrub(f"Bearer {TOKEN} and my-secret", "my-secret") == "Bearer *** and ***"
    calls = []

    def broken():
        calls.append(None)
        raise ConnectionError(f"illegal header value Bearer my-secret {TOKEN}")

    logger = logging.getLogger("ppow_hf.hub.push_errors")
    logger.addHandler(caplog.handler)
    logger.setLevel("WARNING")
    try:
        with pytest.raises(ConnectionError):
            with_retries(broken, max_retries=2, retry_wait=0.001, step="asking", token="my-secret")
    finally:
        logger.removeHandler(caplog.handler)
    assert len(calls) == 3
    assert "Trying again" in caplog.text and "***" in caplog.text
    assert "my-secret" not in caplog.text and TOKEN not in caplog.text


def test_only_passing_failures_are_repeated():
    calls = []

    def wrong():
        calls.append(None)
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        with_retries(wrong, max_retries=5, retry_wait=60, step="asking")
    assert len(calls) == 1

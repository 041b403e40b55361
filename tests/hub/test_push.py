# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Pushing with the real clients to a Hub on the loopback interface: what arrives, and that it comes back the same."""

import json
import shutil
from pathlib import Path

import pytest

from ppow_hf import AutoDrafter, CostModel
from ppow_hf.hub.card import write_card
from tests.hub.conftest import OTHER_TOKEN, READ_TOKEN
from tests.hub.hub_client import ROOT, ClientError

SENT = {
    "README.md",
    "benchmarks/float32/report.md",
    "benchmarks/results.json",
    "benchmarks/speedup.png",
    "config.json",
    "cost_model.json",
    "generation_config.json",
    "model.safetensors",
}
STAYS = {".env", "checkpoint-5/", "notes.txt", "optimizer.pt", "training_args.bin"}
REPO = "alice/drafter"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def remote(hub, repo_id: str = REPO, repo_type: str = "model"):
    return hub.store.repos[repo_type, repo_id]


def writes(hub) -> list[tuple[str, str, int]]:
    return [request for request in hub.requests if request[0] not in ("GET", "HEAD")]


def test_push_load_generate(hub, client, drafter_folder, target_folder):
    before = contents(drafter_folder)
    result = client.call("push", folder=drafter_folder, repo_id="alice/roundtrip")
    assert contents(drafter_folder) == before

    repo = remote(hub, "alice/roundtrip")
    assert [commit.title for commit in repo.history()] == ["Upload drafter with ppow-hf", "initial commit"]
    assert result["commit_oid"] == repo.refs["main"]
    assert set(repo.files()) == SENT | {".gitattributes"}
    assert all(content == before[path] for path, content in repo.files().items() if path in SENT)
    assert {path for path, _ in result["left_out"]} == STAYS
    assert repo.resolve("main").tree["model.safetensors"].lfs

    prompt = [5, 17, 33, 2, 71, 8]
    local = client.call("generate", target=target_folder, drafter=drafter_folder, input_ids=prompt)
    hub.requests.clear()
    loaded = client.call("generate", target=target_folder, drafter="alice/roundtrip", input_ids=prompt)
    assert hub.asked("GET", "/cdn/"), "the drafter did not come from the Hub"
    assert len(local["tokens"]) == len(prompt) + 24
    assert loaded == local


def test_unchanged_files_make_no_commit(hub, client, drafter_folder):
    first = client.call("push", folder=drafter_folder, repo_id=REPO)
    hub.requests.clear()
    second = client.call("push", folder=drafter_folder, repo_id=REPO)
    assert first["commit_oid"] and second["commit_oid"] is None and second["to_send"] == []
    assert writes(hub) == []
    assert len(remote(hub).commits) == 2

    (drafter_folder / "cost_model.json").write_text('{"gamma": 0.07}\n')
    third = client.call("push", folder=drafter_folder, repo_id=REPO)
    assert third["to_send"] == ["cost_model.json"]
    assert len(remote(hub).history()) == 3
    assert remote(hub).files()["cost_model.json"] == b'{"gamma": 0.07}\n'
    assert hub.asked("PUT", "/lfs/") == []


def test_dry_run_only_reads_and_says_what_a_push_does(hub, client, drafter_folder):
    dry = client.call("push", folder=drafter_folder, repo_id=REPO, dry_run=True)
    assert writes(hub) == [] and hub.store.repos == {}
    assert dry["dry_run"] and dry["creates_repo"] and dry["commit_oid"] is None
    assert {file["path"] for file in dry["files"]} == SENT

    client.call("push", folder=drafter_folder, repo_id=REPO)
    tree = remote(hub).resolve("main").tree
    for file in dry["files"]:
        assert (file["mode"] == "lfs", file["size"]) == (tree[file["path"]].lfs, len(tree[file["path"]].content))

    (drafter_folder / "README.md").write_text("# Another card\n")
    hub.requests.clear()
    again = client.call("push", folder=drafter_folder, repo_id=REPO, dry_run=True)
    assert writes(hub) == [] and len(remote(hub).commits) == 2
    assert {file["path"]: file["status"] for file in again["files"]} == {
        path: "changed" if path == "README.md" else "unchanged" for path in SENT
    }


def test_old_weights_do_not_outlive_new_shards(hub, client, drafter_folder, target_folder):
    """transformers prefers model.safetensors to shards: an old one left behind would be loaded."""
    client.call("push", folder=drafter_folder, repo_id=REPO)
    from ppow_hf import AutoDrafter

    drafter = AutoDrafter.from_pretrained(drafter_folder)
    drafter.lm_head.weight.data.neg_()
    (drafter_folder / "model.safetensors").unlink()
    drafter.save_pretrained(drafter_folder, max_shard_size="20KB")
    shards = {path.name for path in drafter_folder.glob("model-*.safetensors")}
    assert len(shards) > 1
    result = client.call("push", folder=drafter_folder, repo_id=REPO)
    assert [file["path"] for file in result["files"] if file["status"] == "deleted"] == ["model.safetensors"]
    assert set(remote(hub).files()) == SENT - {"model.safetensors"} | shards | {
        ".gitattributes",
        "model.safetensors.index.json",
    }
    assert len(remote(hub).history()) == 3
    arguments = {"target": target_folder, "input_ids": [5, 17, 33]}
    assert client.call("generate", drafter=REPO, **arguments) == client.call(
        "generate", drafter=drafter_folder, **arguments
    )


def test_private_repository_needs_the_right_token(hub, client, drafter_folder, target_folder):
    client.call("push", folder=drafter_folder, repo_id="acme/secret", private=True)
    assert remote(hub, "acme/secret").private
    with pytest.raises(ClientError, match="acme/secret"):
        client.call("generate", target=target_folder, drafter="acme/secret", input_ids=[5], token=OTHER_TOKEN)
    loaded = client.call("generate", target=target_folder, drafter="acme/secret", input_ids=[5, 6])
    assert len(loaded["tokens"]) == 26

    client.call("push", folder=drafter_folder, repo_id=REPO)
    with pytest.raises(ClientError, match="exists and is public"):
        client.call("push", folder=drafter_folder, repo_id=REPO, private=True)


def test_name_without_namespace_is_the_users(hub, client, drafter_folder):
    result = client.call("push", folder=drafter_folder, repo_id="drafter")
    assert result["repo_id"] == REPO and ("model", REPO) in hub.store.repos


def test_new_branch(hub, client, drafter_folder):
    client.call("push", folder=drafter_folder, repo_id=REPO)
    head = remote(hub).refs["main"]
    (drafter_folder / "README.md").write_text("# Version 2\n")
    dry = client.call("push", folder=drafter_folder, repo_id=REPO, revision="v2", dry_run=True)
    assert dry["creates_branch"] and dry["to_send"] == ["README.md"] and set(remote(hub).refs) == {"main"}
    client.call("push", folder=drafter_folder, repo_id=REPO, revision="v2")
    assert remote(hub).refs["main"] == head
    assert remote(hub).files("v2")["README.md"] == b"# Version 2\n"
    assert remote(hub).resolve("v2").parent == head


def test_pull_request_is_opened_once(hub, client, drafter_folder):
    client.call("push", folder=drafter_folder, repo_id="acme/drafter")
    head = remote(hub, "acme/drafter").refs["main"]
    (drafter_folder / "README.md").write_text("# Better\n")
    arguments = {"folder": drafter_folder, "repo_id": "acme/drafter", "create_pr": True, "token": OTHER_TOKEN}
    first = client.call("push", **arguments)
    second = client.call("push", **arguments)
    assert first["pull_request_url"] == second["pull_request_url"] == f"{hub.url}/acme/drafter/discussions/1"
    assert second["commit_oid"] is None
    repo = remote(hub, "acme/drafter")
    assert repo.refs["main"] == head and set(repo.refs) == {"main", "refs/pr/1"}
    assert repo.files("refs/pr/1")["README.md"] == b"# Better\n"
    with pytest.raises(ClientError, match="there is no such repository"):
        client.call("push", folder=drafter_folder, repo_id="acme/none", create_pr=True)


def test_space(hub, client, tmp_path):
    folder = tmp_path / "space"
    folder.mkdir()
    (folder / "app.py").write_text("print('hello')\n")
    (folder / "requirements.txt").write_text("torch\n")
    (folder / ".env").write_text("SECRET=1\n")
    with pytest.raises(ClientError, match="is no Space.*`sdk`"):
        client.call("push", folder=folder, repo_id="alice/demo", space=True)
    (folder / "README.md").write_text("---\nsdk: gradio\napp_file: app.py\n---\n# Demo\n")
    with pytest.raises(ClientError, match="--space"):
        client.call("push", folder=folder, repo_id="alice/demo")
    client.call("push", folder=folder, repo_id="alice/demo", space=True)
    repo = remote(hub, "alice/demo", "space")
    assert repo.sdk == "gradio"
    assert set(repo.files()) == {".gitattributes", "README.md", "app.py", "requirements.txt"}


def test_name_taken_by_another_kind(hub, client, drafter_folder):
    user = hub.store.users[READ_TOKEN].__class__("alice")
    hub.store.create_repo(user, "space", REPO, False, "gradio")
    with pytest.raises(ClientError, match="a Space of this name exists, and no model"):
        client.call("push", folder=drafter_folder, repo_id=REPO)
    assert writes(hub) == []
    # Both may live side by side if that is what one wants.
    hub.store.create_repo(user, "model", REPO, False, None)
    client.call("push", folder=drafter_folder, repo_id=REPO)
    assert set(remote(hub).files()) == SENT | {".gitattributes"}


def test_drafter_pushes_itself_with_the_facts_of_its_folder(hub, client, drafter_folder, target_folder):
    # Real figures: the card is written from them.
    reference = next((ROOT / "model_cards").glob("*/benchmarks/results.json"))
    results = json.loads(reference.read_text())
    results.pop("drafter_hash", None)
    (drafter_folder / "benchmarks" / "results.json").write_text(json.dumps(results))
    CostModel(gamma=0.06, key="this machine").save(drafter_folder / "cost_model.json")
    result = client.call("push_loaded", folder=drafter_folder, repo_id=REPO)
    files = remote(hub).files()
    assert {"README.md", "benchmarks/results.json", "cost_model.json", "model.safetensors"} <= set(files)
    assert {"modeling_eagle3.py", "custom_generate/generate.py"} <= set(files)
    assert files["model.safetensors"] == (drafter_folder / "model.safetensors").read_bytes()
    assert REPO in files["README.md"].decode(), "the card's examples name the repository"
    assert len(remote(hub).history()) == 2 and result["commit_oid"]
    assert client.call("push_loaded", folder=drafter_folder, repo_id=REPO)["commit_oid"] is None

    prompt = {"target": target_folder, "input_ids": [5, 17, 33]}
    loaded = client.call("generate", drafter=REPO, **prompt)
    assert loaded == client.call("generate", drafter=drafter_folder, **prompt)


def test_facts_of_other_weights_stay(tmp_path, drafter_folder):
    from ppow_hf import AutoDrafter
    from ppow_hf.hub.push_drafter import copy_facts

    drafter = AutoDrafter.from_pretrained(drafter_folder)
    for name, change, copied in (("same", 1.0, True), ("trained", 1.5, False)):
        drafter.lm_head.weight.data.mul_(change)
        drafter.save_pretrained(tmp_path / name)
        copy_facts(drafter_folder, tmp_path / name)
        assert (tmp_path / name / "benchmarks" / "results.json").exists() is copied
        assert (tmp_path / name / "cost_model.json").exists() is copied


@pytest.mark.slow
def test_trainer_pushes_the_drafter_only(hub, client, drafter_folder, target_folder, tmp_path):
    output = tmp_path / "output"
    results = client.call(
        "train_and_push", target=target_folder, drafter=drafter_folder, output_dir=output, repo_id=REPO
    )
    checkpoint, end = remote(hub).history()[1], remote(hub).history()[0]
    assert (checkpoint.title, end.title) == ("Training in progress, step 1", "End of training")
    assert (output / "checkpoint-1" / "optimizer.pt").exists() or (output / "checkpoint-1" / "optimizer.bin").exists()
    assert "model.safetensors" in checkpoint.tree and "README.md" not in checkpoint.tree
    assert "README.md" in end.tree
    for commit in (checkpoint, end):
        assert not any(path.endswith((".pt", ".bin", ".pth")) or "checkpoint" in path for path in commit.tree)
        assert not any(b"hf_argument" in entry.content for entry in commit.tree.values())
    assert end.tree["model.safetensors"].content == (output / "model.safetensors").read_bytes()
    assert "training_args.bin" in dict(results["end"]["left_out"])


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "shown"), [("supervised", "supervised"), ("ppow", "PPOW")])
def test_a_trainers_push_tells_of_its_training(hub, client, drafter_folder, target_folder, tmp_path, stage, shown):
    output = tmp_path / "output"
    arguments = {"target": target_folder, "drafter": drafter_folder, "repo_id": REPO, "stage": stage}
    results = client.call("train_and_push", output_dir=output, **arguments)
    files = remote(hub).files()
    facts, card = json.loads(files["provenance.json"]), files["README.md"].decode()
    assert (facts["stage"], facts["steps"]) == (stage, 1)
    assert json.loads(files["training_log.json"])["global_step"] == 1
    assert f"| Training stages | {shown} |" in card and "| optimiser steps | 1 |" in card
    initial = json.loads((output / "initial" / "acceptance.json").read_text())["acceptance_length"]
    assert facts["initial"]["acceptance_length"] == initial
    assert f"| held-out acceptance length before the first step | {initial:.3f} |" in card
    assert f"| best `eval_acceptance_length` during training, at step {facts['best']['step']} |" in card
    # Not known: what the drafter had been trained on before.
    assert "No PPOW stage" not in card and ("Training on windows: not recorded." in card) == (stage == "supervised")
    assert ("| `window_size` | 2 |" in card) == (stage == "ppow")
    for name in ("provenance.json", "training_log.json"):
        assert str(tmp_path).encode() not in files[name]
    left_out = dict(results["end"]["left_out"])
    assert "training_args.bin" in left_out and "training_provenance.json" not in left_out


def test_command(hub, client, drafter_folder):
    arguments = [str(drafter_folder), "--repo", REPO]
    dry = client.call("command", arguments=[*arguments, "--dry-run", "--private"])
    assert dry["exit_code"] == 0 and hub.store.repos == {}
    assert "model.safetensors" in dry["output"] and "a new private repository" in dry["output"]
    assert "left out: optimizer.pt" in dry["output"] and "Nothing was sent" in dry["output"]
    done = client.call("command", arguments=arguments)
    assert done["exit_code"] == 0, done
    assert f"{hub.url}/{REPO}/commit/{remote(hub).refs['main']}" in done["output"]
    assert json.loads(remote(hub).files()["config.json"])["auto_map"]
    again = client.call("command", arguments=arguments)
    assert "no commit was made" in again["output"] and len(remote(hub).commits) == 2
    (drafter_folder / "README.md").unlink()
    (drafter_folder / "benchmarks" / "results.json").write_text("{}")
    wrong = client.call("command", arguments=arguments)
    assert wrong["exit_code"] != 0 and f"{drafter_folder}/benchmarks/results.json" in wrong["error"]
    wrong = client.call("command", arguments=[str(drafter_folder / "benchmarks"), "--repo", REPO])
    assert wrong["exit_code"] != 0 and "holds no drafter" in wrong["error"]


def test_the_command_pushes_a_drafter_without_results_only_when_told_to(hub, client, drafter_folder):
    (drafter_folder / "README.md").unlink()
    shutil.rmtree(drafter_folder / "benchmarks")
    arguments = [str(drafter_folder), "--repo", REPO]
    refused = client.call("command", arguments=arguments)
    assert refused["exit_code"] != 0 and hub.store.repos == {}
    assert "ppow bench" in refused["error"] and "--unmeasured" in refused["error"]
    done = client.call("command", arguments=[*arguments, "--unmeasured"])
    assert done["exit_code"] == 0, done
    assert "README.md" in remote(hub).files()


# ---- cards and records that lie in the folder -----------------------------------------------------------------------


def test_a_card_of_ours_is_written_for_the_repository_and_one_that_was_edited_stays(hub, client, drafter_folder):
    shutil.rmtree(drafter_folder / "benchmarks")
    write_card(drafter_folder)
    assert "OWNER/drafter" in (drafter_folder / "README.md").read_text()
    arguments = [str(drafter_folder), "--repo", REPO, "--unmeasured"]
    assert client.call("command", arguments=arguments)["exit_code"] == 0
    sent = remote(hub).files()["README.md"].decode()
    assert REPO in sent and "OWNER/" not in sent
    edited = (drafter_folder / "README.md").read_text().replace("A drafter for", "My drafter for")
    (drafter_folder / "README.md").write_text(edited)
    assert client.call("command", arguments=arguments)["exit_code"] == 0
    assert remote(hub).files()["README.md"].decode() == edited
    refused = client.call("command", arguments=arguments[:-1])
    assert refused["exit_code"] != 0 and "--unmeasured" in refused["error"]


def test_benchmarks_of_other_weights_are_not_sent_beside_whatever_card(hub, client, drafter_folder):
    results = {"environment": {}, "arguments": {}, "results": [], "drafter_hash": "0" * 16}
    (drafter_folder / "benchmarks" / "results.json").write_text(json.dumps(results))
    refused = client.call("command", arguments=[str(drafter_folder), "--repo", REPO])
    assert refused["exit_code"] != 0 and "was measured with another drafter" in refused["error"]
    assert hub.store.repos == {}


def test_a_record_is_sent_without_the_paths_of_this_machine(hub, client, drafter_folder, tmp_path):
    record = {"stage": "supervised", "arguments": {"responses": [str(tmp_path / "responses")]}, "note": "kept"}
    (drafter_folder / "provenance.json").write_text(json.dumps(record))
    done = client.call("command", arguments=[str(drafter_folder), "--repo", REPO])
    assert done["exit_code"] == 0, done
    sent = json.loads(remote(hub).files()["provenance.json"])
    assert sent == {**record, "arguments": {"responses": ["responses"]}}
    assert json.loads((drafter_folder / "provenance.json").read_text()) == record, "the folder stays as it is"


def test_saving_with_push_to_hub_sends_the_whole_drafter(drafter_folder, tmp_path, monkeypatch):
    drafter = AutoDrafter.from_pretrained(drafter_folder)
    sent = []
    monkeypatch.setattr(type(drafter), "push_to_hub", lambda *args, **kwargs: sent.append((args, kwargs)))
    drafter.save_pretrained(tmp_path / "mine", push_to_hub=True, private=True, token="t")
    drafter.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id=REPO)
    assert sent == [((drafter, "mine"), {"private": True, "token": "t"}), ((drafter, REPO), {})]
    assert AutoDrafter.from_pretrained(tmp_path / "mine").generation_config.window.size == 3

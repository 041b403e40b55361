# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a push does when the Hub or the connection fails: try again, or leave everything as it was and say so."""

import hashlib

import pytest

from tests.hub.conftest import OTHER_TOKEN, READ_TOKEN, TOKEN
from tests.hub.hub_client import ClientError
from tests.hub.test_push import REPO, SENT, contents, remote, writes

LFS_BATCH = r"\.git/info/lfs/objects/batch$"


@pytest.mark.parametrize(
    "method, pattern, fault",
    [
        ("GET", "/api/models/alice/drafter$", {"times": 2}),
        ("POST", "/api/repos/create", {"times": 3, "status": 503}),
        ("POST", "/api/repos/create", {"kind": "drop", "times": 2}),
        ("POST", "/api/repos/create", {"kind": "drop_answer"}),
        ("POST", "/api/validate-yaml", {"status": 502}),
        ("POST", "/preupload/", {"status": 500}),
        ("POST", LFS_BATCH, {"status": 429, "headers": {"Retry-After": "0"}}),
        ("PUT", "/lfs/", {"kind": "drop"}),
        ("POST", "/commit/", {"times": 3}),
        ("POST", "/commit/", {"status": 429, "headers": {"Retry-After": "0.02"}}),
        ("POST", "/commit/", {"kind": "drop", "times": 2}),
        ("POST", "/commit/", {"kind": "drop_answer"}),
    ],
)
def test_passing_faults_are_repeated(hub, client, drafter_folder, method, pattern, fault):
    ordered = hub.fail(method, pattern, **fault)
    result = client.call("push", folder=drafter_folder, repo_id=REPO)
    assert ordered.times == 0, "the fault never happened"
    assert [commit.title for commit in remote(hub).history()] == ["Upload drafter with ppow-hf", "initial commit"]
    assert len(remote(hub).commits) == 2, "one commit, even if its answer was lost"
    assert result["commit_oid"] == remote(hub).refs["main"]
    assert set(remote(hub).files()) == SENT | {".gitattributes"}


def test_retries_are_bounded(hub, client, drafter_folder):
    hub.fail("POST", "/commit/", times=1000)
    with pytest.raises(ClientError, match="committing failed .*500.* again later"):
        client.call("push", folder=drafter_folder, repo_id=REPO, max_retries=3)
    assert hub.asked("POST", "/commit/") == [500] * 4
    hub.reset_faults()
    hub.fail("POST", "/api/repos/create", times=1000)
    with pytest.raises(ClientError, match="creating the repository failed"):
        client.call("push", folder=drafter_folder, repo_id=REPO, max_retries=0)
    assert hub.asked("POST", "/api/repos/create")[-1:] == [500]
    assert hub.asked("POST", "/api/repos/create").count(500) == 1


def test_long_waits_are_left_to_the_user(hub, client, drafter_folder):
    hub.fail("POST", "/commit/", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(ClientError, match="wait a few minutes"):
        client.call("push", folder=drafter_folder, repo_id=REPO)
    assert hub.asked("POST", "/commit/") == [429]


FAILURES = [
    ("POST", "/commit/", {"times": 99}, "status.huggingface.co"),
    ("POST", "/commit/", {"status": 401}, "hf auth login"),
    ("POST", "/commit/", {"status": 403}, "write permission"),
    ("POST", "/commit/", {"status": 404}, "Check the spelling"),
    ("POST", "/commit/", {"status": 409}, "Somebody else changed the repository"),
    ("POST", "/commit/", {"status": 412}, "Somebody else changed the repository"),
    ("POST", "/commit/", {"kind": "drop", "times": 99}, "HF_ENDPOINT"),
    ("POST", "/preupload/", {"status": 403}, "write permission"),
    ("POST", LFS_BATCH, {"status": 403}, "write permission"),
    ("PUT", "/lfs/", {"status": 403}, "write permission"),
    ("PUT", "/lfs/", {"kind": "truncate"}, "incomplete or damaged"),
    ("POST", "/api/validate-yaml", {"status": 400}, "Correct"),
]


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("method, pattern, fault, remedy", FAILURES)
def test_failures_change_nothing(hub, client, drafter_folder, method, pattern, fault, remedy, exists):
    if exists:
        client.call("push", folder=drafter_folder, repo_id=REPO)
        (drafter_folder / "README.md").write_text("# Changed\n")
        # Other bytes of the same size, so that there is a large file to send.
        weights = bytearray((drafter_folder / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (drafter_folder / "model.safetensors").write_bytes(weights)
    before, head = contents(drafter_folder), remote(hub).refs["main"] if exists else None
    ordered = hub.fail(method, pattern, **fault)
    times = ordered.times
    with pytest.raises(ClientError) as raised:
        client.call("push", folder=drafter_folder, repo_id=REPO, max_retries=2)
    assert ordered.times < times, "the fault never happened"
    assert raised.value.kind == "HubPushError"
    assert remedy in raised.value.message and f"`{REPO}`" in raised.value.message
    assert "Nothing was changed, neither on the Hub nor locally." in raised.value.message
    assert TOKEN not in raised.value.trace
    assert contents(drafter_folder) == before
    if exists:
        assert remote(hub).refs == {"main": head} and len(remote(hub).commits) == 2
    else:
        assert hub.store.repos == {}, "the repository made by the failed push is still there"

    hub.reset_faults()
    client.call("push", folder=drafter_folder, repo_id=REPO)
    files = remote(hub).files()
    assert all(files[path] == before[path] for path in SENT)


def test_failed_push_takes_its_branch_back(hub, client, drafter_folder):
    client.call("push", folder=drafter_folder, repo_id=REPO)
    (drafter_folder / "README.md").write_text("# Changed\n")
    hub.fail("POST", "/commit/v2", status=403)
    with pytest.raises(ClientError, match="Nothing was changed"):
        client.call("push", folder=drafter_folder, repo_id=REPO, revision="v2")
    assert set(remote(hub).refs) == {"main"}


def test_commit_that_may_have_arrived_is_not_taken_back(hub, client, drafter_folder):
    """The answer is lost and nobody can look: the repository stays, and the error says what is not known."""
    hub.fail("POST", "/commit/", kind="drop_answer")
    hub.fail("GET", "/api/models/alice/drafter/tree/main", status=403, times=99)
    with pytest.raises(ClientError, match="whether the commit arrived is not known"):
        client.call("push", folder=drafter_folder, repo_id=REPO, max_retries=0)
    assert set(remote(hub).files()) == SENT | {".gitattributes"}
    hub.reset_faults()
    assert client.call("push", folder=drafter_folder, repo_id=REPO)["commit_oid"] is None
    assert len(remote(hub).commits) == 2


def test_lost_answer_opens_no_second_pull_request(hub, client, drafter_folder):
    client.call("push", folder=drafter_folder, repo_id=REPO)
    (drafter_folder / "README.md").write_text("# Better\n")
    ordered = hub.fail("POST", "/commit/", kind="drop_answer")
    result = client.call("push", folder=drafter_folder, repo_id=REPO, create_pr=True)
    assert ordered.times == 0
    assert result["pull_request_url"] == f"{hub.url}/{REPO}/discussions/1"
    assert set(remote(hub).refs) == {"main", "refs/pr/1"}


def test_somebody_else_commits_meanwhile(hub, client, drafter_folder):
    """The Hub refuses a commit on top of what was not compared; the next push sees it."""
    client.call("push", folder=drafter_folder, repo_id=REPO)
    (drafter_folder / "cost_model.json").write_text("{}\n")
    repo, alice = remote(hub), hub.store.users[TOKEN]

    def commit_first(method, path):
        if method == "POST" and "/preupload/" in path and len(repo.history()) == 2:
            hub.store.commit(alice, repo, "main", {"summary": "theirs"}, [("theirs.txt", b"theirs")], False)

    hub.before = commit_first
    with pytest.raises(ClientError, match="Somebody else changed the repository"):
        client.call("push", folder=drafter_folder, repo_id=REPO)
    assert [commit.title for commit in repo.history()][:1] == ["theirs"]
    client.call("push", folder=drafter_folder, repo_id=REPO)
    assert repo.files()["theirs.txt"] == b"theirs" and repo.files()["cost_model.json"] == b"{}\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"token": "hf_" + "NobodyKnowsThisToken" * 2}, "token was not accepted"),
        ({"token": READ_TOKEN}, "write permission"),
        ({"token": OTHER_TOKEN}, "write permission"),
        ({"token": OTHER_TOKEN, "repo_id": "acme/drafter"}, "write permission"),
        ({"token": "hf_Two\nLines" + "x" * 30}, "characters that no Hub token has"),
        ({"repo_id": "alice/drafter/more"}, "`repo_id` must be"),
        ({"repo_id": "alice/--"}, "`repo_id` must be"),
        ({"repo_id": ""}, "`repo_id` must be"),
        ({"revision": "refs/pr/7"}, "Check the spelling"),
        ({"create_pr": True, "revision": "v2"}, "`create_pr`"),
    ],
)
def test_wrong_arguments(hub, client, drafter_folder, arguments, message):
    alice = hub.store.users[TOKEN]
    repo = hub.store.create_repo(alice, "model", "alice/drafter", False, None)
    head = repo.refs["main"]
    arguments = {"repo_id": REPO, **arguments}
    with pytest.raises(ClientError) as raised:
        client.call("push", folder=drafter_folder, **arguments)
    assert raised.value.kind in ("HubPushError", "ValueError")
    assert message in raised.value.message
    if "token" in arguments:
        assert arguments["token"] not in raised.value.trace
    assert hub.store.repos == {("model", "alice/drafter"): repo} and repo.refs == {"main": head}


def test_invalid_card_is_refused_before_anything_is_made(hub, client, drafter_folder):
    (drafter_folder / "README.md").write_text("---\nlicense: 7\n---\n# Card\n")
    with pytest.raises(ClientError, match="checking the card failed.*must be a string"):
        client.call("push", folder=drafter_folder, repo_id=REPO)
    assert hub.store.repos == {} and {status for _, _, status in writes(hub)} == {400}
    (drafter_folder / "README.md").write_text("---\nlicense: [\n---\n# Card\n")
    hub.requests.clear()
    with pytest.raises(ClientError, match="is not valid YAML"):
        client.call("push", folder=drafter_folder, repo_id=REPO)
    assert hub.requests == []


def test_broken_download_gives_the_whole_file_or_an_error(hub, client, drafter_folder):
    client.call("push", folder=drafter_folder, repo_id="alice/download")
    ordered = hub.fail("GET", "/cdn/", kind="truncate")
    try:
        path = client.call("download", repo_id="alice/download", path="model.safetensors")
    except ClientError:
        path = client.call("download", repo_id="alice/download", path="model.safetensors")
    assert ordered.times == 0
    with open(path, "rb") as file:
        local = (drafter_folder / "model.safetensors").read_bytes()
        assert hashlib.sha256(file.read()).digest() == hashlib.sha256(local).digest()

# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A Hub on the loopback interface, a process with the real clients, and a tiny drafter to share."""

import pytest

from ppow_hf import WindowConfig
from tests.hub.hub_client import Client
from tests.hub.hub_server import HubServer
from tests.hub.hub_store import User
from tests.testing_utils import tiny_eagle3, tiny_target

# Long enough to look like real ones.
TOKEN = "hf_" + "WriteTokenOfAlice" * 2
READ_TOKEN = "hf_" + "ReadTokenOfAlice" * 2
OTHER_TOKEN = "hf_" + "WriteTokenOfBob" * 2


@pytest.fixture(scope="session")
def _hub_process(tmp_path_factory):
    server = HubServer().start()
    client = Client(server.url, tmp_path_factory.mktemp("hub_client"), TOKEN)
    yield server, client
    client.close()
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(_hub_process):
    """An empty Hub with two users; Alice belongs to an organization. Nothing may leak a token while it is in use."""
    server, client = _hub_process
    server.reset()
    alice = User("alice", ("acme",))
    server.store.users = {
        TOKEN: alice,
        READ_TOKEN: User("alice", ("acme",), can_write=False),
        OTHER_TOKEN: User("bob"),
    }
    printed = len(client.output)
    yield server
    for token in (TOKEN, READ_TOKEN, OTHER_TOKEN):
        assert token not in client.output[printed:], "a token was printed"
        for path in client.home.rglob("*"):
            assert not path.is_file() or token.encode() not in path.read_bytes(), f"{path} holds a token"
        for repo in server.store.repos.values():
            for commit in repo.commits.values():
                assert all(token.encode() not in entry.content for entry in commit.tree.values())


@pytest.fixture
def client(_hub_process):
    """The process with the real clients; see `hub_client`."""
    return _hub_process[1]


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    tiny_target().save_pretrained(folder)
    return folder


@pytest.fixture
def drafter_folder(tmp_path):
    """A saved drafter with a card, benchmarks and a cost model, and much that must stay local."""
    folder = tmp_path / "drafter"
    drafter = tiny_eagle3(tiny_target(), draft_vocab_size=48)
    drafter.generation_config.window = WindowConfig.parse("fixed:3")
    drafter.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- ppow\n---\n# A drafter\n")
    (folder / "cost_model.json").write_text('{"gamma": 0.06}\n')
    (folder / "benchmarks" / "float32").mkdir(parents=True)
    (folder / "benchmarks" / "results.json").write_text('{"environment": {}, "arguments": {}, "results": []}\n')
    (folder / "benchmarks" / "speedup.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (folder / "benchmarks" / "float32" / "report.md").write_text("# Report\n")
    for private in (".env", "optimizer.pt", "training_args.bin", "notes.txt", "checkpoint-5/model.safetensors"):
        (folder / private).parent.mkdir(exist_ok=True)
        (folder / private).write_text("stays here")
    return folder

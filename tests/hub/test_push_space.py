# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A Space is sent with what it needs, and starts from what was sent, without this repository."""

import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request

import pytest

import ppow_hf
from ppow_hf.hub.push_space import PACKAGE, complete_space
from tests.hub.hub_client import ROOT
from tests.testing_utils import tiny_eagle3

SPACE = ROOT / "spaces" / "ppow_demo"
CARD = "---\nsdk: gradio\napp_file: app.py\n---\n# Demo\n"


def listing(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def checkout(tmp_path, drafter_folder):
    """A Space in a checkout with one drafter."""
    space = tmp_path / "checkout" / "spaces" / "demo"
    space.mkdir(parents=True)
    (space / "README.md").write_text(CARD)
    (space / "app.py").write_text("import ppow_hf\n")
    (space / "requirements.txt").write_text("torch\n")
    (space / ".env").write_text("SECRET=1\n")
    cards = tmp_path / "checkout" / "model_cards"
    cards.mkdir()
    drafter_folder.rename(cards / "tiny")
    return space


def test_library_and_drafters_go_along(checkout, tmp_path):
    before = listing(checkout)
    added = complete_space(checkout, tmp_path / "out")
    assert added == ["ppow_hf/", "drafters/tiny/"] and listing(checkout) == before
    sent = listing(tmp_path / "out")
    modules = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py")}
    assert modules <= sent and "ppow_hf/hub/templates/drafter_card.md" in sent
    rest = {path for path in sent if not path.startswith("ppow_hf/")}
    own = {"README.md", "app.py", "requirements.txt"}
    drafter = {"README.md", "config.json", "cost_model.json", "generation_config.json", "model.safetensors"}
    assert rest == own | {f"drafters/tiny/{name}" for name in drafter}
    assert not any("__pycache__" in path or ".env" in path for path in sent)


def test_what_is_there_already_is_kept(checkout, tmp_path):
    (checkout / "drafters" / "mine").mkdir(parents=True)
    (checkout / "drafters" / "mine" / "config.json").write_text("{}")
    (checkout / "ppow_hf").mkdir()
    (checkout / "ppow_hf" / "__init__.py").write_text("# another version\n")
    assert complete_space(checkout, tmp_path / "out") == []
    assert (tmp_path / "out" / "ppow_hf" / "__init__.py").read_text() == "# another version\n"
    assert listing(tmp_path / "out" / "drafters") == {"mine/config.json"}


@pytest.mark.parametrize(
    ("app", "requirements"),
    [
        ("import ppow_hf\n", "torch\nppow-hf>=0.1\n"),
        ("# import ppow_hf would be too much\nprint('hello')\n", "torch\n"),
    ],
)
def test_nothing_is_added_where_nothing_is_missing(checkout, tmp_path, app, requirements):
    (checkout / "app.py").write_text(app)
    (checkout / "requirements.txt").write_text(requirements)
    assert complete_space(checkout, tmp_path / "out") == []
    assert listing(tmp_path / "out") == {"README.md", "app.py", "requirements.txt"}


def test_command_sends_it_in_one_commit(hub, client, checkout, tmp_path):
    arguments = [str(checkout), "--repo", "alice/demo", "--space"]
    dry = client.call("command", arguments=[*arguments, "--dry-run"])
    assert dry["exit_code"] == 0 and "ppow_hf/__init__.py" in dry["output"] and hub.store.repos == {}
    done = client.call("command", arguments=arguments)
    assert done["exit_code"] == 0, done
    repo = hub.store.repos["space", "alice/demo"]
    complete_space(checkout, tmp_path / "out")
    assert set(repo.files()) == listing(tmp_path / "out") | {".gitattributes"}
    assert repo.resolve("main").tree["drafters/tiny/model.safetensors"].lfs and len(repo.history()) == 2
    assert "no commit was made" in client.call("command", arguments=arguments)["output"]
    (checkout / "app.py").unlink()
    wrong = client.call("command", arguments=arguments)
    assert wrong["exit_code"] != 0 and f"`{checkout}` is no Space" in wrong["error"]


@pytest.mark.slow
def test_the_demo_starts_from_what_is_sent(tmp_path):
    """app.py in a process that sees the installed packages, but neither this repository nor an installed ppow_hf."""
    pytest.importorskip("gradio", reason="the demo's packages are not installed: pip install -e .[demo]")
    from tests.data.data_testing_utils import char_target, char_tokenizer

    added = complete_space(SPACE, tmp_path / "space")
    assert added[0] == "ppow_hf/" and any(name.startswith("drafters/") for name in added)
    target = char_target()
    target.save_pretrained(tmp_path / "target")
    char_tokenizer().save_pretrained(tmp_path / "target")
    tiny_eagle3(target, draft_vocab_size=60).save_pretrained(tmp_path / "drafter")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "DRAFTER"))}
    environment |= {
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "TARGET_ID": str(tmp_path / "target"),
        "DRAFTER_ID": str(tmp_path / "drafter"),
        "GRADIO_SERVER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
    }
    # -S leaves out the lines in site-packages that put a checkout on the path.
    python = [sys.executable, "-S"]
    where = [*python, "-c", "import ppow_hf; print(ppow_hf.__file__)"]
    outside = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True)
    if "No module named 'ppow_hf'" not in outside.stderr:
        pytest.skip("ppow_hf is installed as a copy here, so nothing can be told apart")
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(
            [*python, "app.py"], cwd=tmp_path / "space", env=environment, stdout=log, stderr=log
        )
    try:
        page, end = None, time.time() + 200
        while page is None and time.time() < end and process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as response:
                    page = response.read().decode()
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        assert page is not None, (tmp_path / "log.txt").read_text()
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert "Guess a window, check it once" in page
    assert re.search(r"Ready\. Target: target in float32 on cpu", page), "the models that were named"
    assert str(ROOT) not in (tmp_path / "log.txt").read_text()


def test_the_package_is_the_one_that_is_imported():
    assert PACKAGE == type(PACKAGE)(ppow_hf.__file__).resolve().parent

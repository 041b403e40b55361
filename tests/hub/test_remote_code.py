# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The remote code is the library's own, complete, and works where the library is not installed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel
from transformers.dynamic_module_utils import check_imports, get_imports, get_relative_import_files

import ppow_hf
from ppow_hf import AutoDrafter, Eagle3Drafter
from ppow_hf.hub import remote_code
from ppow_hf.hub.remote_code import CUSTOM_GENERATE, REQUIREMENTS, flatten, remote_files, write_remote_code
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

LIBRARY = Path(ppow_hf.__file__).parent
FAMILIES = {"ppow_eagle3": "modeling_eagle3", "ppow_causal_lm": "modeling_causal_lm"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target, and one drafter of each family with its remote code, saved to disk."""
    root = tmp_path_factory.mktemp("remote")
    target = tiny_target()
    target.save_pretrained(root / "target")
    for name, drafter in (("eagle3-v1.0", tiny_eagle3(target, 40)), ("causal", tiny_causal_drafter(target))):
        drafter.save_pretrained(root / name)
        write_remote_code(root / name)
    return root


def _without_relative_imports(tree: ast.Module) -> str:
    class Drop(ast.NodeTransformer):
        def visit_ImportFrom(self, node):
            return ast.Pass() if node.level else node

        def visit_Try(self, node):
            # What a lazy import of a part that stays in the library becomes.
            first = node.body[0]
            guarded = isinstance(first, ast.ImportFrom) and (first.module or "").startswith("ppow_hf.")
            return ast.Pass() if guarded else self.generic_visit(node)

    return ast.dump(Drop().visit(tree))


def _problems(folder: Path, modeling: str) -> list[str]:
    """What transformers would stumble over: files that are missing, and names a file imports but another lacks."""
    files = {p.stem for p in folder.glob("*.py")}
    problems = []
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            if node.level > 1 or "." in node.module or node.module not in files:
                problems.append(f"{path.name} needs {node.module}.py")
                continue
            other = ast.parse((folder / f"{node.module}.py").read_text())
            defined = {n.name for n in other.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
            targets = [t for n in other.body if isinstance(n, ast.Assign) for t in n.targets]
            defined |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            problems += [f"{node.module}.py lacks {a.name}" for a in node.names if a.name not in defined]
    if not problems:
        reached = {Path(f).stem for f in get_relative_import_files(folder / f"{modeling}.py")} | {modeling}
        problems += [f"transformers does not find {name}.py" for name in files - reached]
    return problems


# ---- generated, not copied -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_files_are_the_librarys_modules(model_type):
    sources = {p.name: p for p in LIBRARY.glob("*.py")}
    for package in ("drafters", "generation"):
        sources |= {p.name: p for p in (LIBRARY / package).glob("*.py") if p.name != "__init__.py"}
    files = remote_files(model_type)
    for name, text in files.items():
        if name in ("targets.py", CUSTOM_GENERATE, "custom_generate/requirements.txt"):
            continue
        own = ast.parse(sources[name].read_text())
        assert _without_relative_imports(ast.parse(text)) == _without_relative_imports(own), name
    own = {ast.dump(node) for node in ast.parse((LIBRARY / "targets.py").read_text()).body}
    part = ast.parse(files["targets.py"]).body
    assert all(ast.dump(node) in own for node in part)
    assert [node.name for node in part if isinstance(node, ast.FunctionDef)] == ["cache_dir"]
    assert ast.dump(ast.parse(files[CUSTOM_GENERATE])) == ast.dump(
        ast.parse((LIBRARY / "hub" / "remote_generate.py").read_text())
    )


@pytest.mark.parametrize(("name", "model_type"), [("eagle3-v1.0", "ppow_eagle3"), ("causal", "ppow_causal_lm")])
def test_nothing_is_missing_and_nothing_is_left_over(folders, name, model_type, tmp_path):
    folder, modeling = folders / name, FAMILIES[model_type]
    assert _problems(folder, modeling) == []
    for path in (*folder.glob("*.py"), folder / CUSTOM_GENERATE):
        assert "ppow_hf" not in get_imports(path)
        check_imports(path)
    # The check itself notices a module that was left out, and one nobody needs.
    for path in folder.glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "spare.py").write_text("X = 1\n")
    assert _problems(tmp_path, modeling) == ["transformers does not find spare.py"]
    (tmp_path / "hook.py").unlink()
    assert "cost_measurement.py needs hook.py" in _problems(tmp_path, modeling)


def test_requirements_are_those_of_the_library():
    pyproject = (LIBRARY.parent / "pyproject.toml").read_text()
    for requirement in REQUIREMENTS:
        assert f'"{requirement}"' in pyproject


def test_writing_again_changes_nothing_but_what_is_stale(folders, tmp_path):
    tiny_eagle3(tiny_target(), 40).save_pretrained(tmp_path)
    first = write_remote_code(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in first}
    (tmp_path / "old_module.py").write_text("# Generated by ppow-hf from ppow_hf/old_module.py. Do not edit.\n")
    (tmp_path / "mine.py").write_text("X = 1\n")
    (tmp_path / "trace.py").write_text("edited by hand\n")
    assert write_remote_code(tmp_path) == first
    assert not (tmp_path / "old_module.py").exists() and (tmp_path / "mine.py").exists()
    changed = {p.name for p in first if p.stat().st_mtime_ns != before[p]}
    assert changed == {"trace.py"}
    assert (tmp_path / "trace.py").read_bytes() == (folders / "eagle3-v1.0" / "trace.py").read_bytes()


def test_a_crash_leaves_a_drafter_that_loads_as_before(tmp_path, monkeypatch):
    tiny_eagle3(tiny_target(), 40).save_pretrained(tmp_path)
    config, replace = (tmp_path / "config.json").read_bytes(), os.replace

    def fails(source, destination):
        if Path(destination).name == "trace.py":
            raise OSError("disk full")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_remote_code(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == config
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("custom_generate/.*"))


# ---- what has no flat form -----------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    root = tmp_path / "ppow_hf"
    for name in ("drafters", "generation", "hub"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text("")
    (root / "generation" / "__init__.py").write_text("from .loop import run as run_loop, go\n")
    (root / "generation" / "loop.py").write_text("def run():\n    pass\n")
    monkeypatch.setattr(remote_code, "ROOT", root)
    return root


def test_imports_through_a_package_and_of_the_library_alone(package):
    (package / "drafters" / "a.py").write_text(
        "# head\nimport torch\n\n\ndef f():\n    from ..generation import go as g\n    return g\n\n\n"
        "def push():\n    from ..hub import push_folder\n    return push_folder\n"
    )
    text, imported = flatten("drafters.a")
    assert "    from .loop import go as g\n" in text and imported == [("generation.loop", "go")]
    path = package / "flat.py"
    path.write_text(text)
    assert get_imports(path) == ["torch"]
    assert text.startswith("# head\n# Generated by ppow-hf from ppow_hf/drafters/a.py. Do not edit.\n")
    namespace: dict = {}
    exec(compile(text.replace("ppow_hf.hub", "no_such_package.hub"), "flat", "exec"), namespace)
    with pytest.raises(ImportError, match="pip install ppow-hf"):
        namespace["push"]()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import ppow_hf\n", "relatively"),
        ("from ppow_hf.hub import x\n", "relatively"),
        ("from ..hub import x\n", "import it where it is used"),
        ("from ..generation import nothing\n", "cannot be told"),
        ("from . import b\n", "cannot be told"),
    ],
)
def test_imports_without_a_flat_form_are_refused(package, source, message):
    (package / "drafters" / "a.py").write_text(source)
    with pytest.raises(ValueError, match=message):
        flatten("drafters.a")


def test_extraction_takes_what_a_definition_needs(package):
    (package / "tools.py").write_text(
        "# head\n'''Doc.'''\nimport os\nimport sys\n\nA = 1\nB = A + 1\nC = 3\n\n\n@staticmethod\ndef f(x=B):\n"
        "    return os.sep\n\n\ndef g():\n    return C, sys\n"
    )
    text, _ = flatten("tools", ["f"])
    namespace: dict = {}
    exec(text, namespace)
    assert namespace["f"]() == os.sep and {"A", "B"} <= namespace.keys()
    assert not {"C", "g", "sys"} & namespace.keys()
    with pytest.raises(ValueError, match="has no missing"):
        flatten("tools", ["missing"])


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (None, FileNotFoundError, "holds no config.json"),
        ('{"model_type": "ppow_', OSError, "truncated"),
        ("[]", OSError, "a list, not a JSON object"),
        ('{"model_type": "llama"}', ValueError, "no drafter of this library"),
        ("{}", ValueError, "no drafter of this library"),
    ],
)
def test_bad_folders(tmp_path, config, error, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(error, match=message):
        write_remote_code(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == (["config.json"] if config is not None else [])


# ---- in use --------------------------------------------------------------------------------------------------------


def test_where_the_library_is_installed_its_own_classes_are_used(folders):
    drafter = AutoDrafter.from_pretrained(folders / "eagle3-v1.0")
    assert type(drafter) is Eagle3Drafter
    assert type(AutoModel.from_pretrained(folders / "eagle3-v1.0")) is Eagle3Drafter
    target, ids = tiny_target(), torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 12, "do_sample": False}
    plain = target.generate(ids, **options)
    remote = {"custom_generate": str(folders / "eagle3-v1.0"), "trust_remote_code": True, "window": "fixed:3"}
    assert torch.equal(target.generate(ids, **remote, **options), plain)
    assert torch.equal(target.generate(ids, assistant_model=drafter, **remote, **options), plain)
    assert drafter.last_trace.mean_window > 1
    with pytest.raises(ValueError, match="trust_remote_code"):
        target.generate(ids, custom_generate=str(folders / "eagle3-v1.0"), trust_remote_code=False, **options)
    with pytest.raises(ValueError, match="is no drafter"):
        target.generate(ids, assistant_model=target, **remote, **options)


_CLEAN = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ppow_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
try:
    import ppow_hf
    raise SystemExit("ppow_hf can be imported: this environment is not clean")
except ModuleNotFoundError:
    pass

import torch
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin
from transformers.generation.streamers import BaseStreamer

class Collect(BaseStreamer):
    def __init__(self):
        self.tokens = []
    def put(self, value):
        self.tokens += value.flatten().tolist()
    def end(self):
        pass

torch.set_num_threads(1)
before = GenerationMixin._get_candidate_generator
target = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
ids = torch.tensor([[5, 6, 7, 8]])
report = {}
for repository in sys.argv[2:]:
    remote = dict(custom_generate=repository, trust_remote_code=True)
    found = report[repository] = {"equal": []}
    for options in (dict(), dict(repetition_penalty=1.3), dict(do_sample=True, top_k=1)):
        options = dict(dict(max_new_tokens=24, do_sample=False), **options)
        plain = target.generate(ids, **options)
        found["equal"].append(torch.equal(plain, target.generate(ids, **remote, **options)))
    drafter = AutoModel.from_pretrained(repository, trust_remote_code=True)
    streamer = Collect()
    remote |= dict(assistant_model=drafter, max_new_tokens=24, do_sample=False)
    text = target.generate(ids, streamer=streamer, **remote)
    found["streamed"] = streamer.tokens == text[0].tolist()
    found["windows"] = sorted({cycle.drafted for cycle in drafter.last_trace.cycles})
    found["policy"] = drafter.last_trace.window["policy"]
    found["tau"] = drafter.last_trace.acceptance_length
    fixed = target.generate(ids, window="fixed:3", **remote)
    found["equal"].append(torch.equal(text, fixed))
    found["fixed"] = max(cycle.drafted for cycle in drafter.last_trace.cycles)
    found["module"] = type(drafter).__module__
    found["loaded_again"] = len([m for m in sys.modules if m.endswith(".custom_generate.generate")])
report["hooked"] = GenerationMixin._get_candidate_generator is not before
report["ppow_hf"] = [name for name in sys.modules if name.partition(".")[0] == "ppow_hf"]
print(json.dumps(report))
"""


@pytest.mark.timeout(600)
def test_in_an_environment_without_the_library(folders, tmp_path):
    """Local folders, and a repository in the Hub's cache: transformers takes another way for each."""
    snapshot = tmp_path / "hf" / "hub" / "models--org--eagle3-v1.0" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folders / "eagle3-v1.0")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(COMMIT)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PPOW_HF_CACHE")}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PPOW_HF_CACHE": str(tmp_path / "cache")}
    repositories = [str(folders / "eagle3-v1.0"), str(folders / "causal"), "org/eagle3-v1.0"]
    done = subprocess.run(
        [sys.executable, "-c", _CLEAN, str(folders / "target"), *repositories],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report.pop("ppow_hf") == [] and report.pop("hooked") is False
    for repository, found in report.items():
        assert found["equal"] == [True] * 4, repository
        assert found["streamed"] and found["policy"] == "cost_aware" and found["fixed"] == 3
        assert found["module"].startswith("transformers_modules.")
    # The drafter made of the target's own layers is accepted often enough for windows to differ.
    causal = report[repositories[1]]
    assert len(causal["windows"]) > 1 and causal["tau"] > 1
    assert COMMIT in report["org/eagle3-v1.0"]["module"]

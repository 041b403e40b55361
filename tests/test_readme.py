# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The README's commands exist, and its figures are those of the committed benchmark."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from ppow_hf import cli
from ppow_hf.quickstart import REFERENCE_DRAFTER
from ppow_hf.scripts.readme_figures import BEGIN, END, figures_section, replace_figures

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BENCHMARKS = Path("model_cards") / REFERENCE_DRAFTER / "benchmarks"


def test_figures_are_those_of_the_committed_benchmark():
    results = json.loads((ROOT / BENCHMARKS / "results.json").read_text())
    shown = README.split(BEGIN, 1)[1].split(END, 1)[0].strip()
    assert shown == figures_section(results, BENCHMARKS.as_posix())


def cells_of(first: str) -> list[str]:
    """The cells of the README's table row that begins so, without the first."""
    (row,) = (line for line in README.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").split("|")[1:]]


@pytest.mark.parametrize(
    ("name", "drafter"),
    [
        ("initialisation", "init"),
        ("CST", "cst-seed0"),
        ("CST, second seed", "cst-seed1"),
        ("**exact window reward**", "ppow-exact-seed0"),
        ("**exact window reward**, second seed", "ppow-exact-seed1"),
        ("PPOW, sampled", "ppow-seed0"),
        ("PPOW, sampled, second seed", "ppow-seed1"),
    ],
)
def test_the_table_of_trainings_is_that_of_the_experiment(name, drafter):
    results = json.loads((ROOT / "model_cards" / "experiments" / "ppow-vs-cst" / "gpu" / "results.json").read_text())
    found = {row["suite"]: row for row in results["results"] if row["drafter"] == drafter}
    steps, tokens, *suites, difference = cells_of(name)
    assert suites == [f"{found[suite]['acceptance_length']:.3f}" for suite in ("gsm8k", "humaneval", "mt_bench")]
    training = results["training"].get(drafter)
    assert steps == ("" if training is None else str(training["steps"]))
    assert tokens == ("" if training is None else f"{training['cost']['target_tokens'] / 1e6:.1f}M")
    mean = found["mean"]
    if mean["difference"] is not None:
        low, high = mean["difference_low"], mean["difference_high"]
        assert difference == f"{mean['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


@pytest.mark.parametrize("window", ["cost_aware", "mixed_tree"])
def test_where_the_time_goes_is_what_was_profiled(window):
    folder = "model_cards/experiments/profile/" + window
    shares = json.loads((ROOT / folder / "profile.json").read_text())["shares"]
    said = re.search(rf"`{window}` ([\d.]+)%[^,]*, ([\d.]+)%[^%]* ([\d.]+)%[^(]*\(\[parts\]\({folder}/", README)
    assert said, f"the README does not say where the time of `{window}` goes"
    assert [float(value) for value in said.groups()] == [
        round(100 * shares[phase], 1) for phase in ("verify", "draft", "other")
    ]


def test_every_command_named_in_the_readme_exists():
    known = set(typer.main.get_command(cli.app).commands)
    named = set(re.findall(r"`?ppow ([a-z]+)", README))
    assert {"generate", "bench", "sft"} <= named <= known
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"^make (\w+)", README, flags=re.M):
        assert f"\n{name}:" in makefile, name


def commands_shown() -> list[list[str]]:
    """The words of every `ppow` line in the README's shell blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("ppow ")]


@pytest.mark.parametrize("words", commands_shown(), ids=" ".join)
def test_the_options_of_every_command_shown_exist(words):
    command = typer.main.get_command(cli.app).commands[words[0]]
    assert command.make_context(words[0], list(words[1:])).command is command  # raises where it cannot be parsed


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, flags=re.S))
def test_python_snippets_import_what_exists(block):
    compile(block, "README.md", "exec")
    imports = [line for line in block.splitlines() if line.startswith(("import ", "from "))]
    exec("\n".join(imports), {})


def test_replacing_keeps_the_rest():
    text = f"a\n{BEGIN}\nold\n{END}\nb"
    assert replace_figures(text, "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    with pytest.raises(ValueError, match="markers"):
        replace_figures("nothing here", "new")

# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json
from functools import partial

import pytest
import torch

from ppow_hf.drafters import is_prepacked
from ppow_hf.drafters.prepacking import can_prepack
from ppow_hf.evaluation import target_ways as module
from ppow_hf.evaluation.target_ways import compare_ways, compiled_copy, prepacked_copy, ways_rows, ways_table
from ppow_hf.scripts import target_ways
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import tiny_eagle3, tiny_target

PROMPTS = [torch.tensor([[5, 17, 3, 60, 9]]), torch.tensor([[8, 2, 40]])]
METHODS = ["target", "fixed:3", "mixed_tree"]
BFLOAT16 = can_prepack(torch.nn.Linear(4, 4).bfloat16())


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PPOW_HF_CACHE", str(tmp_path / "cache"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_a_compiled_target_writes_the_same_text_with_every_method():
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    target = tiny_target()
    ways = {"compile": partial(compiled_copy, backend=counting)}
    rows = compare_ways(target, tiny_eagle3(target), PROMPTS, METHODS, ways, max_new_tokens=12)
    assert graphs, "nothing was compiled"
    assert [(row.way, row.method) for row in rows] == [("compile", name) for name in METHODS]
    for row in rows:
        assert (row.prompts, row.identical) == (2, 2)
        assert row.tokens == 24
        assert row.as_is > 0 and row.changed > 0 and row.ratio > 0


@pytest.mark.skipif(not BFLOAT16, reason="this CPU does not multiply bfloat16 matrices")
def test_a_prepacked_target():
    target = tiny_target().bfloat16()
    methods = ["target", "fixed:3", "tree:4"]
    rows = compare_ways(
        target, tiny_eagle3(target).bfloat16(), PROMPTS, methods, {"prepack": prepacked_copy}, max_new_tokens=12
    )
    assert [(row.method, row.prompts, row.tokens) for row in rows] == [(name, 2, 24) for name in methods]
    assert is_prepacked(prepacked_copy(target)) and not is_prepacked(target)


def test_the_target_itself_is_left_as_it_is():
    target = tiny_target()
    before = target.forward
    compiled = compiled_copy(target, backend="eager")
    assert target.forward == before and compiled.forward != before
    inputs = torch.tensor([[4, 8, 15, 16]])
    torch.testing.assert_close(compiled(inputs).logits, target(inputs).logits)


class Run:
    def __init__(self, tokens, seconds):
        self.tokens, self.seconds = tokens, seconds


def test_medians_are_of_pairs():
    same, other = [1, 2, 3, 4], [1, 2, 3, 5]
    as_is = [Run(same, 1.0), Run(same, 2.0), Run(same, 4.0)]
    changed = [Run(same, 2.0), Run(other, 1.0), Run(same, 1.0)]
    row = module._summary("fixed:2", "compile", as_is, changed, 7.5)
    assert (row.as_is, row.changed, row.ratio) == (2.0, 4.0, 2.0)  # ratios 0.5, 2, 4
    assert (row.tokens, row.prompts, row.identical, row.first_seconds) == (12, 3, 2, 7.5)
    assert "| compile | `fixed:2` | 2.0 | 4.0 | 2.00x | 7.5 | 2 of 3 |" in ways_table([row])
    assert ways_rows([row])[0]["ratio"] == 2.0


def test_what_cannot_be_measured_is_refused():
    target = tiny_target()
    drafter = tiny_eagle3(target)
    with pytest.raises(ValueError, match="`prompts` is empty"):
        compare_ways(target, drafter, [], ["target"])
    with pytest.raises(ValueError, match="hf_dynamic"):
        compare_ways(target, drafter, PROMPTS, ["hf_dynamic"])
    with pytest.raises(ValueError, match="in float32 on cpu can be prepacked"):
        compare_ways(target, drafter, PROMPTS, ["target"], {"prepack": prepacked_copy})

    def broken(graph, example_inputs):
        raise OSError("no compiler")

    with pytest.raises(RuntimeError, match="(?s)`target` with `compile` failed .*no compiler"):
        compare_ways(target, drafter, PROMPTS, ["target"], {"compile": partial(compiled_copy, backend=broken)})


def test_the_command_writes_json_and_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(module.WAYS, "compile", partial(compiled_copy, backend="eager"))
    target = char_target()
    target.save_pretrained(tmp_path / "target")
    char_tokenizer().save_pretrained(tmp_path / "target")
    tiny_eagle3(target).save_pretrained(tmp_path / "drafter")
    suite = tmp_path / "letters.jsonl"
    rows = [{"id": str(i), "turns": [text]} for i, text in enumerate(("abc", "hello there", "no"))]
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "ways"
    call = {
        "prompts": [str(suite)],
        "output": output,
        "target": str(tmp_path / "target"),
        "drafter": str(tmp_path / "drafter"),
        "method": "target,fixed:3",
        "max_new_tokens": 8,
        "limit": 2,
    }
    with pytest.raises(ValueError, match="`--way` takes prepack, compile, got 'faster'"):
        target_ways.main(**call, way="prepack,faster")
    target_ways.main(**call, way="compile")
    content = json.loads((output / "ways.json").read_text())
    assert content["arguments"]["num_prompts"] == 2 and content["arguments"]["prompts"] == ["letters"]
    assert [row["method"] for row in content["rows"]] == ["target", "fixed:3"]
    assert all(row["identical"] == row["prompts"] == 2 for row in content["rows"])
    text = (output / "ways.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "| compile | `fixed:3` |" in text

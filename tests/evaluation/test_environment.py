# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import torch

from ppow_hf.evaluation.environment import _hash_of_sources, decoding_code, describe_environment
from ppow_hf.evaluation.markdown import environment_list


def test_the_hash_is_of_the_sources_that_decode(tmp_path):
    for folder in ("drafters", "generation/inner", "trainer"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "drafters" / "a.py").write_text("a = 1")
    (tmp_path / "generation" / "inner" / "b.py").write_text("b = 1")
    seen = [_hash_of_sources(tmp_path)]
    (tmp_path / "trainer" / "c.py").write_text("c = 1")
    (tmp_path / "drafters" / "a.pyc").write_text("compiled")
    assert _hash_of_sources(tmp_path) == seen[0]
    (tmp_path / "generation" / "inner" / "b.py").write_text("b = 2")
    seen.append(_hash_of_sources(tmp_path))
    (tmp_path / "drafters" / "a.py").rename(tmp_path / "drafters" / "other.py")
    seen.append(_hash_of_sources(tmp_path))
    (tmp_path / "drafters" / "new.py").touch()
    seen.append(_hash_of_sources(tmp_path))
    assert len(set(seen)) == 4


def test_it_is_stated_with_the_environment():
    environment = describe_environment(torch.device("cpu"))
    assert environment["decoding_code"] == decoding_code() and len(decoding_code()) == 12
    assert f"- decoding code: {decoding_code()}" in environment_list(environment)
    del environment["decoding_code"]  # as in results of before
    assert "decoding code" not in environment_list(environment)

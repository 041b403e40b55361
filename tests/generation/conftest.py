# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest
import torch

from ppow_hf import CostModel
from ppow_hf.generation.stored_costs import cost_model_key


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """Cost models measured by a test are stored in its own folder."""
    monkeypatch.setenv("PPOW_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store_costs(cache_folder):
    """Stores a given cost model for a target and a drafter, so that `cost_aware` need not measure a tiny model."""

    def store(target, drafter, gamma=0.06, slope=0.04):
        curve = [1.0 + slope * n for n in range(17)]
        cost_model = CostModel(gamma, curve, 0.05, 0.03, key=cost_model_key(target, drafter))
        cost_model.save(cache_folder)
        return cost_model

    return store


@pytest.fixture
def prompt():
    return torch.tensor([[5, 17, 3, 60, 9, 44, 21, 8]])

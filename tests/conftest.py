# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""One environment for all tests: offline, quiet, one thread, caches in a temporary folder."""

import os
import shutil
import tempfile

# Before any import of transformers or datasets, which read these once. Child processes inherit them.
_CACHE = tempfile.mkdtemp(prefix="ppow_hf_tests_")
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": os.path.join(_CACHE, "huggingface"),
        "PPOW_HF_CACHE": os.path.join(_CACHE, "ppow_hf"),
    }
)

import pytest  # noqa: E402
import torch  # noqa: E402
from transformers.utils import logging  # noqa: E402

torch.set_num_threads(1)
logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def calm_machine(monkeypatch):
    """Costs measured while other tests keep the machine busy are stored all the same."""
    from ppow_hf.generation import cost_measurement, stored_costs

    for module in (cost_measurement, stored_costs):
        monkeypatch.setattr(module, "is_plausible", lambda curve: True)


def pytest_unconfigure(config):
    shutil.rmtree(_CACHE, ignore_errors=True)

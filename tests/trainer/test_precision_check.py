# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest
import torch

from tests.trainer.common import sft_trainer
from tests.trainer.ppow_common import ppow_trainer


@pytest.mark.parametrize("make_trainer", [sft_trainer, ppow_trainer])
@pytest.mark.parametrize(("native", "bf16"), [(False, True), (False, False), (True, True)])
def test_emulated_bfloat16_is_warned_of(tmp_path, monkeypatch, caplog, make_trainer, native, bf16):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    with caplog.at_level("WARNING"):
        make_trainer(tmp_path, bf16=bf16)
    assert ("this CPU does not compute in bfloat16" in caplog.text) == (bf16 and not native)

# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Exports in the real `speculators` package, and its own saves imported here.

It wants an older transformers than this library, so these run in an environment of their own: `make speculators` sets
it up, and `test_speculators_package.py` runs this file there.
"""

import pytest
import torch
from speculators import SpeculatorModelConfig
from speculators.models.eagle3 import Eagle3DraftModel

from ppow_hf.hub.exporter import export_drafter
from ppow_hf.hub.importer import import_drafter
from tests.hub.foreign_checkpoints import VOCAB
from tests.hub.test_export import make

OPTIONS = {
    "plain": {},
    "own layers": {"aux_layer_ids": [1, 3, 6]},
    "two features": {"aux_layer_ids": [3, 6]},
    "EAGLE-3.1": {"fc_norm": True, "norm_output": True},
    "other norms": {"norm_before_fc": True, "norm_before_residual": True},
    "head_dim": {"head_dim": 12},
    "two layers": {"num_hidden_layers": 2},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "whole vocabulary": {"draft_vocab_size": VOCAB},
    "scaled rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e4}},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_their_model_computes_what_ours_does(tmp_path, case):
    target, drafter = make(**OPTIONS[case])
    target.save_pretrained(tmp_path / "target")
    drafter.config.target_name_or_path = str(tmp_path / "target")  # They load what is named here.
    export_drafter(drafter, tmp_path / "ours", "speculators", target=target)
    config = SpeculatorModelConfig.from_pretrained(tmp_path / "ours")
    config.transformer_layer_config._attn_implementation = "eager"
    theirs = Eagle3DraftModel.from_pretrained(tmp_path / "ours", config=config).float().eval()

    logits = []
    theirs.lm_head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    drafter.bind_target(target)
    generator = torch.Generator().manual_seed(1)
    length, steps = 10, 6
    tokens = torch.randint(0, VOCAB, (1, length), generator=generator)
    features = torch.randn(1, length, drafter.fc.in_features, generator=generator)
    with torch.no_grad():
        shifted = torch.nn.functional.pad(tokens[:, 1:], (0, 1))  # Their column i reads the token at i + 1.
        theirs(features, shifted, document_ids=torch.zeros_like(tokens), ttt_steps=steps)
        expected = drafter(tokens, features, ttt_steps=steps).logits
        # As decoding does it: everything up to one place is committed, then draft steps from there.
        place = length - 1 - steps
        state = drafter.new_state()
        drafted = [drafter.extend(state, tokens[:, : place + 2], features[:, : place + 1])]
        drafted += [drafter.step(state, tokens[:, place + 1 + step]) for step in range(1, steps)]
    assert len(logits) == steps
    for step in range(steps):
        columns = length - 1 - step
        torch.testing.assert_close(logits[step][:, :columns], expected[step][:, :columns], rtol=0, atol=1e-5)
        torch.testing.assert_close(logits[step][:, place], drafted[step], rtol=0, atol=1e-5)

    theirs.save_pretrained(tmp_path / "theirs")
    back = import_drafter(tmp_path / "theirs", target=target)
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    for name in ("aux_layer_ids", "rope_parameters", "rms_norm_eps", "head_dim", "norm_output", "fc_norm"):
        assert getattr(back.config, name) == getattr(drafter.config, name), name

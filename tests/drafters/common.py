# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`DrafterTesterMixin`: what every drafter family must do. A family's test class says how to make one."""

import copy
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, GenerationConfig

from ppow_hf import AutoDrafter, DrafterModel, WindowConfig

from ..testing_utils import tiny_target

VOCAB = 96
# Another model keeps its sums in another order, and transformers' norms work in float32: not more can be asked.
FLOAT32 = {"rtol": 1e-4, "atol": 1e-4}


class Text:
    """Random text with target features, as far as a drafter reads them, in a batch of rows."""

    def __init__(self, drafter: DrafterModel, length: int, batch: int = 1, seed: int = 1):
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(0, VOCAB, (batch, length), generator=generator)
        width = len(drafter.feature_layer_ids) * getattr(drafter.config, "target_hidden_size", 0)
        self.features = torch.randn(batch, length, width, generator=generator) if width else None
        self.committed = 0

    def extend(self, drafter, state, count: int, accepted: int = 0) -> torch.Tensor:
        """Commits the next `count` tokens."""
        tokens = self.tokens[:, self.committed : self.committed + count]
        features = None
        if self.features is not None:
            # The last committed token has not been through the target yet.
            features = self.features[:, max(self.committed - 1, 0) : self.committed + count - 1]
        self.committed += count
        return drafter.extend(state, tokens, features, accepted)


def save_with(drafter: DrafterModel, folder, change) -> str:
    """Saves a drafter with `change` applied to its dict of weights."""
    drafter.save_pretrained(folder)
    path = os.path.join(folder, "model.safetensors")
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    return str(folder)


class DrafterTesterMixin:
    """
    Subclasses give `config_class`, `model_class`, `make_drafter(target)`, `weight_name` (some saved weight that is not
    tied) and `reference_logits(drafter, target, tokens, features, drafted)` for one row of text, computed without a
    cache.
    """

    def make_target(self, **kwargs):
        return tiny_target(vocab_size=VOCAB, **kwargs)

    @pytest.fixture
    def target(self):
        return self.make_target()

    @pytest.fixture
    def drafter(self, target):
        return self.make_drafter(target)

    # ---- configuration ---------------------------------------------------------------------------------------

    def test_config_round_trip(self, drafter, tmp_path):
        config = drafter.config
        assert isinstance(config, self.config_class)
        config.save_pretrained(tmp_path)
        for loaded in (
            self.config_class.from_pretrained(tmp_path),
            AutoConfig.from_pretrained(tmp_path),
            self.config_class.from_dict(config.to_dict()),
            copy.deepcopy(config),
        ):
            assert type(loaded) is self.config_class
            # `AutoConfig` notes where it read the file.
            assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
        json.loads(config.to_json_string())

    def test_config_records_the_target(self, drafter, target):
        config = drafter.config
        assert config.vocab_size == VOCAB
        assert config.target_model_type == target.config.model_type
        assert config.target_num_hidden_layers == target.config.num_hidden_layers

    def test_config_default_construction(self):
        config = self.config_class()
        assert config.draft_vocab_size == config.vocab_size
        assert self.config_class.from_dict(config.to_dict()).to_dict() == config.to_dict()

    @pytest.mark.parametrize("size", [0, -3, VOCAB + 1])
    def test_config_refuses_bad_draft_vocabulary(self, drafter, size):
        values = {**drafter.config.to_dict(), "draft_vocab_size": size}
        with pytest.raises(Exception, match="draft_vocab_size"):
            self.config_class.from_dict(values)

    # ---- saving and loading ----------------------------------------------------------------------------------

    def assert_same(self, first: DrafterModel, second: DrafterModel, target) -> None:
        assert type(second) is self.model_class
        mine, theirs = first.state_dict(), second.state_dict()
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name
        # Loaded weights lie in the file's pages, at whatever address it gives them, and where memory is not aligned
        # kernels add up in another order. Copies lie where torch allocates: what still differs is the drafters' own.
        logits = []
        for drafter in (copy.deepcopy(first), copy.deepcopy(second)):
            drafter.bind_target(target)
            text, state = Text(drafter, 6), drafter.new_state()
            logits.append([text.extend(drafter, state, 6), drafter.step(state, torch.tensor([5]))])
        assert torch.equal(logits[0][0], logits[1][0])
        assert torch.equal(logits[0][1], logits[1][1])

    @pytest.mark.parametrize("loader", ["AutoDrafter", "AutoModel", "family"])
    def test_save_and_load_is_bit_equal(self, drafter, target, tmp_path, loader):
        drafter.save_pretrained(tmp_path)
        classes = {"AutoDrafter": AutoDrafter, "AutoModel": AutoModel, "family": self.model_class}
        loaded = classes[loader].from_pretrained(tmp_path)
        assert not loaded.training
        self.assert_same(drafter, loaded, target)
        again = tmp_path / "again"
        loaded.save_pretrained(again)
        first, second = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path, again))
        assert first == second

    def test_save_and_load_in_bfloat16(self, drafter, target, tmp_path):
        drafter.save_pretrained(tmp_path)
        loaded = AutoDrafter.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert loaded.dtype == torch.bfloat16
        for name, tensor in loaded.state_dict().items():
            mine = drafter.state_dict()[name]
            assert torch.equal(tensor, mine.bfloat16() if mine.is_floating_point() else mine), name
        loaded.bind_target(target)
        text, state = Text(loaded, 6), loaded.new_state()
        logits = text.extend(loaded, state, 6)
        exact = Text(drafter, 6).extend(drafter, drafter.new_state(), 6)
        assert (logits.float() - exact).abs().max() < 0.1 * exact.abs().max()

    def test_generation_config_with_window_round_trip(self, drafter, tmp_path):
        window = WindowConfig(policy="fixed", size=7, threshold=0.25)
        drafter.generation_config.window = window
        drafter.generation_config.temperature = 0.5
        drafter.generation_config.do_sample = True
        drafter.save_pretrained(tmp_path)
        assert drafter.generation_config.window is window  # Saving leaves the drafter as it was.
        stored = json.loads((tmp_path / "generation_config.json").read_text())
        assert stored["window"]["policy"] == "fixed"
        loaded = AutoDrafter.from_pretrained(tmp_path).generation_config
        assert type(loaded) is GenerationConfig
        assert loaded.window == window
        assert type(loaded.window) is WindowConfig
        assert loaded.temperature == 0.5
        assert loaded.bos_token_id == drafter.generation_config.bos_token_id == 1

    def test_no_generation_config_file(self, drafter, tmp_path):
        drafter.save_pretrained(tmp_path)
        os.remove(tmp_path / "generation_config.json")
        loaded = AutoDrafter.from_pretrained(tmp_path)
        assert loaded.generation_config.bos_token_id == 1

    @pytest.mark.parametrize("content", ['{"window": {"policy": "fix', '{"window": {"policy": "no_such_policy"}}'])
    def test_damaged_generation_config_is_refused(self, drafter, tmp_path, content):
        drafter.save_pretrained(tmp_path)
        (tmp_path / "generation_config.json").write_text(content)
        with pytest.raises((OSError, ValueError), match="JSON|no_such_policy"):
            AutoDrafter.from_pretrained(tmp_path)

    def test_missing_weight_is_refused(self, drafter, tmp_path):
        folder = save_with(drafter, tmp_path, lambda weights: weights.pop(self.weight_name))
        with pytest.raises(ValueError, match=f"missing weights.*{self.weight_name}"):
            AutoDrafter.from_pretrained(folder)

    def test_unknown_weight_is_refused(self, drafter, tmp_path):
        folder = save_with(drafter, tmp_path, lambda weights: weights.update(nonsense=torch.ones(3)))
        with pytest.raises(ValueError, match="unknown weights.*nonsense"):
            AutoDrafter.from_pretrained(folder)

    @pytest.mark.parametrize("ignore", [False, True])
    def test_misshaped_weight_is_refused(self, drafter, tmp_path, ignore):
        folder = save_with(drafter, tmp_path, lambda weights: weights.update({self.weight_name: torch.ones(3, 5)}))
        with pytest.raises(ValueError, match=rf"`{self.weight_name}` has shape \(3, 5\) instead of"):
            AutoDrafter.from_pretrained(folder, ignore_mismatched_sizes=ignore)

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_truncated_weights_are_refused(self, drafter, tmp_path, share):
        drafter.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(OSError, match="truncated or damaged"):
            AutoDrafter.from_pretrained(tmp_path)

    def test_missing_files_are_refused(self, drafter, tmp_path):
        drafter.save_pretrained(tmp_path)
        os.remove(tmp_path / "model.safetensors")
        with pytest.raises(OSError, match=f"`{tmp_path}` holds no weights.*`save_pretrained`.*model.safetensors"):
            AutoDrafter.from_pretrained(tmp_path)
        os.remove(tmp_path / "config.json")
        with pytest.raises(OSError, match=f"`{tmp_path}` holds no drafter.*config.json"):
            AutoDrafter.from_pretrained(tmp_path)

    # ---- the tie to a target ---------------------------------------------------------------------------------

    def test_bind_target_is_idempotent_and_adds_nothing(self, drafter, target):
        before = {name: tensor.clone() for name, tensor in drafter.state_dict().items()}
        modules = set(dict(drafter.named_modules()))
        for _ in range(3):
            drafter.bind_target(target)
        assert drafter.state_dict().keys() == before.keys()
        assert set(dict(drafter.named_modules())) == modules
        assert all(torch.equal(before[name], tensor) for name, tensor in drafter.state_dict().items())
        theirs = {parameter.data_ptr() for parameter in target.parameters()}
        assert not theirs & {parameter.data_ptr() for parameter in drafter.parameters()}

    def test_bind_target_refuses_another_vocabulary(self, drafter):
        with pytest.raises(ValueError, match=r"vocabulary of 80 tokens.*`vocab_size`=96"):
            drafter.bind_target(tiny_target(vocab_size=80))

    def test_a_copy_is_independent(self, drafter, target):
        copied = copy.deepcopy(drafter)
        theirs = {parameter.data_ptr() for parameter in drafter.parameters()}
        assert not theirs & {parameter.data_ptr() for parameter in copied.parameters()}
        self.assert_same(drafter, copied, target)

    # ---- decoding --------------------------------------------------------------------------------------------

    def check(self, drafter, target, text, drafted, logits):
        for row in range(len(text.tokens)):
            features = None if text.features is None else text.features[row, : text.committed - 1]
            with torch.no_grad():
                expected = self.reference_logits(
                    drafter, target, text.tokens[row, : text.committed], features, drafted[row]
                )
            assert logits[row].shape == (drafter.config.draft_vocab_size,)
            torch.testing.assert_close(logits[row].float(), expected.float(), **FLOAT32)

    @pytest.mark.parametrize("batch", [1, 3])
    def test_extend_and_step_equal_recomputing(self, drafter, target, batch):
        text, state = Text(drafter, 18, batch=batch), drafter.new_state(batch)
        drafted = torch.empty(batch, 0, dtype=torch.long)
        accepted = 0
        # After each window: how many of its draft tokens are accepted. The window has one more token than steps.
        for steps, next_accepted in ((3, 2), (2, 0), (4, 5), (0, 1), (0, 0), (3, 4)):
            count = 4 if text.committed == 0 else accepted + 1
            if text.committed:
                # The accepted tokens become the text.
                text.tokens[:, text.committed : text.committed + accepted] = drafted[:, :accepted]
            logits = text.extend(drafter, state, count, accepted)
            self.check(drafter, target, text, drafted[:, :0], logits)
            drafted = torch.empty(batch, 0, dtype=torch.long)
            for _ in range(steps):
                drafted = torch.cat([drafted, torch.randint(0, VOCAB, (batch, 1))], dim=1)
                logits = drafter.step(state, drafted[:, -1])
                self.check(drafter, target, text, drafted, logits)
            # The last draft token of a window is verified without being fed back.
            drafted = torch.cat([drafted, torch.randint(0, VOCAB, (batch, 1))], dim=1)
            accepted = next_accepted

    @pytest.mark.parametrize("accepted", [0, 1, 3, 4])
    def test_rewinding_equals_a_fresh_state(self, drafter, accepted):
        """A state that has drafted and seen drafts rejected is the state of a drafter that never drafted."""
        drafted = torch.randint(0, VOCAB, (2, 4))
        text = Text(drafter, 12, batch=2)
        text.tokens[:, 5 : 5 + accepted] = drafted[:, :accepted]
        used = drafter.new_state(2)
        text.extend(drafter, used, 5)
        for i in range(3):
            drafter.step(used, drafted[:, i])
        first = text.extend(drafter, used, accepted + 1, accepted)

        again, fresh = Text(drafter, 12, batch=2), drafter.new_state(2)
        again.tokens = text.tokens
        second = again.extend(drafter, fresh, 5 + accepted + 1)
        assert (used.committed, used.drafted) == (fresh.committed, fresh.drafted)
        assert used.cache.get_seq_length() == fresh.cache.get_seq_length() == used.committed
        torch.testing.assert_close(first, second, **FLOAT32)
        for mine, theirs in zip(used.cache.layers, fresh.cache.layers, strict=True):
            torch.testing.assert_close(mine.keys, theirs.keys, **FLOAT32)
            torch.testing.assert_close(mine.values, theirs.values, **FLOAT32)
        for token in (7, 9):
            tokens = torch.tensor([token, token + 1])
            torch.testing.assert_close(drafter.step(used, tokens), drafter.step(fresh, tokens), **FLOAT32)

    def test_states_are_independent(self, drafter):
        """Two states used in turn do not see each other."""
        texts = [Text(drafter, 8, seed=seed) for seed in (1, 2)]
        states = [drafter.new_state(), drafter.new_state()]
        mixed = [text.extend(drafter, state, 5) for text, state in zip(texts, states, strict=True)]
        mixed += [drafter.step(state, torch.tensor([3])) for state in states]
        alone = []
        for seed in (1, 2):
            state = drafter.new_state()
            alone.append(
                (Text(drafter, 8, seed=seed).extend(drafter, state, 5), drafter.step(state, torch.tensor([3])))
            )
        for i in range(2):
            assert torch.equal(mixed[i], alone[i][0])
            assert torch.equal(mixed[2 + i], alone[i][1])

    def test_rows_of_a_batch_are_independent(self, drafter):
        text, state = Text(drafter, 8, batch=3), drafter.new_state(3)
        together = [text.extend(drafter, state, 5), drafter.step(state, torch.tensor([3, 4, 5]))]
        for row in range(3):
            single, state = Text(drafter, 8), drafter.new_state()
            single.tokens = text.tokens[row : row + 1]
            single.features = None if text.features is None else text.features[row : row + 1]
            alone = [single.extend(drafter, state, 5), drafter.step(state, torch.tensor([3 + row]))]
            for many, one in zip(together, alone, strict=True):
                torch.testing.assert_close(many[row : row + 1], one, **FLOAT32)

    def test_decoding_keeps_no_graph(self, drafter):
        state = drafter.new_state()
        assert not Text(drafter, 5).extend(drafter, state, 5).requires_grad
        assert not drafter.step(state, torch.tensor([3])).requires_grad

    def test_eager_equals_sdpa(self, drafter, target):
        results = []
        for attention in ("eager", "sdpa"):
            drafter.set_attn_implementation(attention)
            text, state = Text(drafter, 12, batch=2), drafter.new_state(2)
            logits = [text.extend(drafter, state, 6), drafter.step(state, torch.tensor([3, 4]))]
            logits += [text.extend(drafter, state, 3, 0), drafter.step(state, torch.tensor([3, 4]))]
            attention_mask = torch.ones(2, 12, dtype=torch.long)
            attention_mask[1, 8:] = 0
            trained = drafter(text.tokens, text.features, attention_mask=attention_mask).logits[0]
            results.append([*logits, trained[attention_mask.bool()]])
        for eager, sdpa in zip(*results, strict=True):
            torch.testing.assert_close(eager, sdpa, **FLOAT32)

    # ---- training --------------------------------------------------------------------------------------------

    def test_forward_is_differentiable_and_predicts_what_decoding_predicts(self, drafter):
        text = Text(drafter, 8, batch=2)
        output = drafter(text.tokens, text.features)
        assert len(output.logits) == 1
        assert output.logits[0].shape == (2, 8, drafter.config.draft_vocab_size)
        for column in range(8 - (drafter.prediction_offset - 1)):
            # The column that predicts position `n` is what decoding says after `n` committed tokens.
            count = column + drafter.prediction_offset
            again, state = Text(drafter, 8, batch=2), drafter.new_state(2)
            if count < 2:
                continue  # Decoding starts from a prompt and one generated token.
            torch.testing.assert_close(output.logits[0][:, column], again.extend(drafter, state, count), **FLOAT32)
        output.logits[0].square().mean().backward()
        for name, parameter in drafter.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name

    def test_forward_refuses_too_many_steps(self, drafter):
        text = Text(drafter, 8)
        for steps in (0, drafter.max_ttt_steps + 1):
            with pytest.raises(ValueError, match="`ttt_steps`"):
                drafter(text.tokens, text.features, ttt_steps=steps)

    def test_forward_under_bfloat16_autocast(self, drafter):
        text = Text(drafter, 8, batch=2)
        exact = drafter(text.tokens, text.features).logits[0]
        with torch.autocast("cpu", torch.bfloat16):
            output = drafter(text.tokens, text.features, ttt_steps=drafter.max_ttt_steps)
        output.logits[-1].float().logsumexp(-1).sum().backward()
        assert (output.logits[0].float() - exact).abs().max() < 0.1 * exact.abs().max()
        assert all(torch.isfinite(p.grad).all() for p in drafter.parameters() if p.grad is not None)

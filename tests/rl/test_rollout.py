# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Rollouts against the decoding interface (`extend` and `step`) and against the law they are drawn from."""

import pytest
import torch

from ppow_hf.rl.rollout import rollout_windows, text_mask

from ..drafters.common import VOCAB, Text
from ..drafters.reference_eagle3 import randomize_
from ..testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

STARTS = torch.tensor([[9, 2, -1], [12, 4, 5]])

FAMILIES = {
    "eagle3": lambda target: randomize_(tiny_eagle3(target, draft_vocab_size=40)),
    "eagle3_full_vocabulary": lambda target: randomize_(tiny_eagle3(target)),
    "causal_lm": tiny_causal_drafter,
    "causal_lm_sliding": lambda target: tiny_causal_drafter(tiny_target("gemma3_text", vocab_size=VOCAB)),
}


@pytest.fixture(scope="module")
def target():
    return tiny_target(vocab_size=VOCAB)


@pytest.fixture(params=FAMILIES)
def drafter(request, target):
    return FAMILIES[request.param](target)


def roll(drafter, text, starts=STARTS, seed=0, **options):
    options = {"window_size": 4, "group_size": 3, **options}
    generator = torch.Generator().manual_seed(seed)
    return rollout_windows(drafter, text.tokens, text.features, starts, generator=generator, **options)


def begin(drafter, text, row, start):
    state = drafter.new_state()
    features = None if text.features is None else text.features[row : row + 1, : start - 1]
    return state, drafter.extend(state, text.tokens[row : row + 1, :start], features)


def token_of(drafter, column: int) -> int:
    return column if drafter.draft_token_ids is None else int(drafter.draft_token_ids[column])


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("greedy_window", [False, True])
def test_log_probs_equal_rescoring_one_window_at_a_time(drafter, temperature, greedy_window):
    text = Text(drafter, 12, batch=2)
    rollouts = roll(drafter, text, temperature=temperature, greedy_window=greedy_window)
    assert rollouts.tokens.shape == rollouts.columns.shape == rollouts.log_probs.shape == (2, 3, 3, 4)
    assert rollouts.log_probs.dtype == torch.float32
    assert not rollouts.log_probs.requires_grad
    assert torch.equal(rollouts.mask, (STARTS >= 0)[..., None, None].expand(2, 3, 3, 4))
    for row, place in (STARTS >= 0).nonzero().tolist():
        for g in range(3):
            state, logits = begin(drafter, text, row, int(STARTS[row, place]))
            for k in range(4):
                column = int(rollouts.columns[row, place, g, k])
                token = rollouts.tokens[row, place, g, k]
                assert int(token) == token_of(drafter, column)
                exact = (logits[0].double() / temperature).log_softmax(-1)[column]
                assert rollouts.log_probs[row, place, g, k].item() == pytest.approx(exact.item(), abs=2e-5)
                logits = drafter.step(state, token[None])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_follow_the_draft_distribution(drafter, temperature):
    """Chi-square of first tokens, and of second tokens behind the most frequent first one, against the exact law."""
    text = Text(drafter, 12)
    starts, group = torch.tensor([[7]]), 2500
    rollouts = roll(drafter, text, starts, window_size=2, group_size=group, temperature=temperature)
    first, second = rollouts.columns[0, 0].unbind(-1)
    state, logits = begin(drafter, text, 0, 7)
    assert_drawn_from((logits[0] / temperature).softmax(-1), first)
    mode = int(first.mode().values)
    behind = second[first == mode]
    assert len(behind) > 100
    logits = drafter.step(state, torch.tensor([token_of(drafter, mode)]))
    assert_drawn_from((logits[0] / temperature).softmax(-1), behind)


def assert_drawn_from(law: torch.Tensor, drawn: torch.Tensor) -> None:
    expected = law.double() * len(drawn)
    counts = torch.bincount(drawn, minlength=len(law)).double()
    rare = expected < 8
    # Rare tokens together are one class, as the test needs.
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    enough = expected > 1
    freedom = int(enough.sum()) - 1
    assert freedom >= 2, "the law is too sharp to test anything"
    chi_square = ((counts - expected).square() / expected)[enough].sum().item()
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5, f"chi-square {chi_square:.1f} at {freedom} degrees"


def test_drawing_in_blocks_of_rows_changes_nothing(drafter, monkeypatch):
    text = Text(drafter, 12, batch=2)
    whole = roll(drafter, text, group_size=5, greedy_window=True)
    monkeypatch.setattr("ppow_hf.rl.rollout.ROWS_IN_CACHE", 7)  # 30 rows
    blocks = roll(drafter, text, group_size=5, greedy_window=True)
    assert torch.equal(blocks.tokens, whole.tokens)
    torch.testing.assert_close(blocks.log_probs, whole.log_probs, rtol=0, atol=1e-6)


def test_the_greedy_window_is_the_first_of_every_group(drafter):
    text = Text(drafter, 12, batch=2)
    plain, mixed = roll(drafter, text), roll(drafter, text, greedy_window=True)
    assert torch.equal(plain.tokens[:, :, 1:], mixed.tokens[:, :, 1:]), "the others are drawn as before"
    different = 0
    for row, place in (STARTS >= 0).nonzero().tolist():
        state, logits = begin(drafter, text, row, int(STARTS[row, place]))
        greedy = []
        for _ in range(4):
            greedy.append(token_of(drafter, int(logits.argmax())))
            logits = drafter.step(state, torch.tensor(greedy[-1:]))
        assert mixed.tokens[row, place, 0].tolist() == greedy
        different += plain.tokens[row, place, 0].tolist() != greedy
    assert different > 0


def test_nothing_counts_behind_the_end_of_the_text(drafter):
    text = Text(drafter, 12, batch=2)
    free = roll(drafter, text, group_size=8)
    ends = frozenset(free.tokens[0, 0, :, 1].tolist()[:2])
    rollouts = roll(drafter, text, group_size=8, eos_token_ids=ends)
    assert torch.equal(rollouts.tokens, free.tokens), "the end is masked, not drawn differently"
    cut = 0
    for row, place in (STARTS >= 0).nonzero().tolist():
        for window, mask in zip(rollouts.tokens[row, place].tolist(), rollouts.mask[row, place].tolist(), strict=True):
            at = next((k for k, token in enumerate(window) if token in ends), len(window))
            assert mask == [k <= at for k in range(len(window))]
            cut += at < 3
    assert cut >= 2
    assert not rollouts.mask[0, 2].any()


def test_text_mask_ends_with_the_first_end():
    tokens = torch.tensor([[1, 9, 2, 9], [9, 9, 1, 1], [1, 2, 3, 4], [1, 2, 3, 8]])
    assert text_mask(tokens, frozenset({8, 9})).tolist() == [
        [True, True, False, False],
        [True, False, False, False],
        [True, True, True, True],
        [True, True, True, True],
    ]
    assert text_mask(tokens, frozenset()).all()


def test_a_seed_gives_the_same_windows_and_leaves_the_global_generator_alone(drafter):
    text = Text(drafter, 12, batch=2)
    before = torch.get_rng_state()
    first, again, other = (roll(drafter, text, seed=seed, window_size=6) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.log_probs, again.log_probs)
    assert not torch.equal(first.tokens, other.tokens)


def test_low_temperature_is_greedy(drafter):
    text = Text(drafter, 12, batch=2)
    rollouts = roll(drafter, text, temperature=1e-4, greedy_window=True)
    real = rollouts.tokens[STARTS >= 0]
    assert torch.equal(real, real[:, :1].expand_as(real))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_size": 0}, "`window_size` must be at least 1, got 0"),
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0.*greedy_window"),
        ({"temperature": -1.0}, "`temperature` must be positive"),
        ({"group_size": 0}, "`group_size` must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(drafter, options, message):
    with pytest.raises(ValueError, match=message):
        roll(drafter, Text(drafter, 12, batch=2), **options)

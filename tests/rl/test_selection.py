# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import math

import pytest
import torch

from ppow_hf.rl import WindowSchedule, eligible_starts, select_windows


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def naive_eligible(loss_mask, window_size):
    batch, length = loss_mask.shape
    eligible = torch.zeros(batch, length, dtype=torch.bool)
    for row in range(batch):
        for n in range(length):
            needed = range(n - 1, n + window_size)
            eligible[row, n] = all(0 <= t < length and bool(loss_mask[row, t]) for t in needed)
    return eligible


def exact_law(weights, num_windows, min_distance=1):
    """
    Probability of every set of starts, by walking through all orders in which they can be drawn: each draw in
    proportion to the weights of what is still allowed, uniformly where these are all 0.
    """
    law = {}

    def walk(drawn, probability):
        allowed = {n: w for n, w in weights.items() if all(abs(n - m) >= min_distance for m in drawn)}
        if len(drawn) == num_windows or not allowed:
            key = tuple(sorted(drawn))
            law[key] = law.get(key, 0.0) + probability
            return
        total = sum(allowed.values())
        for n, w in allowed.items():
            share = w / total if total > 0 else 1 / len(allowed)
            if share > 0:
                walk(drawn + [n], probability * share)

    walk([], 1.0)
    assert sum(law.values()) == pytest.approx(1)
    return law


def drawn_sets(weights, num_windows, count, **kwargs):
    """Sets of starts drawn in `count` equal rows whose eligible starts and values are those of `weights`."""
    length = max(weights) + 1
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[:, min(weights) - 1 :] = True
    values = torch.zeros(1, length)
    for n, w in weights.items():
        values[0, n] = w
    assert naive_eligible(mask, 1)[0].nonzero().flatten().tolist() == sorted(weights)
    selected = select_windows(
        mask.expand(count, -1), 1, num_windows, values=values.expand(count, -1), generator=seeded(), **kwargs
    )
    counts = {}
    for row in selected.starts.tolist():
        key = tuple(n for n in row if n >= 0)
        counts[key] = counts.get(key, 0) + 1
    return counts


def excess(counts, law):
    """Pearson's chi-square in standard deviations above its mean; infinite where an impossible set was drawn."""
    if set(counts) - set(law):
        return math.inf
    total = sum(counts.values())
    chi2 = sum((counts.get(key, 0) - total * p) ** 2 / (total * p) for key, p in law.items())
    degrees = len(law) - 1
    return (chi2 - degrees) / math.sqrt(2 * degrees)


WEIGHTS = {3: 0.2, 4: 5.0, 5: 1.0, 6: 2.0, 7: 0.5}
UNIFORM = dict.fromkeys(WEIGHTS, 1.0)


@pytest.mark.parametrize("window_size", [1, 2, 5, 30])
def test_eligibility_against_a_naive_loop(window_size):
    loss_mask = torch.rand(6, 24) < 0.85
    loss_mask[0], loss_mask[1] = True, False
    loss_mask[2] = torch.arange(24) >= 10
    for mask in (loss_mask, loss_mask.long()):
        actual = eligible_starts(mask, window_size)
        assert actual.dtype == torch.bool
        assert torch.equal(actual, naive_eligible(loss_mask, window_size))
    if window_size == 5:
        # The response starts at 10: the first draft token follows its first token, the last window ends with the row.
        assert actual[2].nonzero().flatten().tolist() == list(range(11, 20))


@pytest.mark.parametrize("num_windows", [1, 2, 3])
@pytest.mark.parametrize("min_distance", [1, 2])
@pytest.mark.parametrize("uniform_share", [0.0, 0.4, 1.0])
def test_frequencies_follow_the_stated_law(num_windows, min_distance, uniform_share):
    total = sum(WEIGHTS.values())
    mixed = {n: (1 - uniform_share) * w / total + uniform_share / len(WEIGHTS) for n, w in WEIGHTS.items()}
    counts = drawn_sets(WEIGHTS, num_windows, 20000, min_distance=min_distance, uniform_share=uniform_share)
    assert excess(counts, exact_law(mixed, num_windows, min_distance)) < 4
    # The test has the power to tell the law from its neighbours: the other end of the mixture, and a sharper law.
    others = [WEIGHTS if uniform_share else UNIFORM]
    if uniform_share < 1:
        others.append({n: w**2 for n, w in mixed.items()})
    for other in others:
        assert excess(counts, exact_law(other, num_windows, min_distance)) > 20


def test_successive_draws_are_not_independent_draws():
    # Drawing pairs in proportion to the product of their weights is another law, and must be told apart.
    counts = drawn_sets(WEIGHTS, 2, 20000)
    pairs = {(a, b): WEIGHTS[a] * WEIGHTS[b] for a in WEIGHTS for b in WEIGHTS if a < b}
    product = {key: p / sum(pairs.values()) for key, p in pairs.items()}
    assert excess(counts, exact_law(WEIGHTS, 2)) < 4 < 20 < excess(counts, product)


def test_inclusion_probabilities():
    law = exact_law(WEIGHTS, 2)
    counts = drawn_sets(WEIGHTS, 2, 20000)
    for n in WEIGHTS:
        expected = sum(p for key, p in law.items() if n in key)
        observed = sum(c for key, c in counts.items() if n in key) / 20000
        assert abs(observed - expected) < 4.5 * math.sqrt(expected * (1 - expected) / 20000)


def test_without_values_the_draw_is_uniform():
    mask = torch.zeros(20000, 8, dtype=torch.bool)
    mask[:, 2:] = True
    counts = {}
    for row in select_windows(mask, 1, 2, generator=seeded()).starts.tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert excess(counts, exact_law(UNIFORM, 2)) < 4


def test_all_zero_values_fall_back_to_uniform():
    zero = dict.fromkeys(WEIGHTS, 0.0)
    assert excess(drawn_sets(zero, 2, 20000), exact_law(UNIFORM, 2)) < 4


def test_weightless_starts_come_last_and_uniformly():
    weights = {3: 0.0, 4: 1.0, 5: 0.0, 6: 1e-30, 7: 0.0}
    counts = drawn_sets(weights, 3, 20000)
    assert all(4 in key and 6 in key for key in counts)
    assert excess(counts, exact_law(weights, 3)) < 4
    assert set(drawn_sets(weights, 2, 100)) == {(4, 6)}


@pytest.mark.parametrize("use_values", [False, True])
@pytest.mark.parametrize("min_distance", [1, 4])
def test_starts_are_eligible_distinct_ascending_and_apart(use_values, min_distance):
    loss_mask = torch.rand(40, 60) < 0.93
    loss_mask[7], loss_mask[8] = False, True
    values = torch.rand(40, 60) ** 8 if use_values else None
    selected = select_windows(loss_mask, 4, 6, values=values, min_distance=min_distance, generator=seeded())
    eligible = naive_eligible(loss_mask, 4)
    assert torch.equal(selected.eligible, eligible)
    assert selected.starts.shape == (40, 6) and selected.starts.dtype == torch.long
    assert selected.skipped_rows == int((~eligible.any(1)).sum()) >= 1
    for row, starts in enumerate(selected.starts.tolist()):
        chosen = [n for n in starts if n >= 0]
        assert starts == chosen + [-1] * (6 - len(chosen))
        assert all(eligible[row, n] for n in chosen)
        assert all(b - a >= min_distance for a, b in zip(chosen, chosen[1:], strict=False))
        allowed = eligible[row].nonzero().flatten().tolist()
        left = [n for n in allowed if all(abs(n - m) >= min_distance for m in chosen)]
        assert len(chosen) == 6 or not left
    assert selected.num_selected == sum(n >= 0 for row in selected.starts.tolist() for n in row)
    assert torch.equal(selected.mask, selected.starts >= 0)


def test_rows_too_short_are_counted():
    loss_mask = torch.zeros(3, 8, dtype=torch.bool)
    loss_mask[0, 3:] = True  # one start: the row's five tokens are the token before it and four draft tokens
    loss_mask[1, 4:] = True
    selected = select_windows(loss_mask, 4, 2, generator=seeded())
    assert selected.starts.tolist() == [[4, -1], [-1, -1], [-1, -1]]
    assert selected.skipped_rows == 2 and selected.num_selected == 1
    nothing = select_windows(loss_mask[1:], 4, 2, values=torch.zeros(2, 8), generator=seeded())
    assert nothing.starts.tolist() == [[-1, -1]] * 2 and nothing.skipped_rows == 2
    assert nothing.sums_of(torch.ones(2, 8)) == ((0.0, 0.0), (0.0, 0.0))
    assert select_windows(loss_mask[:, :0], 4, 2, generator=seeded()).starts.tolist() == [[-1, -1]] * 3


def test_sums_of_values():
    loss_mask = torch.zeros(2, 5, dtype=torch.bool)
    loss_mask[0, 1:] = True
    values = torch.tensor([[9.0, 9.0, 1.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0, 9.0]])
    selected = select_windows(loss_mask, 1, 1, values=values, generator=seeded())
    assert selected.starts.tolist() == [[2], [-1]]
    assert selected.sums_of(values) == ((1.0, 1.0), (1.0, 3.0))


def test_determinism():
    loss_mask, values = torch.ones(8, 50), torch.rand(8, 50)
    kwargs = {"values": values, "uniform_share": 0.2, "min_distance": 2}
    first = select_windows(loss_mask, 5, 4, generator=seeded(3), **kwargs).starts
    torch.rand(100)  # the global random state does not matter
    assert torch.equal(first, select_windows(loss_mask, 5, 4, generator=seeded(3), **kwargs).starts)
    assert not torch.equal(first, select_windows(loss_mask, 5, 4, generator=seeded(4), **kwargs).starts)
    # The generator ends in the same state whichever law was used: what follows a switch does not depend on it.
    adaw, uniform = seeded(), seeded()
    select_windows(loss_mask, 5, 4, generator=adaw, **kwargs)
    select_windows(loss_mask, 5, 4, generator=uniform)
    assert torch.equal(adaw.get_state(), uniform.get_state())


def test_the_scale_of_the_values_does_not_matter():
    loss_mask, values = torch.ones(8, 50), torch.rand(8, 50, dtype=torch.float64)
    starts = [
        select_windows(loss_mask, 5, 4, values=values * scale, generator=seeded()).starts
        for scale in (1.0, 1e-200, 1e200)
    ]
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2])


def test_bad_input():
    mask = torch.ones(2, 9, dtype=torch.bool)
    for kwargs, message in [
        ({"window_size": 0}, "`window_size` must be at least 1"),
        ({"num_windows": 0}, "`num_windows` must be at least 1"),
        ({"min_distance": 0}, "`min_distance` must be at least 1"),
        ({"uniform_share": -0.1}, "`uniform_share` must be in"),
        ({"uniform_share": 1.1}, "`uniform_share` must be in"),
        ({"uniform_share": math.nan}, "`uniform_share` must be in"),
        ({"values": torch.ones(2, 8)}, r"shape of `loss_mask`, \(2, 9\), got \(2, 8\)"),
        ({"loss_mask": mask[0]}, "`loss_mask` must have shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            select_windows(**{"loss_mask": mask, "window_size": 2, "num_windows": 1, "generator": seeded(), **kwargs})
    for bad in (math.nan, math.inf, -1e-3):
        values = torch.ones(2, 9)
        values[:, 0] = bad  # never a start: its value is not read
        select_windows(mask, 2, 1, values=values, generator=seeded())
        values[1, 5] = bad
        with pytest.raises(ValueError, match="`values` must be finite and not negative"):
            select_windows(mask, 2, 1, values=values, generator=seeded())


def laws(schedule, steps):
    return [schedule.law(step) for step in range(steps)]


@pytest.mark.parametrize(
    ("warmup", "total", "uniform_steps"),
    [(0, None, 0), (0.0, 10, 0), (1, None, 1), (1.0, 10, 1), (4, None, 4), (0.25, 8, 2), (0.3, 8, 3), (0.07, 100, 7)],
)
def test_schedule(warmup, total, uniform_steps):
    schedule = WindowSchedule("adaw", warmup, total)
    assert schedule.warmup_steps == uniform_steps
    assert laws(schedule, 10) == ["uniform"] * uniform_steps + ["adaw"] * (10 - uniform_steps)


def test_a_share_follows_the_time_where_time_is_the_limit():
    schedule = WindowSchedule("adaw", 0.3, 10)
    assert [schedule.law(step, fraction) for step, fraction in ((0, 0.3), (9, 0.29), (3, None), (2, None))] == [
        "adaw", "uniform", "adaw", "uniform",
    ]  # fmt: skip
    # Steps are steps, and uniform is uniform.
    assert [WindowSchedule("adaw", 4, 10).law(step, 0.9) for step in (3, 4)] == ["uniform", "adaw"]
    assert WindowSchedule("adaw", 0, 10).law(0, 0.0) == "adaw"
    assert WindowSchedule("uniform", 0.3, 10).law(9, 0.9) == "uniform"


def test_uniform_schedule_never_switches():
    assert laws(WindowSchedule("uniform", 0), 10) == ["uniform"] * 10
    assert laws(WindowSchedule("uniform", 0.1), 10) == ["uniform"] * 10


def test_schedule_bad_input():
    with pytest.raises(ValueError, match="`window_selection` must be one of"):
        WindowSchedule("critical")
    for bad in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="`adaw_warmup` must be a finite number"):
            WindowSchedule("adaw", bad, 10)
    with pytest.raises(ValueError, match="must be whole"):
        WindowSchedule("adaw", 2.5, 10)
    for total in (None, 0):
        with pytest.raises(ValueError, match="`total_steps` must be at least 1"):
            WindowSchedule("adaw", 0.5, total)

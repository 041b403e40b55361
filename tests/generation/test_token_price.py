# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The price of one more draft token, against sums done by hand and an exhaustive search."""

import random

import pytest

from ppow_hf.generation.token_price import price_of_next


def test_worked_example():
    verify = [1.0, 1.1, 1.5, 1.5]
    assert price_of_next(verify, 0, 0.5, gamma=0.0) == pytest.approx(0.1)
    # The second token alone costs 0.4; with a third one behind it, accepted half of the time, 0.4 / 1.5.
    assert price_of_next(verify, 1, 0.5, gamma=0.0) == pytest.approx(0.4 / 1.5)
    assert price_of_next(verify, 1, 0.5, gamma=0.05, first=0.1) == pytest.approx((0.1 + 0.05 + 0.4) / 1.5)
    # Drafting a third one would cost more than it brings.
    assert price_of_next(verify, 1, 0.5, gamma=0.3) == pytest.approx(0.4)
    assert price_of_next(verify, 2, 0.5, gamma=0.0) == 0.0
    assert price_of_next(verify, 3, 0.5, gamma=0.0) == float("inf")


def test_of_a_convex_curve_it_is_what_the_token_alone_costs():
    verify = [1.0 + 0.02 * n + 0.004 * n * n for n in range(12)]
    for count in range(11):
        for onward in (0.0, 0.5, 1.0):
            found = price_of_next(verify, count, onward, gamma=0.05, first=0.05)
            assert found == pytest.approx(0.05 + verify[count + 1] - verify[count])


def test_a_token_pays_where_some_number_of_tokens_does():
    generator = random.Random(0)
    for _ in range(300):
        steps = [generator.choice([0.0, 0.05, 0.4]) for _ in range(8)]
        verify = [1.0 + sum(steps[:n]) for n in range(9)]
        chance, onward, gamma, rate = (generator.uniform(low, 1.0) for low in (0.0, 0.2, 0.0, 0.5))
        count = generator.randint(0, 7)
        worth = [
            sum(chance * onward**i for i in range(j)) - rate * (gamma * j + verify[count + j] - verify[count])
            for j in range(1, 9 - count)
        ]
        price = price_of_next(verify, count, onward, gamma, first=gamma)
        assert (chance > rate * price) == (max(worth) > 0.0)

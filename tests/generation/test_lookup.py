# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The lookup index against a naive search of the whole text, and the acceptance estimate of looked-up tokens."""

import math
import random
import subprocess
import sys

import pytest

from ppow_hf.generation import LookupAcceptance, LookupIndex, LookupMatch
from ppow_hf.generation.lookup_acceptance import prior_acceptance


def naive_match(tokens, max_ngram, min_ngram, max_match, path=()):
    """
    `(position, length, seen, repeated)` of the longest n-gram's last earlier occurrence, by reading everything. What
    follows it stands in the text, where the end of the text is looked for with the path behind it.
    """
    known, tokens = len(tokens), [*tokens, *path]
    end = len(tokens)
    for n in range(min(max_ngram, end), min_ngram - 1, -1):
        suffix = tokens[end - n :]
        followers = [i + n for i in range(min(end, known) - n) if tokens[i : i + n] == suffix]
        if not followers:
            continue
        position = followers[-1]
        length = 0
        while length < min(max_match, position) and tokens[position - 1 - length] == tokens[end - 1 - length]:
            length += 1
        repeated = sum(tokens[a] == tokens[b] for a, b in zip(followers, followers[1:], strict=False))
        return position, length, len(followers), repeated
    return None


def naive_proposal(tokens, position, count):
    """Copies token by token; what was copied can be copied again."""
    text = list(tokens)
    for i in range(count):
        text.append(text[position + i])
    return text[len(tokens) :]


@pytest.mark.parametrize("max_ngram, min_ngram, max_match", [(4, 1, 32), (3, 2, 3), (1, 1, 6), (6, 3, 9)])
@pytest.mark.parametrize("vocabulary", [2, 3, 8, 40])
def test_equals_the_naive_search(max_ngram, min_ngram, max_match, vocabulary):
    random.seed(vocabulary)
    index = LookupIndex(max_ngram, min_ngram, max_match)
    tokens = []
    found = behind = 0
    for _ in range(250):
        expected = naive_match(tokens, max_ngram, min_ngram, max_match)
        match = index.match
        if expected is None:
            assert match is None and index.propose(5) == []
        else:
            found += 1
            assert (match.position, match.length, match.seen, match.repeated) == expected
            assert index.propose(12) == naive_proposal(tokens, match.position, 12)
            assert index.propose(3) == index.propose(12)[:3]
        # The text going on, as a drafter might have it, or as it did elsewhere.
        begin = random.randrange(len(tokens) + 1)
        for path in ([random.randrange(vocabulary)], [*tokens[begin : begin + 3], random.randrange(vocabulary)]):
            expected, match = naive_match(tokens, max_ngram, min_ngram, max_match, path), index.match_behind(path)
            assert (match is None) == (expected is None)
            if match is not None:
                behind += 1
                assert (match.position, match.length, match.seen, match.repeated) == expected
                assert index.follow(match, 12, path) == naive_proposal([*tokens, *path], match.position, 12)
        # Whole phrases now and then, as texts have them.
        start = random.randrange(len(tokens)) if tokens and random.random() < 0.2 else None
        new = [random.randrange(vocabulary)] if start is None else tokens[start : start + 5]
        tokens += new
        index.extend(new)
    assert found > 20 and behind > 10 and index.tokens == tokens and len(index) == len(tokens)


def test_proposals_do_not_change_the_text():
    index = LookupIndex()
    index.extend([1, 2, 3, 1, 2])
    assert [index.propose(7), index.propose(7)] == [[3, 1, 2, 3, 1, 2, 3]] * 2
    assert index.tokens == [1, 2, 3, 1, 2]
    assert index.propose(0) == [] and index.propose(-1) == []


def test_the_most_recent_match_wins_and_the_longest_goes_first():
    index = LookupIndex(max_ngram=3)
    index.extend([7, 1, 2, 10, 8, 1, 2, 11, 9, 2, 12, 7, 1, 2])
    assert index.match == LookupMatch(position=3, length=3, seen=1, repeated=0)  # "7 1 2", though it is the oldest
    index = LookupIndex(max_ngram=2)
    index.extend([7, 1, 2, 10, 8, 1, 2, 11, 9, 2, 12, 9, 1, 2])
    assert index.match == LookupMatch(position=7, length=2, seen=2, repeated=0)


def test_reset():
    index = LookupIndex()
    index.extend([1, 2, 1])
    assert index.propose(1) == [2]
    index.reset()
    assert index.match is None and len(index) == 0
    index.extend([3, 4, 3])
    assert index.propose(2) == [4, 3]


def test_work_per_token_is_constant():
    """Every token enters at most one n-gram of each length, whatever the length of the text."""
    index = LookupIndex(max_ngram=4)
    entered = 0

    class Counting(dict):
        def setdefault(self, key, default):
            nonlocal entered
            entered += 1
            return super().setdefault(key, default)

    index._contexts = Counting()
    index.extend([i % 7 for i in range(2000)])
    assert entered == 4 * 2000 - (4 + 3 + 2 + 1)
    assert index.match.length == index.max_match


@pytest.mark.parametrize("lengths", [(0, 0, 4), (2, 3, 4), (4, 1, 3), (4, 0, 32)])
def test_bad_lengths_are_named(lengths):
    with pytest.raises(ValueError, match="min_ngram <= max_ngram"):
        LookupIndex(*lengths)


def test_it_needs_no_torch():
    path = __import__("ppow_hf.generation.lookup", fromlist=["lookup"]).__file__
    code = f"import runpy, sys; runpy.run_path({path!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- how likely looked-up tokens are right -------------------------------------------------------------------------


def test_longer_and_proven_matches_are_expected_to_be_right_more_often():
    def prior(length, seen=1, repeated=0, position=0):
        return prior_acceptance(LookupMatch(50, length, seen, repeated), position)

    values = [prior(length) for length in (1, 2, 3, 4, 6, 10, 16, 32)]
    assert values == sorted(values) and 0 < values[0] < values[-1] < 1
    for length in (1, 3, 12):
        assert prior(length, seen=4, repeated=0) < prior(length) < prior(length, seen=4, repeated=3)
    # The further the proposal was right, the longer the match is.
    inside = [prior(1, position=position) for position in range(1, 30)]
    assert inside == sorted(inside) and inside[0] < inside[-1]
    assert prior(2, position=3) == prior(4, position=1)


@pytest.mark.parametrize("truth", [0.05, 0.5, 0.97])
def test_a_few_outcomes_are_enough(truth):
    """Whatever the table says, after a dozen cycles the estimate is the text's."""
    random.seed(1)
    estimate = LookupAcceptance()
    match = LookupMatch(50, 6, 1, 0)
    before = abs(estimate.predict(match, 0) - truth)
    for _ in range(12):
        for position in range(4):
            right = random.random() < truth
            estimate.update(match, position, float(right))
            if not right:
                break
    after = abs(estimate.predict(match, 0) - truth)
    assert after < 0.17 and (after < before or before < 0.1)


def test_first_and_later_positions_are_told_apart():
    estimate = LookupAcceptance()
    match = LookupMatch(50, 3, 1, 0)
    for _ in range(25):
        estimate.update(match, 0, 0.0)
        estimate.update(match, 1, 1.0)
    assert estimate.predict(match, 0) < 0.25 and estimate.predict(match, 1) > 0.75


def test_one_update_is_the_kalman_step():
    """Against the formulas in matrix form, in numpy."""
    import numpy as np

    estimate = LookupAcceptance(deviation=0.5, drift=0.1)
    match = LookupMatch(50, 2, 1, 0)
    mean, covariance = np.zeros(2), 0.25 * np.eye(2)
    for position, outcome in ((0, 1.0), (1, 0.0), (0, 0.3)):
        x = np.array([1.0, float(position == 0)])
        prior = prior_acceptance(match, position)
        p = 1 / (1 + math.exp(-(math.log(prior / (1 - prior)) + x @ mean)))
        gain = covariance @ x / (x @ covariance @ x + 1 / (p * (1 - p))) / (p * (1 - p))
        mean = mean + gain * (outcome - p)
        covariance = covariance - np.outer(gain * p * (1 - p), x @ covariance)
        covariance = 0.9 * covariance + 0.1 * 0.25 * np.eye(2)
        estimate.update(match, position, outcome)
        assert estimate.weights == pytest.approx(mean.tolist(), abs=1e-12)


def test_offline_estimates_stay_where_they_are():
    estimate = LookupAcceptance(online=False)
    match = LookupMatch(50, 2, 1, 0)
    estimate.update(match, 0, 0.0)
    assert estimate.weights == [0.0, 0.0] and estimate.outcomes_seen == 0
    assert LookupAcceptance(sampling=True).predict(match, 0) < LookupAcceptance().predict(match, 0)

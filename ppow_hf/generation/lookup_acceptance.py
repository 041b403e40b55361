# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
How likely looked-up tokens are right: a table by length of the match, and how far this text deviates from it (ours).

Once the first `i` tokens of a proposal are right, the text agrees with its earlier place over `i` tokens more: a later
position is a longer match. The prior says how often that holds in general; a Bayesian logistic correction of two
weights, one for all positions and one for the first, follows the text at hand within a few cycles.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from .lookup import LookupMatch

# Shortest match of every row of the table.
_LENGTHS = (1, 2, 3, 4, 5, 7, 11, 17)
_KINDS = ("new", "reliable", "unreliable", "inside")
# Share of right tokens in 210,000 tokens of greedy responses of a 135M instruction-tuned model, on prompts outside the
# benchmarks. "new": the context was seen once; "reliable", "unreliable": more often, and the last continuation was the
# one before it at least, or less than, half of the time; "inside": behind the first token of a proposal.
_PRIOR = (
    (0.31, 0.47, 0.17, 0.50),
    (0.57, 0.70, 0.22, 0.58),
    (0.68, 0.77, 0.30, 0.67),
    (0.73, 0.87, 0.25, 0.71),
    (0.78, 0.90, 0.30, 0.78),
    (0.85, 0.94, 0.37, 0.85),
    (0.89, 0.96, 0.45, 0.89),
    (0.94, 0.99, 0.63, 0.98),
)
# Sampled at temperature 1 (74,000 tokens), all of these are lower by about this much, in log-odds.
_SAMPLING_OFFSET = -0.7
_DEVIATION = 0.8
_DRIFT = 0.02


def prior_acceptance(match: LookupMatch, position: int) -> float:
    """
    Args:
        match ([`LookupMatch`]): Where the proposal was found.
        position (`int`): Index of the token in the proposal, from 0.

    Returns:
        `float`: How often such a token is right, given that those before it are.
    """
    if position:
        kind = "inside"
    elif match.seen < 2:
        kind = "new"
    else:
        kind = "reliable" if 2 * match.repeated >= match.seen - 1 else "unreliable"
    row = bisect_right(_LENGTHS, match.length + position) - 1
    return _PRIOR[row][_KINDS.index(kind)]


class LookupAcceptance:
    """
    Running estimate of the acceptance of looked-up tokens.

    Args:
        sampling (`bool`, *optional*, defaults to `False`): Whether the target samples.
        online (`bool`, *optional*, defaults to `True`): Whether [`LookupAcceptance.update`] changes anything.
        deviation (`float`, *optional*, defaults to 0.8):
            How far a text is expected to deviate from the table, as the standard deviation of both weights (log-odds).
        drift (`float`, *optional*, defaults to 0.02):
            Share of that variance that every outcome gives back, so that old outcomes are forgotten.
    """

    def __init__(
        self, *, sampling: bool = False, online: bool = True, deviation: float = _DEVIATION, drift: float = _DRIFT
    ):
        self.online = online
        self.outcomes_seen = 0
        self._variance = deviation**2
        self._drift = drift
        self.weights = [_SAMPLING_OFFSET if sampling else 0.0, 0.0]  # of every position, and of the first in addition
        self._covariance = [[self._variance, 0.0], [0.0, self._variance]]

    def predict(self, match: LookupMatch, position: int) -> float:
        """
        Args:
            match ([`LookupMatch`]): Where the proposal was found.
            position (`int`): Index of the token in the proposal, from 0.

        Returns:
            `float`: Estimated chance that the token is right, given that those before it are.
        """
        prior = prior_acceptance(match, position)
        z = math.log(prior / (1.0 - prior)) + self.weights[0] + (0.0 if position else self.weights[1])
        return 1.0 / (1.0 + math.exp(-max(-30.0, min(z, 30.0))))

    def update(self, match: LookupMatch, position: int, outcome: float) -> None:
        """
        Learns from one token: a step of the extended Kalman filter of logistic regression.

        Args:
            match ([`LookupMatch`]), position (`int`): As for [`LookupAcceptance.predict`].
            outcome (`float`): 1 if the token was right, 0 if not; when sampling, the target's probability of it.
        """
        if not self.online:
            return
        self.outcomes_seen += 1
        probability = self.predict(match, position)
        slope = probability * (1.0 - probability)
        features = (1.0, 0.0 if position else 1.0)
        covariance = self._covariance
        spread = [row[0] * features[0] + row[1] * features[1] for row in covariance]
        scale = 1.0 + slope * (spread[0] * features[0] + spread[1] * features[1])
        for i in range(2):
            self.weights[i] += spread[i] * (outcome - probability) / scale
            for j in range(2):
                covariance[i][j] = (1.0 - self._drift) * (covariance[i][j] - slope * spread[i] * spread[j] / scale)
            covariance[i][i] += self._drift * self._variance

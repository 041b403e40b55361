# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Calibrated acceptance estimate: the chance that a draft token survives verification, from the draft distribution alone.

A logistic model over a handful of features, in plain Python floats: one prediction takes about a microsecond, so the
window policy can ask after every draft step. The weights come from the drafter's generation config
(`window.calibration`, fitted offline by [`fit_calibration`]) and are refined online from verification outcomes.
Everything here is ours; the paper describes no such estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Order of the features; `bias` is constant 1.
FEATURES = ("bias", "log_odds", "margin", "entropy", "position", "divergence")
# Fitted by `fit_calibration` on about 1,500 verified draft tokens per mode, of a half-trained one-layer EAGLE-3
# drafter for a 135M target, on prompts outside the benchmarks: a start for drafters without their own calibration.
DEFAULT_WEIGHTS = {
    "greedy": (0.48, 0.94, -0.1, 0.02, 0.06, -0.6),
    "sampling": (0.24, 0.32, 0.01, -0.11, 0.05, -0.6),
}
_CLIP = 8.0
# Typical size of each feature, so that one deviation means the same for all.
_SCALES = (1.0, 3.0, 3.0, 2.0, 1.5, 1.0)
_FADING = 0.1


def _sigmoid(z: float) -> float:
    if z >= 0:
        return 1.0 / (1.0 + math.exp(-z))
    e = math.exp(z)
    return e / (1.0 + e)


@dataclass(slots=True)
class DraftStats:
    """
    Summary of one draft distribution, known before a token is drawn from it.

    Args:
        top1 (`float`): Probability of the most probable token.
        top2 (`float`): Probability of the second most probable token.
        entropy (`float`): Entropy in nats.
    """

    top1: float
    top2: float
    entropy: float


def acceptance_features(stats: DraftStats, position: int, divergence: float) -> tuple[float, ...]:
    """
    Features of the acceptance estimate.

    Args:
        stats ([`DraftStats`]): The draft distribution.
        position (`int`): Index of the token in its window, from 0.
        divergence (`float`): Running total variation between drafter and target, in [0, 1].

    Returns:
        `tuple[float, ...]`: In the order of `FEATURES`.
    """
    top1 = min(max(stats.top1, 1e-9), 1.0 - 1e-6)
    log_odds = math.log(top1 / (1.0 - top1))
    margin = math.log(top1 / max(stats.top2, 1e-9))
    return (
        1.0,
        min(max(log_odds, -_CLIP), _CLIP),
        min(margin, _CLIP),
        stats.entropy,
        math.log1p(position),
        divergence,
    )


class AcceptanceEstimator:
    """
    Logistic estimate of the acceptance probability, refined online.

    Args:
        calibration (`dict`, *optional*):
            Prior weights, from [`fit_calibration`]: `{"greedy": [...], "sampling": [...]}`, either of which may be
            missing. `None` for the built-in ones.
        sampling (`bool`, *optional*, defaults to `False`): Which of the two to use.
        online (`bool`, *optional*, defaults to `True`): Whether [`AcceptanceEstimator.update`] changes anything.
        prior_deviation (`float`, *optional*, defaults to 0.15):
            How far one text's weights are expected to lie from the prior's, as a standard deviation. Features with a
            wide range (`_SCALES`) are allowed proportionally less.
        drift (`float`, *optional*, defaults to 0.005):
            Share of that variance that every outcome gives back, so that old outcomes are forgotten.

    Raises:
        ValueError: If the calibration is malformed.
    """

    def __init__(
        self,
        calibration: Mapping[str, Any] | None = None,
        *,
        sampling: bool = False,
        online: bool = True,
        prior_deviation: float = 0.15,
        drift: float = 0.005,
    ):
        mode = "sampling" if sampling else "greedy"
        weights = (calibration or {}).get(mode, DEFAULT_WEIGHTS[mode])
        self.prior = check_weights(weights, mode)
        self.weights = list(self.prior)
        self.online = online
        self.outcomes_seen = 0
        self._prior_variance = [(prior_deviation / scale) ** 2 for scale in _SCALES]
        self._drift = drift
        size = len(FEATURES)
        self._covariance = [[self._prior_variance[i] if i == j else 0.0 for j in range(size)] for i in range(size)]

    def predict(self, features: Sequence[float]) -> float:
        """
        Args:
            features (`Sequence[float]`): From [`acceptance_features`].

        Returns:
            `float`: Estimated acceptance probability, in (0, 1).
        """
        z = 0.0
        for weight, feature in zip(self.weights, features, strict=True):
            z += weight * feature
        return _sigmoid(z)

    def update(self, features: Sequence[float], outcome: float) -> None:
        """
        Learns from one verified draft token: a step of the extended Kalman filter of logistic regression, which weighs
        each outcome by what is still uncertain. A few cycles are enough to follow a text.

        Args:
            features (`Sequence[float]`): The features the prediction was made from.
            outcome (`float`): 1 if the token was accepted, 0 if not; when sampling, the exact acceptance probability
                `sum_x min(p(x), q(x))` may be given instead.
        """
        if not self.online:
            return
        self.outcomes_seen += 1
        probability = self.predict(features)
        slope = probability * (1.0 - probability)
        covariance = self._covariance
        spread = [sum(c * x for c, x in zip(row, features, strict=True)) for row in covariance]
        scale = 1.0 + slope * sum(s * x for s, x in zip(spread, features, strict=True))
        error = (outcome - probability) / scale
        shrink = slope / scale
        keep = 1.0 - self._drift
        for i, s in enumerate(spread):
            self.weights[i] += s * error
            row = covariance[i]
            for j, t in enumerate(spread):
                row[j] = keep * (row[j] - shrink * s * t)
            # Back towards the prior, in uncertainty and in the weight itself: what was learnt long ago fades.
            row[i] += self._drift * self._prior_variance[i]
            self.weights[i] += self._drift * _FADING * (self.prior[i] - self.weights[i])


def check_weights(weights: Any, mode: str) -> tuple[float, ...]:
    """Validates calibration weights of one mode (`"greedy"` or `"sampling"`). Raises `ValueError`."""
    valid = isinstance(weights, Sequence) and not isinstance(weights, str) and len(weights) == len(FEATURES)
    if not valid or not all(isinstance(w, int | float) and math.isfinite(w) for w in weights):
        raise ValueError(
            f"`window.calibration[{mode!r}]` must be {len(FEATURES)} finite numbers ({', '.join(FEATURES)}), got "
            f"{weights!r}. Fit it with `fit_calibration`, or set `window.calibration` to None."
        )
    return tuple(float(w) for w in weights)


def fit_calibration(
    records: Sequence[tuple[Sequence[float], float]],
    *,
    prior: Sequence[float] | None = None,
    regularisation: float = 1.0,
) -> list[float]:
    """
    Fits the acceptance estimate to recorded verification outcomes: regularised logistic regression.

    Example:

    ```python
    >>> records = []
    >>> for inputs in prompts:
    ...     target.generate(**inputs, assistant_model=drafter)
    ...     records += drafter.last_trace.calibration_records()
    >>> drafter.generation_config.window.calibration = {"greedy": fit_calibration(records)}
    ```

    Args:
        records (`Sequence[tuple[Sequence[float], float]]`):
            `(features, outcome)` pairs, from [`GenerationTrace.calibration_records`].
        prior (`Sequence[float]`, *optional*): Weights the fit is pulled towards. Defaults to the built-in greedy ones.
        regularisation (`float`, *optional*, defaults to 1.0): Strength of that pull, in pseudo-observations.

    Returns:
        `list[float]`: The weights, in the order of `FEATURES`.

    Raises:
        ValueError: If there are no records, or they are malformed.
    """
    if not records:
        raise ValueError("`records` is empty: generate with the drafter first and pass `trace.calibration_records()`.")
    features = torch.tensor([list(record[0]) for record in records], dtype=torch.float64)
    outcomes = torch.tensor([float(record[1]) for record in records], dtype=torch.float64)
    if features.shape[1] != len(FEATURES) or not (features.isfinite().all() and outcomes.isfinite().all()):
        raise ValueError(f"`records` must hold ({len(FEATURES)} finite features, outcome) pairs.")
    if outcomes.min() < 0 or outcomes.max() > 1:
        raise ValueError("`records`: outcomes must be in [0, 1].")
    centre = torch.tensor(check_weights(list(prior or DEFAULT_WEIGHTS["greedy"]), "prior"), dtype=torch.float64)
    weights = centre.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            nll = torch.nn.functional.binary_cross_entropy_with_logits(features @ weights, outcomes, reduction="sum")
            total = nll + 0.5 * regularisation * (weights - centre).square().sum()
            total.backward()
        return total

    optimizer.step(loss)
    return weights.detach().tolist()


def brier_score(predicted: Sequence[float], outcomes: Sequence[float]) -> float | None:
    """
    Mean squared difference between predicted probabilities and outcomes (Brier, 1950); lower is better.

    Args:
        predicted (`Sequence[float]`): Probabilities.
        outcomes (`Sequence[float]`): What happened, in [0, 1].

    Returns:
        `float`, or `None` without data.
    """
    _check_pairs(predicted, outcomes)
    if not predicted:
        return None
    return sum((p - y) ** 2 for p, y in zip(predicted, outcomes, strict=True)) / len(predicted)


def reliability_table(
    predicted: Sequence[float], outcomes: Sequence[float], bins: int = 10
) -> list[dict[str, float | int]]:
    """
    Predicted against observed acceptance, in equal bins of the prediction.

    Args:
        predicted (`Sequence[float]`): Probabilities in [0, 1].
        outcomes (`Sequence[float]`): What happened, in [0, 1].
        bins (`int`, *optional*, defaults to 10): Number of bins.

    Returns:
        `list[dict]`: `low`, `high`, `count`, `predicted` (mean) and `observed` (mean) of every non-empty bin.
    """
    _check_pairs(predicted, outcomes)
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1, got {bins}.")
    rows = []
    members: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for p, y in zip(predicted, outcomes, strict=True):
        members[min(int(p * bins), bins - 1)].append((p, y))
    for i, pairs in enumerate(members):
        if pairs:
            rows.append(
                {
                    "low": i / bins,
                    "high": (i + 1) / bins,
                    "count": len(pairs),
                    "predicted": sum(p for p, _ in pairs) / len(pairs),
                    "observed": sum(y for _, y in pairs) / len(pairs),
                }
            )
    return rows


def _check_pairs(predicted: Sequence[float], outcomes: Sequence[float]) -> None:
    if len(predicted) != len(outcomes):
        raise ValueError(f"`predicted` ({len(predicted)}) and `outcomes` ({len(outcomes)}) must have the same length.")

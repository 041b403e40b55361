# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What is logged about windows, as sums and counts."""

from collections.abc import Callable, Sequence

import torch

from ..rl import SelectedWindows, reward_names

Metrics = dict[str, tuple[float, float]]


def selection_metrics(selected: SelectedWindows, values: torch.Tensor | None) -> Metrics:
    """
    Rows without room for a window, as a mean over micro-batches, and the criticality of windows, as a mean over them.

    Args:
        selected ([`SelectedWindows`]): The chosen windows.
        values (`torch.Tensor` of shape `(B, T)`, *optional*): Criticality of the windows, if it was measured.
    """
    metrics = {"skipped_rows": (float(selected.skipped_rows), 1.0)}
    if values is not None:
        chosen, every = selected.sums_of(values)
        metrics |= {"criticality/chosen": chosen, "criticality/all": every}
    return metrics


def acceptance_metrics(survived: torch.Tensor) -> Metrics:
    """
    Accepted length, windows of which nothing is accepted, and acceptance by position, all of the same kind.

    All are shares of all windows. One that the end of the text has cut short has no token to be accepted at its later
    positions, so that acceptance never rises along the window and its sum is the accepted length.

    Args:
        survived (`torch.Tensor` of shape `(N, K)`): Whether each token is accepted with all before it, or how likely;
            0 behind the end of a window.
    """
    count = float(len(survived))
    accepted = survived.float().sum(0).tolist()
    return {
        "accepted_length": (sum(accepted), count),
        "share_none_accepted": (count - accepted[0], count),
        **{f"acceptance/position_{k}": (total, count) for k, total in enumerate(accepted)},
    }


def reward_metrics(
    reward_funcs: Sequence[Callable],
    table: torch.Tensor,
    rewards: torch.Tensor,
    advantages: torch.Tensor,
    judged: torch.Tensor,
) -> Metrics:
    """
    The reward and its spread in a group, groups that teach nothing, and every function's mean, standard deviation (in
    a micro-batch) and share of windows.

    Args:
        reward_funcs (`Sequence[Callable]`): Reward functions.
        table (`torch.Tensor` of shape `(N, len(reward_funcs))`): What each returned; NaN where it does not apply.
        rewards (`torch.Tensor` of shape `(S, G)`): Rewards of the windows, in groups.
        advantages (`torch.Tensor` of shape `(N,)` or `(N, K)`): What became of them.
        judged (`torch.BoolTensor` of shape `(S, G)`): Windows that a function has judged; others have no reward.
    """
    starts = float(len(rewards))
    compared = judged.sum(-1) > 1
    spreads = [float(row[there].std()) for row, there in zip(rewards[compared], judged[compared], strict=True)]
    # By the advantages: those of equal rewards are exactly 0, whereas their deviation is not always, in float32.
    flat = (advantages.reshape(len(rewards), -1) == 0).all(-1)
    metrics = {
        "reward": (float(rewards[judged].sum()), float(judged.sum())),
        "reward_std": (sum(spreads), float(len(spreads))),
        "flat_groups": (float(flat.sum()), starts),
    }
    for name, column in zip(reward_names(reward_funcs), table.unbind(-1), strict=True):
        applies = ~column.isnan()
        count = float(applies.sum())
        metrics[f"rewards/{name}/mean"] = (float(column[applies].sum()), count)
        if count > 1:
            metrics[f"rewards/{name}/std"] = (count * float(column[applies].std()), count)
        metrics[f"rewards/{name}/share"] = (count, float(len(table)))
    return metrics

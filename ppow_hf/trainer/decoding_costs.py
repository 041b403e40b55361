# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What decoding with the drafter in training costs: the same number for all processes (ours)."""

import copy
import os
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ..drafters import DrafterModel
from ..generation import CostModel
from ..generation.stored_costs import stored_cost_model
from ..json_files import read_json_object
from ..whole_files import write_json_whole

# Not the name of costs stored beside a drafter: these are one run's, wherever it goes on.
_COSTS_OF_RUN = "costs_of_run.json"


def decoding_costs(
    accelerator: Accelerator,
    target: PreTrainedModel,
    drafter: DrafterModel,
    given: CostModel | None = None,
    measure: bool = False,
) -> CostModel | None:
    """
    Costs of decoding with a drafter as it will be used, in the target's dtype: a drafter is trained in float32, and
    costs more in it than it ever will. Those of the main process count for all, which are rewarded alike.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Of the trainer. All its processes must call.
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter, before it is sharded. It stays as it is.
        given ([`CostModel`], *optional*): Costs that are known already.
        measure (`bool`, *optional*, defaults to `False`): Measure them where none are stored, and store them.

    Returns:
        [`CostModel`]: `given`, or what is stored beside the drafter or in the user's cache, or measured now; `None` if
        there is nothing and nothing is to be measured.
    """
    costs = [given]
    if given is None and accelerator.is_main_process:
        find = CostModel.for_models if measure else stored_cost_model
        costs = [find(target, _as_decoded(drafter, target))]
    return broadcast_object_list(costs)[0]


def save_costs_of_run(checkpoint: str | os.PathLike, costs: CostModel) -> None:
    """Puts the costs that a run is rewarded by into one of its checkpoints."""
    folder = Path(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_whole(folder / _COSTS_OF_RUN, costs.to_dict())


def costs_of_run(checkpoint: str | os.PathLike) -> CostModel | None:
    """
    The costs of the run that wrote a checkpoint.

    Args:
        checkpoint (`str` or `os.PathLike`): Its folder.

    Returns:
        [`CostModel`], or `None` of a run that was rewarded by none.

    Raises:
        ValueError: The file in it is not a cost model.
    """
    path = Path(checkpoint) / _COSTS_OF_RUN
    if not path.is_file():
        return None
    try:
        return CostModel.from_dict(read_json_object(path, "Resume from another checkpoint."))
    except ValueError as error:
        raise ValueError(
            f"`resume_from_checkpoint` {checkpoint}: {_COSTS_OF_RUN} cannot be read ({error})."
        ) from error


def _as_decoded(drafter: DrafterModel, target: PreTrainedModel) -> DrafterModel:
    """A copy of a drafter in the dtype and on the device of its target, in evaluation mode."""
    decoding = copy.deepcopy(drafter).to(target.device).eval()
    # Weights alone: what a model keeps in float32 on purpose (RoPE frequencies, for one) are buffers.
    for parameter in decoding.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(target.dtype)
    decoding.bind_target(target)
    return decoding

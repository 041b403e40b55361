# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The drafter that training begins with, kept beside the checkpoints: it may turn out to be the best one."""

import json
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file
from transformers.utils import SAFE_WEIGHTS_NAME

from ..drafters import DrafterModel
from ..whole_files import write_json_whole, written_whole

_FIGURES = "acceptance.json"


class InitialDrafter:
    """
    A folder with the drafter that training begins with and its held-out figures.

    Args:
        folder (`Path`): The folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def is_kept(self) -> bool:
        """Whether its weights are in the folder."""
        return (self.folder / SAFE_WEIGHTS_NAME).is_file()

    def figures(self) -> dict[str, float] | None:
        """Its held-out figures, if they were measured."""
        path = self.folder / _FIGURES
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_figures(self, figures: dict[str, float]) -> None:
        """Writes its figures beside the weights, whole or not at all."""
        write_json_whole(self.folder / _FIGURES, figures, allow_nan=True)

    def forget_figures(self) -> None:
        """Removes the figures of an earlier run."""
        (self.folder / _FIGURES).unlink(missing_ok=True)

    def restore(self, drafter: DrafterModel) -> None:
        """
        Loads the kept weights.

        Args:
            drafter ([`DrafterModel`]): The drafter they belong to, changed in place.

        Raises:
            RuntimeError: If weights are missing, unknown or of another shape.
        """
        weights, state = load_file(self.folder / SAFE_WEIGHTS_NAME), drafter.state_dict()
        # Of tensors that are tied one name alone is saved: it gives the others their weights, and nothing else does.
        saved = {state[name].data_ptr(): name for name in weights.keys() & state.keys()}
        twins = {name: saved.get(tensor.data_ptr()) for name, tensor in state.items() if name not in weights}
        weights |= {name: weights[twin] for name, twin in twins.items() if twin is not None}
        drafter.load_state_dict(weights)

    def copy_to(self, folder: str | os.PathLike) -> None:
        """
        Puts the drafter into another folder, in place of the one that is there.

        Args:
            folder (`str` or `os.PathLike`): The folder; made if there is none.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        kept = [path for path in self.folder.iterdir() if path.is_file() and path.name != _FIGURES]
        for path in kept:
            with written_whole(folder / path.name) as temporary:
                shutil.copyfile(path, temporary)
        # Shards of another drafter beside the whole file would be pushed with it.
        for other in set(folder.glob("model*.safetensors*")) - {folder / path.name for path in kept}:
            other.unlink()

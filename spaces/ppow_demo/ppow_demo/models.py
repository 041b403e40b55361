# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Which target and which drafters this page decodes with."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ppow_hf import AutoDrafter, CostModel, load_target, prepack_weights
from ppow_hf.drafters import DrafterModel
from ppow_hf.quickstart import REFERENCE_DRAFTER
from ppow_hf.targets import DEFAULT_TARGET, EMBEDDED_TARGETS

from .settings import DemoError

logger = logging.get_logger(__name__)

SPACE_DIR = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class DrafterEntry:
    """
    A drafter that can be chosen.

    Args:
        source (`str`): Folder or Hub repository.
        label (`str`): What the page calls it.
        stage (`str`): `"initialisation"`, `"ppow"` or `""` where it cannot be told.
    """

    source: str
    label: str
    stage: str = ""


def default_target() -> str:
    """`TARGET_ID`, else the embedded target if its package is installed, else the same model on the Hub."""
    if os.environ.get("TARGET_ID"):
        return os.environ["TARGET_ID"]
    embedded = EMBEDDED_TARGETS[DEFAULT_TARGET]
    here = all(importlib.util.find_spec(name) is not None for name in (embedded.module, "gguf"))
    return DEFAULT_TARGET if here else embedded.identity


def drafter_folders() -> list[Path]:
    """`DRAFTERS_DIR`, else `drafters/` beside the app, else `model_cards/` of the checkout the app lies in."""
    if os.environ.get("DRAFTERS_DIR"):
        return [Path(os.environ["DRAFTERS_DIR"]).expanduser()]
    candidates = (SPACE_DIR / "drafters", SPACE_DIR / "model_cards", SPACE_DIR.parent.parent / "model_cards")
    return [folder for folder in candidates if folder.is_dir()]


def find_drafters() -> list[DrafterEntry]:
    """
    Every drafter there is: `DRAFTER_ID` first (several, separated by commas), then the folders of
    [`drafter_folders`], the reference drafter before the others.
    """
    entries = [describe(name.strip()) for name in os.environ.get("DRAFTER_ID", "").split(",") if name.strip()]
    folders = [
        path for root in drafter_folders() for path in sorted(root.iterdir()) if (path / "config.json").is_file()
    ]
    folders.sort(key=lambda path: path.name != REFERENCE_DRAFTER)
    known = {entry.source for entry in entries}
    for path in folders:
        if str(path) not in known and any(path.glob("*.safetensors")):
            entries.append(describe(str(path)))
    return entries


def describe(source: str) -> DrafterEntry:
    """Label and stage of a drafter, from its `provenance.json` where there is one, else from its name."""
    name = source.rstrip("/").rsplit("/", 1)[-1]
    stage = ""
    try:
        stage = str(json.loads((Path(source) / "provenance.json").read_text(encoding="utf-8")).get("stage", ""))
    except (OSError, ValueError, AttributeError):
        pass  # A Hub repository, or a folder without a record.
    stage = stage.lower() or name.lower()
    if "ppow" in stage:
        return DrafterEntry(source, f"PPOW: {name}", "ppow")
    if "supervised" in stage or "sft" in stage:
        return DrafterEntry(source, f"Initialisation: {name}", "initialisation")
    return DrafterEntry(source, name)


class Models:
    """
    The target, and drafters loaded when they are first asked for.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target, on its device.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        entries (`list[DrafterEntry]`): Drafters to offer; the first is the one of the race.
        loaded (`dict[str, DrafterModel]`, *optional*): Drafters already in memory, by source.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        entries: list[DrafterEntry],
        loaded: dict[str, DrafterModel] | None = None,
    ):
        self.target = target
        self.tokenizer = tokenizer
        self.entries = list(entries)
        self._loaded = dict(loaded or {})
        self._lock = threading.Lock()

    @classmethod
    def load(cls, device: str | None = None) -> Models:
        """Loads the target and finds the drafters, as the environment variables say."""
        target, tokenizer = load_target(default_target(), device=device or "auto")
        prepack_weights(target)  # on a CPU: for plain decoding as for the drafter's
        return cls(target, tokenizer, find_drafters())

    def drafter(self, source: str | None = None) -> DrafterModel:
        """
        Args:
            source (`str`, *optional*): Of one of the entries; the first by default.

        Returns:
            [`DrafterModel`]: On the target's device and bound to it.

        Raises:
            DemoError: If there is none, or it does not load or fit.
        """
        if source is None:
            if not self.entries:
                raise DemoError(
                    "No drafter was found. Set the variable DRAFTER_ID to a drafter's Hub id or folder, or put its "
                    "folder into `drafters/` beside app.py."
                )
            source = self.entries[0].source
        if source not in {entry.source for entry in self.entries}:
            raise DemoError("That drafter is not one of those offered here. Pick one from the list.")
        with self._lock:
            if source not in self._loaded:
                name = describe(source).label
                try:
                    drafter = AutoDrafter.from_pretrained(source, dtype=self.target.dtype).to(self.target.device)
                    drafter.bind_target(self.target)
                except (ValueError, OSError) as error:
                    logger.warning(f"The drafter {source} does not load: {error}")
                    # The message may hold a path of the server; visitors get the first sentence without it.
                    raise DemoError(
                        f"The drafter `{name}` could not be used with this target "
                        f"({str(error).replace(source, name).split('. ')[0]})."
                    ) from error
                self._loaded[source] = drafter
            return self._loaded[source]

    def cost_model(self, drafter: DrafterModel) -> CostModel:
        """The measured costs of `drafter` on this machine (measured now, in about a second, if they never were)."""
        return CostModel.for_models(self.target, drafter)

    @property
    def dtype(self) -> str:
        return str(self.target.dtype).removeprefix("torch.")

    @property
    def target_name(self) -> str:
        return str(self.target.config._name_or_path or type(self.target).__name__).rsplit("/", 1)[-1]

# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What an import or an export did besides copying: nothing is filled in, dropped or converted silently."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from transformers.utils import logging

logger = logging.get_logger(__name__)


@dataclass
class ExchangeReport:
    """
    Report of one import or export.

    Args:
        form (`str`): The foreign form: `"flat"`, `"speculators"`, or the format exported to.
        notes (`list[str]`): What was filled in, converted or left out, one sentence or two each.
        usage (`list[str]`): How the result is used, as commands (exports only).
    """

    form: str
    notes: list[str] = field(default_factory=list)
    usage: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def log(self, title: str) -> None:
        """Logs all notes as one warning; nothing if there are none."""
        if self.notes:
            logger.warning("\n  - ".join([title, *self.notes]))

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)

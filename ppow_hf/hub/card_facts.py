# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
What a drafter's folder says about itself: the only source of a card's figures.

Read are `config.json`, `generation_config.json`, the headers of the weight files, `provenance.json`,
`training_log.json`, `cost_model.json` and, under `benchmarks/`, every `results.json` and `lossless.json`. Only the
first and the weights must be there.

`provenance.json` is what training wrote; in a training's output it has another name, see [`read_provenance`]. Keys
that are known here and that no trainer can know, so that they are added by whoever shares the drafter: `license` (of
the drafter, an identifier of the Hub), `target_license`, `target_revision`, a `license` in every entry of `responses`,
and `co2_eq_emissions` in the Hub's own form.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from ..data.files import PROVENANCE_FILE, TRAINING_LOG_FILE, TRAINING_PROVENANCE_FILE
from ..drafters import DRAFTER_FAMILIES, AutoDrafter
from ..evaluation.precision import DTYPES, fingerprint
from ..generation import CostModel, WindowConfig
from .card_measured import (
    Benchmark,
    LosslessCheck,
    read_benchmarks,
    read_drafter_config,
    read_json,
    read_lossless,
)
from .card_window import benchmark_methods

# What the sharer of a drafter adds to its record. All else in it tells of one set of weights.
_ADDED = ("license", "target_license", "target_revision", "co2_eq_emissions")
_NO_WEIGHTS = ("d2t", "t2d")


@dataclass
class Weights:
    """
    The drafter's weight files.

    Args:
        parameters (`int`): Numbers in the weights, the maps of the draft vocabulary left out.
        bytes (`int`): Size of the files.
        dtype (`str`): Most frequent dtype, for example `"bfloat16"`.
    """

    parameters: int
    bytes: int
    dtype: str


@dataclass
class CardFacts:
    """
    Everything a card is made of.

    Args:
        folder (`Path`): The drafter's folder.
        config, generation (`dict`): Contents of `config.json` and `generation_config.json`.
        weights ([`Weights`]): Size of the drafter.
        supervised, ppow (`dict`, *optional*): Provenance of the two training stages, of the last run of each; `None`
            for a stage that was not run or not recorded.
        provenance (`dict`): All of `provenance.json`.
        log (`dict`): `training_log.json`.
        costs (`list[dict]`): Entries of `cost_model.json`.
        benchmarks (`list[Benchmark]`): The main one first.
        checks (`list[LosslessCheck]`): Checks in float32 that texts are the target's own.
        custom_generate (`bool`): Whether the folder holds remote code.
    """

    folder: Path
    config: dict[str, Any]
    generation: dict[str, Any]
    weights: Weights
    supervised: dict[str, Any] | None = None
    ppow: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    log: dict[str, Any] = field(default_factory=dict)
    costs: list[dict[str, Any]] = field(default_factory=list)
    benchmarks: list[Benchmark] = field(default_factory=list)
    checks: list[LosslessCheck] = field(default_factory=list)
    custom_generate: bool = False

    @property
    def window(self) -> WindowConfig | None:
        """The window that is used unless a call says otherwise, if the folder states one."""
        values = self.generation.get("window")
        return None if values is None else WindowConfig.coerce(values)

    @property
    def own_methods(self) -> tuple[str, ...]:
        """The names a benchmark may have for decoding with the drafter's own window; none if no method of it does."""
        return benchmark_methods(self.window) if self.window is not None else ()

    @property
    def own_method(self) -> str | None:
        """Of `own_methods` the one that was measured, or else the first; `None` where there are none."""
        measured = (self.method_in(benchmark) for benchmark in self.benchmarks)
        return next(filter(None, [*measured, *self.own_methods]), None)

    def method_in(self, benchmark: Benchmark) -> str | None:
        """Of `own_methods` the one that a benchmark measured; `None` if it measured none."""
        return next((name for name in self.own_methods if any(row["method"] == name for row in benchmark.rows)), None)

    @property
    def target_id(self) -> str | None:
        """The target as a repository of the Hub, if it is one."""
        name = self.config.get("target_name_or_path")
        return name if name and is_repo_id(name) else None

    @property
    def responses(self) -> list[dict[str, Any]]:
        """Provenance of the training data."""
        entries = [entry for stage in (self.supervised, self.ppow) for entry in (stage or {}).get("responses") or []]
        return [entry for i, entry in enumerate(entries) if entry and entry not in entries[:i]]

    @property
    def notes(self) -> list[str]:
        """What the trainer wrote down about either stage."""
        stages = (self.supervised, self.ppow, self.provenance)
        return list(dict.fromkeys(note for stage in stages for note in (stage or {}).get("notes") or []))


def read_facts(folder: str | os.PathLike) -> CardFacts:
    """
    Reads a drafter's folder.

    Args:
        folder (`str` or `os.PathLike`): A saved drafter.

    Returns:
        [`CardFacts`].

    Raises:
        OSError: If configuration or weights are missing, or a file is truncated.
        ValueError: If the folder is no drafter of this library, its window is none, or a benchmark is of another
            drafter or target.
    """
    folder = Path(folder)
    config = read_drafter_config(folder)
    if config.get("model_type") not in {family.model_type for family in DRAFTER_FAMILIES}:
        raise ValueError(
            f"`{folder}` holds a `{config.get('model_type')}` model, no drafter of this library: a card is written "
            "for what `drafter.save_pretrained` wrote."
        )
    provenance = read_provenance(folder) or {}
    runs = training_runs(provenance)
    facts = CardFacts(
        folder=folder,
        config=config,
        generation=read_json(folder / "generation_config.json") or {},
        weights=_read_weights(folder),
        supervised=runs.get("supervised", [None])[0],
        ppow=runs.get("ppow", [None])[0],
        provenance=provenance,
        log=read_json(folder / TRAINING_LOG_FILE) or {},
        costs=_read_costs(folder / "cost_model.json"),
        benchmarks=read_benchmarks(folder),
        checks=read_lossless(folder),
        custom_generate=(folder / "custom_generate" / "generate.py").is_file(),
    )
    _check_window(facts)
    for measured in (*facts.benchmarks, *facts.checks):
        _check_measured(measured, facts)
    return facts


def read_provenance(folder: str | os.PathLike) -> dict[str, Any] | None:
    """
    What is recorded about the training of the drafter in a local folder: `provenance.json` of a finished one,
    `training_provenance.json` in a training's output.

    Trainers write the latter with the weights. A `provenance.json` of another training beside it is of weights that
    were there before: only what its owner added to it still holds.

    Args:
        folder (`str` or `os.PathLike`): The folder.

    Returns:
        `dict`: The record; `None` if there is none.

    Raises:
        OSError: If a file is truncated.
    """
    finished, trained = (read_json(Path(folder) / name) for name in (PROVENANCE_FILE, TRAINING_PROVENANCE_FILE))
    if finished is None or trained is None:
        return trained if finished is None else finished
    if all(finished.get(name) == trained.get(name) for name in ("stage", "training", "result")):
        return finished
    return {**{name: finished[name] for name in _ADDED if name in finished}, **trained}


def training_runs(provenance: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """
    The training behind a drafter, from the last run back along what each was started from.

    Args:
        provenance (`dict`): `provenance.json`.

    Returns:
        `dict[str, list[dict]]`: The runs of every stage, `"supervised"` and `"ppow"`, the last one first.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    record: Any = provenance
    while isinstance(record, dict):
        if record.get("stage") in ("supervised", "ppow"):
            runs.setdefault(record["stage"], []).append(record)
        record = record.get("started_from") or record.get("continued_from")
    return runs


def begins_fresh(provenance: dict[str, Any]) -> bool:
    """
    Whether all of the training behind a drafter is recorded: the first of its runs says that it began with none.

    Args:
        provenance (`dict`): `provenance.json`.
    """
    record: Any = provenance
    while isinstance(before := record.get("started_from") or record.get("continued_from"), dict):
        record = before
    arguments = record.get("arguments") or {}
    return record.get("stage") == "supervised" and "drafter" in arguments and arguments["drafter"] is None


def is_repo_id(name: str) -> bool:
    """Whether a name is that of a repository of the Hub, `owner/name`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def public_text(value: Any) -> str:
    """A recorded value as text; of a path of some machine only the last part."""
    text = str(value)
    if PurePosixPath(text).is_absolute() or text.startswith(("~", "./", "../")):
        return PurePosixPath(text).name
    return PureWindowsPath(text).name if PureWindowsPath(text).is_absolute() else text


def public_record(value: Any) -> Any:
    """The same JSON value with all texts as [`public_text`] gives them."""
    if isinstance(value, dict):
        return {key: public_record(part) for key, part in value.items()}
    if isinstance(value, list):
        return [public_record(part) for part in value]
    return public_text(value) if isinstance(value, str) else value


def machine_paths(text: str) -> list[str]:
    """Absolute paths in a text; those of addresses (`https://...`) are none."""
    return re.findall(r"(?<![\w/:.)\]~-])(?:~?(?:/[\w.+-]+){2,}|[A-Za-z]:\\[^\s`]+)", text)


def _read_costs(path: Path) -> list[dict[str, Any]]:
    entries = (read_json(path) or {}).get("entries", {})
    try:
        if not isinstance(entries, dict):
            raise ValueError(f"`entries` must be an object, got {entries!r}.")
        return [CostModel.from_dict(entry).to_dict() for entry in entries.values()]
    except ValueError as error:
        raise OSError(
            f"`{path}` holds what is no cost model: {error} Delete the file and measure again with `ppow calibrate "
            f"--drafter {path.parent}`."
        ) from None


def _read_weights(folder: Path) -> Weights:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise OSError(f"`{folder}` holds no weights (*.safetensors). Save the drafter with `save_pretrained`.")
    parameters, dtypes = 0, {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_slice(name) for name in file.keys()}
                sizes = {name: (math.prod(t.get_shape()), t.get_dtype()) for name, t in tensors.items()}
        except (SafetensorError, OSError) as error:
            raise OSError(f"The weight file `{path}` is truncated or damaged ({error}). Save it again.") from error
        for name, (count, dtype) in sizes.items():
            if name not in _NO_WEIGHTS:
                parameters += count
                dtypes[dtype] = dtypes.get(dtype, 0) + count
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
    dtype = max(dtypes, key=dtypes.get) if dtypes else "unknown"
    return Weights(parameters, sum(path.stat().st_size for path in files), names.get(dtype, dtype))


def _check_window(facts: CardFacts) -> None:
    try:
        _ = facts.window
    except ValueError as error:
        raise ValueError(
            f"`window` in `{facts.folder / 'generation_config.json'}` is none: {error} Correct it, or save the "
            "drafter again."
        ) from None


def _check_measured(file: Benchmark | LosslessCheck, facts: CardFacts) -> None:
    """Refuses figures of another target or of other weights."""
    where = f"`{facts.folder / file.path}`"
    command = "`ppow bench`" if isinstance(file, Benchmark) else "`python -m ppow_hf.scripts.check_lossless`"
    target, own = file.results["arguments"].get("target"), facts.config.get("target_name_or_path")
    if target and own and PurePosixPath(target).name.lower() != PurePosixPath(own).name.lower():
        raise ValueError(
            f"{where} was measured with the target `{target}`, but this drafter is for `{own}`. Run {command} with "
            "this drafter, or remove the file."
        )
    recorded = file.results.get("drafter_hash") or file.results["arguments"].get("drafter_hash")
    if recorded is None or recorded == (found := fingerprint(AutoDrafter.from_pretrained(facts.folder))):
        return
    # Measured as it decodes, in the target's precision, which need not be the one it is stored in.
    others = (AutoDrafter.from_pretrained(facts.folder, dtype=dtype) for dtype in DTYPES.values())
    if all(recorded != fingerprint(drafter) for drafter in others):
        raise ValueError(
            f"{where} was measured with another drafter (hash {recorded}, this one has {found}). Run {command} with "
            "this drafter, or remove the file."
        )

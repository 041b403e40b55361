# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
From a training output to a folder that can be shared: calibrate the acceptance estimate, store in the target's dtype.

    python trainers/finish_drafter.py --drafter runs/sft_smollm2 --responses runs/responses \
        --output_dir my-drafter

The estimate is fitted on the held-out rows of the training responses, never on evaluation prompts.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from ppow_hf import AutoDrafter, DrafterModel, WindowConfig, load_target
from ppow_hf.data import split_holdout
from ppow_hf.data.files import PROVENANCE_FILE, TRAINING_LOG_FILE, TRAINING_PROVENANCE_FILE
from ppow_hf.evaluation.precision import parse_dtype
from ppow_hf.generation import AcceptanceEstimator, brier_score, fit_calibration
from ppow_hf.generation.acceptance import DEFAULT_WEIGHTS
from ppow_hf.hub.card_facts import read_provenance
from ppow_hf.scripts.training_run import load_all_responses, recorded_held_out_seed
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.trainer.decoding_evaluation import can_decode, decode_prompt, prompt_of
from ppow_hf.trainer.positions import longest_text

logger = logging.get_logger(__name__)


@dataclass
class FinishArguments:
    """Which drafter to finish, and on what to calibrate it."""

    drafter: str = field(metadata={"help": "Output folder of `ppow sft`."})
    responses: list[str] = field(metadata={"help": "The training's responses; only its held-out rows are used."})
    output_dir: str = field(metadata={"help": "Folder to write. An existing drafter in it is replaced."})
    target: str = field(default=DEFAULT_TARGET, metadata={"help": "The drafter's target."})
    dtype: str = field(default="bfloat16", metadata={"help": "Dtype of the stored weights."})
    holdout: int | None = field(
        default=None, metadata={"help": "Rows that the training held out. Default: what it recorded, or 32."}
    )
    window: str = field(default="fixed:6", metadata={"help": "Window of the calibration runs."})
    max_new_tokens: int = field(default=96, metadata={"help": "New tokens per calibration prompt."})
    own_window: str = field(
        default="cost_aware",
        metadata={"help": "How it decodes unless told otherwise: cost_aware, mixed, mixed_tree..."},
    )
    data_seed: int | None = field(
        default=None, metadata={"help": "Which rows the training held out. Default: what it recorded, or 0."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the calibration runs."})
    license: str | None = field(default=None, metadata={"help": "Licence of the drafter, for its card: apache-2.0."})
    target_license: str | None = field(default=None, metadata={"help": "Licence of the target, for the card."})
    data_license: list[str] | None = field(
        default=None, metadata={"help": "Licence of each folder of responses, for the card, in their order."}
    )


def calibrate_acceptance(
    target: PreTrainedModel,
    drafter: DrafterModel,
    prompts: Sequence[list[int]],
    *,
    window: str = "fixed:6",
    max_new_tokens: int = 96,
    seed: int = 0,
) -> tuple[dict[str, list[float]], dict[str, dict[str, float | int]]]:
    """
    Fits the acceptance estimate to verification outcomes, greedy and at temperature 1 (ours).

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.
        prompts (`Sequence[list[int]]`): Token ids of prompts the drafter was not trained on.
        window (`str`, *optional*, defaults to `"fixed:6"`): Window of the runs; a fixed one, so that no estimate
            chooses what is seen.
        max_new_tokens (`int`, *optional*, defaults to 96): New tokens per prompt.
        seed (`int`, *optional*, defaults to 0): Seed of the sampling.

    Returns:
        `tuple`: Weights per mode for `WindowConfig.calibration`, and figures per mode: outcomes seen, their mean, and
        the Brier scores of the raw draft confidence and of the fitted estimate on prompts left out of the fit.
    """
    longest = longest_text(target, drafter)
    usable = [prompt for prompt in prompts if can_decode(prompt, longest)]
    if len(usable) < 2:
        raise ValueError(
            f"`prompts` holds {len(usable)} prompts that can be decoded, of {len(prompts)}: give at least 2 held-out "
            "ones that have a token and leave room to draft."
        )
    if len(usable) < len(prompts):
        logger.warning(f"{len(prompts) - len(usable)} of {len(prompts)} held-out prompts cannot be decoded; left out.")
    set_seed(seed)
    weights, figures = {}, {}
    for mode in ("greedy", "sampling"):
        options = {"do_sample": False} if mode == "greedy" else {"do_sample": True, "temperature": 1.0, "top_k": 0}
        per_prompt, confidence = [], []
        for prompt in tqdm(usable, desc=f"Calibrating ({mode})"):
            room = min(max_new_tokens, longest - len(prompt))
            trace = decode_prompt(target, drafter, prompt, window=window, max_new_tokens=room, **options)
            per_prompt.append(trace.calibration_records())
            confidence.append(trace.calibration_pairs()[1])
        records = [record for part in per_prompt for record in part]
        weights[mode] = fit_calibration(records, prior=DEFAULT_WEIGHTS[mode])
        figures[mode] = _held_out_brier(per_prompt, confidence, mode)
    return weights, figures


def _held_out_brier(per_prompt: list, confidence: list, mode: str) -> dict[str, float | int]:
    """Two-fold cross-validation over prompts."""
    raw, fitted, outcomes = [], [], []
    for fold in range(2):
        train = [r for i, part in enumerate(per_prompt) if i % 2 != fold for r in part]
        if not train:
            continue
        weights = {mode: fit_calibration(train, prior=DEFAULT_WEIGHTS[mode])}
        estimator = AcceptanceEstimator(weights, sampling=mode == "sampling", online=False)
        for i, part in enumerate(per_prompt):
            if i % 2 == fold:
                fitted += [estimator.predict(features) for features, _ in part]
                outcomes += [float(y) for _, y in part]
                raw += confidence[i]
    return {
        "outcomes": len(outcomes),
        "mean_acceptance": sum(outcomes) / max(len(outcomes), 1),
        "brier_draft_confidence": brier_score(raw, outcomes),
        "brier_fitted": brier_score(fitted, outcomes),
    }


def _licences(args: FinishArguments, responses: list[dict | None] | None) -> dict:
    """What the card says about licences; what was not given is left out."""
    found = {name: getattr(args, name) for name in ("license", "target_license") if getattr(args, name)}
    if args.data_license:
        responses = responses or [None] * len(args.responses)
        if len(args.data_license) != len(responses):
            raise ValueError(
                f"`data_license` names {len(args.data_license)} licences for {len(responses)} folders of responses; "
                "give one each."
            )
        pairs = zip(responses, args.data_license, strict=True)
        found["responses"] = [{**(entry or {}), "license": licence} for entry, licence in pairs]
    return found


def main(args: FinishArguments) -> None:
    """Calibrates a trained drafter and writes the folder to share."""
    dtype = parse_dtype(args.dtype, torch.bfloat16)
    window = WindowConfig.parse(args.own_window)
    target, _ = load_target(args.target, dtype=dtype)
    drafter = AutoDrafter.from_pretrained(args.drafter, dtype=dtype)
    drafter.bind_target(target)
    responses, _ = load_all_responses(args.responses)
    training = read_provenance(args.drafter) or {}
    licences = _licences(args, training.get("responses"))
    data_seed = recorded_held_out_seed(training) if args.data_seed is None else args.data_seed
    recorded = (training.get("held_out") or {}).get("rows")
    holdout = args.holdout or recorded or 32
    if recorded is not None and holdout > recorded:
        logger.warning(
            f"`holdout` is {holdout}, but the training held out {recorded} rows: the others were trained on, and the "
            "estimate will take the drafter for better than it is."
        )
    _, held_out = split_holdout(responses, holdout, seed=data_seed)
    weights, figures = calibrate_acceptance(
        target,
        drafter,
        [prompt_of(row) for row in held_out],
        window=args.window,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )
    drafter.generation_config.window = replace(window, calibration=weights)

    output = Path(args.output_dir)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Written whole under another name first, then the folders change places: a crash leaves the old one as it was.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        folder, old = Path(temporary, "new"), Path(temporary, "old")
        if output.exists():
            shutil.copytree(output, folder)
        drafter.save_pretrained(folder)
        arguments = {**asdict(args), "data_seed": data_seed, "holdout": holdout}
        provenance = {**training, "calibration": {"arguments": arguments, "figures": figures}}
        provenance.update(licences)
        Path(folder, PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n")
        log = Path(args.drafter) / TRAINING_LOG_FILE
        if log.exists():
            shutil.copy(log, folder / TRAINING_LOG_FILE)
        if output.resolve() != Path(args.drafter).resolve():
            # Of a training whose weights have just been replaced.
            Path(folder, TRAINING_PROVENANCE_FILE).unlink(missing_ok=True)
        if output.exists():
            os.rename(output, old)
        os.rename(folder, output)
    for mode, values in figures.items():
        print(f"{mode}: {json.dumps(values)}")

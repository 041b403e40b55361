# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Trains the drafters of the package economize, by its own objectives and loop, on our responses for a given time.

economize trains for a number of steps. Here a source of batches ends the run when the time is spent, and a schedule
registered with economize anneals the learning rate by the same clock, as `max_seconds` does for our trainers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ppow_hf.data import build_draft_vocabulary, count_response_tokens, special_token_ids
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.whole_files import write_json_whole

TECHNIQUES = ("eagle3", "jump")
RECORD, SETTINGS = "race_training.json", "race_settings.json"
CLOCK = "ppow_race_clock"
# economize unrolls jump drafters for 16 steps from starts inside of the text.
SHORTEST_TEXT = 24
# fit() wants a number of steps; the clock ends the run long before.
_MAX_STEPS = 10**9
# Batches sorted by length at a time, so that there is little padding.
_SORTED_BATCHES = 50


class TimeUp(Exception):
    """The training time is spent."""


@dataclass(frozen=True)
class PeerTraining:
    """
    How a drafter of economize is trained. None leaves a value to economize.

    Args:
        technique (`"eagle3"` or `"jump"`): What drafts.
        seconds (`float`): Time spent in training steps.
        batch_size (`int`): Texts per step.
        max_length (`int`): Texts are cut to this many tokens.
        draft_vocab_size (`int`): Tokens the drafter can propose, the most frequent of the responses. A jump drafter
            is trained on the whole vocabulary and proposes these.
        ttt_steps (`int`, *optional*): Draft steps unrolled by EAGLE-3's training-time test.
        learning_rate (`float`, *optional*): Peak learning rate of new modules.
        warmup_steps (`int`, *optional*): Linear warm-up.
        autocast (`str`, *optional*): Dtype of the drafter's products.
        save_steps (`int`): Steps between checkpoints.
        seed (`int`): Of initialisation and order.
    """

    technique: str
    seconds: float
    batch_size: int = 4
    max_length: int = 512
    draft_vocab_size: int = 10240
    ttt_steps: int | None = None
    learning_rate: float | None = None
    warmup_steps: int | None = None
    autocast: str | None = "bfloat16"
    save_steps: int = 50
    seed: int = 0

    def __post_init__(self):
        if self.technique not in TECHNIQUES:
            raise ValueError(f"`technique` is {self.technique!r}: give one of {', '.join(TECHNIQUES)}.")
        if not self.seconds > 0:
            raise ValueError(f"`seconds` is {self.seconds!r}: give a time above 0.")
        if self.max_length < SHORTEST_TEXT:
            raise ValueError(f"`max_length` is {self.max_length}: give at least {SHORTEST_TEXT} tokens.")


def texts_of(rows: Sequence[Mapping[str, Any]], max_length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """
    Our rows as economize reads texts.

    Ours: `loss_mask` is 1 on the target's own tokens. economize: 1 on positions whose next token is one.

    Args:
        rows: Rows with `input_ids` and `loss_mask`.
        max_length (`int`): Texts are cut to this many tokens.

    Returns:
        `list` of `input_ids` and mask, each `torch.LongTensor` of shape `[T]`; texts with fewer than `SHORTEST_TEXT`
        tokens, and those without a token to learn, are left out.
    """
    texts = []
    for row in rows:
        ids = torch.tensor(row["input_ids"][:max_length])
        mask = torch.zeros_like(ids)
        mask[:-1] = torch.tensor(row["loss_mask"][:max_length])[1:]
        if len(ids) >= SHORTEST_TEXT and mask.any():
            texts.append((ids, mask))
    return texts


class TimedBatches:
    """
    An endless source of padded batches of similar length for economize's `fit` (its `BatchSource` protocol), which
    raises [`TimeUp`] when the time is spent. Time runs from one batch to the next, and is kept in checkpoints.

    Args:
        texts: As [`texts_of`] gives them.
        batch_size (`int`): Texts per batch.
        seconds (`float`): The time.
        seed (`int`): Of the order.
        clock (`Callable`): Seconds from any start.
    """

    def __init__(self, texts, batch_size: int, seconds: float, seed: int = 0, clock=time.perf_counter):
        if len(texts) < batch_size:
            raise ValueError(f"There are {len(texts)} texts to train on, fewer than one batch of {batch_size}.")
        self.texts, self.batch_size, self.seconds, self.seed, self.clock = texts, batch_size, seconds, seed, clock
        self.epoch = self.cursor = self.steps = self.tokens = self.response_tokens = 0
        self._spent, self._mark = 0.0, None
        self._order = self._permutation()

    def _permutation(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.texts), generator=generator).tolist()
        batches: list[list[int]] = []
        size = _SORTED_BATCHES * self.batch_size
        for start in range(0, len(order), size):
            part = sorted(order[start : start + size], key=lambda index: len(self.texts[index][0]))
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        batches = [batch for batch in batches if len(batch) == self.batch_size]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    @property
    def spent(self) -> float:
        """Seconds spent so far."""
        return self._spent + (0.0 if self._mark is None else self.clock() - self._mark)

    def next_batch(self):
        from economize.train import Example, collate

        now = self.clock()
        if self._mark is not None:
            self._spent += now - self._mark
        self._mark = now
        if self._spent >= self.seconds:
            self._mark = None
            raise TimeUp
        if self.cursor == len(self._order):
            self.epoch, self.cursor = self.epoch + 1, 0
            self._order = self._permutation()
        chosen = [self.texts[index] for index in self._order[self.cursor]]
        self.cursor += 1
        self.steps += 1
        self.tokens += sum(len(ids) for ids, _ in chosen)
        self.response_tokens += sum(int(mask.sum()) for _, mask in chosen)
        return collate([Example(ids, mask) for ids, mask in chosen])

    def factor(self, progress: float, min_lr_ratio: float) -> float:
        """Half a cosine over the time, whatever the share of steps (`progress`) is; an entry of economize's
        `SCHEDULES`."""
        done = min(self.spent / self.seconds, 1.0)
        return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))

    def state_dict(self) -> dict[str, Any]:
        names = ("epoch", "cursor", "steps", "tokens", "response_tokens", "spent")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("epoch", "cursor", "steps", "tokens", "response_tokens"):
            setattr(self, name, int(state[name]))
        self._spent, self._mark = float(state["spent"]), None
        self._order = self._permutation()


def technique_config(settings: PeerTraining, num_layers: int):
    """
    economize's configuration of a technique.

    EAGLE-3: its defaults. Jump: the one that economize publishes as its best, from two thirds of the layers with one
    trained copy of the next (layers 16 and 17 of 24 there).
    """
    import economize
    from economize.techniques.eagle3 import Eagle3Config

    if settings.technique == "eagle3":
        steps = {} if settings.ttt_steps is None else {"train_steps": settings.ttt_steps}
        return Eagle3Config(draft_vocab=settings.draft_vocab_size, **steps)
    start = round(num_layers * 2 / 3)
    return economize.JumpConfig(
        target_layer=start,
        source_layer=start + 1,
        exit_layer=start + 1,
        predictor="linear",
        adaptation="full",
    )


def train_peer(
    target,
    tokenizer,
    rows,
    settings: PeerTraining,
    output_dir: str | os.PathLike,
    facts: Mapping[str, Any],
    clock: Callable[[], float] = time.perf_counter,
) -> Path:
    """
    Train a drafter of economize, or go on where a killed run stopped.

    Args:
        target ([`~transformers.PreTrainedModel`]): The frozen target.
        tokenizer: Its tokenizer.
        rows ([`~datasets.Dataset`]): Rows of responses to train on.
        settings ([`PeerTraining`]): How.
        output_dir (`str` or `os.PathLike`): Folder of checkpoints; the drafter is in `final`.
        facts (`dict`): What to record beside it.
        clock (`Callable`): Seconds from any start.

    Returns:
        `Path`: the folder `final`, with economize's checkpoint and `race_training.json`.

    Raises:
        ValueError: the folder holds a run with other settings, or there is nothing to train on.
    """
    import economize
    from economize.train import SCHEDULES, fit

    output = Path(output_dir)
    final = output / "final"
    described = {**dataclasses.asdict(settings), "rows": len(rows), "facts": json.loads(json.dumps(dict(facts)))}
    _check_settings(output / SETTINGS, described)
    if (final / RECORD).exists():
        return final
    write_json_whole(output / SETTINGS, described)

    counts = count_response_tokens(rows, target.config.vocab_size)
    special = special_token_ids(tokenizer, target.generation_config)
    draft_ids = build_draft_vocabulary(counts, settings.draft_vocab_size, special)
    batches = TimedBatches(
        texts_of(rows, settings.max_length), settings.batch_size, settings.seconds, settings.seed, clock
    )
    torch.manual_seed(settings.seed)
    model = economize.apply(target, technique_config(settings, target.config.num_hidden_layers))
    if settings.technique == "eagle3":
        model.techniques["eagle3"].set_draft_vocab(draft_ids)
    SCHEDULES.register(CLOCK, batches.factor, override=True)
    try:
        fit(
            model,
            batches,
            steps=_MAX_STEPS,
            schedule=CLOCK,
            lr=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            autocast=settings.autocast,
            log_every=5,
            save_every=settings.save_steps,
            output_dir=output,
            resume=True,
            seed=settings.seed,
        )
    except TimeUp:
        pass
    finally:
        SCHEDULES.unregister(CLOCK)

    temporary = output / ".final.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    economize.save(model, temporary)
    log = output / "train_log.jsonl"
    record = {
        "economize": metadata.version("economize"),
        "license": metadata.metadata("economize").get("License-Expression"),
        **described,
        "trained_seconds": batches.spent,
        "steps": batches.steps,
        "tokens": batches.tokens,
        "response_tokens": batches.response_tokens,
        "epochs": batches.epoch + batches.cursor / len(batches._order),
        "optimizer": json.loads((output / "train_config.json").read_text(encoding="utf-8"))["optimizer"],
        "parameters": sum(p.numel() for p in model.technique_parameters()),
        "environment": describe_environment(torch.device(target.device)),
        "draft_token_ids": draft_ids[counts[draft_ids].argsort(descending=True, stable=True)].tolist(),
        "log": [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else [],
    }
    (temporary / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
    os.replace(temporary, final)
    return final


def read_record(folder: str | os.PathLike) -> dict[str, Any]:
    """What [`train_peer`] recorded of a drafter; `folder` is its output folder or the folder `final` inside."""
    for place in (Path(folder), Path(folder) / "final"):
        if (place / RECORD).exists():
            return {**json.loads((place / RECORD).read_text(encoding="utf-8")), "folder": str(place)}
    raise ValueError(f"{folder} holds no finished drafter of economize: train it with `race_economize.py train`.")


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    different = [name for name in sorted(before.keys() | settings.keys()) if before.get(name) != settings.get(name)]
    if different:
        changes = "; ".join(f"{name}: {before.get(name)!r} then, {settings.get(name)!r} now" for name in different)
        raise ValueError(
            f"{path.parent} holds a run with other settings ({changes}). Repeat those to continue it, or choose "
            "another `--output`."
        )

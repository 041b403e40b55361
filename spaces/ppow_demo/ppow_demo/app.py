# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The page: controls, four tabs, and what happens when a button is pressed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from . import offline  # isort: skip  # noqa: F401  before gradio, whose settings it makes
from .zerogpu import on_gpu  # isort: skip  # before torch

import gradio as gr
from transformers.utils import logging

from . import html_tables, html_view
from .engine import Engine
from .examples import EXAMPLES
from .figures import speedup_figure, time_figure
from .records import Race
from .settings import MAX_NEW_TOKENS, MAX_TEMPERATURE, MAX_WINDOW, POLICY_LABELS, DemoError, Settings
from .trace_view import totals
from .visitors import Visitors
from .what_if import (
    ADAPTIVE_ACCEPTED,
    ADAPTIVE_WINDOW,
    DRAFT_MS,
    FIXED_ACCEPTED,
    FIXED_WINDOW,
    TARGET_MS,
    what_if,
)

logger = logging.get_logger(__name__)

QUEUE_LENGTH = 20
# Every decoding of the page is in this group, of which one runs at a time.
DECODING = {"concurrency_id": "decode", "concurrency_limit": 1}
QUICK = {"concurrency_limit": 8, "show_progress": "hidden"}
TITLE = "ppow-hf: guess a window, check it once"


def _guarded(work: Callable[[], Iterator[dict]], status: Any) -> Iterator[dict]:
    """Passes on what `work` yields; turns its errors into messages in the page."""
    try:
        yield from work()
    except DemoError as error:
        yield {status: html_view.message(str(error), "error")}
    except Exception as error:
        logger.exception("A run of the demo failed")
        text = "Something went wrong on this side"
        if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
            text = "The machine ran out of memory: try fewer new tokens or a shorter prompt"
        yield {status: html_view.message(f"{text} ({type(error).__name__}). Please try again.", "error")}


def build_demo(engine: Engine, queue_length: int = QUEUE_LENGTH) -> gr.Blocks:
    """
    The page around an engine.

    Args:
        engine ([`Engine`]): What decodes.
        queue_length (`int`, *optional*, defaults to 20): How many runs may wait; further ones are refused.

    Returns:
        `gradio.Blocks`: To be started with [`~ppow_demo.serve.launch`].
    """
    visitors = Visitors(engine)
    race_steps, compare_steps, float32_check = map(on_gpu, (engine.race, engine.compare, engine.check_float32))
    decode = engine.decode_text

    with gr.Blocks(title=TITLE, analytics_enabled=False) as demo:
        race_state = gr.State(None)
        gr.HTML(html_view.HEADER)

        with gr.Group(elem_classes="pp-controls"):
            prompt = gr.Textbox(
                EXAMPLES[0][1], label="Prompt", lines=2, max_lines=8, elem_id="pp-prompt", placeholder="Ask anything"
            )
        with gr.Row(elem_id="pp-examples"):
            for label, text in EXAMPLES:
                # In the browser, without asking the server: "Run" right behind it must decode what is shown.
                gr.Button(label, size="sm", scale=0, min_width=60).click(
                    None, None, [prompt], js=f"() => {json.dumps(text)}", api_visibility="private"
                )
        with gr.Accordion("Settings", open=False, elem_id="pp-settings"):
            with gr.Row():
                temperature = gr.Slider(
                    0, MAX_TEMPERATURE, 0, step=0.1, label="Temperature", info="0: always the likeliest token"
                )
                new_tokens = gr.Slider(16, MAX_NEW_TOKENS, 96, step=8, label="New tokens", info="Longest answer")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="Of the draws above temperature 0")
            with gr.Row():
                policy = gr.Dropdown(
                    [(label, name) for name, label in POLICY_LABELS.items()], value="cost_aware", label="Window policy"
                )
                size = gr.Slider(1, MAX_WINDOW, 5, step=1, label="Fixed or first window")
                min_size = gr.Slider(0, MAX_WINDOW, 1, step=1, label="Smallest window")
                max_size = gr.Slider(1, MAX_WINDOW, 12, step=1, label="Largest window")
        with gr.Row(elem_classes="pp-actions"):
            run = gr.Button("Run", variant="primary", elem_id="pp-run", min_width=150, scale=0)
            stop = gr.Button("Stop", interactive=False, elem_id="pp-stop", min_width=150, scale=0)
        status = gr.HTML(html_view.message(_welcome(engine)), elem_id="pp-status")

        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Race", id="race"):
                panes = gr.HTML(html_view.race_panes(None, decode), elem_id="pp-race")
                verdict = gr.HTML("", elem_id="pp-verdict")
                with gr.Row(elem_classes="pp-actions"):
                    replay = gr.Button(
                        "Replay both, side by side", interactive=False, elem_id="pp-replay", scale=0, min_width=260
                    )
                    float32 = gr.Button(
                        "Check in float32", interactive=False, elem_id="pp-float32", scale=0, min_width=190
                    )
            with gr.Tab("Window theatre", id="theatre"):
                theatre = gr.HTML(html_view.theatre_text([]), elem_id="pp-theatre")
                cycle = gr.Slider(
                    1, 2, 1, step=1, label="Walk through the cycles", interactive=False, elem_id="pp-cycle"
                )
                rejected = gr.Checkbox(True, label="Show rejected guesses")
                detail = gr.HTML("", elem_id="pp-detail")
                svg = gr.HTML("", elem_id="pp-windows")
                sums = gr.HTML("", elem_id="pp-totals")
            with gr.Tab("Why it pays", id="why"):
                prediction = gr.HTML(html_tables.prediction_note(None), elem_id="pp-prediction")
                speedups = gr.Plot(show_label=False, visible=False, elem_id="pp-speedups")
                times = gr.Plot(show_label=False, visible=False, elem_id="pp-times")
                gr.HTML(
                    "<h3>What if?</h3><p class='pp-note'>A cycle costs its drafted tokens and one pass of the target; "
                    "what counts is what it costs per <b>accepted</b> token. The worked example: a fixed window of "
                    "8, of which 3 are accepted, against a window that stops where guessing stops paying.</p>"
                )
                with gr.Row():
                    target_ms = gr.Number(TARGET_MS, label="Target step (ms)", elem_id="pp-target-ms")
                    draft_ms = gr.Number(DRAFT_MS, label="Draft step (ms)", elem_id="pp-draft-ms")
                with gr.Row():
                    window_a = gr.Number(FIXED_WINDOW, label="A: window", elem_id="pp-window-a")
                    accepted_a = gr.Number(FIXED_ACCEPTED, label="A: accepted", elem_id="pp-accepted-a")
                    window_b = gr.Number(ADAPTIVE_WINDOW, label="B: window", elem_id="pp-window-b")
                    accepted_b = gr.Number(ADAPTIVE_ACCEPTED, label="B: accepted", elem_id="pp-accepted-b")
                questions = [target_ms, draft_ms, window_a, accepted_a, window_b, accepted_b]
                answer = gr.HTML(_what_if_html(*(field.value for field in questions)), elem_id="pp-what-if")
                with gr.Row(elem_classes="pp-actions"):
                    worked = gr.Button("The worked example", scale=0, min_width=190)
                    machine = gr.Button("This machine, last run", elem_id="pp-machine", scale=0, min_width=190)
            with gr.Tab("Compare", id="compare"):
                compare = gr.Button(
                    "Compare on this prompt", variant="primary", elem_id="pp-compare", scale=0, min_width=230
                )
                table = gr.HTML(html_tables.compare_table(None), elem_id="pp-table")

        controls = [temperature, new_tokens, policy, size, min_size, max_size, seed]
        busy_buttons = [run, stop, compare, replay, float32]

        # ---- what the buttons do -----------------------------------------------------------------------------------

        def buttons(race: Race | None, session: str) -> dict:
            if visitors.busy(session):
                return {button: _off() for button in busy_buttons} | {stop: _on()}
            whole = race is not None and race.comparable
            greedy = whole and not race.stopped and race.settings.temperature == 0
            return {
                run: _on(),
                compare: _on(),
                stop: _off(),
                replay: gr.Button(interactive=whole),
                float32: gr.Button(interactive=bool(greedy and engine.models.dtype != "float32")),
            }

        def announce(request: gr.Request) -> dict:
            visitors.announce(request.session_hash)
            waiting = html_view.message("Waiting for the machine: one visitor decodes at a time.")
            return buttons(None, request.session_hash) | {status: waiting}

        def refused(race: Race | None, request: gr.Request) -> dict:
            """What was announced did not come to run: without this, its buttons would stay off."""
            visitors.refuse(request.session_hash)
            text = "This could not be run: too many visitors are waiting, or the connection broke. Please try again."
            return buttons(race, request.session_hash) | {status: html_view.message(text, "error")}

        def views(race: Race, current: int = 1) -> dict:
            """Everything that shows a race that is over."""
            cycles = len(race.drafted.trace["cycles"]) if race.finished and race.drafted.trace else 0
            return {
                race_state: race,
                panes: html_view.race_panes(race, decode),
                verdict: html_view.verdict(race),
                theatre: html_view.theatre_text(race.marked, current if cycles else 0),
                cycle: gr.Slider(maximum=max(cycles, 2), value=1, interactive=cycles > 1),
                rejected: True,
                detail: html_view.cycle_detail(race, current),
                svg: html_view.theatre_svg(race, current if cycles else 0),
                sums: html_view.totals_note(race),
                prediction: html_tables.prediction_note(race),
                times: _plot(time_figure(race)),
                speedups: _plot(speedup_figure(race)),
            }

        # Gradio finds the request by the annotation of a named parameter, so the controls are spelt out.
        def race_endpoint(
            question, temperature, new_tokens, policy, size, min_size, max_size, seed, old, request: gr.Request
        ):
            """Decode a prompt with the target alone, then with the drafter."""
            race = old

            def work() -> Iterator[dict]:
                nonlocal race
                settings = Settings(temperature, new_tokens, policy, size, min_size, max_size, seed)
                if flag.is_set():
                    yield {status: html_view.message("Stopped before it began.")}
                    return
                turn = None
                for current in race_steps(question, settings, flag.is_set):
                    if current.finished or current.plain.stopped:
                        race = current
                        yield views(race) | {status: html_view.message(_done(race))}
                        continue
                    update = {panes: html_view.race_panes(current, decode)}
                    who = "with the drafter" if current.drafted is not None else "the target alone"
                    if who != turn:  # once, not at every step: screen readers read it out
                        turn = who
                        update |= {status: html_view.message(f"Decoding: {who}."), verdict: ""}
                    yield update

            with visitors.running(request.session_hash) as flag:
                yield from _guarded(work, status)
            yield buttons(race, request.session_hash)

        def compare_endpoint(
            question, temperature, new_tokens, policy, size, min_size, max_size, seed, old, request: gr.Request
        ):
            """Decode a prompt plainly, with prompt lookup and with every drafter."""

            def work() -> Iterator[dict]:
                settings = Settings(temperature, new_tokens, policy, size, min_size, max_size, seed)
                if flag.is_set():
                    yield {status: html_view.message("Stopped before it began.")}
                    return
                yield {status: html_view.message("Comparing: one after the other.")}
                for rows in compare_steps(question, settings, flag.is_set):
                    yield {table: html_tables.compare_table(rows)}
                word = "Stopped." if flag.is_set() else "Compared."
                yield {status: html_view.message(word)}

            with visitors.running(request.session_hash) as flag:
                yield from _guarded(work, status)
            yield buttons(old, request.session_hash)

        def float32_endpoint(race, request: gr.Request):
            """Decode the last prompt again both ways in float32 and compare the texts."""

            def work() -> Iterator[dict]:
                if race is None:
                    raise DemoError("There is no run to check yet: press “Run” first.")
                yield {status: html_view.message("Decoding both again in float32 …")}
                race.float32 = float32_check(race, flag.is_set)
                word = {True: "In float32 both texts are the same.", False: "In float32 the texts differ."}
                text = word.get(race.float32, "Stopped: not checked.")
                yield {status: html_view.message(text), verdict: html_view.verdict(race), race_state: race}

            with visitors.running(request.session_hash) as flag:
                yield from _guarded(work, status)
            yield buttons(race, request.session_hash)

        def stop_endpoint(request: gr.Request) -> dict:
            """Stop this visitor's run."""
            if visitors.stop(request.session_hash):
                return {status: html_view.message("Stopping after this cycle …"), stop: _off()}
            return {status: html_view.message("Nothing of yours is running."), stop: _off()}

        def leave(request: gr.Request) -> None:
            visitors.leave(request.session_hash)

        def walk(race: Race | None, current: float, show: bool):
            """Point out one cycle."""
            if race is None or not race.marked:
                return html_view.theatre_text([]), "", ""
            current = int(current or 1)
            return (
                html_view.theatre_text(race.marked, current, show_rejected=bool(show)),
                html_view.cycle_detail(race, current),
                html_view.theatre_svg(race, current),
            )

        def machine_values(race: Race | None):
            """The costs of this machine, and the windows of the last run."""
            try:
                model = engine.models.cost_model(engine.models.drafter()) if race is None else race.cost_model
            except DemoError:
                return [gr.skip()] * len(questions)
            step = 1000 * (model.target_step_seconds or 0.0)
            values = [round(step, 1), round(step * model.gamma, 2)]
            if race is None or not race.marked or not race.rows:
                return values + [gr.skip()] * 4
            for rows in (race.fixed, race.rows):
                summed = totals(rows)
                values += [round(summed.drafted / summed.cycles, 2), round(summed.accepted / summed.cycles, 2)]
            return values

        # ---- events ------------------------------------------------------------------------------------------------

        # Neither waits in the queue: the one comes before it, the other where it is full.
        at_once = {"outputs": [*busy_buttons, status], "queue": False}
        at_once |= {"api_visibility": "private", "show_progress": "hidden"}
        announced = {"fn": announce, "inputs": None, **at_once}
        unannounced = {"fn": refused, "inputs": [race_state], **at_once}
        inputs = [prompt, *controls, race_state]
        race_outputs = [race_state, status, panes, verdict, theatre, cycle, rejected, detail, svg, sums, prediction]
        race_outputs += [times, speedups, *busy_buttons]
        gr.on([run.click, prompt.submit], **announced).then(
            race_endpoint, inputs, race_outputs, api_name="race", show_progress="hidden", **DECODING
        ).failure(**unannounced)
        compare.click(**announced).then(
            compare_endpoint,
            inputs,
            [status, table, *busy_buttons],
            api_name="compare",
            show_progress="hidden",
            **DECODING,
        ).failure(**unannounced)
        float32.click(**announced).then(
            float32_endpoint,
            [race_state],
            [status, verdict, race_state, *busy_buttons],
            api_name="check_float32",
            show_progress="hidden",
            **DECODING,
        ).failure(**unannounced)
        stop.click(stop_endpoint, None, [status, stop], queue=False, api_name="stop", show_progress="hidden")
        walking = {"fn": walk, "inputs": [race_state, cycle, rejected], "outputs": [theatre, detail, svg]}
        cycle.input(**walking, trigger_mode="always_last", api_name="walk", **QUICK)
        rejected.input(**walking, api_visibility="private", **QUICK)
        replay.click(
            lambda race: html_view.race_panes(race, decode, replay=race is not None and race.comparable),
            [race_state],
            [panes],
            api_visibility="private",
            **QUICK,
        )
        gr.on(
            [field.input for field in questions],
            _what_if_html,
            questions,
            [answer],
            trigger_mode="always_last",
            api_name="what_if",
            **QUICK,
        )
        defaults = [TARGET_MS, DRAFT_MS, FIXED_WINDOW, FIXED_ACCEPTED, ADAPTIVE_WINDOW, ADAPTIVE_ACCEPTED]
        for button, fill, needs in ((worked, lambda: defaults, None), (machine, machine_values, [race_state])):
            button.click(fill, needs, questions, api_visibility="private", **QUICK).then(
                _what_if_html, questions, [answer], api_visibility="private", **QUICK
            )
        demo.unload(leave)

    demo.queue(max_size=queue_length, default_concurrency_limit=8)
    return demo


def _what_if_html(target_ms, draft_ms, window_a, accepted_a, window_b, accepted_b) -> str:
    """Milliseconds per accepted token of two windows."""
    try:
        return html_tables.what_if_cards(
            what_if(target_ms, draft_ms, window_a, accepted_a), what_if(target_ms, draft_ms, window_b, accepted_b)
        )
    except DemoError as error:
        return html_view.message(str(error), "error")


def _plot(figure: Any) -> Any:
    return gr.Plot(value=figure, visible=figure is not None)


def _on() -> gr.Button:
    return gr.Button(interactive=True)


def _off() -> gr.Button:
    return gr.Button(interactive=False)


def _welcome(engine: Engine) -> str:
    models = engine.models
    if not models.entries:
        return f"Target: {models.target_name}. No drafter was found: set DRAFTER_ID to a drafter's Hub id or folder."
    return (
        f"Ready. Target: {models.target_name} in {models.dtype} on {models.target.device.type}. "
        f"Drafter: {models.entries[0].label}."
    )


def _done(race: Race) -> str:
    if race.stopped:
        return "Stopped. What was decoded so far is below."
    speed = "" if race.speedup is None else f" {race.speedup:.2f} times the speed of the target alone."
    return f"Done.{speed} “Window theatre” shows how, “Why it pays” why."

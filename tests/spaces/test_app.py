# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The running page through its API: streaming, stop, bad input, two visitors at once."""

import html
import re
import threading
import time
import urllib.request

import pytest

pytest.importorskip("gradio", reason="the demo's packages are not installed: pip install -e .[demo]")
gradio_client = pytest.importorskip("gradio_client")

from tests.spaces.conftest import slow_down  # noqa: E402

# Outputs of /race as a client gets them (no state): status, panes, verdict, theatre, ...
STATUS, PANES, VERDICT, THEATRE = range(4)
DEFAULTS = {
    "temperature": 0,
    "new_tokens": 24,
    "policy": "fixed",
    "size": 4,
    "min_size": 1,
    "max_size": 12,
    "seed": 0,
}


def client(url):
    return gradio_client.Client(url, verbose=False)


def race(visitor, question, **changes):
    values = {**DEFAULTS, **changes}
    return visitor.submit(question, *values.values(), api_name="/race")


def shown(job, index):
    """Everything that was shown in one place of the page, in order (what a step leaves as it is comes as a dict)."""
    return [output[index] for output in job.outputs() if isinstance(output[index], str)]


def pane_texts(panes):
    """The texts of the two panes (one while the second waits)."""
    found = re.findall(r'<div class="pp-text".*?>(.*?)</div>', panes, flags=re.S)
    return [html.unescape(re.sub(r'<span class="pp-nl".*?</span>|<[^>]+>', "", text)) for text in found]


def origin_text(theatre):
    """The text of the theatre, without the rejected drafts."""
    return html.unescape(re.sub(r'<del.*?</del>|<span class="pp-nl".*?</span>|<[^>]+>', "", theatre))


def wait_for_text(job, seconds=60):
    end = time.time() + seconds
    while time.time() < end:
        if any(any(pane_texts(panes)) for panes in shown(job, PANES)):
            return
        time.sleep(0.05)
    raise AssertionError(f"no text within {seconds} s; the last output: {job.outputs()[-1:]}")


def expected_text(engine, question, new_tokens):
    """What plain `generate` says, outside the page."""
    from ppow_hf.console import chat_inputs

    inputs = chat_inputs(engine.models.tokenizer, question)
    output = engine.models.target.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    return engine.decode_text(output[0, inputs["input_ids"].shape[1] :].tolist())


def test_race_streams_and_ends_with_figures(served):
    url, engine = served
    handle = slow_down(engine)
    try:
        job = race(client(url), "Count to ten.", new_tokens=40)
        job.result(timeout=120)
    finally:
        handle.remove()
    lengths = [len(pane_texts(panes)[0]) for panes in shown(job, PANES)]
    assert len({length for length in lengths if 0 < length < 40}) >= 3, lengths  # it grew before one's eyes
    assert lengths == sorted(lengths)
    expected = expected_text(engine, "Count to ten.", 40)
    assert pane_texts(shown(job, PANES)[-1]) == [expected, expected]
    assert "identical" in shown(job, VERDICT)[-1] and "Done" in shown(job, STATUS)[-1]
    assert origin_text(shown(job, THEATRE)[-1]) == expected


def test_stop_stops_ones_own_run(served):
    url, engine = served
    visitor = client(url)
    handle = slow_down(engine)
    try:
        job = race(visitor, "Count to ten.", new_tokens=256)
        wait_for_text(job)
        message = visitor.predict(api_name="/stop")
        assert "Stopping" in message
        job.result(timeout=60)
    finally:
        handle.remove()
    assert "Stopped" in shown(job, STATUS)[-1] and 0 < len(pane_texts(shown(job, PANES)[-1])[0]) < 256
    # And the next run is not stopped by the old wish.
    job = race(visitor, "Count to ten.")
    job.result(timeout=60)
    assert "Done" in shown(job, STATUS)[-1]


def test_stop_without_a_run_says_so(served):
    url, _ = served
    visitor = client(url)
    assert "Nothing" in visitor.predict(api_name="/stop")
    job = race(visitor, "Count to ten.")
    job.result(timeout=60)
    assert "Done" in shown(job, STATUS)[-1]


def test_two_visitors_do_not_mix(served):
    """Both at once: each gets its own text and trace, and they are decoded one after the other."""
    url, engine = served
    questions = ["Count to ten.", "Name a colour, please."]
    expected = [expected_text(engine, question, 48) for question in questions]
    assert expected[0] != expected[1]
    visitors = [client(url) for _ in questions]
    handle = slow_down(engine, 0.01)
    try:
        jobs = [race(v, q, new_tokens=48) for v, q in zip(visitors, questions, strict=True)]
        most = 0
        while not all(job.done() for job in jobs):
            most = max(most, sum(thread.name.startswith("decode") for thread in threading.enumerate()))
            time.sleep(0.01)
    finally:
        handle.remove()
    assert most == 1
    for job, text in zip(jobs, expected, strict=True):
        assert pane_texts(shown(job, PANES)[-1]) == [text, text]
        assert origin_text(shown(job, THEATRE)[-1]) == text
        assert all(text.startswith(part) for panes in shown(job, PANES) for part in pane_texts(panes))


def test_one_visitors_stop_is_not_anothers(served):
    url, engine = served
    running, other = client(url), client(url)
    handle = slow_down(engine)
    try:
        job = race(running, "Count to ten.", new_tokens=48)
        wait_for_text(job)
        assert "Nothing" in other.predict(api_name="/stop")
        job.result(timeout=60)
    finally:
        handle.remove()
    assert "Done" in shown(job, STATUS)[-1]


@pytest.mark.parametrize(
    ("question", "changes", "said"),
    [
        ("", {}, "empty"),
        ("word " * 200, {}, "long prompt"),
        ("x" * 30_000, {}, "30,000 characters"),
        ("Hello", {"policy": "cost_aware", "min_size": 9, "max_size": 2}, "smallest window"),
    ],
)
def test_bad_input_is_answered_in_the_page(served, question, changes, said):
    url, _ = served
    job = race(client(url), question, **changes)
    job.result(timeout=60)
    statuses = shown(job, STATUS)
    assert any(said in status and 'role="alert"' in status for status in statuses), statuses


def test_unexpected_failures_are_answered_too(served):
    url, engine = served

    def fail(module, args):
        raise RuntimeError("secret detail")

    handle = engine.models.target.register_forward_pre_hook(fail)
    visitor = client(url)
    try:
        job = race(visitor, "Hello")
        job.result(timeout=60)
    finally:
        handle.remove()
    text = " ".join(str(output) for output in job.outputs())
    assert "RuntimeError" in text and "secret detail" not in text
    job = race(visitor, "Hello")
    job.result(timeout=60)
    assert "Done" in shown(job, STATUS)[-1]


def test_compare(served):
    url, _ = served
    job = client(url).submit("Count to ten.", *DEFAULTS.values(), api_name="/compare")
    job.result(timeout=120)
    table = shown(job, 1)[-1]
    rows = re.findall(r'<th scope="row">(.*?)</th>', table)
    assert rows == ["Plain decoding", "Prompt lookup (no training)", "Initialisation: tiny"]
    assert table.count("<td>yes</td>") == 2  # greedy float32: the same text


def test_what_if_defaults_reproduce_the_worked_example(served):
    url, _ = served
    visitor = client(url)
    answer = visitor.predict(150, 30, 8, 3, 6.5, 6.5, api_name="/what_if")
    assert "130.0 ms" in answer and "53.1 ms" in answer
    assert 'role="alert"' in visitor.predict(150, 30, 8, 9, 6.5, 6.5, api_name="/what_if")


def test_what_is_served_names_no_other_machine(served):
    """The page's own HTML loads nothing from elsewhere, and forbids the browser to."""
    url, _ = served
    with urllib.request.urlopen(url) as response:
        policy, page = response.headers["content-security-policy"], response.read().decode()
    assert "default-src 'self'" in policy and "connect-src 'self'" in policy and "http" not in policy
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](https?://[^\"']+)", page)
    assert [address for address in loaded if not address.startswith(url)] == []
    with urllib.request.urlopen(f"{url}theme.css") as response:
        assert not re.findall(r"https?://(?!www\.w3\.org)[^\s\"')]+", response.read().decode())

# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A visitor whom the queue has no room for: told so, able to press again, and not held to an old wish to stop."""

import pytest

pytest.importorskip("gradio", reason="the demo's packages are not installed: pip install -e .[demo]")
pytest.importorskip("gradio_client")

from tests.spaces.page_protocol import PageVisit  # noqa: E402
from tests.spaces.test_app import STATUS, shown  # noqa: E402


@pytest.mark.parametrize("button", ["pp-run", "pp-compare"])
def test_a_refused_visitor_can_press_again(small, crowd, button):
    url, _ = small
    visit = PageVisit(url)
    visit.press(button)
    assert visit.refusals == [503]
    assert "Waiting" in visit.statuses[0] and "too many visitors" in visit.statuses[1]
    assert 'role=\\"alert\\"' in visit.statuses[1]
    assert visit.enabled["pp-run"] and visit.enabled["pp-compare"] and not visit.enabled["pp-stop"]
    visit.press("pp-stop")
    assert "Nothing of yours is running" in visit.statuses[-1]
    crowd()
    visit.press(button)
    assert visit.refusals == [503]
    assert "Done" in visit.statuses[-1] or "Compared" in visit.statuses[-1]
    assert not any("Stopped before it began" in status for status in visit.statuses)
    assert visit.enabled["pp-run"] and not visit.enabled["pp-stop"]


def test_a_refusal_does_not_disturb_those_who_are_served(small, crowd):
    url, _ = small
    visit = PageVisit(url)
    visit.press("pp-run")
    visit.press("pp-stop")
    assert all("Done" in shown(job, STATUS)[-1] for job in crowd())

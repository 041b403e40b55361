# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Which runs a wish to stop concerns: those that were announced before it, and no later one."""

import pytest

from tests.spaces.conftest import make_engine


@pytest.fixture
def visitors():
    from ppow_demo.visitors import Visitors

    return Visitors(make_engine())


def test_a_run_that_was_refused_leaves_nothing_behind(visitors):
    visitors.announce("me")
    visitors.refuse("me")
    assert not visitors.busy("me") and not visitors.stop("me")
    visitors.announce("me")
    with visitors.running("me") as flag:
        assert not flag.is_set() and visitors.busy("me")
    assert not visitors.busy("me")


def test_no_later_run_is_held_to_a_stop_even_if_nobody_told_of_the_refusal(visitors):
    visitors.announce("me")  # refused, and the page could not say so
    assert visitors.stop("me")
    for _ in range(2):
        visitors.announce("me")
        with visitors.running("me") as flag:
            assert not flag.is_set()


def test_stop_ends_what_decodes_and_what_waits_and_not_what_is_asked_for_after_it(visitors):
    for _ in range(2):
        visitors.announce("me")
    with visitors.running("me") as first:
        assert visitors.stop("me") and first.is_set()
        visitors.announce("me")
        assert first.is_set()
    with visitors.running("me") as second:
        assert second.is_set()
    with visitors.running("me") as third:
        assert not third.is_set()
        assert visitors.stop("me") and third.is_set()
    assert not visitors.busy("me")


def test_stop_while_waiting(visitors):
    visitors.announce("me")
    assert visitors.stop("me")
    with visitors.running("me") as flag:
        assert flag.is_set()
    with visitors.running("me") as flag:  # not announced, as by a client of the API
        assert not flag.is_set()


def test_a_refusal_concerns_only_the_run_that_was_refused(visitors):
    for _ in range(2):
        visitors.announce("me")
    visitors.refuse("me")
    visitors.announce("you")
    assert visitors.busy("me") and visitors.stop("me")
    visitors.refuse("you")
    visitors.refuse("you")  # once too often
    assert not visitors.busy("you")
    with visitors.running("me") as mine, visitors.running("you") as yours:
        assert mine.is_set() and not yours.is_set()


def test_who_leaves_stops_and_is_forgotten(visitors):
    visitors.announce("me")
    with visitors.running("me") as flag:
        visitors.announce("me")
        visitors.leave("me")
        assert flag.is_set()
    assert not flag.is_set() and not visitors.busy("me")

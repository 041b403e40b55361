# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The page in a real browser: load, type, run, walk, stop; at 1280 and 390 pixels, light and dark."""

import os
import re
import shutil
from urllib.parse import urlsplit

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
pytest.importorskip("gradio", reason="the demo's packages are not installed: pip install -e .[demo]")

from tests.spaces.conftest import slow_down  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: install Debian's `chromium` (or name one in CHROMIUM)"
)
WAIT = 120_000  # milliseconds, for slow machines


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Page:
    """One page, with everything it asked for and complained about."""

    def __init__(self, browser, url, **kwargs):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **kwargs})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.complaints, self.addresses = [], []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.page.on("requestfailed", lambda request: self.addresses.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("#pp-run")
        self.page.wait_for_selector("#pp-prompt textarea")

    def run(self, question="Count to ten."):
        self.page.fill("#pp-prompt textarea", question)
        self.forget_status()
        self.page.click("#pp-run")
        self.wait_for_status("Done|Stopped|wrong")

    def forget_status(self):
        """Marks the message that is shown, so that only a newer one counts."""
        self.page.evaluate("document.querySelector('#pp-status .pp-message').dataset.old = 1")

    def wait_for_status(self, pattern):
        message = "document.querySelector('#pp-status .pp-message:not([data-old])')?.innerText ?? ''"
        self.page.wait_for_function(f"new RegExp({pattern!r}).test({message})")

    def tab(self, name):
        self.page.get_by_role("tab", name=name).click()

    def width(self):
        return self.page.evaluate("document.documentElement.scrollWidth")

    def check_and_close(self):
        """No complaint in the console, and nothing was asked of another machine."""
        hosts = {urlsplit(address).hostname for address in self.addresses if address.startswith(("http", "ws"))}
        assert hosts <= {"127.0.0.1", "localhost"}, hosts
        assert self.complaints == []
        self.context.close()


def test_a_visit(served, browser, tmp_path):
    url, engine = served
    visit = Page(browser, url)
    page = visit.page
    page.get_by_role("button", name="Code: Fibonacci").click()
    page.wait_for_function("document.querySelector('#pp-prompt textarea').value.includes('Fibonacci')")
    visit.run("Count <b>to</b> {{ten}}.")
    assert "Asked: Count <b>to</b> {{ten}}." in page.inner_text("#pp-race")
    assert "identical" in page.inner_text("#pp-verdict")
    assert page.locator("#pp-race .pp-pane").count() == 2
    page.screenshot(path=tmp_path / "race.png", full_page=True)

    # Replay: every token appears at its recorded time, in both panes at once.
    page.click("#pp-replay")
    page.wait_for_selector("#pp-race .pp-replay")
    page.wait_for_function(
        "[...document.querySelectorAll('.pp-replay .pp-t')].every(e => getComputedStyle(e).opacity === '1')"
    )

    # Walk through the cycles with the keyboard.
    visit.tab("Window theatre")
    page.wait_for_selector("#pp-detail h3")
    assert page.inner_text("#pp-detail h3").startswith("Cycle 1 of")
    band = page.locator("#pp-windows .pp-band")
    before = float(band.get_attribute("x"))
    page.locator("#pp-cycle input[type=range]").focus()
    for number in (2, 3):
        page.keyboard.press("ArrowRight")
        page.wait_for_function(f"document.querySelector('#pp-detail h3').innerText.startsWith('Cycle {number} of')")
    assert float(band.get_attribute("x")) > before
    assert page.locator("#pp-theatre .pp-now").count() >= 1
    assert page.locator("#pp-theatre del").count() >= 1
    page.get_by_label("Show rejected guesses").uncheck()
    page.wait_for_function("document.querySelectorAll('#pp-theatre del').length === 0")

    visit.tab("Why it pays")
    page.wait_for_selector("#pp-times .js-plotly-plot .barlayer")
    assert "130.0 ms" in page.inner_text("#pp-what-if") and "53.1 ms" in page.inner_text("#pp-what-if")
    page.fill("#pp-accepted-a input", "8")
    page.wait_for_function("document.querySelector('#pp-what-if').innerText.includes('48.8 ms')")  # 390 / 8
    page.click("#pp-machine")
    page.wait_for_function("!document.querySelector('#pp-what-if').innerText.includes('48.8 ms')")
    assert float(page.input_value("#pp-window-a input")) <= 8

    visit.tab("Compare")
    page.click("#pp-compare")
    visit.wait_for_status("Compared")
    assert page.locator("#pp-table tbody tr").count() == 3
    assert visit.width() <= 1280
    visit.check_and_close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screen(served, browser, tmp_path, scheme):
    url, _ = served
    visit = Page(browser, f"{url}?__theme={scheme}", viewport={"width": 390, "height": 844}, color_scheme=scheme)
    visit.run()
    tops = visit.page.evaluate("[...document.querySelectorAll('[role=tab]')].map(tab => tab.offsetTop)")
    assert len(tops) == 4 and len(set(tops)) == 1  # one line, none of them hidden
    for name in ("Race", "Window theatre", "Why it pays", "Compare"):
        visit.tab(name)
        visit.page.wait_for_timeout(400)
        assert visit.width() <= 390, f"{name} is wider than the screen"
        path = tmp_path / f"{name}.png"
        visit.page.screenshot(path=path, full_page=True)
        assert path.stat().st_size > 10_000
    visit.check_and_close()


def test_stop_button_and_messages(served, browser):
    url, engine = served
    visit = Page(browser, url)
    page = visit.page
    assert page.locator("#pp-stop").is_disabled()
    handle = slow_down(engine)
    try:
        page.click("#pp-run")
        page.wait_for_selector("#pp-race .pp-text .pp-t")
        assert page.locator("#pp-run").is_disabled()
        page.click("#pp-stop")
        visit.wait_for_status("^Stopped")
    finally:
        handle.remove()
    page.wait_for_function("!document.querySelector('#pp-run').disabled")
    assert page.locator("#pp-stop").is_disabled()
    visit.run()  # the old wish to stop is forgotten
    assert "Done" in page.inner_text("#pp-status")
    visit.check_and_close()


def test_by_keyboard_alone(served, browser):
    """Type, go to the button and press it, open a tab, walk: no mouse, and one sees where one is."""
    url, _ = served
    visit = Page(browser, url)
    page = visit.page

    def tab_to(selector):
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(f"!!document.activeElement.closest({selector!r})"):
                return
        raise AssertionError(f"{selector} cannot be reached")

    page.focus("#pp-prompt textarea")
    page.keyboard.press("Control+a")
    page.keyboard.type("Name a colour.")
    tab_to("#pp-run")
    style, width = page.evaluate("(s => [s.outlineStyle, s.outlineWidth])(getComputedStyle(document.activeElement))")
    assert style == "solid" and float(width.removesuffix("px")) >= 2
    visit.forget_status()
    page.keyboard.press("Enter")
    visit.wait_for_status("Done")
    assert "Asked: Name a colour." in page.inner_text("#pp-race")
    page.wait_for_function("!document.querySelector('#pp-run').disabled")
    page.get_by_role("tab", name="Window theatre").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#pp-detail h3", state="visible")
    tab_to("#pp-cycle input[type=range]")
    page.keyboard.press("End")
    last = page.get_attribute("#pp-cycle input[type=range]", "max")
    page.wait_for_function(f"document.querySelector('#pp-detail h3').innerText.startsWith('Cycle {last} of {last}')")
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelector('#pp-detail h3').innerText.startsWith('Cycle 1 of')")
    visit.check_and_close()


def test_refusals_are_shown_and_announced(served, browser):
    url, _ = served
    visit = Page(browser, url)
    visit.page.fill("#pp-prompt textarea", "word " * 200)
    visit.page.click("#pp-run")
    visit.wait_for_status("long prompt")
    assert visit.page.locator("#pp-status [role=alert]").count() == 1
    visit.page.wait_for_function("!document.querySelector('#pp-run').disabled")
    visit.check_and_close()


def test_who_finds_the_queue_full_can_press_again(small, crowd, browser):
    url, _ = small
    visit = Page(browser, url)
    page = visit.page
    visit.forget_status()
    page.click("#pp-run")
    visit.wait_for_status("too many visitors")
    assert page.locator("#pp-status [role=alert]").count() == 1
    page.wait_for_function("!document.querySelector('#pp-run').disabled")
    assert page.locator("#pp-stop").is_disabled()
    crowd()
    visit.run()
    assert "Done" in page.inner_text("#pp-status")
    # The refusal itself, a 503, is what the browser complains of.
    visit.complaints = [text for text in visit.complaints if "503" not in text]
    visit.check_and_close()


def _luminance(color):
    def linear(value):
        value /= 255
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(float(part)) for part in re.findall(r"[\d.]+", color)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(served, browser, scheme):
    """Every control has a name, and text stands out from what it stands on (WCAG AA, 4.5 to 1)."""
    url, _ = served
    visit = Page(browser, f"{url}?__theme={scheme}", color_scheme=scheme)
    visit.run()
    visit.tab("Window theatre")
    visit.page.wait_for_selector("#pp-detail h3")
    unnamed = visit.page.evaluate(
        """() => [...document.querySelectorAll('button, input:not([type=hidden]), textarea, select')]
            .filter(e => e.offsetParent && !(e.innerText || e.getAttribute('aria-label') || e.title
                || e.getAttribute('aria-labelledby') || e.labels?.length)).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert unnamed == []
    pairs = visit.page.evaluate(
        """() => ['.pp-head p', '.pp-message', '.pp-theatre .pp-own', '.pp-theatre .pp-accepted', '.pp-theatre del',
                  '.pp-note', '#pp-run', '.pp-table td', '.pp-rows td:last-child', '.pp-legend li'].map(selector => {
            const element = document.querySelector(selector);
            if (!element) return null;
            let below = element;
            while (below && /rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(below).backgroundColor))
                below = below.parentElement;
            const back = below ? getComputedStyle(below).backgroundColor : 'rgb(255, 255, 255)';
            return [selector, getComputedStyle(element).color, back];
        }).filter(Boolean)"""
    )
    assert len(pairs) >= 8
    for selector, ink, paper in pairs:
        light, dark = sorted((_luminance(ink), _luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (selector, ink, paper)
    visit.check_and_close()

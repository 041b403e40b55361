# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Takes the pictures of the Space's README from a page that is being served, with real models:

    ppow demo --port 7860 &
    python tests/spaces/take_screenshots.py http://127.0.0.1:7860

Best on a machine with nothing else to do: the figures in the pictures are those of the moment.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

OUTPUT = Path(__file__).resolve().parents[2] / "spaces" / "ppow_demo" / "screenshots"
# The first cycle, after the text has got going, in which a guess was accepted and another one was not.
INTERESTING_CYCLE = """() => {
    const kinds = {};
    for (const token of document.querySelectorAll('#pp-theatre [title]')) {
        const cycle = token.title.match(/cycle (\\d+)/)?.[1];
        if (cycle) (kinds[cycle] ??= new Set()).add(token.classList[1]);
    }
    return Object.keys(kinds).map(Number).find(cycle => cycle > 4 && kinds[cycle].size === 3) ?? 1;
}"""


def run(page: Page, url: str, example: str, new_tokens: int | None) -> None:
    """Opens the page, picks an example and waits until it is decoded."""
    page.goto(f"{url}?__theme=light")
    page.wait_for_selector("#pp-run")
    page.get_by_role("button", name=example).click()
    page.wait_for_timeout(300)
    if new_tokens:
        page.click("#pp-settings button")
        page.get_by_label("number input for New tokens").fill(str(new_tokens))
        page.keyboard.press("Tab")
        page.click("#pp-settings button.label-wrap")
    page.click("#pp-run")
    print("running", flush=True)
    wait_for_status(page, "Done|Stopped|wrong")


def wait_for_status(page: Page, pattern: str) -> None:
    """Waits until the status line says so and the buttons are free again."""
    page.wait_for_function(f"/{pattern}/.test(document.querySelector('#pp-status').innerText)")
    page.wait_for_function("!document.querySelector('#pp-run').disabled")
    page.wait_for_timeout(1000)
    print(page.inner_text("#pp-status"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--no-float32", action="store_true", help="Leave out the check in float32, for slow machines.")
    parser.add_argument("--example", default="Maths: shopping", help="Label of the example prompt.")
    parser.add_argument("--new-tokens", type=int, help="Fewer, for slow machines.")
    parser.add_argument("--timeout", type=float, default=300, help="Seconds to wait for one decoding.")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )

        def shoot(page: Page, name: str) -> None:
            page.screenshot(path=arguments.output / f"{name}.png", full_page=True)
            print(name, flush=True)

        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        page.set_default_timeout(1000 * arguments.timeout)
        run(page, arguments.url, arguments.example, arguments.new_tokens)
        if (
            not arguments.no_float32
            and page.locator("#pp-float32").is_enabled()
            and "near-tie" in page.inner_text("#pp-verdict")
        ):
            page.click("#pp-float32")
            wait_for_status(page, "float32 (both|the)|Stopped")
        shoot(page, "race")
        page.get_by_role("tab", name="Window theatre").click()
        page.wait_for_selector("#pp-detail h3")
        cycle = page.evaluate(INTERESTING_CYCLE)
        page.locator("#pp-cycle input[type=range]").focus()
        for _ in range(cycle - 1):
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(50)
        page.wait_for_function(f"document.querySelector('#pp-detail h3').innerText.startsWith('Cycle {cycle} of')")
        page.wait_for_timeout(500)
        shoot(page, "theatre")
        page.get_by_role("tab", name="Why it pays").click()
        page.wait_for_selector("#pp-times .js-plotly-plot .barlayer")
        page.wait_for_timeout(1000)
        shoot(page, "why")

        # The same run on a telephone, dark.
        page.set_viewport_size({"width": 390, "height": 844})
        page.evaluate("document.body.classList.add('dark')")
        page.get_by_role("tab", name="Window theatre").click()
        page.wait_for_selector("#pp-detail h3")
        page.wait_for_timeout(1000)
        shoot(page, "mobile")

        browser.close()


if __name__ == "__main__":
    main()

"""The pictures of docs/images, from a running gateway without an admin token: `screenshots.py URL BROWSER DIRECTORY`."""

import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

URL, BROWSER, DIRECTORY = sys.argv[1:4]
# Name, width, height, colour scheme, and whether a decision is open.
PICTURES = [
    ("page-light", 1280, 960, "light", False),
    ("page-dark", 1280, 960, "dark", False),
    ("page-phone", 375, 812, "light", False),
    ("page-decision", 1280, 760, "light", True),
]

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
    for name, width, height, scheme, decision in PICTURES:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = context.new_page()
        page.goto(URL)
        expect(page.locator("#decisions tr.open-able").first).to_be_visible()
        if decision:
            page.locator("#decisions tr.open-able button").nth(8).click()
            expect(page.locator("#decision")).to_be_visible()
        page.wait_for_timeout(1500)
        page.screenshot(path=str(Path(DIRECTORY) / f"{name}.png"))
        context.close()
    browser.close()

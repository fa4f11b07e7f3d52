"""The web page in a headless Chromium: `page.py URL BROWSER TOKEN`. Ends with 1 and says what is wrong.

Checked: the token is asked for and a wrong one refused; the figures change; a decision opens with every worker's score; a
worker is drained and put back, each after a question; names are text; both colour schemes; no horizontal scrolling on a
phone; every button can be reached by the keyboard and has a name; nothing is said on the console.
"""

import re
import sys

from playwright.sync_api import expect, sync_playwright

URL, BROWSER, TOKEN = sys.argv[1:4]
PATIENCE_MS = 30_000
HOSTILE = "<img/src=x/onerror=alert(1)>"

expect.set_options(timeout=PATIENCE_MS)
said = []


def open_page(browser, width, height, scheme):
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    # Without the token the first answers are refusals, which browsers put on the console themselves.
    page.on("console", lambda message: None if "401" in message.text else said.append(f"{scheme}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"{scheme}: {error}"))
    page.on("dialog", lambda dialog: said.append(f"a script ran: {dialog.message}"))
    page.goto(URL)
    return page


def log_in(page, token):
    expect(page.locator("#login")).to_be_visible()
    page.locator("#token").fill(token)
    page.locator("#login button").click()


def shows_a_fleet(page):
    expect(page.locator("#state-text")).to_have_text("Ready")
    expect(page.locator("#workers tr")).to_have_count(3)
    expect(page.locator("#workers .name").nth(1)).to_have_text(HOSTILE)
    expect(page.locator("#decisions tr.open-able").first).to_be_visible()
    expect(page.locator("#prefixes .chips span").first).to_be_visible()
    expect(page.locator("#chart-rate path.line").first).to_have_attribute("d", re.compile("^M"))


def drains_and_puts_back(page):
    row = page.locator("#workers tr").nth(1)
    button = row.locator("button")
    expect(button).to_have_text("Drain")
    button.click()
    expect(page.locator("#confirm-title")).to_have_text(f"Drain {HOSTILE}?")
    page.keyboard.press("Escape")
    expect(page.locator("#confirm")).to_be_hidden()
    expect(button).to_have_text("Drain")
    button.click()
    page.locator("#confirm-yes").click()
    expect(row.locator(".tag").first).to_contain_text("Drain")
    expect(row.locator(".tag").first).to_have_text("Drained")
    expect(button).to_have_text("Undrain")
    button.click()
    page.locator("#confirm-yes").click()
    expect(row.locator(".tag").first).to_have_text("Serving")
    # Until a decision has been made among all of them again.
    page.wait_for_timeout(2500)


def opens_a_decision(page):
    page.locator("#decisions tr.open-able button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#decision")).to_be_visible()
    expect(page.locator("#decision-body tbody tr")).to_have_count(3)
    expect(page.locator("#decision-body tr.chosen")).to_have_count(1)
    expect(page.locator("#decision-body dt", has_text="Predicted first token")).to_be_visible()


def fits(page, what):
    width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1], f"{what} scrolls sideways: {width}"


def every_control_has_a_name(page):
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input")]
             .filter((it) => !(it.textContent.trim() || it.getAttribute("aria-label") || it.labels?.length))
             .map((it) => it.outerHTML)"""
    )
    assert nameless == [], nameless


def updates(page):
    at = page.locator("html").get_attribute("data-at")
    page.wait_for_function("(at) => document.documentElement.dataset.at !== at", arg=at)
    page.locator("#pause").click()
    at = page.locator("html").get_attribute("data-at")
    page.wait_for_timeout(2500)
    assert page.locator("html").get_attribute("data-at") == at, "it is paused"
    page.locator("#pause").click()
    page.wait_for_function("(at) => document.documentElement.dataset.at !== at", arg=at)


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])

    page = open_page(browser, 1280, 860, "light")
    log_in(page, "not-the-token")
    expect(page.locator("#login-wrong")).to_be_visible()
    log_in(page, TOKEN)
    shows_a_fleet(page)
    every_control_has_a_name(page)
    updates(page)
    drains_and_puts_back(page)
    fits(page, "the page")
    opens_a_decision(page)
    page.keyboard.press("Escape")
    expect(page.locator("#decision")).to_be_hidden()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.context.close()

    page = open_page(browser, 1280, 860, "dark")
    log_in(page, TOKEN)
    shows_a_fleet(page)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background, "dark is not light"
    page.context.close()

    page = open_page(browser, 375, 812, "light")
    log_in(page, TOKEN)
    shows_a_fleet(page)
    fits(page, "a phone")
    opens_a_decision(page)
    fits(page, "a decision on a phone")
    page.context.close()
    browser.close()

if said:
    print("\n".join(said))
    sys.exit(1)

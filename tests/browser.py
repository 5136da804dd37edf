"""A page in a real browser: it asks no network, reports no fault, draws all of its figures and runs off no screen."""

import shutil
from contextlib import contextmanager

import pytest


@contextmanager
def chromium():
    """Chromium without a screen, which asks nobody for anything by itself; skips where there is none."""
    sync = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync.sync_playwright() as tool:
        made = tool.chromium.launch(executable_path=browser, args=quiet)
        yield made
        made.close()


def figures_of(page, width, scheme):
    """Number of figures that a page draws at a width, in a scheme of colours; skips where there is no Chromium."""
    with chromium() as made:
        view = made.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        faults: list[str] = []
        view.on("console", lambda message: faults.append(message.text))
        view.on("pageerror", lambda error: faults.append(str(error)))
        asked: list[str] = []
        view.on("request", lambda request: asked.append(request.url))
        view.goto(page.as_uri())
        view.wait_for_selector(".plot .main-svg")
        assert faults == []
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == [], (
            "a page needs no network"
        )
        drawn = view.locator(".plot:has(.main-svg)").count()
        assert view.locator("figure").count() == drawn
        assert view.evaluate("document.documentElement.scrollWidth") <= width, "nothing runs off the screen"
        boxes = view.evaluate(
            "[...document.querySelectorAll('.plot')].map(e => [e.clientWidth, e.querySelector('svg').clientWidth])"
        )
        assert all(taken <= room for room, taken in boxes)
    return drawn

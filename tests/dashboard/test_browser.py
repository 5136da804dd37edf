"""The page in Chromium: at two widths, dark and light, with 200 devices and with none, without a script."""

import io
import time

import pytest
from PIL import Image

from fedbonsai.dashboard.facts import Facts
from fedbonsai.dashboard.server import Dashboard
from fedbonsai.fleets.flower.processes import free_port
from fedbonsai.lock import hold
from tests import browser
from tests.dashboard.places import federation_in, many

pytestmark = pytest.mark.slow
WIDTHS = {390: 844, 1280: 900}
PAPER = {"light": (255, 255, 255), "dark": (0x14, 0x18, 0x1C)}


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as made:
        yield made


def served(federation):
    made = Dashboard(Facts(federation), "127.0.0.1", free_port())
    made.start()
    return made


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Where the page of 200 devices and of a run that goes on is."""
    folder = tmp_path_factory.mktemp("many")
    federation = many(folder / "federation", now=time.time())
    federation.tell(port=8443)
    with federation.hold(), hold(folder / "runs" / "prunefl-mnist-0" / "run.lock"):
        made = served(federation)
        yield made.where
        made.close()


def look(chromium, where, width, scheme, **more):
    """A view of the page that needed nothing from elsewhere, reported no fault and runs off no screen."""
    view = chromium.new_page(
        viewport={"width": width, "height": WIDTHS[width]}, color_scheme=scheme, java_script_enabled=False, **more
    )
    asked, faults = [], []
    view.on("request", lambda request: asked.append(request.url))
    view.on("console", lambda message: faults.append(message.text))
    view.goto(f"{where}?still")
    assert {url for url in asked if not url.startswith("data:")} == {f"{where}?still", f"{where}style.css"}
    assert faults == []
    main = view.locator("main").bounding_box()
    assert main["x"] >= 0
    assert main["x"] + main["width"] <= width, "nothing runs off the screen"
    for part in ("section", "article", ".notices li", "svg", ".tiles div"):
        for each in view.locator(part).all()[:20]:
            box = each.bounding_box()
            assert box["x"] >= 0, part
            assert box["x"] + box["width"] <= width + 0.5, part
    return view


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_two_hundred_devices_are_read_without_a_script(chromium, fleet, width, scheme):
    view = look(chromium, fleet, width, scheme)
    rows = view.locator("tbody tr")
    assert rows.count() == 201
    assert rows.first.locator("th").inner_text() == "pi-003"
    assert view.locator("svg polyline").count() >= 4
    assert "<script>alert(1)</script>" in view.locator("tbody").inner_text()
    with Image.open(io.BytesIO(view.screenshot())) as shot:
        assert shot.convert("RGB").getpixel((2, 2)) == PAPER[scheme]
    view.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_federation_of_nobody_is_a_page_too(chromium, tmp_path, width):
    made = served(federation_in(tmp_path / "federation"))
    try:
        view = look(chromium, made.where, width, "light")
        assert view.locator("table").count() == 0
        assert "None yet" in view.locator("#devices + p").inner_text()
        view.close()
    finally:
        made.close()

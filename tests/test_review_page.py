"""The page of a review, used as a person would, in headless Chromium."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_review import CAT, LEFT, RIGHT, SIZE, WHOLE, small_review, text

from cim.config.loading import load_config
from cim.config.run_paths import RunPaths
from cim.review.desk import open_desk
from cim.review.server import serve
from cim.review.session import Session

playwright = pytest.importorskip("playwright.sync_api", reason="the page is not tried: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("the page is not tried: no chromium here (apt-get install chromium)", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_review(tmp_path)[1]


class Serving:
    """A server in a thread, which can be ended and begun again on its address."""

    def __init__(self, run: Path, port: int = 0) -> None:
        path = RunPaths(load_config(run / "config.yaml")).corrections
        self.server, self.address = serve(Session(open_desk(load_config(run / "config.yaml"), path), path), port)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def end(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def address(run: Path) -> Iterator[str]:
    serving = Serving(run)
    yield serving.address
    serving.end()


def opened(browser, address: str):
    """A page that shows the first photo; what goes wrong there is kept in ``said``."""
    page = browser.new_page(viewport={"width": 1300, "height": 800})
    page.set_default_timeout(60_000)
    page.said = []
    page.on("console", lambda message: message.type == "error" and page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.outside = []
    page.on("request", lambda request: page.outside.append(request.url))
    page.goto(address)
    page.wait_for_selector("#shapes li")
    return page


def corrections(run: Path) -> dict:
    return json.loads((run / "corrections.json").read_text())


def accepted(run: Path) -> list[str]:
    return [line["segmentation"]["counts"] for line in corrections(run)["annotations"]]


def place(page, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the photo is on the page."""
    box = page.locator("#stage").bounding_box()
    return box["x"] + box["width"] * x / SIZE[1], box["y"] + box["height"] * y / SIZE[0]


def saved(page) -> None:
    playwright.expect(page.locator("#status")).to_have_text("Saved.", timeout=60_000)


def masks_shown(page, number: int) -> None:
    playwright.expect(page.locator("#shapes li")).to_have_count(number, timeout=60_000)


def alpha(page, canvas: str, x: int, y: int) -> int:
    """How much is painted over a pixel, 0..255."""
    return page.evaluate(f"document.getElementById('{canvas}').getContext('2d').getImageData({x}, {y}, 1, 1).data[3]")


def test_two_clicks_replace_a_merged_mask_by_its_parts(browser, run, address):
    page = opened(browser, address)
    assert page.locator("#name").inner_text() == "doubt.png (1 of 2)"
    assert page.locator("#reasons").inner_text() == "dog: the best mask scores 0.20"
    assert "2 dog" in page.locator("#classes").inner_text()
    page.keyboard.press("2")
    assert alpha(page, "masks", 10, 20) > 0 and alpha(page, "masks", 40, 35) == 0
    page.mouse.move(*place(page, 10.5, 16.5))
    assert page.locator("#under li").all_inner_texts() == [
        "1 of 2: score 0.60, 13.3 % of the photo",
        "2 of 2: score 0.10, 1.5 % of the photo",
    ]  # best to worst, without the merged one that is there already
    assert alpha(page, "proposal", 6, 12) > 0 and alpha(page, "proposal", 30, 20) == 0
    page.mouse.click(*place(page, 10.5, 16.5))
    saved(page)
    assert accepted(run) == [text(LEFT)]
    page.mouse.click(*place(page, 30.5, 20.5))
    masks_shown(page, 3)
    assert page.locator("#under li").all_inner_texts() == [
        "1 of 1: score 0.90, 26.7 % of the photo, deleted before",
    ]
    assert accepted(run) == [text(LEFT), text(RIGHT)]
    assert corrections(run)["images"][0]["counts"] == {"dog": 2}
    assert corrections(run)["images"][0]["deleted"][0]["segmentation"]["counts"] == text(WHOLE)
    assert page.said == []
    assert all(url.startswith((address, "data:")) for url in page.outside)
    page.close()


def test_keys_alone_are_enough(browser, run, address):
    page = opened(browser, address)
    page.keyboard.press("d")  # the cat's mask, the surest, is chosen
    saved(page)
    assert corrections(run)["images"][0]["counts"] == {"cat": None}
    page.keyboard.press("u")
    masks_shown(page, 2)
    assert corrections(run)["images"] == []
    page.keyboard.press("ArrowUp")
    page.keyboard.press("a")
    page.wait_for_selector("#shapes >> text=accepted")
    assert accepted(run) == [text(CAT)]
    page.keyboard.press("2")
    page.keyboard.press("c")
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    page.wait_for_selector("#photos >> text=done")
    assert corrections(run)["images"][0]["counts"] == {"cat": 1, "dog": 2}
    for key in ["ArrowLeft"] * 18 + ["ArrowUp"] * 4:  # from the middle
        page.keyboard.press(f"Shift+{key}")
    page.keyboard.press(".")
    assert page.locator("#under [aria-current=true]").inner_text().startswith("2 of 2: score 0.10")
    page.keyboard.press(",")
    page.keyboard.press("Space")
    page.wait_for_selector("#classes >> text=dog: 1 accepted")
    assert accepted(run) == [text(CAT), text(LEFT)]
    page.keyboard.press("o")
    page.wait_for_selector("text=sure.png (2 of 2)")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=All photos are done")
    assert page.locator("#progress").inner_text() == "2 of 2 done"
    assert accepted(run) == [text(CAT), text(LEFT), text(WHOLE)]
    assert page.said == []
    page.close()


def test_changes_in_a_hurry_are_all_saved(browser, run, address):
    page = opened(browser, address)
    page.keyboard.press("a")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("a")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=sure.png (2 of 2)")
    page.wait_for_selector("#photos >> text=done")
    assert accepted(run) == [text(CAT), text(WHOLE)]
    page.close()


def test_the_older_of_two_tabs_reloads_and_so_does_one_whose_file_changed(browser, run, address):
    first, second = opened(browser, address), opened(browser, address)
    second.keyboard.press("a")
    saved(second)
    first.keyboard.press("d")
    first.wait_for_selector("#status.bad >> text=changed elsewhere")
    assert "accepted" in first.locator("#shapes").inner_text()
    assert accepted(run) == [text(CAT)]
    content = corrections(run)
    content["images"][0]["counts"]["cat"] = 7
    (run / "corrections.json").write_text(json.dumps(content))
    first.keyboard.press("u")
    playwright.expect(first.locator("#number-0")).to_have_value("7", timeout=60_000)
    first.wait_for_selector("#status.bad >> text=changed elsewhere")
    assert corrections(run) == content
    first.close()
    second.close()


def test_a_page_whose_server_was_killed_says_so_and_what_was_saved_is_there(browser, run):
    serving = Serving(run)
    page = opened(browser, serving.address)
    page.keyboard.press("a")
    saved(page)
    serving.end()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("d")
    page.wait_for_selector("#status.bad >> text=Not saved")
    assert accepted(run) == [text(CAT)]
    page.close()
    serving = Serving(run)
    page = opened(browser, serving.address)
    assert page.locator("#shapes li").all_inner_texts()[0].startswith("cat 0.70 ✓ accepted")
    page.close()
    serving.end()


def test_a_class_of_which_nothing_is_accepted_stays_open(browser, run, address):
    page = opened(browser, address)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("d")
    saved(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("#status.bad >> text=Still open")
    assert corrections(run)["images"][0]["counts"] == {"cat": 1, "dog": None}
    page.close()


def test_a_class_that_is_not_in_the_photo(browser, run, address):
    page = opened(browser, address)
    page.keyboard.press("2")
    page.keyboard.press("x")
    masks_shown(page, 1)
    assert corrections(run)["images"][0]["counts"] == {"dog": 0}
    assert "2 dog: not there, 0 accepted of" in page.locator("#classes").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_selector("text=sure.png (2 of 2)")
    assert corrections(run)["images"][0]["counts"] == {"cat": 1, "dog": 0}
    page.keyboard.press("a")
    page.wait_for_selector("#shapes >> text=accepted")
    page.keyboard.press("x")
    page.wait_for_selector("#status.bad >> text=fewer instances than accepted masks")
    assert page.said == ["Failed to load resource: the server responded with a status of 400 (BAD REQUEST)"]
    page.close()


def test_a_photo_that_cannot_be_shown_leaves_the_others(browser, run, address):
    page = opened(browser, address)
    (RunPaths(load_config(run / "config.yaml")).proposals("train") / "sure.png.npz").write_bytes(b"damaged")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#status.bad >> text=damaged region file")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("text=doubt.png (1 of 2)")
    page.close()

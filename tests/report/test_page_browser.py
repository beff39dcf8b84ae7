"""The report in headless Chromium: of the committed run, of two stages with pictures, of two runs.

Skipped where there is no Chromium with its driver; `.ci/run` tries to bring them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, DRIVER, open_browser, resize
from PIL import Image
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from smnas.journal import FILE_NAME, Asked, Told, event_to_json
from smnas.records import Candidate, Failed, Measured, Outcome
from smnas.report.devices import open_run
from smnas.report.page import write_page
from smnas.report.tables import front_rows

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "benchmarks" / "results" / "bccd"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no Chromium with chromedriver on this machine"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with open_browser() as opened:
        yield opened


def show(browser: Chrome, folder: Path, *runs: Path, width: int = 1280) -> None:
    page = folder / "report.html"
    write_page(runs, page)
    resize(browser, width, 900)
    browser.get_log("browser")
    browser.get(page.as_uri())
    # drawn as soon as its place has a width
    WebDriverWait(browser, 60).until(lambda b: find(b, "#front svg .title"))
    assert browser.get_log("browser") == []


def find(browser: Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def one(browser: Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def slide(browser: Chrome, value: float) -> None:
    """Moves the slider as a reader does who drags it."""
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    browser.execute_script(script, one(browser, "#limit"), value)


def press(browser: Chrome, *keys: str) -> None:
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def pick(browser: Chrome) -> str:
    return one(browser, "#pick b").text


def width_of_page(browser: Chrome) -> int:
    return int(browser.execute_script("return document.documentElement.scrollWidth"))


def test_the_committed_run(browser: Chrome, tmp_path: Path) -> None:
    show(browser, tmp_path, COMMITTED)
    rows = front_rows(open_run(COMMITTED))
    ids = [f"#{row['id']}" for row in rows]
    assert [button.text for button in find(browser, "#rows tbody button")] == ids
    assert len(find(browser, "#front [data-run]")) == len(rows)

    # the slider changes the pick
    for row in (rows[0], rows[-1]):
        slide(browser, row["latency_ms"] + 1)
        assert pick(browser).startswith(f"#{row['id']}")

    # a click on a point opens its card, Escape closes it
    card = one(browser, "#card")
    assert not card.is_displayed()
    point = one(browser, f'#front [data-run][data-id="{rows[0]["id"]}"]')
    ActionChains(browser).move_to_element(point).perform()
    assert f"#{rows[0]['id']}" in one(browser, "#tip").text
    point.click()
    assert one(browser, "#card h2").text.startswith(ids[0])
    assert f"{rows[0]['latency_ms']:.2f} ms" in card.text and "Structure" in card.text
    press(browser, Keys.ESCAPE)
    assert not card.is_displayed()
    assert browser.get_log("browser") == []


def test_cards_by_keyboard(browser: Chrome, tmp_path: Path) -> None:
    show(browser, tmp_path, COMMITTED)
    rows = front_rows(open_run(COMMITTED))
    press(browser, Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("id") == "front"
    press(browser, Keys.HOME, Keys.ARROW_RIGHT, Keys.ENTER)
    heading = one(browser, "#card h2")
    assert heading.text.startswith(f"#{rows[1]['id']}")
    assert browser.switch_to.active_element == heading
    press(browser, Keys.TAB, Keys.TAB, Keys.ENTER, Keys.ENTER)
    assert one(browser, "#card h2").text.startswith(f"#{rows[3]['id']}"), "twice to the next one"
    press(browser, Keys.ESCAPE)
    assert browser.switch_to.active_element.get_attribute("id") == "front"
    one(browser, "#rows tbody button").send_keys(Keys.ENTER)
    assert one(browser, "#card h2").text.startswith(f"#{rows[0]['id']}")


def test_on_a_phone_nothing_scrolls_sideways(browser: Chrome, tmp_path: Path) -> None:
    show(browser, tmp_path, COMMITTED, width=360)
    assert width_of_page(browser) == 360
    one(browser, "#rows tbody button").click()
    assert one(browser, "#card").rect["width"] == 360 and width_of_page(browser) == 360


SAMPLE = {
    "neck": "fpn", "neck_start": 2, "neck_end": 5, "neck_width": 64, "rpn": "rpn",
    "head": "rcnn", "input_size": "96x96",
}  # fmt: skip
INSIDE = {
    "block": "basicblock", "base_width": 16, "depth1": 1, "depth2": 1, "depth3": 1, "depth4": 1,
    "double1": 2, "double2": 3, "double3": 4,
}  # fmt: skip


def two_stages(run: Path, header: dict) -> Path:
    """A detector, a child that beats it and left examples, a child that failed."""
    gpu = {
        "driver": "580.65", "sm_clock_mhz": 1410, "max_sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619, "temperature_c": 61, "throttling": ["software power cap"],
    }  # fmt: skip
    card = {"device": "cpu", "includes": "forward pass", "compiled": False, "gpu": gpu}
    info = {"curve": [{"epoch": 1, "loss": 1.0, "map": 0.5}], "latency": card}
    parent = Candidate(0, "structural", {"backbone": "resnet18", **SAMPLE}, "baseline")
    knew = {"map": 0.714}
    child = Candidate(1, "modular", {**INSIDE, **SAMPLE}, "mutant", (0,), 1, 0, knew)
    failed = Candidate(2, "modular", {**INSIDE, **SAMPLE, "depth1": 2}, "mutant", (0,), 1, 0)
    outcomes: list[tuple[Candidate, Outcome]] = [
        (parent, Measured({"latency_ms": 20.0, "map": 0.4, "latency_iqr_ms": 2.0}, info)),
        (child, Measured({"latency_ms": 10.0, "map": 0.5, "latency_iqr_ms": 1.0}, info)),
        (failed, Failed("nan_loss", "<b>after</b> 3 steps")),
    ]
    events: list[Asked | Told] = []
    for candidate, outcome in outcomes:
        events += [Asked(candidate, candidate.id), Told(candidate.id, outcome, candidate.id + 1.0)]
    lines = [{"event": "header", "schema": 1, "time": 0.0, **header}, *map(event_to_json, events)]
    run.mkdir()
    (run / FILE_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    examples(run)
    return run


def examples(run: Path) -> None:
    Image.new("RGB", (96, 96), (90, 30, 120)).save(run / "a.png")
    shown = {"width": 96, "height": 96, "truth": [[1, 1, 30, 30, 1]]}
    shown["found"] = [[1, 1, 30, 30, 1, 0.9], [50, 50, 90, 90, 1, 0.2]]
    pictures = [{"file": str(run / name), **shown} for name in ("a.png", "gone.png")]
    (run / "modular" / "trials" / "1").mkdir(parents=True)
    record = json.dumps({"categories": ["<i>cell</i>"], "pictures": pictures})
    (run / "modular" / "trials" / "1" / "examples.json").write_text(record)


def test_lineage_failures_and_examples(browser: Chrome, tmp_path: Path, toy_header: dict) -> None:
    show(browser, tmp_path, two_stages(tmp_path / "run", toy_header))
    assert len(find(browser, "#front path.links")) == 1, "from the child to its parent"
    assert "nan_loss" in one(browser, "#failures").text
    assert "<b>after</b> 3 steps" in one(browser, "#failures").text, "text, not markup"
    assert "modular of #0 #1 – #1 0 1 – 0.71" in " ".join(one(browser, "#knowledge").text.split())
    one(browser, "#pick button").click()
    card = one(browser, "#card")
    assert "basicblock_16_1-2-2-2" in card.text and "inside of #0" in card.text
    assert "driver 580.65" in card.text and "throttled: software power cap" in card.text
    assert "forward pass" in card.text
    frames = find(browser, "#card .examples svg")
    assert len(frames) == 4 and len(find(browser, "#card .examples image")) == 2
    assert "drawn as empty frames" in card.text
    assert [len(frame.find_elements(By.CSS_SELECTOR, "rect")) for frame in frames] == [1, 1, 1, 1]
    script = "arguments[0].value = 5; arguments[0].dispatchEvent(new Event('input'))"
    browser.execute_script(script, one(browser, "#card input[type=range]"))
    assert len(find(browser, "#card .examples rect")) == 6, "the unsure ones, too"
    assert "<i>cell</i>" in card.text
    assert browser.get_log("browser") == []


def test_runs_side_by_side(browser: Chrome, tmp_path: Path, toy_header: dict) -> None:
    runs = [two_stages(tmp_path / name, toy_header) for name in ("first", "second")]
    show(browser, tmp_path, *runs, width=360)
    assert width_of_page(browser) == 360
    names = [cell.text for cell in find(browser, "#comparison tbody th")]
    assert names == ["first", "second"]
    assert len(find(browser, "#coverage tbody tr")) == 2
    assert {mark.tag_name for mark in find(browser, "#front [data-run]")} == {"circle", "polygon"}


def test_a_run_that_has_measured_nothing_yet(
    browser: Chrome, tmp_path: Path, toy_run: Callable[..., Path]
) -> None:
    page = tmp_path / "report.html"
    write_page([toy_run(0)], page)
    browser.get(page.as_uri())
    said = "No detector has been measured yet."
    WebDriverWait(browser, 60).until(lambda b: one(b, "#front").text == said)
    assert one(browser, "footer").is_displayed() and browser.get_log("browser") == []


def test_one_objective_is_drawn_over_trials(
    browser: Chrome, tmp_path: Path, toy_header: dict
) -> None:
    single = {"objectives": {"map": "maximize"}, "reference_point": {"map": 0.0}}
    header = {**toy_header, "experiment": toy_header["experiment"] | single}
    show(browser, tmp_path, two_stages(tmp_path / "run", header))
    titles = [title.text for title in find(browser, "#front .title")]
    assert titles == ["trial", "mAP, search split"] and not find(browser, "#limit")
    one(browser, "#rows tbody button").click()
    assert one(browser, "#card h2").text == "#1"
    assert browser.get_log("browser") == []


def test_in_print_the_card_follows_the_page_and_controls_are_gone(
    browser: Chrome, tmp_path: Path
) -> None:
    show(browser, tmp_path, COMMITTED)
    one(browser, "#pick button").click()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not one(browser, "#limit").is_displayed()
        assert one(browser, "#front svg").is_displayed()
        card = one(browser, "#card")
        assert card.value_of_css_property("position") == "static"
        table = one(browser, "#page")
        assert card.location["y"] >= table.location["y"] + table.size["height"]
        printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
        assert base64.b64decode(printed).startswith(b"%PDF")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})

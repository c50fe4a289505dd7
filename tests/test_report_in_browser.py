"""The page of `report`, as a browser shows it on a screen, a phone and paper: `-m browser`."""

import base64
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import make_session, scores
from test_browser import BROWSER, NAMES, Browser

from lightning_trainer.commands.report import make_page
from lightning_trainer.session.record import Record

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
LINE = "Iteration {:>6}/60 | examples/s: 1 | loss: 1 | time elapsed: 00h00m{:02d}s | time left: x\n"
ERRORS = """
window.errors = [];
for (const kind of ["error", "securitypolicyviolation"])
  addEventListener(kind, (event) => errors.push(event.message ?? event.violatedDirective), true);
window.alert = (text) => errors.push(text);
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A page of one session, and one of three, of which one is hostile."""
    folder = tmp_path_factory.mktemp("sessions")
    run = {"times": {"elapsed_s": 12.0, "data_s": 1.0, "update_s": 8.0}, "epoch_iterations": 20}
    values = [0.5, 0.7, 0.6, 0.65, 0.75, 0.7]
    sessions = [
        make_session(folder, name, second=n, rows=scores(*values), run=run, settings={"w": n})
        for n, name in enumerate(("first", "second"))
    ]
    for session in sessions:
        log = "".join(LINE.format(10 * n, 2 * n) for n in range(1, 7))
        (session / "log.txt").write_text(f"{log}a.py:1: UserWarning: {EVIL}\n")
    rows = [{"step": 10 * n, f"val/{EVIL}": n, "val/loss": "nan"} for n in range(1, 4)]
    sessions.append(make_session(folder, "third", second=3, rows=rows, settings={EVIL: EVIL}))
    found = {}
    for name, chosen in (("one", sessions[:1]), ("several", sessions)):
        found[name] = folder / f"{name}.html"
        found[name].write_text(make_page([Record.read(path) for path in chosen]))
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    if BROWSER is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


class Tab:
    """A page in a browser."""

    def __init__(self, browser: Browser, path: Path, width: int, dark: bool = False) -> None:
        self.browser = browser
        target = self.ask("Target.createTarget", url="about:blank", session="")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True, session="")
        self._session = attached["sessionId"]
        phone = width < 500
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": phone}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.enable")
        self.ask("Page.addScriptToEvaluateOnNewDocument", source=ERRORS)
        self.ask("Page.navigate", url=path.as_uri())
        self.until("document.querySelectorAll('.chart canvas').length > 1")

    def ask(self, method: str, session: str | None = None, **parameters):
        return self.browser.ask(method, self._session if session is None else session, **parameters)

    def value(self, code: str):
        text = f"JSON.stringify({code})"
        result = self.ask("Runtime.evaluate", expression=text, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return json.loads(result["result"].get("value", "null"))

    def until(self, code: str) -> None:
        end_s = time.monotonic() + 20
        while not self.value(code):
            assert time.monotonic() < end_s, code
            time.sleep(0.1)

    def axis(self, chart: int = 0) -> tuple[float, float]:
        code = f"document.querySelectorAll('.chart')[{chart}].entry.plot.scales.x"
        return tuple(self.value(f"[{code}.min, {code}.max]"))

    def drag(self, begin: float, end: float, finger: bool = False) -> None:
        """Along the first chart, from and to these shares of its width."""
        box = "document.querySelector('.u-over').getBoundingClientRect()"
        left, top, width = self.value(f"[{box}.left, {box}.top + 80, {box}.width]")
        points = [left + width * (begin + (end - begin) * n / 8) for n in range(9)]
        if finger:
            kinds = ["touchStart", *["touchMove"] * 8, "touchEnd"]
            for kind, x in itertools.zip_longest(kinds, points):
                touch = [] if x is None else [{"x": x, "y": top}]
                self.ask("Input.dispatchTouchEvent", type=kind, touchPoints=touch)
            return
        kinds = ["mousePressed", *["mouseMoved"] * 8, "mouseReleased"]
        for kind, x in itertools.zip_longest(kinds, points, fillvalue=points[-1]):
            button = {"button": "left", "buttons": 1, "clickCount": 1}
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=top, **button)


@pytest.mark.parametrize("name", ["one", "several"])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_fits_and_nothing_in_it_fails_or_is_executed(browser, pages, name, width, dark):
    tab = Tab(browser, pages[name], width, dark)
    tab.value("document.querySelectorAll('details').forEach((part) => part.open = true)")
    tab.until("document.querySelectorAll('#charts details .chart').length > 0")
    time.sleep(0.5)
    assert tab.value("errors") == []
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    assert tab.value("document.images.length") == 0
    back = tab.value("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") is not dark


def test_a_drag_zooms_all_charts_and_a_button_shows_the_whole_axis(browser, pages):
    tab = Tab(browser, pages["one"], 1280)
    whole = tab.axis()
    tab.drag(0.25, 0.5)
    tab.until("!document.querySelector('.chart button').hidden")
    low, high = tab.axis()
    assert low == pytest.approx(whole[0] + (whole[1] - whole[0]) / 4, abs=1)
    assert high == pytest.approx(whole[0] + (whole[1] - whole[0]) / 2, abs=1)
    assert tab.axis(1) == (low, high)
    tab.value("document.querySelector('.chart button').click()")
    assert tab.axis() == whole


def test_a_finger_zooms(browser, pages):
    tab = Tab(browser, pages["one"], 360)
    whole = tab.axis()
    tab.drag(0.2, 0.7, finger=True)
    tab.until("!document.querySelector('.chart button').hidden")
    assert whole[0] < tab.axis()[0] < tab.axis()[1] < whole[1]


CHOOSE = """(() => {{ const node = document.querySelector("{0}"); node.value = "{1}";
node.dispatchEvent(new Event("{2}")); return true; }})()"""
LINES = "document.querySelector('.chart').entry.plot"


def test_the_axis_may_be_time_or_epochs_and_curves_are_smoothed_as_compare_does(browser, pages):
    tab = Tab(browser, pages["one"], 1280)
    assert tab.axis() == (5, 60)  # a training's first mean is of iterations 1 to 10
    tab.value(CHOOSE.format("select", "seconds", "change"))
    assert tab.axis() == (1, 12)
    tab.value(CHOOSE.format("select", "epochs", "change"))
    assert tab.axis() == (0.25, 3)
    tab.value(CHOOSE.format("input[type=range]", "0.5", "input"))
    raw, smooth = (tab.value(f"{LINES}.data[{n}].filter((y) => y != null)") for n in (1, 2))
    assert raw == pytest.approx([1 / n for n in range(1, 7)])
    assert smooth[:2] == pytest.approx([1, (0.5 * 1 / 2 + 0.5 * 0.5 * 1) / 0.75])


def test_a_session_can_be_hidden_and_numbers_that_are_none_are_told(browser, pages):
    tab = Tab(browser, pages["several"], 1280)
    assert tab.value("document.querySelector('.chart').textContent").count("3 values are NaN") == 1
    n = tab.value(f"{LINES}.series.length")
    tab.value("document.querySelector('.keys button').click()")
    assert tab.value(f"{LINES}.series.length") == n - 2


def test_on_paper_it_is_light_and_has_all_sections(browser, pages):
    tab = Tab(browser, pages["several"], 1280, dark=True)
    printed = tab.ask("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    tab.value("dispatchEvent(new Event('beforeprint'))")
    assert tab.value("document.querySelectorAll('details.session:not([open])').length") == 0
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.value("errors") == []

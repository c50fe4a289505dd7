"""TensorBoard's pages of real sessions, as a browser shows them: `pytest -m browser`."""

import itertools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, run_process
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

# What can be read on a page, also within the components that it is made of, and nothing hidden.
TEXT = """
(function read(node) {
  if (node.nodeType == Node.TEXT_NODE) return node.data;
  if (!node.checkVisibility) return "";
  const seen = node.checkVisibility({visibilityProperty: true, opacityProperty: true});
  if (!seen && getComputedStyle(node).display != "contents") return "";
  if (node.nodeName == "IMG") return node.naturalWidth > 1 ? "[picture]" : "";
  const inside = node.nodeName == "IFRAME" ? [node.contentDocument?.body].filter(Boolean)
    : node.nodeName == "SLOT" ? node.assignedNodes({flatten: true})
    : (node.shadowRoot ?? node).childNodes;
  return [...inside].map(read).join(" ");
})(document.body)
"""


class Browser:
    """Chromium without a window, told what to do through a pair of pipes."""

    def __init__(self, profile: Path) -> None:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        pipes = 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'  # it reads 3 and writes to 4
        self._process = subprocess.Popen(
            ["sh", "-c", pipes, str(BROWSER), *flags, f"--user-data-dir={profile}"],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._numbers = itertools.count(1)
        self._unread = b""

    def ask(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol and returns its result."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:  # others tell of events
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self, wait_s: float = 60.0) -> dict[str, Any]:
        pipe = self._process.stdout
        while b"\0" not in self._unread:
            ready, _, _ = select.select([pipe], [], [], wait_s)
            received = os.read(pipe.fileno(), 2**16) if ready else b""
            assert received, "the browser has ended" if ready else "the browser does not answer"
            self._unread += received
        answer, _, self._unread = self._unread.partition(b"\0")
        return json.loads(answer)

    def texts(self, url: str, wait_s: float = 60.0) -> Iterator[str]:
        """What the page shows, again and again while it loads."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        size = {"width": 1600, "height": 3000, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", session, **size)  # what is seen is loaded
        self.ask("Page.navigate", session, url=url)
        end_s = time.monotonic() + wait_s
        while time.monotonic() < end_s:
            result = self.ask("Runtime.evaluate", session, expression=TEXT, returnByValue=True)
            yield " ".join(result["result"].get("value", "").split())
            time.sleep(0.5)

    def close(self) -> None:
        """Ends it, its own processes with it."""
        self.ask("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def board(tmp_path_factory) -> Iterator[tuple[str, list[Path]]]:
    """The address of TensorBoard on two sessions that differ in settings, and the sessions."""
    if BROWSER is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    folder = tmp_path_factory.mktemp("board")
    for options in (["--model.width=4"], ["--model.width=8", "--trainer.precision=bf16-mixed"]):
        process = run_process(
            *("fit", "--config", ROOT / "configs/digits.yaml", "--output_path", folder),
            *("--trainer.max_steps=20", "--trainer.val_check_interval=10"),
            *("--trainer.log_every_n_steps=5", "--model.vis_iterations=20", *options),
            f"--tag={len(options)}",
        )
        assert process.returncode == 0, process.stderr
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        address = next(filter(None, (re.search(r"http://\S+", line) for line in server.stderr)))
        yield address[0].rstrip("/"), sorted(folder.glob("session_*"))
        server.terminate()  # it ends its own server of data


@pytest.fixture(scope="module")
def browser(board, tmp_path_factory) -> Iterator[Browser]:
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture
def find(board, browser):
    """Waits until an address shows all that is expected, which are patterns."""

    def find_(address: str, *expected: str) -> None:
        text, missing = "", list(expected)
        for text in browser.texts(f"{board[0]}/{address}"):
            missing = [part for part in expected if not re.search(part, text)]
            if not missing:
                return
        assert not missing, text

    return find_


def numbers(session: Path, name: str) -> dict[int, float]:
    """A curve, by iteration."""
    events = EventAccumulator(str(session))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


SCALARS = (
    *("learning_rate", "score/best", "train/accuracy", "train/loss", "val/accuracy", "val/loss"),
    *("timing/examples_per_s", "timing/fetch_ms", "timing/update_ms"),
)


def test_each_number_has_a_chart_of_both_sessions(board, find):
    names = [rf"\b{session.name}\b" for session in board[1]]
    find("#scalars&tagFilter=.", *names, *(f"tag: {name} [-\\d]" for name in SCALARS))


@pytest.mark.parametrize("name", ["train/loss", "val/loss", "val/accuracy", "score/best"])
def test_each_session_has_its_last_value_beside_the_curve(board, find, name):
    rows = []
    for session in board[1]:
        step, value = max(numbers(session, name).items())
        shown = re.escape(f"{round(value, 4):g}")
        rows.append(rf"{session.name} \S+ {shown} {step} ")  # the first is the smoothed value
    find(f"?tagFilter={name}#timeseries", *rows)


def test_training_and_validation_are_drawn_into_one_chart_of_loss_and_one_of_score(find):
    score = r"accuracy, higher is better .*Matches \(4\)"
    find("#custom_scalars", rf"train, val, test 2 loss .*Matches \(4\) {score}")


def test_each_picture_is_shown_for_each_session(board, find):
    tags = ("train/predictions", "val/confusion_matrix", "val/mistakes", "val/predictions")
    find(
        "#images&tagFilter=.",
        *(
            rf"{tag} {session.name} tag: {tag} step 20 [^\[]*\[picture\]"
            for tag in tags
            for session in board[1]
        ),
    )


def test_the_table_of_runs_begins_with_the_settings_that_differ(board, find):
    first, second = board[1]
    # TensorBoard shows five significant digits.
    best = [f"{max(numbers(session, 'val/accuracy').values()):#.5g}" for session in board[1]]
    find(
        "#hparams",
        "Trial ID Show Metrics model.width trainer.precision .*learning_rate score/best ",
        rf"{first.name} 4\.0000 null [^_]*0\.0030000 {best[0]} ",
        rf"{second.name} 8\.0000 bf16-mixed [^_]*0\.0030000 {best[1]} ",
        "Number of matching session groups: 2",
    )


def test_settings_and_environment_of_each_session_can_be_read(board, find):
    expected = []
    for session in board[1]:
        environment = yaml.safe_load((session / "environment.yaml").read_text())
        config = yaml.safe_load((session / "config.yaml").read_text())
        width = config["model"]["init_args"]["width"]
        expected += [
            rf"config/text_summary {session.name} .* max_steps: 20 .* width: {width} ",
            rf"environment/text_summary {session.name} .*{environment['git_commit']}",
        ]
    find("#text&tagFilter=.", *expected)

"""TensorBoard's pages of real sessions, as a browser shows them: `pytest -m browser`."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_process

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

# All that a page shows, also within the components that it is made of.
TEXT = """
(function all(node) {
  if (node.nodeType == Node.TEXT_NODE) return node.nodeValue.trim() + " ";
  if (["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName)) return "";
  let text = "";
  if (node.shadowRoot) text += all(node.shadowRoot);
  if (node.nodeName == "IFRAME" && node.contentDocument) text += all(node.contentDocument);
  if (node.nodeName == "IMG" && node.naturalWidth > 1) text += "[picture] ";
  for (const child of node.childNodes) text += all(child);
  return text;
})(document)
"""


class Browser:
    """Chromium without a window, told what to do through a pair of pipes."""

    def __init__(self, profile: Path) -> None:
        (to_browser, self._send), (self._receive, from_browser) = os.pipe(), os.pipe()
        redirections = f"3<&{to_browser} 4>&{from_browser}"
        flags = "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe"
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" {flags} --user-data-dir="$1" {redirections}',
             str(BROWSER), str(profile)],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._numbers = itertools.count(1)
        self._unread = b""

    def ask(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol and returns its result."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._unread:
                received = os.read(self._receive, 2**16)
                assert received, "the browser has ended"
                self._unread += received
            answer, _, self._unread = self._unread.partition(b"\0")
            result = json.loads(answer)
            if result.get("id") == number:
                assert "error" not in result, result
                return result["result"]

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
        """Ends it."""
        self._process.kill()
        self._process.wait()
        os.close(self._send)
        os.close(self._receive)


@pytest.fixture(scope="module")
def board(tmp_path_factory) -> Iterator[tuple[str, list[Path]]]:
    """The address of TensorBoard on two sessions that differ in a setting, and the sessions."""
    if BROWSER is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    folder = tmp_path_factory.mktemp("board")
    for width in (4, 8):
        process = run_process(
            *("fit", "--config", ROOT / "configs/digits.yaml", "--output_path", folder),
            *("--trainer.max_steps=20", "--trainer.val_check_interval=10"),
            *("--trainer.log_every_n_steps=5", f"--model.width={width}", f"--tag=width{width}"),
        )
        assert process.returncode == 0, process.stderr
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        address = next(filter(None, (re.search(r"http://\S+", line) for line in server.stderr)))
        yield address[0].rstrip("/"), sorted(folder.glob("session_*"))
        server.kill()


@pytest.fixture(scope="module")
def browser(board, tmp_path_factory) -> Iterator[Browser]:
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.mark.parametrize(
    ("tab", "expected"),
    [
        ("scalars&tagFilter=.", ["learning_rate", "timing/examples_per_s", "train/accuracy",
                                 "train/loss", "val/accuracy", "val/loss"]),
        ("images", ["val/confusion_matrix", "val/mistakes", "val/predictions", "step 20",
                    "[picture]"]),
        ("text", ["config", "environment", "max_steps: 20", "git_commit"]),
        ("hparams", ["model.width", "model.learning_rate", "score/best", "0.0030000",
                     "4.0000", "8.0000"]),
    ],
)  # fmt: skip
def test_a_user_finds_what_was_logged(board, browser, tab, expected):
    address, sessions = board
    expected = [*expected, *(session.name for session in sessions)]
    missing = expected
    for text in browser.texts(f"{address}/?darkMode=false#{tab}"):
        missing = [part for part in expected if part not in text]
        if not missing:
            return
    assert not missing, text

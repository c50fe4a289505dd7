"""`--on_event` and `--notify` tell of new best scores, the end and failures, and disturb no run."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import monotonic

import pytest
import yaml

from lightning_trainer.session import notices
from lightning_trainer.session.notices import Notifier, Wishes

NOTES = 'echo "$EVENT|$SCORE|$ITERATION|$MESSAGE|$SESSION" >> {}'


@pytest.fixture
def notes(tmp_path):
    """A shell command that notes each message, and what it has noted."""
    file = tmp_path / "notes.txt"
    return NOTES.format(file), lambda: [n.split("|") for n in file.read_text().splitlines()]


def test_a_run_tells_of_its_best_score_and_its_end(run, config, sessions, notes):
    command, noted = notes
    code, _, err = run("fit", "--config", config, "--on_event", command, "--trainer.max_steps=12")
    assert code == 0, err
    [session] = sessions()
    best, end = noted()  # of the first validation; a second one would come within the minute
    assert (best[0], best[2], best[4]) == ("best", "5", str(session))
    assert best[3].startswith("tiny: new best: ")
    assert end[:1] + end[2:] == [
        *("end", "12", "tiny: finished: all 12 iterations are done", str(session)),
    ]
    assert float(end[1]) >= float(best[1])


@pytest.mark.parametrize(
    ("what", "event", "told"),
    [
        ("fail", "failure", "tiny: failed: RuntimeError: no more (by process"),
        ("signal", "interrupted", "tiny: interrupted: SIGTERM (by signal)"),
    ],
)
def test_a_failure_and_an_interruption_are_told(run, config, notes, what, event, told):
    act = f"--trainer.callbacks={{class_path: test_recording.Act, init_args: {{what: {what}}}}}"
    run("fit", "--config", config, f"--on_event={notes[0]}", act)
    assert notes[1]()[-1][0] == event
    assert notes[1]()[-1][3].startswith(told)


def test_an_error_before_training_is_told(run, config, notes):
    run("fit", "--config", config, "--on_event", notes[0], "--model=test_recording.NoData")
    assert [note[0] for note in notes[1]()] == ["failure"]


def test_no_file_can_name_a_command_and_none_keeps_one(run, config, sessions, notes):
    given = ("--on_event", notes[0], "--trainer.max_steps=5")
    assert run("fit", "--config", config, *given)[0] == 0
    n = len(notes[1]())
    [session] = sessions()
    for path in session.rglob("*"):
        assert not path.is_file() or b"notes.txt" not in path.read_bytes(), path
    assert run("fit", "--ckpt_path", session, "--trainer.max_steps=7")[0] == 0
    assert len(notes[1]()) == n
    settings = {**yaml.safe_load(config.read_text()), "on_event": notes[0]}
    config.write_text(yaml.safe_dump(settings))
    code, _, err = run("fit", "--config", config)
    assert (code, "on_event" in err, len(notes[1]())) == (2, True, n)


def test_a_message_that_fails_is_said_once_and_ends_nothing(run, config):
    code, _, err = run("fit", "--config", config, "--on_event", "echo no mail >&2; exit 3")
    assert code == 0
    assert err.count("A notification failed, the run goes on: no mail\n") == 1


def test_one_that_hangs_is_not_waited_for_long(monkeypatch, capfd):
    monkeypatch.setattr(notices, "_LAST_S", 0.2)
    notifier = Notifier(Wishes(command="sleep 60"))
    started = monotonic()
    notifier.tell("best", "a", "b", {})
    assert monotonic() - started < 0.1  # what a validation waits for
    notifier.close()
    assert monotonic() - started < 5
    assert "A notification failed, the run goes on: not done after 0 s" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--on_event"], "`--on_event` has no value: give a shell command"),
        (["--notify", "--tag=a"], "`--notify` has no value: give a URL of apprise"),
        (["--notify=ntfy://a"], '`--notify` needs apprise: `pip install -e ".[notify'),
    ],
)
def test_a_mistake_is_one_message(run, config, monkeypatch, options, message):
    monkeypatch.setattr(notices, "find_spec", lambda name: None)
    code, _, err = run("fit", "--config", config, *options)
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert len(err.splitlines()) == 2


def test_the_words_can_be_given_again():
    pytest.importorskip("apprise")
    wishes, words = Wishes.take(["fit", "--notify", "a://b", "--tag", "c", "--on_event=d e"])
    assert words == ["fit", "--tag", "c"]
    assert Wishes.take(wishes.options()) == (wishes, [])


@pytest.fixture
def server():
    """A server on this machine, and what it was sent."""
    got: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"json://user:hunter2@127.0.0.1:{http.server_port}", got
        http.shutdown()


@pytest.mark.slow
def test_apprise_sends_to_a_server_and_what_it_can_not_send_is_said_without_the_url(
    run, config, sessions, server, monkeypatch
):
    site = Path(pytest.importorskip("apprise").__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}{os.pathsep}{site}")
    url, got = server
    code, _, err = run("fit", "--config", config, "--notify", url, "--trainer.max_steps=12")
    assert (code, err) == (0, "")
    assert [message["title"] for message in got] == ["tiny: new best", "tiny: finished"]
    assert got[1]["message"].startswith("all 12 iterations are done\n")
    [session] = sessions()
    for path in session.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path
    nobody = "json://user:hunter2@127.0.0.1:9"
    code, _, err = run("fit", "--config", config, f"--notify={nobody}", "--trainer.max_steps=2")
    assert code == 0
    assert "A notification failed, the run goes on: apprise could not send it\n" in err
    code, _, err = run("fit", "--config", config, "--notify=nothing", "--trainer.max_steps=2")
    assert "the run goes on: apprise does not know one of the URLs\n" in err
    assert "hunter2" not in err


def test_nothing_is_begun_without_a_wish(run, config, monkeypatch):
    monkeypatch.setattr(Notifier, "__init__", None)
    assert run("fit", "--config", config, "--trainer.max_steps=1")[0] == 0

"""Text is UTF-8 in any locale."""

import io
import locale
import sys

import pytest

from lightning_trainer.session.utf8 import as_utf8


@pytest.fixture
def ascii_locale():
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    yield
    locale.setlocale(locale.LC_CTYPE, before)


@pytest.mark.skipif(sys.flags.utf8_mode, reason="the locale does not matter then")
def test_files_are_utf8_in_an_ascii_locale_which_is_given_back(ascii_locale, tmp_path):
    with as_utf8():
        (tmp_path / "a").write_text("caf\xe9")
    assert (tmp_path / "a").read_bytes() == b"caf\xc3\xa9"
    assert locale.setlocale(locale.LC_CTYPE) == "C"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", rb"caf\xe9 \udcff"),
        ("latin-1", rb"caf\xe9 \udcff"),
        ("utf-8", b"caf\xc3\xa9 \\udcff"),
    ],
)
def test_any_text_can_be_printed(monkeypatch, encoding, shown):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with as_utf8():
        print("caf\xe9 \udcff", end="")
    assert stream.buffer.getvalue() == shown
    assert (stream.encoding, stream.errors) == (encoding, "strict")


def test_closed_streams_are_left_alone(monkeypatch):
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    monkeypatch.setattr(sys, "stderr", None)
    with as_utf8():
        pass


def test_a_run_in_an_ascii_locale_reads_and_keeps_any_text(
    ascii_locale, run, config, sessions, tmp_path
):
    text = config.read_text(encoding="utf-8") + "# caf\xe9\n"
    config.write_bytes(text.replace("experiments", "exp\xe9riments").encode())
    code, _, err = run("fit", "--config", config, "--trainer.max_steps=2")
    assert code == 0, err
    [session] = (tmp_path / "exp\xe9riments").iterdir()
    assert (session / "checkpoints/last.ckpt").exists()

"""Makes HTML in which nothing of a session is taken for markup, and the page around it."""

import base64
import hashlib
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

_FILES = Path(__file__).parent / "report_files"
_VOID = ("img", "input", "meta")
# What no page may hold; a lone surrogate stands for a byte of a path that is no text.
_NO_TEXT = {n: "\ufffd" for n in (*range(9), 11, 12, *range(14, 32), 127)}


class Html(str):
    """A text that is markup already."""


def element(name: str, /, *inside: str, **attributes: str) -> Html:
    """An element; what is inside is escaped, unless it is `Html`. `class_` stands for `class`."""
    pairs = (f' {key.strip("_").replace("_", "-")}="{_text(v)}"' for key, v in attributes.items())
    content = "".join(part if isinstance(part, Html) else _text(part) for part in inside)
    end = "" if name in _VOID else f"{content}</{name}>"
    return Html(f"<{name}{''.join(pairs)}>{end}")


def join(parts: Iterable[str]) -> Html:
    """Elements and texts one after the other."""
    return Html("".join(part if isinstance(part, Html) else _text(part) for part in parts))


def breakable(name: str) -> Html:
    """A long name that may go on in a new line after each _."""
    return Html(_text(name).replace("_", "_<wbr>"))


def _text(text: str) -> str:
    return escape(text.translate(_NO_TEXT).encode("utf-8", "replace").decode())


def table(titles: Iterable[str], rows: Iterable[Iterable[str]], **attributes: str) -> Html:
    """A table that scrolls by itself where it is wider than the page."""
    head = element("tr", *(element("th", title, scope="col") for title in titles))
    body = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
    whole = element("table", element("thead", head), element("tbody", *body), **attributes)
    return element("div", whole, class_="wide")


def folded(title: str, *inside: str, is_open: bool = False, class_: str = "") -> Html:
    """A part of the page that a click opens."""
    state = {"open": ""} if is_open else {}
    return element("details", element("summary", title), *inside, class_=class_, **state)


def picture(content: bytes, kind: str, name: str) -> Html:
    """An image that lies in the page itself; `kind` is e.g. "png"."""
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return element("img", src=source, alt=name)


def whole_page(title: str, body: Html, data: Any) -> str:
    """A page that needs nothing else: no file, no network.

    Its policy lets a browser load nothing and run only the two scripts that are known by their
    digests, whatever the texts of a session may hold.
    """
    # JSON in a script ends where `</script>` stands, also within a text of it.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    uplot = _read("uPlot.iife.min.js").partition("\n")[2]  # its first line is an address
    scripts = [f"/*! uPlot 1.6.32\n{_read('uPlot.LICENSE')}*/\n{uplot}", _read("report.js")]
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    known = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    policy += f"form-action 'none'; script-src {known}"
    head = join(
        [
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", title),
            element("style", Html(_read("uPlot.min.css") + _read("report.css"))),
        ]
    )
    parts = [
        body,
        element("script", Html(text), id="data", type="application/json"),
        *(element("script", Html(script)) for script in scripts),
    ]
    document = element("html", element("head", head), element("body", *parts), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


def _read(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")

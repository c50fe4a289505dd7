"""Finds and hides passwords, keys and tokens in texts, as scanners of source code do.

The shapes of tokens are in secret_rules.txt. The helper of terminal.py imports this file, so it
imports nothing that takes time.
"""

import functools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal

from lightning_trainer.session.secret_names import (
    NOTHING,
    PASSWORD,
    entropy,
    is_secret,
    level_of,
)

Span = tuple[int, int]
Kind = Literal["text", "code", "settings"]

# As gitleaks: values that stand for another one, and paths.
_STANDS_FOR = re.compile(
    rb"(?i)(?:true|false|null|none|str|int|float|bytes|bool|any|optional|secretstr|\*+|\.+|x+)$"
    rb"|\$?\{\{[^}]*\}?\}?$|\$?\{[\w.:]*\}?$|\$[A-Za-z_]+$|<[^>]*>?$|%[A-Za-z_]+%$|%[sdr]$"
)
_CALL = re.compile(rb"[A-Za-z_][\w.]*[(\[]|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+$")

# A number, or a text that is no variable, as within a longer text.
_LITERAL = re.compile(rb"\d{4,}$|(?=.*\d)(?![a-z_][a-z0-9_]*$).{8,}$")

# What is looked for in lower case, before any pattern is tried.
_STEMS = (
    *(b"pass", b"pw", b"secret", b"token", b"key", b"auth", b"cred", b"bearer", b"cookie"),
    *(b"jwt", b"webhook", b"sig"),
)
_NAME_BEFORE = re.compile(rb"[\w.-]*$")
# The rest of a name, a sign, and a value: in quotes, in brackets, or bare.
_ASSIGNED = re.compile(
    rb"""[\w.+-]{0,40}(?:\\{0,3}["'`]|\]){0,2}[ \t]{0,3}(?P<sign>=>|:=|={1,3}|:)[ \t]{0,3}(?:
    [bru]{0,2}(?P<mark>\\{0,3}["'`])(?P<quoted>[^\n]*?)(?P=mark)
    |(?P<many>\[[^\]\n]*\]|\{[^}\n]*\})
    |(?P<bare>(?:(?:bearer|basic|token|digest|apikey|negotiate)[ +])?
        [^\s"'`&;<>]*[^\s"'`&;<>,.)\]}\\]))""",
    re.VERBOSE | re.IGNORECASE,
)
_OPTION = re.compile(rb"""[\w.+-]*(?:["'],[ ]|[ ]+)["']?(?P<bare>[^\s"',\]-][^\s"',\]]*)""")
_BELOW = re.compile(rb"""[\w.-]*["']?[ \t]*(:)[ \t]*(?:[|>][+-]?[ \t]*)?\r?\n""")
_ENDS = re.compile(rb"""[ \t]*(?:$|[\r\n,;}\])&"'|\\])""")
_SCHEME = re.compile(
    rb"\b(?i:bearer)[ +]+(?=[A-Za-z_.~+/=-]*\d)([\w.~+/=-]{12,})"
    rb"|\bBasic (?=[a-z0-9+/]*[A-Z])([A-Za-z0-9+/]{8,}={0,2})"
)
_OF_URL = re.compile(
    rb"""://(?:[^\s/:@?\#"'<>]*:(?P<password>[^\s/@"'<>]+)|(?P<user>[^\s/:@?\#"'<>]{16,}))@""",
    re.VERBOSE,
)
_KEY_BEGINS = re.compile(rb"-----BEGIN[^\n-]{0,100}PRIVATE KEY[^\n-]{0,20}-----")
_KEY_ENDS = re.compile(rb"-----END[^\n-]{0,100}PRIVATE KEY[^\n-]{0,20}-----")
_KEY_LINES = re.compile(rb"(?:[ \t+>|-]{0,8}(?:[A-Za-z0-9+/=]*|[\w-]+:[ ][^\n]*)\r?\n)*")
_LONG_WORDS = bytes(97 if bytes([i]).isalnum() or i in b"_-+/=.~" else 32 for i in range(256))
_LINE = re.compile(rb"(?m)(?<![^\n])([+ -]?)[^\n]+")


class Hider:
    """Hides known secrets and what looks like one in texts.

    Args:
        known: The secrets, in each form that they may have in a text.
    """

    def __init__(self, known: Iterable[bytes] = ()) -> None:
        self._known = [
            (max(form.split(), key=len), _pattern(form)) for form in known if form.split()
        ]
        self._in_key = False  # whether a private key goes on after the newest text

    def hide(self, text: bytes, kind: Kind = "text") -> bytes:
        """The text with *** in place of each secret; of several lines each stays one.

        In the patch of a program only what stands in quotes is a value, in that of settings the
        rest of a line, and what is indented below a name.
        """
        shown: list[bytes] = []
        end = 0
        for start, stop in sorted(self.find(text, kind)):
            if stop > end:
                start = max(start, end)
                shown += text[end:start], _stars(text[start:stop])
                end = stop
        return b"".join([*shown, text[end:]]) if shown else text

    def hide_next(self, text: bytes) -> bytes:
        """Hides in the next whole lines of a log: a private key may go on in them."""
        going_on = _until_end(text, 0) if self._in_key else 0
        self._in_key = self._in_key and going_on == len(text)
        for begin in _KEY_BEGINS.finditer(text, going_on):
            self._in_key = _until_end(text, begin.end()) == len(text)
        rest = self.hide(text[going_on:])
        return _stars(text[:going_on]) + rest

    def find(self, text: bytes, kind: Kind = "text") -> Iterator[Span]:
        """Where the secrets in a text are; they may overlap."""
        lower = text.lower()
        for piece, pattern in self._known:
            if piece in text:
                yield from (match.span() for match in pattern.finditer(text))
        for stem in _STEMS:
            if stem in lower:
                yield from _assigned(text, lower, stem, kind)
        if b"bearer" in lower or b"basic" in lower:
            yield from (found.span(found.lastindex or 0) for found in _SCHEME.finditer(text))
        if b"://" in text and b"@" in text:
            yield from _in_urls(text)
        if b"private key" in lower:
            yield from ((b.end(), _until_end(text, b.end())) for b in _KEY_BEGINS.finditer(text))
        if b"a" * 16 in text.translate(_LONG_WORDS):
            yield from _of_shape(text, lower)


def _stars(secret: bytes) -> bytes:
    """Stars for a secret, on each of its lines; a patch keeps the signs before its lines."""
    return _LINE.sub(rb"\1***", secret) if b"\n" in secret else b"***"[: 3 * len(secret)]


def _pattern(form: bytes) -> re.Pattern[bytes]:
    """A known secret, whose words may stand on several lines.

    A short one, a word and a number are no part of a longer word or number.
    """
    pattern = rb"\s+".join(map(re.escape, form.split()))
    if (
        len(form) < 8
        or form.isdigit()
        or (form.isalpha() and (form.islower() or form[1:].islower() or form.isupper()))
    ):
        pattern = rb"(?<![A-Za-z0-9])(?<!\d\.)" + pattern + rb"(?![A-Za-z0-9])"
    return re.compile(pattern)


def _assigned(text: bytes, lower: bytes, stem: bytes, kind: Kind) -> Iterator[Span]:
    """Values after names with the stem in them."""
    at = lower.find(stem)
    while at >= 0:
        begin = at - len(_NAME_BEFORE.search(text[max(at - 60, 0) : at])[0])  # type: ignore[index]
        at += len(stem)
        is_first = kind == "settings" and not text[_line(text, begin) : begin].strip(b"+- \"'")
        if match := _ASSIGNED.match(text, at):
            name = text[begin : match.start("sign")].rstrip(b" \t\"'`\\]")
            group = next(g for g in ("quoted", "many", "bare") if match[g] is not None)
            in_url = text[max(begin - 1, 0) : begin] in (b"?", b"&")
            if is_first and group == "bare" and _level(name) == PASSWORD:
                yield match.start(group), max(text.find(b"\n", match.end()), match.end())
            elif _is_assigned(name, match, group, in_url, kind):
                yield match.span(group)
        elif is_first and (below := _BELOW.match(text, at)):
            if _level(text[begin : below.start(1)]) == PASSWORD:
                yield below.end(), _end_of_group(text, begin, below.end())
        elif text[begin : begin + 2] == b"--" and (option := _OPTION.match(text, at)):
            name = text[begin : option.start("bare")].rstrip(b" \"',")
            if is_secret(option["bare"], _level(name)):
                yield option.span("bare")
        at = lower.find(stem, at)


def _line(text: bytes, at: int) -> int:
    return text.rfind(b"\n", 0, at) + 1


def _end_of_group(text: bytes, begin: int, end: int) -> int:
    """Where the lines end that belong to a name at `begin`; each line begins with its sign."""
    n_spaces = max(begin - _line(text, begin) - 1, 0)
    below = re.compile(rb"(?:[+ -] {%d}(?: |- )[^\n]*\n?)*" % n_spaces).match(text, end)
    return below.end() if below else end


def _level(name: bytes) -> int:
    return level_of(name.decode(errors="replace").rpartition(".")[2])


def _is_assigned(name: bytes, match: re.Match[bytes], group: str, in_url: bool, kind: Kind) -> bool:
    level, value = _level(name), match[group]
    if in_url and value and (level or name.lower().endswith((b"sig", b"signature"))):
        return not _STANDS_FOR.match(value)
    if level == NOTHING or not value or _STANDS_FOR.match(value):
        return False
    if group == "many":
        return level == PASSWORD and len(value) > 2 and kind != "code"
    if group == "bare":
        is_alone = match["sign"] != b":" or _ENDS.match(match.string, match.end())
        if not is_alone or _CALL.match(value) or name.endswith(value):
            return False
        if kind == "code" and (level < PASSWORD or not _LITERAL.match(value)):
            return False
    is_telling = level == PASSWORD or (len(value) >= 8 and re.search(rb"\d", value))
    return bool(is_telling) and is_secret(value, level)


def _in_urls(text: bytes) -> Iterator[Span]:
    for match in _OF_URL.finditer(text):
        group = "password" if match["password"] else "user"
        if not _STANDS_FOR.match(match[group]) and (
            group == "password" or re.search(rb"\d", match[group])
        ):
            yield match.span(group)


def _until_end(text: bytes, start: int) -> int:
    """Where a private key ends whose beginning is before `start`."""
    if end := _KEY_ENDS.search(text, start, start + 20_000):
        line = _line(text, end.start())
        return line if line > start else end.start()
    return _KEY_LINES.match(text, start).end()  # type: ignore[union-attr]


def _of_shape(text: bytes, lower: bytes) -> Iterator[Span]:
    keywords, rules = read_rules()
    words = {*keywords.findall(lower), *(word for word in rules if _is_within(word, lower))}
    for pattern, least in {rule for word in words for rule in rules[word]}:
        for match in _compiled(pattern).finditer(text):
            group = next((i for i, part in enumerate(match.groups(), 1) if part), 0)
            if entropy(match[group]) >= least:
                yield match.span(group)


@functools.cache
def read_rules() -> tuple[re.Pattern[bytes], dict[bytes, list[tuple[bytes, float]]]]:
    """The keywords, and for each the pattern and least entropy of its rules."""
    rules = defaultdict(list)
    with open(os.path.join(os.path.dirname(__file__), "secret_rules.txt"), "rb") as file:
        for line in file:
            if not line.startswith(b"#"):
                _, least, words, pattern = line.rstrip(b"\n").split(b"\t")
                for word in words.split(b","):
                    rules[word].append((pattern, float(least)))
    for word in rules:
        shorter = [other for other in rules if other != word and word.startswith(other)]
        rules[word] += [rule for other in shorter for rule in rules[other]]
    # Grouped by the first letter, which is all that most places need; longer ones first.
    first = defaultdict(list)
    for word in sorted(rules, key=len, reverse=True):
        first[word[:1]].append(re.escape(word[1:]))
    groups = (re.escape(letter) + b"(?:" + b"|".join(rest) + b")" for letter, rest in first.items())
    return re.compile(b"(?<![a-z0-9])(?:" + b"|".join(groups) + b")"), rules


def _is_within(word: bytes, lower: bytes) -> bool:
    """Whether a keyword that does not begin a token is there."""
    return (not word[:1].isalnum() or b"~" in word) and word in lower


@functools.cache
def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern)

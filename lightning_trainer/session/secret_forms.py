"""Lists the forms that a secret may have in a text: as it is, escaped, quoted, encoded."""

import base64
import json
import shlex
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus


def known_forms(secrets: Iterable[str]) -> bytes:
    """The forms for the helper of `TerminalLog`."""
    return b"\0".join(forms(secrets))


def forms(secrets: Iterable[str]) -> list[bytes]:
    """The secrets in each form that they may have in a text, e.g. escaped; the longest first."""
    found: dict[str, None] = {}
    for secret in secrets:
        texts = {secret}
        for _ in range(2):  # JSON within JSON
            texts |= {escape(text) for text in texts for escape in _ESCAPES}
        found |= dict.fromkeys(texts)
        content = secret.encode(errors="surrogatepass")
        if len(content) >= 8:
            found |= dict.fromkeys(_in_base64(content))
    encoded = {form.encode(errors="surrogatepass") for form in found}
    return sorted(encoded, key=len, reverse=True)


_ESCAPES = (
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: repr(text)[1:-1],
    lambda text: quote(text, safe="", errors="replace"),
    lambda text: quote(text, safe="/:@", errors="replace"),
    lambda text: quote_plus(text, errors="replace"),
    lambda text: shlex.quote(text).strip("'"),
    lambda text: text.replace("'", "''"),  # YAML
)


def _in_base64(content: bytes) -> Iterator[str]:
    """What is always there of a content that is part of a longer one."""
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + content)
        certain = whole[-(-before * 8 // 6) : (before + len(content)) * 8 // 6].decode()
        yield from (certain, certain.replace("+", "-").replace("/", "_"))

"""Judges by the name and the value of a setting whether it is a secret."""

import functools
import math
import re
from collections import Counter

# How much a name says: the higher, the less the value must look like a secret.
NOTHING, KEY, TOKEN, PASSWORD = range(4)

# The ends of names: those of detect-secrets 1.5.0 (https://github.com/Yelp/detect-secrets,
# plugins/keyword.py, Apache-2.0), of gitleaks' generic rule, and our own, which neither has.
_PASSWORDS = (
    *("apikey", "authkey", "servicekey", "accountkey", "dbkey", "databasekey", "privkey"),
    *("privatekey", "clientkey", "dbpass", "databasepass", "keypass", "password", "passwd", "pwd"),
    *("secret", "contrasena", "credential", "cred"),
    *(
        "passwort",
        "kennwort",
        "passphrase",
        "passcode",
        "authorization",
        "bearer",
        "cookie",
        "accesskey",
        "secretkey",
    ),
    *("encryptionkey", "signingkey", "sshkey", "masterkey", "sharedkey", "licensekey", "pgpass"),
    *("apitoken", "authtoken", "accesstoken", "refreshtoken", "bearertoken", "sessiontoken"),
    *("securitytoken", "oauthtoken", "bottoken", "hftoken", "githubtoken", "gitlabtoken"),
)
_TOKENS = ("token", "auth", "jwt", "webhook")
# Words before `token` and `pass` with which they are of a text, a filter or a loop.
_COUNTS = {"n", "num", "number", "max", "min", "total", "count", "len", "length"}
_OF_TEXTS = _COUNTS | {
    *("pad", "padding", "eos", "bos", "sos", "eot", "sot", "eod", "oov", "unk", "sep", "separator"),
    *(
        "cls",
        "class",
        "mask",
        "special",
        "start",
        "end",
        "stop",
        "begin",
        "blank",
        "image",
        "video",
    ),
    *("audio", "text", "prompt", "source", "src", "target", "tgt", "input", "output", "next"),
    *("prev", "previous", "first", "last", "second", "prefix", "suffix", "extra", "additional"),
    *("init", "encoder", "decoder", "register", "distill", "patch", "memory", "query", "think"),
    *("generated", "sampled", "csrf", "public", "per", "by", "all", "no", "one", "two", "single"),
    *("multi", "low", "high", "band", "forward", "backward"),
}
_SUFFIXES = {"value", "text", "string", "str", "pem", "b64", "base64", "data", "json", "old", "new"}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
# As gitleaks: the path of a file with a secret is none.
_PATH = re.compile(
    r"(?:~|/(?:bin|data|etc|gpfs|home|local|lustre|media|mnt|net|nfs|opt|private|root|run|scratch|"
    r"shared?|srv|storage|tmp|usr|Users|var|Volumes|work)(?=/))[\w ./-]+$"
)
_RUN = re.compile(rb"[A-Za-z0-9+/]{16,}")


@functools.lru_cache(4096)
def level_of(name: str) -> int:
    """How much the name of a setting, option or variable says; the last word counts."""
    words = [word.lower() for word in _WORDS.findall(name)]
    while len(words) > 1 and (words[-1] in _SUFFIXES or words[-1].isdigit()):
        words.pop()
    whole = "".join(words)
    if not whole:
        return NOTHING
    if whole.endswith("s") and not whole.endswith("ss"):
        whole, words[-1] = whole[:-1], words[-1][:-1]
    before = {*words[:-1]}
    if whole.endswith(_PASSWORDS):
        return PASSWORD if not before & _COUNTS else NOTHING
    if words[-1].endswith("pw"):
        return PASSWORD
    if whole.endswith("webhookurl"):
        return TOKEN
    for end in ("pass", *_TOKENS):
        if words[-1].endswith(end):
            before.add(words[-1].removesuffix(end))
            if before & _OF_TEXTS or (end == "pass" and words[-1] != "pass"):
                return NOTHING
            return PASSWORD if end == "pass" else TOKEN
    return KEY if whole.endswith("key") else NOTHING


def is_secret(value: bytes, level: int) -> bool:
    """Whether the value of a setting is a secret, under a name that says so much."""
    if not value or level == NOTHING or _PATH.match(value.decode(errors="replace")):
        return False
    if level == PASSWORD:
        return True
    bare = re.sub(rb"(?i)^(?:bearer|basic|token) ", b"", value)
    if level == TOKEN:
        is_word = not re.search(rb"\s", bare) and bare[:1] not in b"<[{("
        return is_word and len(bare) >= 6 and not bare.lstrip(b"+-").replace(b".", b"").isdigit()
    return _looks_random(value)


def _looks_random(value: bytes) -> bool:
    return any(
        sum(letter in b"0123456789" for letter in run) > 1
        and re.search(rb"[A-Za-z]", run)
        and entropy(run) >= 3
        for run in _RUN.findall(value)
    )


def entropy(text: bytes) -> float:
    """Of the distribution of its letters, in bits per letter."""
    parts = [n / len(text) for n in Counter(text).values()]
    return -sum(part * math.log2(part) for part in parts)

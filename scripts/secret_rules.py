"""Makes lightning_trainer/session/secret_rules.txt from gitleaks' configuration.

    python scripts/secret_rules.py gitleaks.toml v8.30.0 > secret_rules.txt

Needs Python 3.11. gitleaks.toml is config/gitleaks.toml of https://github.com/gitleaks/gitleaks.
"""

import re
import sys

import tomllib

HEADER = """\
# The shapes of tokens and keys, from gitleaks {version} (https://github.com/gitleaks/gitleaks,
# config/gitleaks.toml), under the MIT licence below; rewritten by scripts/secret_rules.py.
# Left out are rules for single programs, and rules that go by a name before the value: names are in
# secret_names.py. A value may end before any sign that can't belong to it. The last are our own.
# A line is: id, least entropy in bits per character, keywords, pattern.
#
{licence}
"""

LICENCE = """\
MIT License

Copyright (c) 2019 Zachary Rice

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE."""

LEFT_OUT = {
    "curl-auth-header",  # hiding.py finds headers everywhere
    "curl-auth-user",
    "sourcegraph-access-token",  # any 40 hexadecimal digits, as of a commit
    "private-key",  # hiding.py finds short ones too, over any number of lines
    "jwt-base64",
    "vault-service-token",  # any attribute of a variable `s`, if it is long enough
}

# Keywords that are met less often: a pattern is only tried where one is.
RARER = {"jwt": [".ey"], "openai-api-key": ["sk-"]}

# Known beginnings with a rest of another length than today's.
OWN = [
    {
        "id": "own-token",
        "keywords": ["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "hf_", "akia", "asia"],
        "regex": r"\b((?:gh[pousr]_|hf_|AKIA|ASIA)[A-Za-z0-9]{16,})",
    },
    {
        "id": "own-longer-token",
        "keywords": ["glpat-", "npm_", "hvs.", "sg.", "aiza", "shpat_", "xox", "sk_live_", "pypi-"],
        "regex": r"\b((?:glpat-|npm_|hvs\.|SG\.|AIza|shpat_|xox[abeoprs]-|sk_live_|pypi-)"
        r"[\w.-]{16,})",
    },
    {
        "id": "own-sk-key",
        "keywords": ["sk-"],
        "regex": r"\b(sk-(?:[a-z0-9]{2,10}-){0,2}(?:(?=\w*\d)\w{20,}|\w{32,})[\w-]*)",
    },
]


def by_name(regex: str) -> bool:
    """Whether a rule looks for a name before the value."""
    return r"[\w.-]{0,50}?" in regex


def for_python(regex: str) -> str:
    """Go's syntax in Python's: a flag within a pattern holds up to the end of its group."""
    regex = regex.replace(r"""(?:[\x60'"\s;]|\\[nr]|$)""", r"(?!\w)")
    regex = regex.replace("[[:alnum:]]", "[A-Za-z0-9]").replace(r"\z", r"\Z")
    while (at := regex.find("(?i)", 1)) > 0:
        depth, end, in_class = 0, at + 4, False
        while end < len(regex):
            letter = regex[end]
            if letter == "\\":
                end += 1
            elif letter == "[":
                in_class = True
            elif letter == "]":
                in_class = False
            elif letter in "()" and not in_class:
                depth += 1 if letter == "(" else -1
                if depth < 0:
                    break
            end += 1
        regex = f"{regex[:at]}(?i:{regex[at + 4 : end]}){regex[end:]}"
    re.compile(regex.encode())
    return regex


def main(path: str, version: str) -> None:
    with open(path, "rb") as file:
        rules = tomllib.load(file)["rules"]
    licence = "\n".join(f"# {line}".rstrip() for line in LICENCE.splitlines())
    print(HEADER.format(version=version, licence=licence), end="")
    for rule in [*rules, *OWN]:
        if "path" in rule or rule["id"] in LEFT_OUT or by_name(rule["regex"]):
            continue
        words = RARER.get(rule["id"], rule["keywords"])
        fields = (rule["id"], rule.get("entropy", 0), ",".join(words))
        print(*fields, for_python(rule["regex"]), sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])

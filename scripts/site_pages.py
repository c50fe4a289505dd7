"""Lets the site have pages that lie outside docs/: a hook of mkdocs, named in mkdocs.yml.

mkdocs build --strict

Links in the documents are those of the repository, as a code host shows them. Those to one of the
pages below lead to it on the site as well.
"""

import re
from pathlib import Path
from posixpath import normpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "results.md",
}
# The search of a site that is opened as files needs this script of the theme's; docs/assets has it.
_SHIM, _OWN_SHIM = "https://unpkg.com/iframe-worker/shim", "assets/iframe_worker.js"
_FOREIGN = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]* (?:src|href)="https?:[^>]*>')
_LINK = re.compile(r'(\]\(|src=")(?!https?:|#)([^)"#\s]+)')


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from outside."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links of the repository into links of the site."""
    sources = {page: source for source, page in OUTSIDE.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if source in ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md"):
        page.meta["search"] = {"boost": 0.2}  # the theme's: shown behind the other pages
    folder = source.rpartition("/")[0] or "."

    def on_site(match: re.Match[str]) -> str:
        target = normpath(f"{folder}/{match[2]}")
        return match[1] + OUTSIDE.get(target, target.removeprefix("docs/"))

    return _LINK.sub(on_site, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Takes the theme's script from the site itself.

    Raises:
        ValueError: If a page loads anything from elsewhere.
    """
    to_root = "../" * page.file.dest_uri.count("/")
    output = output.replace(_SHIM, to_root + _OWN_SHIM)
    if foreign := _FOREIGN.findall(output):
        raise ValueError(f"{page.file.dest_uri} loads {foreign}")
    return output

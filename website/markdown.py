"""Hook of MkDocs: the files of docs/ are written to be read in the repository, and this makes pages of them."""

from __future__ import annotations

import posixpath
import re
from typing import Any

FENCE = re.compile(r"^ *```")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s:]+)\)")
ITEM = re.compile(r"^(- |\d+\. )")
PAGE_AS_TEXT = re.compile(r"(?<=>)(?:docs/)?(\w+\.md)(?=</a>)")
PAGE_NAMED = re.compile(r"(?<![\w/\">])docs/(\w+\.md)\b")
SHORT_CODE = re.compile(r"<code>(?=[^<\s]{1,40}</code>)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    folder = posixpath.dirname(page.file.src_uri)
    return "\n".join(lines_for_the_site(markdown.split("\n"), folder))


def on_page_content(html: str, page: Any, files: Any, **_: Any) -> str:
    """Called by MkDocs with each page's HTML: here the texts of docstrings are in it."""

    def title(name: re.Match[str]) -> str:
        file = files.get_file_from_path(name[1])
        return file.page.title if file else name[0]

    def link(name: re.Match[str]) -> str:
        file = files.get_file_from_path(name[1])
        return f'<a href="{file.url_relative_to(page.file)}">{file.page.title}</a>' if file else name[0]

    html = PAGE_NAMED.sub(link, PAGE_AS_TEXT.sub(title, html))
    return SHORT_CODE.sub('<code class="whole">', html)  # an option is not broken behind its hyphens


def lines_for_the_site(lines: list[str], folder: str) -> list[str]:
    """What GitHub's Markdown takes and Python's does not, written as both do.

    Args:
        lines: of a page.
        folder: in docs/, where it lies.
    """
    found: list[str] = []
    in_fence, inside, begun = False, 0, 0
    for line in lines:
        if (item := ITEM.match(line)) and not in_fence:
            if inside and "" in found[begun:]:  # behind an item of several paragraphs
                found.append("")
            inside, begun = len(item[0]), len(found)
        elif line and not line.startswith(" " * max(inside, 1)):
            inside = 0
        elif line and inside:
            line = " " * (4 - inside) + line  # what belongs to an item is four spaces in, not two or three
        if FENCE.match(line):
            in_fence = not in_fence
        elif not in_fence:
            if line.startswith("|") and found and FENCE.match(found[-1]):
                found.append("")  # between a fence and a table
            line = LINK.sub(lambda link: without_outside(link, folder), line)
        found.append(line)
    return found


def without_outside(link: re.Match[str], folder: str) -> str:
    """A link to a file that the site lacks becomes its name, behind the text if that says something else."""
    text, target = link[1], link[2].partition("#")[0]
    place = posixpath.normpath(posixpath.join(folder, target))
    if not place.startswith("../"):
        return link[0]
    name = place.removeprefix("../")
    same = text.strip("`") in (name, target, posixpath.basename(name))
    return f"`{name}`" if same else f"{text} (`{name}`)"

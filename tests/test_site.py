"""The site of docs/ is built without a warning, is whole, and asks nothing of another host."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = "lerobot_deepfusion.configuration_deepfusion.DeepFusionConfig"

pytestmark = pytest.mark.medium


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def ids(self) -> set[str]:
        return {attributes["id"] for _, attributes in self.found if "id" in attributes}

    def addresses(self) -> Iterator[tuple[str, str]]:
        """Tag and address of whatever the page names."""
        for tag, attributes in self.found:
            for name in ("href", "src", "poster", "data", "action"):
                if name in attributes:
                    yield tag, attributes[name]
            for source in filter(None, attributes.get("srcset", "").split(",")):
                yield tag, source.split()[0]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The site's folder, and what its build said."""
    folder = tmp_path_factory.mktemp("site")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        # Material's notice of MkDocs 2 is no warning of ours.
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    return folder, run.stdout


@pytest.fixture(scope="module")
def site(built: tuple[Path, str]) -> Path:
    return built[0]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Tags]:
    return {page: Tags(page) for page in site.rglob("*.html")}


def page_of(source: Path) -> Path:
    """Where the site has a file of docs/."""
    place = source.relative_to(ROOT / "docs").with_suffix("")
    return place.with_name("index.html") if place.name == "index" else place / "index.html"


def test_nothing_is_warned_of(built: tuple[Path, str]) -> None:
    said = [line for line in built[1].splitlines() if line and not line.startswith("INFO")]
    assert said == []
    assert "requires either Black or Ruff" not in built[1]  # signatures in one line, said as INFO


def test_every_page_is_there(site: Path, pages: dict[Path, Tags]) -> None:
    sources = list((ROOT / "docs").rglob("*.md"))
    assert len(sources) > 20
    # In the navigation, which stands in every page.
    start = site / "index.html"
    entries = [tag for tag in pages[start].found if "md-nav__link" in tag[1].get("class", "") and "href" in tag[1]]
    linked = {(site / attributes["href"] / "index.html").resolve() for _, attributes in entries}
    missing = [str(source) for source in sources if (site / page_of(source)).resolve() not in linked]
    assert missing == []
    assert all((site / page_of(source)).is_file() for source in sources)


def test_the_reference_has_every_option_with_what_its_comment_says(site: Path, pages: dict[Path, Tags]) -> None:
    page = site / "reference/policy/index.html"
    module = ast.parse((ROOT / "lerobot_deepfusion/configuration_deepfusion.py").read_text())
    config = next(part for part in module.body if isinstance(part, ast.ClassDef))
    options = [ast.unparse(field.target) for field in config.body if isinstance(field, ast.AnnAssign)]
    assert "chunk_size" in options
    assert [option for option in options if f"{CONFIG}.{option}" not in pages[page].ids()] == []
    text = page.read_text()
    chunk_size = text[text.index(f'id="{CONFIG}.chunk_size"') :]
    assert "Actions predicted at once." in chunk_size[: chunk_size.index(f'id="{CONFIG}.n_action_steps"')]
    # The last of a group has the comment of the first.
    dimensions = text[text.index(f'id="{CONFIG}.max_action_dim"') :]
    assert "are padded to these sizes" in dimensions[: dimensions.index(f'id="{CONFIG}.objective"')]


def test_the_reference_has_what_is_public_alone(pages: dict[Path, Tags]) -> None:
    ids = {name for tags in pages.values() for name in tags.ids() if name.startswith("lerobot_deepfusion.")}
    for name in ("network.lockstep.DeepFusionModel", "llava.tiny.TinyVisionModel", "sim.recording.record"):
        assert f"lerobot_deepfusion.{name}" in ids
    assert [name for name in ids if "._" in name] == []


def test_the_reference_has_every_verb(site: Path, pages: dict[Path, Tags]) -> None:
    from lerobot_deepfusion.cli import deepfusion

    page = site / "reference/command/index.html"
    assert {f"deepfusion-{verb}" for verb in deepfusion.commands} <= pages[page].ids()
    text = page.read_text()
    assert "&lt;field&gt;" in text  # and no tag
    assert "\b" not in text
    assert "&amp;lt;" not in text


def test_nothing_comes_from_another_host(site: Path, pages: dict[Path, Tags]) -> None:
    """A link that a reader follows may lead anywhere."""
    foreign = [
        f"{page.relative_to(site)}: <{tag}> {address}"
        for page, tags in pages.items()
        for tag, address in tags.addresses()
        if tag != "a" and (urlsplit(address).scheme not in ("", "data") or urlsplit(address).netloc)
    ]
    foreign += [
        f"{style.relative_to(site)}: {found}"
        for style in [*site.rglob("*.css"), *pages]
        for found in re.findall(r"@import[^;]*|url\(\s*[\"']?(?:https?:)?//[^)]*", style.read_text())
    ]
    # Which Material's script would fetch from elsewhere: diagrams, and a repository's stars.
    foreign += [
        f"{page.relative_to(site)}: {attributes}"
        for page, tags in pages.items()
        for _, attributes in tags.found
        if "mermaid" in attributes.get("class", "") or attributes.get("data-md-component") == "source"
    ]
    assert foreign == []


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Tags]) -> None:
    """404.html is read at any address, so its links begin at the root of the site."""
    broken = []
    for page, tags in pages.items():
        for tag, address in tags.addresses():
            link = urlsplit(address)
            if link.scheme or link.netloc:
                continue
            path = unquote(link.path)
            target = site / path.lstrip("/") if path.startswith("/") else page.parent / path if path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or not target.resolve().is_relative_to(site.resolve()):
                broken.append(f"{page.relative_to(site)}: <{tag}> {address}")
            elif link.fragment and link.fragment not in {"__skip", *pages[target.resolve()].ids()}:
                broken.append(f"{page.relative_to(site)}: no {address}")
    assert broken == []


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("[fsdp.yaml](../configs/fsdp.yaml)", "`configs/fsdp.yaml`"),
        ("[configs/fsdp.yaml](../configs/fsdp.yaml)", "`configs/fsdp.yaml`"),
        ("see [its settings](../configs/fsdp.yaml#top).", "see its settings (`configs/fsdp.yaml`)."),
        ("[a page](space.md#how)", "[a page](space.md#how)"),
        ("[elsewhere](https://example.org/../a)", "[elsewhere](https://example.org/../a)"),
        ("```\n[code](../a)\n```", "```\n[code](../a)\n```"),
        ("1. a\n\n   b\n2. c\n\nd", "1. a\n\n    b\n\n2. c\n\nd"),
        ("- a\n  b\n- c\n\n  d", "- a\n    b\n- c\n\n    d"),
        ("```\na\n```\n| b |", "```\na\n```\n\n| b |"),
    ],
)
def test_what_is_written_for_the_repository_is_read_as_meant(written: str, read: str) -> None:
    """Files that the site lacks are named; of lists and tables, what GitHub takes and Python-Markdown does not."""
    from website.markdown import lines_for_the_site

    assert "\n".join(lines_for_the_site(written.split("\n"), folder="")) == read


def test_no_markdown_is_left_over(pages: dict[Path, Tags]) -> None:
    """Where GitHub's lists and tables are not Python-Markdown's, the hook writes them as both read them."""
    found = []
    for page in pages:
        text = re.sub(r"<(pre|script)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)
        found += [
            (page.parent.name, line) for line in re.findall(r"^ *(?:\d+\. |- |```|#+ |\|).*", text, re.MULTILINE)
        ]
        found += [(page.parent.name, line) for line in re.findall(r"<p>(?:\||\d+\. |- |```).*", text)]
    assert found == []

"""What the documentation quotes is what the code says."""

from __future__ import annotations

import ast
import re

from tests.commands import ROOT


def texts() -> set[str]:
    """All texts of the package, with `…` for what is put into them."""
    found = set()
    for path in (ROOT / "lerobot_deepfusion").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_messages_on_the_page_of_errors_are_said() -> None:
    ours = (ROOT / "docs/errors.md").read_text().split("## Of others")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", ours, re.MULTILINE)
    said = texts()
    assert len(messages) > 25
    assert [message for message in messages if not any(message in text for text in said)] == []

"""Extension of Griffe: the comment above a field of a class is what the reference says of it.

LeRobot's `--help` prints the comments of `DeepFusionConfig`, so its fields have no docstrings.
"""

from __future__ import annotations

import ast
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Of all classes; a docstring that is there stays."""

    def on_class_members(self, *, node: Any, cls: griffe.Class, **_: Any) -> None:
        """Called by Griffe when it has read a class."""
        if not isinstance(node, ast.ClassDef):
            return
        source = cls.module.filepath.read_text().splitlines()
        fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        for name, comment in comments_of(fields, source).items():
            field = cls.members[name]
            if field.docstring is None:
                field.docstring = griffe.Docstring(comment, parent=field)


def comments_of(fields: list[ast.AnnAssign], source: list[str]) -> dict[str, str]:
    """By a field's name what is said of it.

    A field directly under another is meant by that one's comment if it is of the same type, and else by the first of
    those that stand together.
    """
    found: dict[str, str] = {}
    first = last = kind = ""
    end = 0
    for field in fields:
        above = comment_above(source, field.lineno)
        together = field.lineno - 1 - len(above) == end
        if not together:
            first = last = " ".join(above)
        elif above:
            last = " ".join(above)
        elif ast.dump(field.annotation) != kind:
            last = first
        if last:
            found[ast.unparse(field.target)] = last
        kind, end = ast.dump(field.annotation), field.end_lineno or field.lineno
    return found


def comment_above(source: list[str], line: int) -> list[str]:
    """The lines of a comment that ends above a line, counted from one."""
    comment: list[str] = []
    for text in reversed(source[: line - 1]):
        if not text.strip().startswith("#"):
            break
        comment.insert(0, text.strip().removeprefix("#").strip())
    return comment

"""For mkdocstrings: doctests of docstrings as code blocks, also without a heading `Examples:`."""

import re
from typing import Any

import griffe

# An indented or plain block of lines that begins with a prompt and ends at an empty line.
BLOCK = re.compile(r"^( *)>>> .*(?:\n\1?\S.*|\n\1 .*)*", re.MULTILINE)


def fenced(text: str) -> str:
    """A docstring whose doctests are fenced blocks."""

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}```pycon\n{found[0]}\n{found[1]}```"

    return BLOCK.sub(block, text)


class Doctests(griffe.Extension):
    """Rewrites the docstring of every object that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once per object, before docstrings are parsed."""
        if obj.docstring and ">>> " in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)

"""Responses made of tagged blocks: `<think>...</think><answer>B</answer>`."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_RESPONSE = 1 << 16  # characters


def read_blocks(response: str, names: Sequence[str]) -> list[tuple[str, str]] | str:
    """(name, content) of the blocks that a response consists of, with nothing but space between them.

    Tags are read in any case, and a block holds none of the `names`' tags. Where the response is something else, why.
    """
    if len(response) > MAX_RESPONSE:
        return f"the response has {len(response)} characters, at most {MAX_RESPONSE} are read"
    tag = re.compile(rf"<(/?)({'|'.join(map(re.escape, names))})>", re.IGNORECASE)
    blocks: list[tuple[str, str]] = []
    opened: str | None = None
    end = 0
    for found in tag.finditer(response):
        closing, name = bool(found[1]), next(each for each in names if each.lower() == found[2].lower())
        between = response[end : found.start()]
        if closing:
            if opened != name:
                return f"</{name}> closes nothing that is open"
            blocks.append((name, between.strip()))
            opened = None
        else:
            if opened is not None:
                return f"<{name}> begins inside <{opened}>"
            if between.strip():
                return f"there is text before <{name}> that is in no block"
            opened = name
        end = found.end()
    if opened is not None:
        return f"<{opened}> is not closed"
    if response[end:].strip():
        return "there is text after the last block" if blocks else f"there is no block of {', '.join(names)}"
    return blocks or "the response is empty"


def read_step(response: str, *names: str) -> tuple[str, str, str] | str:
    """(thinking, name, content) of `<think>...</think>` and then one block of `names`; or why it is none."""
    blocks = read_blocks(response, ("think", *names))
    if isinstance(blocks, str):
        return blocks
    if len(blocks) != 2 or blocks[0][0] != "think" or blocks[1][0] == "think":
        return f"write <think>...</think>, then one of {', '.join(f'<{name}>...</{name}>' for name in names)}"
    return blocks[0][1], *blocks[1]


def write_blocks(*blocks: tuple[str, str]) -> str:
    return "".join(f"<{name}>{content}</{name}>" for name, content in blocks)

"""One named block of a response, such as <time>…</time>."""

from __future__ import annotations

from videorl.answers.answer import Failure


def find_block(text: str, name: str) -> str | Failure:
    """What stands between <name> and </name>, stripped. Each tag must occur once, so that no block can be hedged."""
    opening, closing = f"<{name}>", f"</{name}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return Failure("wrong_block", opening)
    body, closed, _ = text.partition(opening)[2].partition(closing)
    return body.strip() if closed and body.strip() else Failure("wrong_block", opening)

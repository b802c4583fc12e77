"""Texts that nobody vouches for, quoted so that a judge can tell them from what it is told."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping

CUT = "\n[... {} characters cut out ...]\n"
REMOVED = " … "  # holds blanks, which no special token does: what stands around it cannot join into a new one

# Tokens that open turns, roles, tools or media in the chat formats of Llama, Qwen, DeepSeek, Mistral, Gemma and GLM.
_SPECIAL = re.compile(
    r"<[|｜][^<>|｜\s]{1,64}[|｜]>"
    r"|</?(?:s|bos|eos|pad|unk|mask|sop|eop|start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token"
    r"|image|video|audio|tools|tool_call|tool_response|function_call)>"
    r"|<</?SYS>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|IMG|IMG_BREAK|IMG_END|THINK"
    r"|gMASK|sMASK|MASK|CLS|SEP|PAD|BOS|EOS|UNK)\]",
    re.IGNORECASE,
)


def clean(text: str, max_chars: int) -> str:
    """The text without what a reader cannot see (control, format, surrogate and unassigned characters; newline and
    tab stay) and without special tokens of chat formats; the middle of a text above `max_chars` is cut out."""
    if len(text) > max_chars:
        head = max_chars // 2
        tail = max_chars - head
        text = text[:head] + CUT.format(len(text) - max_chars) + text[-tail:]
    visible = "".join(char for char in text if char in "\n\t" or unicodedata.category(char)[0] != "C")
    return _SPECIAL.sub(REMOVED, visible)


def quote(texts: Mapping[str, str], max_chars: int) -> str:
    """The texts, cleaned, each as a block that it cannot close itself:

        <<<RESPONSE 3f6c0d5be1a2947b
        ...
        RESPONSE 3f6c0d5be1a2947b>>>

    The id differs from call to call, yet the same texts get the same one, so that verdicts on them can be cached. It
    is a digest of all texts: to contain it, a text would have to contain a part of its own hash.
    """
    cleaned = {name: clean(text, max_chars) for name, text in texts.items()}
    nonce = hashlib.sha256(json.dumps(cleaned).encode()).hexdigest()[:16]
    return "\n\n".join(f"<<<{name} {nonce}\n{text}\n{name} {nonce}>>>" for name, text in cleaned.items())

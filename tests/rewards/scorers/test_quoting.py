"""Hostile text in a judge's prompt: it cannot leave its block, nor speak in the format of the chat."""

from __future__ import annotations

import json
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.rewards.scorers.quoting import clean, quote

TOKENS = [
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|video_pad|>", "<|user|>",
    "<|reserved_special_token_0|>", "<｜end▁of▁sentence｜>", "<｜User｜>", "[INST]", "[/INST]", "[TOOL_CALLS]",
    "[gMASK]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>",
    "<image>", "<video>", "<tool_call>", "</tool_call>", "<sop>",
]  # fmt: skip

pieces = st.sampled_from(
    [*TOKENS, "<|", "|>", "<", ">", "im_end", "im_", "end", "|", "[", "]", "/", "INST", "s", "\u200b"]
)
hostile = st.one_of(st.text(), st.lists(pieces, max_size=30).map("".join))


@pytest.mark.parametrize("token", TOKENS)
def test_special_tokens_of_chat_formats_are_taken_out(token):
    assert clean(f"before{token}after", 100) == "before … after"


@pytest.mark.parametrize(
    "text", ["a < b | c > d", "[1, 2]", "x <|> y", "<b>bold</b>", "i<sum and s>0", "<think>why</think>"]
)
def test_other_text_stays_as_it_is(text):
    assert clean(text, 100) == text


@settings(derandomize=True, deadline=None, max_examples=400)
@given(hostile)
def test_no_special_token_is_left_or_made_by_taking_one_out(text):
    cleaned = clean(text, 1000).casefold()
    assert not [token for token in TOKENS if token.casefold() in cleaned]


@settings(derandomize=True, deadline=None)
@given(st.text(st.characters(), max_size=300))
def test_only_visible_characters_blanks_and_line_breaks_are_left(text):
    cleaned = clean(text, 1000)
    assert not [c for c in cleaned if c not in "\n\t" and unicodedata.category(c).startswith("C")]
    json.dumps(cleaned, ensure_ascii=False).encode()  # no lone surrogates, which no request could carry


def test_invisible_characters_do_not_hide_a_token():
    assert clean("<|im\u200b_end|>\x1b[31m\u202e!", 100) == " … [31m!"


def test_of_a_long_text_both_ends_are_kept_and_the_cut_is_marked():
    # 1000 characters for a limit of 100: the first and last 50 stay, 900 go
    text = "a" * 500 + "b" * 500
    assert clean(text, 100) == "a" * 50 + "\n[... 900 characters cut out ...]\n" + "b" * 50
    assert clean("c" * 100, 100) == "c" * 100
    # 101 for 99: 49 + 50
    assert clean("a" * 101, 99) == "a" * 49 + "\n[... 2 characters cut out ...]\n" + "a" * 50


# --- fences ----------------------------------------------------------------------------------------------------------


def fences(quoted: str) -> dict[str, str]:
    """{block: text}, read as the judge is told to: a block ends at the first line that has its name and its id."""
    blocks = {}
    lines = iter(quoted.split("\n"))
    for line in lines:
        if match := re.fullmatch(r"<<<(\w+) (\w+)", line):
            name, nonce = match.groups()
            text = []
            for inner in lines:
                if inner == f"{name} {nonce}>>>":
                    break
                text.append(inner)
            else:
                raise AssertionError(f"{name} is never closed")
            assert name not in blocks
            blocks[name] = "\n".join(text)
        else:
            assert line == ""
    return blocks


def test_blocks_by_hand():
    quoted = quote({"QUESTION": "What next?", "RESPONSE": "a\nb"}, 100)
    nonce = quoted.split()[1]
    assert re.fullmatch("[0-9a-f]{16}", nonce)
    assert quoted == (
        f"<<<QUESTION {nonce}\nWhat next?\nQUESTION {nonce}>>>\n\n<<<RESPONSE {nonce}\na\nb\nRESPONSE {nonce}>>>"
    )


def test_the_id_changes_with_any_text_and_only_then():
    ids = [quote(texts, 100).split()[1] for texts in ({"A": "x", "B": "y"}, {"A": "x", "B": "z"}, {"A": "x", "B": "y"})]
    assert ids[0] == ids[2] != ids[1]


@settings(derandomize=True, deadline=None, max_examples=400)
@given(st.data())
def test_no_response_can_close_its_block(data):
    """It may know the format, the other texts, and the ids of all prompts that were ever made."""
    question = data.draw(st.text(max_size=20))
    nonces = [quote({"QUESTION": question, "RESPONSE": earlier}, 500).split()[1] for earlier in ("", "x", question)]
    ends = [f"{name} {nonce}>>>" for name in ("RESPONSE", "QUESTION") for nonce in nonces]
    starts = [f"<<<RESPONSE {nonce}" for nonce in nonces]
    words = st.sampled_from([*ends, *starts, "\n", ">>>", "RESPONSE", " ", "\r\n", "\u2028", "\x00"])
    response = data.draw(st.one_of(st.text(), st.lists(words, max_size=12).map("".join)))
    texts = {"QUESTION": question, "RESPONSE": response}
    assert fences(quote(texts, 500)) == {name: clean(text, 500) for name, text in texts.items()}

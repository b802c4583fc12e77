"""What the parsers of JSON, boxes and tagged times must survive."""

import pytest

from videorl.answers.boxes import parse_boxes, parse_frame_boxes, parse_keyframe
from videorl.answers.objects import MAX_JSON_CHARS, parse_json
from videorl.answers.times import parse_interval

PARSERS = [
    parse_json,
    parse_boxes,
    parse_keyframe,
    parse_frame_boxes,
    lambda text: parse_interval(text, "json"),
    lambda text: parse_interval(text, "tag"),
]
UNITS = [
    *('"', '\\"', "\\", '"\\"', "[", "]", "{", '{"a":', "[1,", "[[1,2,3,4],", "```", "``` ", "```json\n", " ", "\n"),
    *("9", "0.", "1e9", "-", "1.[1,2,3,4]", "1. ", "1.[", "1.[1,", "<time>", "</time>", "<time>2 - 5</time>", "NaN,"),
    *("\0", "²", "٣", "\u0301\u0316", "ﷺ", "\ud800"),
]


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("size", [MAX_JSON_CHARS - 100, 1_000_000])
def test_time_is_linear(parser, size):
    """A quadratic pattern, or a parser that recurses, would take many minutes or raise."""
    for unit in UNITS:
        text = (unit * (size // len(unit) + 1))[:size]
        for whole in (text, f"```{text}```", f'["{text}', f"<time>{text}</time>", f"1. [{text}]"):
            parser(whole)

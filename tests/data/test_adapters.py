"""Records of every layout, as their tools and data sets write them, become canonical rows, or say why not."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.data.adapters.golds import read_options, split_options
from videorl.data.adapters.layouts import LAYOUTS, convert_record, detect_layout, find_layout
from videorl.data.records import REASONS, RecordError
from videorl.data.schema import CanonicalRow, load_rows
from videorl.types import DataError

fixed = settings(derandomize=True, deadline=None, max_examples=60)

RECORDS = {
    "canonical": {"id": "c", "task": "open", "prompt": "Why?", "answer": "because", "hard": True},
    "verl": {
        "data_source": "bikes",
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<video>Which?\n\nOptions:\nA. a dog\nB. a taxi\nAnswer with the letter."},
        ],
        "videos": [{"type": "video", "video": "file:///data/a.mp4", "fps": 2.0, "max_frames": 16}],
        "images": None,
        "ability": "video",
        "reward_model": {"style": "rule", "ground_truth": "B"},
        "extra_info": {"index": 7, "split": "train"},
    },
    "easyr1": {"problem": "<video>How many wheels?", "answer": "4", "videos": ["a.mp4"], "level": 2},
    "video-r1": {
        "problem_id": 12,
        "problem": "What is shown?",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": ["A. a dog", "B. a taxi"],
        "process": "<think>It barks.</think>",
        "solution": "<answer>A</answer>",
        "path": "./sets/a.mp4",
    },
    "ms-swift": {
        "messages": [
            {"role": "user", "content": "<video>Describe."},
            {"role": "assistant", "content": "<think>x</think><answer>A dog.</answer>"},
        ],
        "videos": ["a.mp4"],
        "level": 2,
    },
    "trl": {
        "prompt": [
            {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Who?"}]}
        ],
        "solution": "a dog",
    },
    "llava": {
        "id": "l-1",
        "video": "a.mp4",
        "conversations": [
            {"from": "human", "value": "<image>\nWhich?\n(A) a dog (B) a taxi\nReply with the letter."},
            {"from": "gpt", "value": "B. a taxi"},
        ],
    },
    "rrpo": {
        "question": "<image>\nWhat happens?",
        "answer": "A red car stops, then turns.",
        "answer_masked": "A <MASK>red</MASK> car stops, then <MASK>turns</MASK>.",
        "pred": "A blue car stops, then drives off.",
        "pred_masked": "A <MASK>blue</MASK> car stops, then <MASK>drives off</MASK>.",
        "video": "a.mp4",
    },
    "preference": {
        "prompt": [{"role": "user", "content": "<image>Who?"}],
        "chosen": [{"role": "assistant", "content": "a dog"}],
        "rejected": {"from": "gpt", "value": "a cat"},
        "video": "a.mp4",
        "score": 3,
    },
    "v1-33k": {
        "video_path": "sets/a.mp4",
        "events": [{"scene": "Scene 1", "description": "A dog runs."}],
        "video_split": {
            "scenes_timestep": [{"Scene 1": "0:04 - 0:09.5"}],
            "split_caption": {"caption_part1": "A dog runs.", "caption_part2": "It stops."},
        },
        "qa": {"Question": "What comes next?", "Options": {"A": "it stops", "B": "it flies"}, "Answer": "A"},
    },
    "charades-sta": {"line": "3MSZA  24.3 30.4##person turn a light on."},
    "temporal-r1": {
        "problem": "When?",
        "solution": [0.25, 0.5],
        "video": "a.mp4",
        "video_length": 20,
        "dataset": "charades_train",
    },
}

EXPECTED = {
    "canonical": {"id": "c", "task": "open", "prompt": "Why?", "answer": "because", "meta": {"hard": True}},
    "verl": {
        "id": "row-1",
        "task": "mc",
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<video>Which?\nAnswer with the letter."},
        ],
        "videos": [{"path": "/data/a.mp4", "fps": 2.0}],
        "choices": ["a dog", "a taxi"],
        "answer": "B",
        "data_source": "bikes",
        "meta": {
            "ability": "video",
            "index": 7,
            "split": "train",
            "reward_model": {"style": "rule"},
            "video_settings": [{"max_frames": 16}],
        },
    },
    "easyr1": {
        "id": "row-1",
        "task": "numeric",
        "prompt": "<video>How many wheels?",
        "videos": [{"path": "a.mp4"}],
        "answer": "4",
        "data_source": "easyr1",
        "meta": {"level": 2},
    },
    "video-r1": {
        "id": "12",
        "task": "mc",
        "prompt": "What is shown?",
        "videos": [{"path": "./sets/a.mp4"}],
        "choices": ["a dog", "a taxi"],
        "answer": "A",
        "data_source": "video-r1",
        "meta": {"problem_type": "multiple choice"},
        "response": "<think>It barks.</think>\n<answer>A</answer>",
    },
    "ms-swift": {
        "id": "row-1",
        "task": "open",
        "prompt": "<video>Describe.",
        "videos": [{"path": "a.mp4"}],
        "answer": "A dog.",
        "data_source": "ms-swift",
        "meta": {"level": 2},
        "response": "<think>x</think><answer>A dog.</answer>",
    },
    "trl": {
        "id": "row-1",
        "task": "open",
        "prompt": "<video>Who?",
        "videos": [{"path": "a.mp4"}],
        "answer": "a dog",
        "data_source": "trl",
        "meta": {},
    },
    "llava": {
        "id": "l-1",
        "task": "mc",
        "prompt": "<video>\nWhich?\nReply with the letter.",
        "videos": [{"path": "a.mp4"}],
        "choices": ["a dog", "a taxi"],
        "answer": "B",
        "data_source": "llava",
        "meta": {},
        "response": "B. a taxi",
    },
    "rrpo": {
        "id": "row-1",
        "task": "open",
        "prompt": "<video>\nWhat happens?",
        "videos": [{"path": "a.mp4"}],
        "data_source": "rrpo",
        "chosen": "A red car stops, then turns.",
        "rejected": "A blue car stops, then drives off.",
        "phrases": [
            {"chosen": [2, 5], "rejected": [2, 6]},
            {"chosen": [22, 27], "rejected": [23, 33]},
        ],
    },
    "preference": {
        "id": "row-1",
        "task": "open",
        "prompt": "<video>Who?",
        "videos": [{"path": "a.mp4"}],
        "data_source": "preference",
        "chosen": "a dog",
        "rejected": "a cat",
        "meta": {"score": 3},
    },
    "v1-33k": {
        "id": "row-1",
        "task": "next_event",
        "prompt": "What comes next?",
        "videos": [{"path": "sets/a.mp4", "end": 9.5}],
        "choices": ["it stops", "it flies"],
        "answer": "A",
        "data_source": "v1-33k",
        "meta": {
            "events": [{"scene": "Scene 1", "description": "A dog runs."}],
            "caption_part1": "A dog runs.",
            "caption_part2": "It stops.",
            "scenes_timestep": [{"Scene 1": "0:04 - 0:09.5"}],
        },
    },
    "charades-sta": {
        "id": "row-1",
        "task": "grounding",
        "prompt": 'When does this happen in the video: "person turn a light on."?',
        "videos": [{"path": "3MSZA.mp4"}],
        "spans": [[24.3, 30.4]],
        "data_source": "charades-sta",
        "meta": {"query": "person turn a light on."},
    },
    "temporal-r1": {
        "id": "row-1",
        "task": "grounding",
        "prompt": "When?",
        "videos": [{"path": "a.mp4"}],
        "spans": [[5.0, 10.0]],  # 0.25 and 0.5 of 20 s
        "data_source": "charades_train",
        "meta": {"video_length": 20},
    },
}


def convert(name, record):
    return convert_record(find_layout(name), record, default_id="row-1")


def reshape(name, **changes):
    """The record of a layout with other columns; `...` takes one away."""
    record = {**RECORDS[name], **changes}
    return {key: value for key, value in record.items() if value is not ...}


def refusal(name, **changes):
    with pytest.raises(RecordError) as error:
        convert(name, reshape(name, **changes))
    assert error.value.reason in REASONS
    return f"{error.value.reason}: {error.value}"


# --- every layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_record_of_each_layout_by_hand(name):
    assert convert(name, RECORDS[name]) == CanonicalRow.model_validate(EXPECTED[name]).model_dump()


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_are_read_again_as_they_are(name, tmp_path):
    row = convert(name, RECORDS[name])
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert load_rows(tmp_path / "rows.jsonl") == [row]


@pytest.mark.parametrize("name", LAYOUTS)
def test_records_are_not_changed(name):
    before = json.dumps(RECORDS[name])
    convert(name, RECORDS[name])
    assert json.dumps(RECORDS[name]) == before


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_told_from_all_others(name):
    layout, evidence = detect_layout([RECORDS[name], {**RECORDS[name], "extra": 1}])
    assert layout.name == name and evidence.endswith("in all of the first 2 records")


def test_arrays_of_numpy_are_read():
    """What pandas makes of a parquet file."""
    record = reshape("verl", prompt=np.array(RECORDS["verl"]["prompt"]), videos=np.array(RECORDS["verl"]["videos"]))
    record["extra_info"] = {"index": np.int64(7), "split": "train"}
    assert convert("verl", record) == convert("verl", RECORDS["verl"])
    floats = reshape("temporal-r1", solution=np.array([0.25, 0.5]), video_length=np.float32(20))
    assert convert("temporal-r1", floats)["spans"] == [[5.0, 10.0]]


def test_the_prompt_of_a_pair_may_stand_in_its_conversations():
    asked = [{"role": "user", "content": "<video>Who?"}]
    changes = {side: [*asked, {"role": "assistant", "content": text}] for side, text in PAIR.items()}
    assert convert("preference", reshape("preference", prompt=..., **changes)) == convert(
        "preference", RECORDS["preference"]
    )


def test_ms_swift_writes_the_rejected_reply_beside_the_conversation():
    row = convert("ms-swift", reshape("ms-swift", rejected_response="<answer>A cat.</answer>"))
    assert (row["chosen"], row["rejected"], row["response"]) == (
        "<think>x</think><answer>A dog.</answer>",
        "<answer>A cat.</answer>",
        None,
    )


PAIR = {"chosen": "a dog", "rejected": "a cat"}


# --- detection -------------------------------------------------------------------------------------------------------


def test_an_unknown_layout_lists_columns_and_choices():
    with pytest.raises(DataError) as error:
        detect_layout([{"frage": "?", "antwort": "!"}, {"frage": "?"}, {"frage": "?", "antwort": "!"}])
    message = str(error.value)
    assert error.value.reason == "layout" and "no layout fits; name one with --from" in message
    assert "2 of the first 3 records have antwort, frage" in message
    assert all(f"\n  {name}: " in message for name in LAYOUTS)
    assert "temporal-r1: problem, solution, video or videos without problem_type" in message


def test_an_ambiguous_layout_names_both():
    with pytest.raises(DataError, match=r"several layouts fit \(ms-swift, llava\)"):
        detect_layout([{**RECORDS["ms-swift"], **RECORDS["llava"]}])
    with pytest.raises(DataError, match=r"several layouts fit \(easyr1, llava\)"):
        detect_layout([RECORDS["easyr1"], RECORDS["llava"]])
    with pytest.raises(DataError, match="only some records have the layout llava"):
        detect_layout([RECORDS["llava"], {"id": "l"}])


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(DataError, match="'llama' is no layout; choose from canonical, verl"):
        find_layout("llama")


# --- what is refused, and why ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("verl", {"images": [{"bytes": b"", "path": "a.png"}]}, "not_video: the record has images"),
        ("easyr1", {"problem": "<image>How many?"}, "not_video: the text has <image>"),
        ("easyr1", {"images": ["a.png"], "videos": ...}, "not_video: the record has images"),
        ("video-r1", {"data_type": "image", "path": "a.png"}, "not_video: data_type='image'"),
        ("llava", {"video": ..., "image": "a.png"}, "not_video: the record has image"),
        ("llava", {"video": ...}, "missing: video is absent"),
        ("ms-swift", {"videos": [["1.jpg", "2.jpg"]]}, "not_video: .* lists frames"),
        (
            "trl",
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            "not_video: a content part of type 'image'",
        ),
        ("verl", {"videos": [{"bytes": b"content", "path": None}]}, "not_local: the record holds the video itself"),
        ("easyr1", {"videos": ["https://host/a.mp4"]}, "not_local: https://host/a.mp4 is no path"),
        ("trl", {"videos": ["b.mp4"]}, "clash: videos stand both in the messages and in videos"),
        ("verl", {"split": "test"}, "clash: 'split' is said twice, 'test' and 'train'"),
        ("verl", {"reward_model": ...}, "missing: reward_model is absent"),
        ("verl", {"reward_model": "rule"}, "wrong_type: reward_model='rule' must be an object"),
        ("easyr1", {"answer": ""}, "missing: answer is absent or empty"),
        ("easyr1", {"answer": "B"}, "no_options: answer='B'"),
        ("easyr1", {"answer": float("nan")}, "wrong_type: the record holds nan"),
        ("easyr1", {"problem": 7}, "wrong_type: problem=7 must be a text"),
        ("easyr1", {"problem": "<video><video>Which?"}, "schema: .*prompt has 2 <video> for 1 videos"),
        (
            "video-r1",
            {"solution": "<answer>C</answer>"},
            r"bad_gold: answer='C' names none of choices=.*outside_options",
        ),
        ("video-r1", {"solution": "<answer></answer>"}, "bad_gold: .* holds no answer"),
        ("video-r1", {"problem_type": "riddle"}, "unknown_type: problem_type='riddle' must be one of multiple choice"),
        ("video-r1", {"options": []}, "no_options: answer='A'"),
        ("video-r1", {"options": [["A"]]}, "wrong_type: options="),
        ("video-r1", {"problem_type": "numerical", "solution": "a few"}, "bad_gold: answer='a few' is not one number"),
        ("video-r1", {"options": ["A. a dog", "B. a dog"]}, "schema: .*repeat an option"),
        ("rrpo", {"pred_masked": "A blue car stops, then <MASK>drives off</MASK>."}, "bad_phrases: .* 2 phrases .* 1;"),
        ("rrpo", {"answer": "A red car turns."}, "bad_phrases: answer_masked without its marks is not answer="),
        ("rrpo", {"pred": "x", "pred_masked": "x"}, "bad_phrases: pred_masked='x' marks no phrase"),
        ("preference", {"chosen": "a cat"}, "schema: .*chosen and rejected are both 'a cat'"),
        ("preference", {"prompt": ...}, "missing: prompt is absent, and chosen and rejected do not begin alike"),
        ("preference", {"chosen": [{"role": "user", "content": "x"}]}, "missing: chosen ends with a message of 'user'"),
        ("ms-swift", {"messages": [{"role": "tool", "content": "x"}]}, "wrong_type: role='tool' must be one of"),
        ("ms-swift", {"messages": [{"role": "assistant", "content": "x"}]}, "missing: .* no message of the user"),
        ("ms-swift", {"messages": [{"role": "user", "content": None}]}, "wrong_type: text=None must be a text"),
        ("v1-33k", {"video_split": {"scenes_timestep": []}}, r"missing: scenes_timestep=\[\] does not say when"),
        ("v1-33k", {"qa": {**RECORDS["v1-33k"]["qa"], "Options": {"X": "y"}}}, "wrong_type: options are named"),
        ("charades-sta", {"line": "3MSZA 24.3##person"}, "wrong_type: .* before ## must be 'VIDEO START END'"),
        ("charades-sta", {"line": "3MSZA 1_0 nan##person"}, "wrong_type: start='1_0' must be a finite number"),
        ("charades-sta", {"line": "3MSZA 24.3 30.4"}, "missing: the query after ## is blank"),
        ("charades-sta", {"line": "3MSZA 30.4 24.3##person"}, "schema: .*with start < end"),
        ("temporal-r1", {"video_length": ...}, "missing: video_length is absent"),
        ("temporal-r1", {"solution": [5.0, 10.0]}, "bad_gold: .* must be shares of the length"),
        ("canonical", {"task": "mc"}, "schema: id 'c': choices is absent"),
    ],
)
def test_refusals_name_value_and_rule(name, changes, complaint):
    assert re.match(complaint, refusal(name, **changes)), refusal(name, **changes)


# --- variants of the layouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem_type", "solution", "task", "answer"),
    [
        ("numerical", "<answer>3.50</answer>", "numeric", "3.50"),  # its decimals count, so they stay
        ("numerical", "<answer>1,234</answer>", "numeric", 1234),
        ("regression", "<answer>12 m</answer>", "numeric", 12),
        ("regression", "<answer>about 12.5 cm</answer>", "numeric", 12.5),
        ("OCR", "<answer>EXIT 7</answer>", "open", "EXIT 7"),
        ("free-form", "<answer>A</answer>", "open", "A"),
    ],
)
def test_types_of_video_r1(problem_type, solution, task, answer):
    record = reshape("video-r1", problem_type=problem_type, solution=solution, options=[], process="")
    row = convert("video-r1", record)
    assert (row["task"], row["meta"]["problem_type"]) == (task, problem_type)
    assert (
        row["answer"] == ({"regression": 12}.get(problem_type) if answer is None else answer) or row["answer"] == 12.5
    )
    assert row["response"] is None and row["choices"] is None


def test_ground_truth_of_verl_may_be_an_object():
    """A user's own scoring function gets it as the JSON text that parquet could hold too."""
    truth = {"target": ["a", "b"]}
    row = convert("verl", reshape("verl", reward_model={"ground_truth": truth}))
    assert row["task"] == "custom" and json.loads(row["answer"]) == truth


def test_conversations_of_several_turns_fit_the_last_reply():
    turns = [
        *RECORDS["llava"]["conversations"],
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "It is red."},
    ]
    row = convert("llava", reshape("llava", conversations=turns))
    assert [message["role"] for message in row["prompt"]] == ["user", "assistant", "user"]
    assert row["prompt"][-1]["content"] == "Why?" and row["response"] == row["answer"] == "It is red."


def test_a_completion_may_be_a_message():
    for completion in ("a dog", [{"role": "assistant", "content": "a dog"}]):
        row = convert("trl", {"prompt": "Who?", "videos": "a.mp4", "completion": completion})
        assert (row["response"], row["answer"], row["prompt"]) == ("a dog", "a dog", "Who?")


def test_v1_without_a_question_asks_for_what_comes_next():
    scenes = [{"Scene 1": {"start": "0:04", "end": "0:09"}}]
    split = RECORDS["v1-33k"]["video_split"] | {"scenes_timestep": scenes}
    row = convert("v1-33k", reshape("v1-33k", qa=..., video_split=split))
    assert (row["task"], row["prompt"], row["answer"]) == ("open", "What will happen next?", "It stops.")
    assert row["response"] == "It stops." and row["videos"][0]["end"] == 9.0
    assert "caption_part2" not in row["meta"]


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("Which?\nA. red\nB. blue", "Which?", ["red", "blue"]),
        ("Which?\nChoices:\n\n(A) red\n\n(B) blue\nAnswer.", "Which?\nAnswer.", ["red", "blue"]),
        ("Which?\nA: red\nB - blue\nC) green", "Which?", ["red", "blue", "green"]),
        ("Which? (A) red, (B) blue\nAnswer.", "Which?\nAnswer.", ["red", "blue"]),
        ("A. Smith ran.\nWhich?\nA. red\nB. blue", "A. Smith ran.\nWhich?", ["red", "blue"]),
        ("Which?\nB. red\nC. blue", "Which?\nB. red\nC. blue", None),
        ("Which?\nA. red\nC. blue", "Which?\nA. red\nC. blue", None),
        ("See (A) and (C).", "See (A) and (C).", None),
        ("Why?", "Why?", None),
    ],
)
def test_options_in_the_question(text, question, options):
    assert split_options(text) == (question, options)


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (["A. red", "B. blue"], ["red", "blue"]),
        (["(A) red", "(B)blue"], ["red", "blue"]),
        (["A. red", "blue"], ["A. red", "blue"]),  # one label alone belongs to the text
        (["B. red", "A. blue"], ["B. red", "A. blue"]),
        ({"B": "blue", "A": "red"}, ["red", "blue"]),
        ([3, 4.5], ["3", "4.5"]),
        ([], None),
        (None, None),
    ],
)
def test_options_of_their_own(value, options):
    assert read_options(value) == options


# --- hostile records -------------------------------------------------------------------------------------------------

COLUMNS = sorted({column for record in RECORDS.values() for column in record} | {"image", "completion", "answer"})
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["A", "<answer>B</answer>", "<video>", "<image>", "(A) x (B) y", "1 - 2", "user", "x 1 2##y"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(COLUMNS) | st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("name", LAYOUTS)
@fixed
@given(changes=st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=4), fresh=st.booleans())
def test_hostile_records_are_rows_or_refusals(name, changes, fresh):
    record = changes if fresh else {**RECORDS[name], **changes}
    try:
        row = convert(name, record)
    except RecordError as error:
        assert error.reason in REASONS and str(error)
    else:
        assert CanonicalRow.model_validate(row).model_dump() == row


@fixed
@given(name=st.sampled_from(sorted(LAYOUTS)), column=st.sampled_from(["level", "note"]), value=VALUES)
def test_nothing_of_a_record_is_lost(name, column, value):
    """A column that the layout does not know is in meta, unless JSON cannot hold it."""
    try:
        row = convert(name, {**RECORDS[name], column: value})
    except RecordError:
        assert "nan" in repr(value) or "inf" in repr(value)
    else:
        found = json.dumps(row["meta"].get(column), sort_keys=True)
        assert found == json.dumps(without_nulls(value), sort_keys=True)


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value

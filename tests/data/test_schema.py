"""Rows in three formats, and every rule that a row can break."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.answers.gold import gold_letter, gold_number, gold_spans
from videorl.data.schema import CanonicalRow, fingerprint, load_rows
from videorl.types import DataError

fixed = settings(derandomize=True, deadline=None, max_examples=50)

ROWS = [
    {
        "id": "a",
        "task": "mc",
        "prompt": "Which?",
        "videos": [{"path": "a.mp4"}],
        "choices": ["red", "blue"],
        "answer": "B",
        "data_source": "test",
        "difficulty": 3,
    },
    {
        "id": "b",
        "task": "grounding",
        "prompt": "When?",
        "videos": [{"path": "b.mp4", "start": 1.0, "end": 9.0, "fps": 2.0, "sha256": "0" * 64}],
        "spans": [[0.5, 2.0], [3.0, 8.0]],
        "data_source": "test",
        "meta": {"split": "easy"},
    },
    {"id": "c", "task": "open", "prompt": "Why?", "answer": "because", "response": "<answer>because</answer>"},
    {
        "id": "d",
        "task": "open",
        "prompt": "Why?",
        "chosen": "it rains",
        "rejected": "it snows",
        "phrases": [{"chosen": [3, 8], "rejected": [3, 8]}],
        "provenance": {"iteration": 1, "critique": "no snow"},
    },
]

COLUMNS = {name: [row.get(name) for row in ROWS] for name in dict.fromkeys(name for row in ROWS for name in row)}


def row(**fields):
    return {"id": "x", "task": "open", "prompt": "Why?"} | fields


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load_one(tmp_path, **fields):
    return load_rows(write_jsonl(tmp_path / "rows.jsonl", [row(**fields)]))[0]


def refusal(tmp_path, **fields):
    with pytest.raises(DataError) as error:
        load_one(tmp_path, **fields)
    assert error.value.reason == "bad_rows"
    return str(error.value)


# --- formats ---------------------------------------------------------------------------------------------------------


def test_rows_have_every_field_and_unknown_columns_are_in_meta(tmp_path):
    first, second, third, fourth = load_rows(write_jsonl(tmp_path / "rows.jsonl", ROWS))
    assert first == {
        "id": "a",
        "task": "mc",
        "prompt": "Which?",
        "videos": [{"path": "a.mp4", "start": None, "end": None, "fps": None, "sha256": None}],
        "choices": ["red", "blue"],
        "answer": "B",
        "spans": None,
        "data_source": "test",
        "meta": {"difficulty": 3},
        "response": None,
        "chosen": None,
        "rejected": None,
        "phrases": None,
        "provenance": None,
    }
    assert second["meta"] == {"split": "easy"} and second["spans"] == [[0.5, 2.0], [3.0, 8.0]]
    assert third["videos"] == [] and third["data_source"] == "unknown" and third["response"].startswith("<answer>")
    assert fourth["phrases"] == [{"chosen": [3, 8], "rejected": [3, 8]}]
    assert fourth["provenance"] == {"model": None, "iteration": 1, "perturbation": None, "critique": "no snow"}


def test_parquet_gives_the_same_rows(tmp_path):
    pq.write_table(pa.table(COLUMNS), tmp_path / "rows.parquet", row_group_size=2)
    expected = load_rows(write_jsonl(tmp_path / "rows.jsonl", ROWS))
    assert load_rows(tmp_path / "rows.parquet") == expected
    assert fingerprint(load_rows(tmp_path / "rows.parquet")) == fingerprint(expected)


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def test_datasets_give_the_same_rows(tmp_path, datasets):
    (tmp_path / "files").mkdir()
    expected = load_rows(write_jsonl(tmp_path / "files" / "rows.jsonl", ROWS))
    dataset = datasets.Dataset.from_dict(COLUMNS)
    dataset.save_to_disk(tmp_path / "single")
    datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(tmp_path / "splits")
    assert load_rows(tmp_path / "single") == expected
    assert load_rows(f"hf:{tmp_path}/splits:train") == expected
    assert load_rows(f"hf:{tmp_path}/splits:test") == expected[:1]
    assert load_rows(f"hf:{tmp_path}/files:train") == expected
    with pytest.raises(DataError, match="holds the splits train, test; name one of them: hf:") as error:
        load_rows(tmp_path / "splits")
    assert error.value.reason == "format"


def test_video_columns_stay_undecoded(tmp_path, datasets):
    names = dict.fromkeys(("id", "task", "prompt"), datasets.Value("string"))
    schema = datasets.Features(names | {"videos": datasets.List(datasets.Video())}).arrow_schema
    (tmp_path / "set").mkdir()
    for video, complaint in (
        ({"bytes": None, "path": "a.mp4"}, None),  # there is no such file: decoding it would fail
        ({"bytes": b"content", "path": None}, r"videos\[0\]: the table holds the video itself; write it under"),
    ):
        pq.write_table(pa.Table.from_pylist([row(videos=[video])], schema=schema), tmp_path / "set" / "train.parquet")
        if complaint is None:
            assert load_rows(f"hf:{tmp_path}/set:train")[0]["videos"][0]["path"] == "a.mp4"
        else:
            with pytest.raises(DataError, match=complaint):
                load_rows(f"hf:{tmp_path}/set:train")


@pytest.mark.parametrize("name", ["rows.csv", "hf:name", "hf::train"])
def test_other_formats_are_refused(name):
    with pytest.raises(DataError, match="convert it") as error:
        load_rows(name)
    assert error.value.reason == "format"


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", "text.parquet"])
def test_unreadable_files_are_named(tmp_path, name):
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataError, match=name) as error:
        load_rows(tmp_path / name)
    assert error.value.reason == "unreadable"


def test_a_file_without_rows_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no rows") as error:
        load_rows(tmp_path / "rows.jsonl")
    assert error.value.reason == "empty"


# --- rules -----------------------------------------------------------------------------------------------------------


def test_all_bad_rows_are_reported_at_once(tmp_path):
    good = json.dumps(row(id="good"))
    lines = [good, "", '{"id": "n", "score": NaN}', "[1]", good, json.dumps({"id": "v", "task": "mcq", "prompt": "?"})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        load_rows(tmp_path / "rows.jsonl")
    head, *reports = str(error.value).splitlines()
    assert head.endswith("rows.jsonl: 4 bad rows; correct them or take them out:")
    assert [report.split(":")[0].strip() for report in reports] == ["line 3", "line 4", "line 5", "line 6"]
    assert "not JSON" in reports[0] and "without NaN" in reports[0]
    assert "id 'good' is already the id of line 1" in reports[2]
    assert "id 'v': task='mcq': Input should be 'mc', 'open'" in reports[3]


def test_twenty_bad_rows_are_spelled_out_and_the_rest_counted(tmp_path):
    with pytest.raises(DataError) as error:
        load_rows(write_jsonl(tmp_path / "rows.jsonl", [row(id=str(number), task="no") for number in range(23)]))
    lines = str(error.value).splitlines()
    assert "23 bad rows" in lines[0] and len(lines) == 1 + 20 + 1 and lines[-1].strip() == "... and 3 more"


def test_rows_of_parquet_are_numbered(tmp_path):
    pq.write_table(pa.Table.from_pylist([row(), row()]), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="row 2: id 'x' is already the id of row 1"):
        load_rows(tmp_path / "rows.parquet")


CHOICE = {"task": "mc", "choices": ["red", "blue"]}
CLIP = {"path": "a.mp4"}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"chosen": "a"}, "chosen='a' with rejected=None: a pair needs both"),
        ({"chosen": "a", "rejected": "a"}, "chosen and rejected are both 'a'"),
        (
            {"chosen": "abc", "rejected": "xyz", "phrases": [{"chosen": [0, 4], "rejected": [0, 1]}]},
            "[0, 4] of chosen must be [start, end) of its 3 characters",
        ),
        (
            {
                "chosen": "abc",
                "rejected": "xyz",
                "phrases": [{"chosen": [0, 1], "rejected": [1, 2]}, {"chosen": [1, 2], "rejected": [1, 3]}],
            },
            "[1, 3] of rejected must be [start, end) of its 3 characters, after 2: phrases come in order",
        ),
        ({"id": ""}, "id='': String should have at least 1 character"),
        ({"id": 1.5}, "id=1.5: Input should be a valid string"),
        ({"prompt": []}, "prompt.messages=[]: List should have at least 1 item"),
        ({"prompt": [{"role": "assistant", "content": "Hi"}]}, "ends with a message of role 'assistant'"),
        ({"prompt": [{"role": "tool", "content": "Hi"}]}, "prompt.messages[0].role='tool'"),
        ({"prompt": [{"role": "user", "content": [{"type": "video", "text": "x"}]}]}, "a video part has none"),
        ({"prompt": [{"role": "user", "content": [{"type": "video", "video": "x"}]}]}, "video='x': no such field"),
        ({"prompt": "<video> and <video>", "videos": [CLIP]}, "prompt has 2 <video> for 1 videos"),
        ({"prompt": "<video>"}, "prompt has 1 <video> for 0 videos"),
        ({"videos": [{"path": ""}]}, "videos[0].path=''"),
        ({"videos": [{"path": "a", "fps": 0}]}, "videos[0].fps=0: Input should be greater than 0"),
        ({"videos": [{"path": "a", "start": -1}]}, "videos[0].start=-1: Input should be greater than or equal to 0"),
        ({"videos": [{"path": "a", "start": 2, "end": 2}]}, "videos[0]: end=2.0 must be greater than start=2.0"),
        ({"videos": [{"path": "a", "end": 0}]}, "videos[0]: end=0.0 must be greater than start=0.0"),
        ({"videos": [{"path": "a", "sha256": "abc"}]}, "videos[0].sha256='abc'"),
        ({"videos": ["a.mp4"]}, "videos[0]='a.mp4'"),
        ({"video": "a.mp4"}, "column 'video' looks like the absent 'videos'"),
        ({"split": "a", "meta": {"split": "b"}}, "'split' is both a column and a key of meta"),
        ({"meta": [1]}, "meta=[1]: Input should be a valid dictionary"),
        ({"answer": True}, "answer: True must be a text or a finite number"),
        ({"response": ""}, "response=''"),
        ({"task": "mc", "answer": "A"}, "choices is absent: a row of task 'mc' needs at least two options"),
        ({"task": "mc", "choices": ["red"], "answer": "A"}, "choices=['red']: List should have at least 2 items"),
        ({"task": "mc", "choices": ["red", " "], "answer": "A"}, "choices[1]=' '"),
        ({"task": "mc", "choices": ["red", "red"], "answer": "A"}, "repeat an option"),
        (CHOICE, "answer=None must be a letter A..B or one of choices=['red', 'blue']"),
        (CHOICE | {"answer": "C"}, "answer='C' must be a letter A..B"),
        (CHOICE | {"answer": 1}, "answer=1 must be a letter A..B"),
        (CHOICE | {"answer": "green"}, "answer='green' must be a letter A..B"),
        (CHOICE | {"task": "next_event", "answer": "A", "videos": [CLIP]}, "video 'a.mp4' has no end"),
        ({"task": "numeric"}, "answer=None: a numeric row needs one finite number"),
        ({"task": "numeric", "answer": "six"}, "answer='six'"),
        ({"task": "numeric", "answer": "1_000"}, "answer='1_000'"),
        ({"task": "numeric", "answer": "1e999"}, "answer='1e999'"),
        ({"task": "numeric", "answer": 10**400}, "must be a text or a finite number"),
        ({"task": "grounding", "videos": [CLIP]}, "spans=None with 1 videos: a grounding row needs spans"),
        ({"task": "grounding", "spans": [[0, 1]]}, "with 0 videos"),
        ({"task": "grounding", "spans": [[0, 1]], "videos": [CLIP, CLIP]}, "and exactly one video"),
        ({"spans": []}, "spans=[]: List should have at least 1 item"),
        ({"spans": [[1, 1]]}, "spans: [1.0, 1.0] must be [start, end]"),
        ({"spans": [[-1, 1]]}, "spans[0][0]=-1"),
        ({"spans": [[0, 1, 2]]}, "spans[0]=[0, 1, 2]: List should have at most 2 items"),
        ({"spans": [["0", 1]]}, "spans[0][0]='0': Input should be a valid number"),
    ],
)
def test_a_broken_rule_is_named_with_its_value(tmp_path, fields, complaint):
    assert complaint in refusal(tmp_path, **fields)


def test_numbers_too_large_for_a_float_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"id": "x", "task": "open", "prompt": "?", "spans": [[0, 1e999]], "a": 1e999}'
    )
    with pytest.raises(DataError, match=r"spans\[0\]\[1\]=inf: .*finite.*meta\.a.*=inf: .*finite"):
        load_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "<video>Why?", "videos": [CLIP]},
        {"prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}], "videos": [CLIP]},
        {"videos": [CLIP, CLIP]},
        {"videos": None, "choices": None, "spans": None, "meta": None},
        {"answers": ["because"], "answer": "because"},
        CHOICE | {"answer": "a"},
        CHOICE | {"answer": "blue"},
        CHOICE | {"task": "next_event", "answer": "A", "videos": [CLIP | {"end": 2}]},
        {"task": "custom", "anything": {"goes": [1, None]}},
    ],
)
def test_good_rows_pass(tmp_path, fields):
    assert load_one(tmp_path, **fields)["id"] == "x"


def test_whole_number_ids_become_text(tmp_path):
    rows = load_rows(write_jsonl(tmp_path / "rows.jsonl", [row(id=7)]))
    assert rows[0]["id"] == "7"


# --- what the rules promise to others --------------------------------------------------------------------------------


@fixed
@given(answer=st.one_of(st.integers(-(10**12), 10**12), st.floats(allow_nan=False, allow_infinity=False)))
def test_an_accepted_number_can_be_scored(answer):
    for form in (answer, str(answer)):
        accepted = CanonicalRow.model_validate(row(task="numeric", answer=form)).model_dump()
        assert gold_number(accepted) == answer


@fixed
@given(
    choices=st.lists(st.from_regex(r"[a-z]{2,6}", fullmatch=True), min_size=2, max_size=26, unique=True), data=st.data()
)
def test_an_accepted_option_can_be_scored(choices, data):
    index = data.draw(st.integers(0, len(choices) - 1))
    letter = chr(ord("A") + index)
    for answer in (letter, letter.lower(), choices[index]):
        accepted = CanonicalRow.model_validate(row(task="mc", choices=choices, answer=answer)).model_dump()
        assert gold_letter(accepted) == letter


@fixed
@given(start=st.floats(0, 1e4), length=st.floats(1e-3, 1e4))
def test_an_accepted_span_can_be_scored(start, length):
    fields = {"task": "grounding", "videos": [CLIP], "spans": [[start, start + length]]}
    assert gold_spans(CanonicalRow.model_validate(row(**fields)).model_dump()) == [(start, start + length)]


@fixed
@given(st.permutations(range(len(ROWS))))
def test_fingerprint_ignores_the_order_of_rows(order):
    rows = [CanonicalRow.model_validate(raw).model_dump() for raw in ROWS]
    assert fingerprint([rows[index] for index in order]) == fingerprint(rows)


@pytest.mark.parametrize("change", [{"answer": "A"}, {"id": "z"}, {"meta": {"difficulty": 4}}, {"prompt": "Which ?"}])
def test_fingerprint_changes_with_the_content(change):
    rows = [CanonicalRow.model_validate(raw).model_dump() for raw in ROWS]
    assert fingerprint([rows[0] | change, *rows[1:]]) != fingerprint(rows)
    assert fingerprint(rows[1:]) != fingerprint(rows)

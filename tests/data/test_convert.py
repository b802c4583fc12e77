"""`python -m videorl.data convert`: reading files of every kind, reporting what is bad, publishing whole files."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.data.__main__ import main
from videorl.data.convert import BadRecord, open_source
from videorl.data.output import publish_rows
from videorl.data.records import parse_record, read_records
from videorl.data.schema import BATCH_ROWS, CanonicalRow, load_rows
from videorl.types import DataError

RECORDS = [
    {"problem": "How many?", "answer": "3", "videos": ["a.mp4"]},
    {"problem": "Which?\nA. red\nB. blue", "answer": "B", "videos": ["b.mp4"], "level": {"of": [1, None]}},
    {"problem": "Why?", "answer": "because", "videos": ["a.mp4"], "level": "hard"},
]
BAD = {"problem": "Which?", "answer": "B", "videos": ["a.mp4"]}


def write(path, records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) if path.suffix != ".json" else f"[{', '.join(lines)}]")
    return path


def convert(folder, records, *options, out="rows.jsonl"):
    path = write(folder / "train.jsonl", records)
    return main(["convert", "--path", str(path), "--out", str(folder / out), *options])


def rows_of(path, **options):
    return list(open_source(str(path), **options).rows)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["rows.jsonl", "rows.parquet"])
def test_rows_are_written_as_load_rows_reads_them(tmp_path, out, capsys):
    assert convert(tmp_path, RECORDS, out=out) == 0
    rows = load_rows(tmp_path / out)
    assert rows == rows_of(tmp_path / "train.jsonl")
    assert [row["task"] for row in rows] == ["numeric", "mc", "open"]
    assert [row["id"] for row in rows] == ["train-1", "train-2", "train-3"]
    assert [row["meta"] for row in rows] == [{}, {"level": {"of": [1, None]}}, {"level": "hard"}]
    printed = capsys.readouterr().out
    assert "layout easyr1: answer and problem in all of the first 3 records" in printed
    assert "3 rows (1 numeric, 1 mc, 1 open); 0 bad records left out" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == [out, "train.jsonl"]


def test_files_of_every_kind_hold_the_same_records(tmp_path):
    records = [record | {"level": json.dumps(record.get("level"))} for record in RECORDS]
    write(tmp_path / "train.jsonl", records)
    write(tmp_path / "train.json", records)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "train.parquet")
    expected = rows_of(tmp_path / "train.jsonl")
    assert rows_of(tmp_path / "train.json") == rows_of(tmp_path / "train.parquet") == expected and len(expected) == 3


def test_lines_of_text_are_charades(tmp_path):
    (tmp_path / "test.txt").write_text("3MSZA 24.3 30.4##person turn a light on.\n\nAO8RW 0.0 6.9##a person reads\n")
    first, second = rows_of(tmp_path / "test.txt")
    assert (first["id"], first["spans"]) == ("test-1", [[24.3, 30.4]])
    assert (second["id"], second["videos"][0]["path"]) == ("test-3", "AO8RW.mp4")  # the number is that of its line


def test_many_rows_fill_several_batches(tmp_path):
    records = [RECORDS[0] | {"id": number} for number in range(BATCH_ROWS + 1)]
    assert convert(tmp_path, records, out="rows.parquet") == 0
    assert [row["id"] for row in load_rows(tmp_path / "rows.parquet")] == [str(n) for n in range(BATCH_ROWS + 1)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": 1}', "is one array of records; name JSON lines .jsonl"),
        ('[{"a": 1} {"a": 2}]', "no ',' or ']' at character 10"),
        ('[{"a": 1}, {"a"', "is not JSON: Expecting"),
        ("[" * 100_000, "is not JSON: maximum recursion depth"),
        ("", "is one array of records"),
    ],
)
def test_broken_arrays_are_named(tmp_path, text, complaint):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DataError, match=r"train\.json") as error:
        list(read_records(str(tmp_path / "train.json")))
    assert complaint in str(error.value)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    elements=st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3), max_size=4),
    indent=st.sampled_from([None, 2]),
)
def test_elements_of_an_array_are_those_of_json(tmp_path_factory, elements, indent):
    path = tmp_path_factory.mktemp("arrays") / "a.json"
    path.write_text(json.dumps(elements, indent=indent))
    assert [(place, parse_record(raw)) for place, raw in read_records(str(path))] == [
        (f"record {number}", element) for number, element in enumerate(elements, 1)
    ]


@pytest.mark.parametrize("name", ["none.json", "none.txt", "none.jsonl"])
def test_missing_files_are_named(tmp_path, name):
    with pytest.raises(DataError, match=f"{name} cannot be read") as error:
        list(read_records(str(tmp_path / name)))
    assert error.value.reason == "unreadable"


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no records") as error:
        open_source(str(write(tmp_path / "train.json", [])))
    assert error.value.reason == "empty"


# --- what is bad -----------------------------------------------------------------------------------------------------


def test_bad_records_are_named_and_nothing_is_written(tmp_path, capsys):
    assert convert(tmp_path, [*RECORDS, BAD, "{", "[1]"], "--from", "easyr1") == 1
    out, err = capsys.readouterr()
    assert "no_options: 1 bad rows" in out and "line 4: answer='B': the question lists no options" in out
    assert "not_json: 1 bad rows" in out and "line 5: not JSON" in out
    assert "not_an_object: 1 bad rows" in out and "line 6: a list" in out
    assert "3 of 6 records are bad, more than --allow-bad 0: nothing was written" in err
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_a_share_of_bad_records_may_be_allowed(tmp_path, capsys):
    assert convert(tmp_path, [*RECORDS, BAD], "--allow-bad", "0.24") == 1
    assert convert(tmp_path, [*RECORDS, BAD], "--allow-bad", "0.25") == 0
    assert len(load_rows(tmp_path / "rows.jsonl")) == 3
    assert "1 bad records left out" in capsys.readouterr().out
    assert convert(tmp_path, [BAD], "--allow-bad", "1", "--force") == 1  # a data set has at least one row
    assert len(load_rows(tmp_path / "rows.jsonl")) == 3


def test_broken_first_lines_do_not_hide_the_layout(tmp_path):
    source = open_source(str(write(tmp_path / "train.jsonl", ["{", *RECORDS])))
    assert source.layout.name == "easyr1" and isinstance(next(source.rows), BadRecord)


def test_unknown_layouts_are_refused_until_named(tmp_path, capsys):
    assert convert(tmp_path, [{"question": "?"}]) == 1
    assert "1 of the first 1 records have question" in capsys.readouterr().err
    assert convert(tmp_path, [*RECORDS, {"conversations": []}]) == 1
    assert "several layouts fit (easyr1, llava)" in capsys.readouterr().err
    assert convert(tmp_path, [*RECORDS, {"conversations": []}], "--from", "easyr1", "--allow-bad", "0.25") == 0
    assert "layout easyr1: as named" in capsys.readouterr().out


def test_repeated_ids_are_bad_unless_suffixed(tmp_path, capsys):
    records = [record | {"id": id} for record, id in zip(RECORDS, ("a", "a", "a#2"), strict=True)]
    assert convert(tmp_path, records) == 1
    assert (
        "duplicate_id: 1 bad rows" in (out := capsys.readouterr().out) and "line 2: id 'a' is that of an earlier" in out
    )
    assert convert(tmp_path, records, "--suffix-duplicates") == 0
    assert [row["id"] for row in load_rows(tmp_path / "rows.jsonl")] == ["a", "a#2", "a#2#2"]


def test_absolute_paths_become_relative_to_the_media_root(tmp_path):
    records = [RECORDS[0] | {"videos": [path]} for path in (f"file://{tmp_path}/sub/a.mp4", "b.mp4", "/etc/c.mp4")]
    path = write(tmp_path / "train.jsonl", records)
    first, second, third = rows_of(path, media_root=str(tmp_path))
    assert first["videos"][0]["path"] == "sub/a.mp4" and second["videos"][0]["path"] == "b.mp4"
    assert (third.place, third.reason) == ("line 3", "not_local") and "'/etc/c.mp4' is not under" in third.message
    assert rows_of(path)[2]["videos"][0]["path"] == "/etc/c.mp4"


@pytest.mark.parametrize("value", ["-0.1", "1.1", "some"])
def test_a_share_is_between_0_and_1(tmp_path, value, capsys):
    with pytest.raises(SystemExit):
        convert(tmp_path, RECORDS, "--allow-bad", value)
    assert "--allow-bad" in capsys.readouterr().err


# --- publishing ------------------------------------------------------------------------------------------------------

ROW = CanonicalRow(id="a", task="open", prompt="Why?").model_dump()


def test_a_file_is_only_overwritten_when_told_to(tmp_path, capsys):
    assert convert(tmp_path, RECORDS) == 0
    assert convert(tmp_path, RECORDS[:1]) == 1
    assert "rows.jsonl exists; choose another name, or overwrite it with --force" in capsys.readouterr().err
    assert len(load_rows(tmp_path / "rows.jsonl")) == 3
    assert convert(tmp_path, RECORDS[:1], "--force") == 0
    assert len(load_rows(tmp_path / "rows.jsonl")) == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, name):
    with publish_rows(str(tmp_path / name)) as write_row:
        write_row(ROW)
    with pytest.raises(ZeroDivisionError), publish_rows(str(tmp_path / name), force=True) as write_row:
        write_row(ROW | {"id": "b"})
        raise ZeroDivisionError
    assert load_rows(tmp_path / name) == [ROW] and [path.name for path in tmp_path.iterdir()] == [name]


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"written as \.jsonl or \.parquet") as error, publish_rows("rows.csv"):
        pass
    assert error.value.reason == "format"

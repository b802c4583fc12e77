import hashlib
import json
from collections import Counter

import pytest
from clips import make_sampling, write_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.data.schema import load_rows
from videorl.data.synth.next_event import Cut, Event, Record, find_cuts, generate, load_records, make_rows
from videorl.types import Clip, DataError, VideoError
from videorl.video.reader import VideoReader

OPTIONS = {"hops": (1,), "per_video": 9, "same_video": 2, "margin": 0.1}


def make_events(*spans):
    return [Event(start=start, end=end, description=f"event {i}") for i, (start, end) in enumerate(spans)]


def make_record(video, count=4, length=2.0):
    events = [
        Event(start=i * length, end=(i + 1) * length, description=f"{video} does thing {i}") for i in range(count)
    ]
    return Record(video=video, events=events)


def rows_of(records, seed=0, **changes):
    sha256 = {record.video: "0" * 64 for record in records}
    return list(make_rows(records, seed=seed, sha256=sha256, **(OPTIONS | changes)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two clips of 10 s at 5 fps, and their events back to back, as records and as grounding rows."""
    folder = tmp_path_factory.mktemp("events")
    for name in ("a.mp4", "b.mp4"):
        write_clip(folder / name, num_frames=50, fps=5)
    records = [
        make_record("a.mp4").model_dump(),
        {"video_path": "b.mp4", "events": make_record("b.mp4").model_dump()["events"]},
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_cuts_lie_between_events():
    # Back to back at 2 and 5 s; between 5.5 and 7 s nothing happens. The last event has nothing after it.
    assert find_cuts(make_events((0, 2), (2, 5), (5, 5.5), (7, 9)), margin=0.1) == [
        Cut(seen=1, end=1.9),
        Cut(seen=2, end=4.9),
        Cut(seen=3, end=5.4),
    ]


def test_no_cut_while_an_event_is_under_way():
    # The long event 0..8 runs on when the second ends: only 8 s is free.
    assert find_cuts(make_events((0, 8), (1, 3), (8, 9)), margin=0.0) == [Cut(seen=2, end=8.0)]
    assert find_cuts(make_events((0, 3), (2, 5)), margin=0.0) == []
    assert find_cuts(make_events((0, 0.1), (0.1, 5)), margin=0.1) == []  # would show nothing


@settings(derandomize=True, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=2, max_size=8),
    margin=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_nothing_of_the_future_is_shown(spans, margin):
    events = make_events(*sorted((start, start + length) for start, length in spans))
    for cut in find_cuts(events, margin):
        assert all(event.start >= cut.end + margin - 1e-6 for event in events[cut.seen :])
        assert all(event.end <= cut.end + margin + 1e-6 for event in events[: cut.seen])


def test_a_question():
    (row,) = rows_of([make_record("a.mp4", 2), make_record("b.mp4", 3)])[:1]
    assert row["task"] == "next_event" and row["id"] == "a.mp4@1.9+1"
    assert row["videos"] == [{"path": "a.mp4", "end": 1.9, "sha256": "0" * 64}]
    assert row["choices"]["ABCD".index(row["answer"])] == "a.mp4 does thing 1"
    assert len(set(row["choices"])) == 4
    assert sum(choice.startswith("a.mp4") for choice in row["choices"]) == 2  # the answer and the one other event
    (step,) = row["meta"]["provenance"]
    assert step["sources"] == [{"path": "a.mp4", "sha256": "0" * 64, "span": [0.0, 1.9]}]
    assert (step["seen"], step["hop"], step["generator"]) == (1, 1, "next_event")


def test_hops_ask_for_later_events():
    rows = rows_of([make_record("a.mp4", 4), make_record("b.mp4", 4)], hops=(1, 2, 3), per_video=99)
    # With 4 events: after 1, 2 and 3 of them hop 1; after 1 and 2 hop 2; after 1 hop 3.
    assert Counter(row["data_source"] for row in rows) == {
        "next_event-hop1": 6,
        "next_event-hop2": 4,
        "next_event-hop3": 2,
    }
    for row in rows:
        (step,) = row["meta"]["provenance"]
        answer = row["choices"]["ABCD".index(row["answer"])]
        assert answer.endswith(f"thing {step['seen'] + step['hop'] - 1}")
        assert (row["meta"]["hop"] == 1) or str(row["meta"]["hop"]) in row["prompt"]


def test_same_video_options_and_position_of_the_answer():
    records = [make_record(f"{number}.mp4", 6) for number in range(40)]
    for same_video in (0, 1, 3):
        rows = rows_of(records, same_video=same_video)
        for row in rows:
            own = sum(choice.startswith(row["videos"][0]["path"]) for choice in row["choices"])
            assert own == same_video + 1
    letters = Counter(row["answer"] for row in rows)  # of 200 rows
    # 50 of each are expected; five standard deviations are 5 * sqrt(200 / 4 * 3 / 4) = 31.
    assert all(abs(letters[letter] - 50) < 31 for letter in "ABCD")


def test_options_that_read_the_same_are_one():
    stir = [
        Event(start=i, end=i + 1, description=text) for i, text in enumerate(["He stirs.", "he stirs", "He  stirs!"])
    ]
    records = [Record(video="a.mp4", events=stir), make_record("b.mp4", 3)]
    for row in rows_of(records):
        assert len({choice.casefold().strip(".!").replace("  ", " ") for choice in row["choices"]}) == 4
    with pytest.raises(DataError, match="1 different descriptions for 4 options") as error:
        rows_of(records[:1])
    assert error.value.reason == "too_few_events"


def test_a_question_does_not_depend_on_the_order_of_the_videos():
    records = [make_record("a.mp4"), make_record("b.mp4")]
    one, other = rows_of(records, per_video=1), rows_of(records[::-1], per_video=1)
    assert [row["id"] for row in one] == [row["id"] for row in other[::-1]]
    assert rows_of(records) == rows_of(records) and rows_of(records) != rows_of(records, seed=1)


def test_records_are_read_and_merged(tmp_path):
    path = tmp_path / "records.jsonl"
    lines = [
        {"video": "a.mp4", "events": [{"start": 5, "end": 6, "description": "late", "scene": 2}], "caption": "..."},
        {"video_path": "a.mp4", "events": [{"start": 1, "end": 2.5, "description": "early"}]},
        {
            "id": "g",
            "task": "grounding",
            "prompt": "<video>a dog barks",
            "videos": [{"path": "b.mp4", "start": 10.0}],
            "spans": [[1, 2], [3, 4]],
        },
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    first, second = load_records(path)
    assert (first.video, [event.description for event in first.events]) == ("a.mp4", ["early", "late"])
    assert [(event.start, event.end, event.description) for event in second.events] == [
        (11, 12, "a dog barks"),
        (13, 14, "a dog barks"),
    ]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 2: "),
        ("[1]", "line 2: "),
        ('{"video": "a.mp4"}', "line 2: events: "),
        ('{"events": []}', "line 2: video: "),
        ('{"video": "a", "events": [{"start": 3, "end": 2, "description": "x"}]}', "end=2.0 must be greater"),
        ('{"video": "a", "events": [{"start": -1, "end": 2, "description": "x"}]}', "events.0.start: "),
        ('{"video": "a", "events": [{"start": 0, "end": NaN, "description": "x"}]}', "events.0.end: "),
        ('{"video": "a", "events": [{"start": 0, "end": 1, "description": " "}]}', "events.0.description: "),
        ('{"task": "grounding", "prompt": "x", "videos": []}', "line 2: "),
    ],
)
def test_bad_records(line, named, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(make_record("ok.mp4").model_dump_json() + "\n" + line + "\n")
    with pytest.raises(DataError, match="1 bad lines; correct them") as error:
        load_records(path)
    assert error.value.reason == "bad_records" and named in str(error.value)


def test_unreadable_and_empty_records(tmp_path):
    with pytest.raises(DataError) as error:
        load_records(tmp_path / "none.jsonl")
    assert error.value.reason == "unreadable"
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError) as error:
        load_records(tmp_path / "empty.jsonl")
    assert error.value.reason == "empty"


def test_a_data_set(folder, tmp_path):
    generate(folder / "records.jsonl", folder, tmp_path, seed=0, per_video=9)
    rows = load_rows(tmp_path / "rows.jsonl")
    assert len(rows) == 6  # after 1, 2 and 3 of 4 events, of two videos
    digest = hashlib.sha256((folder / "a.mp4").read_bytes()).hexdigest()
    assert {row["videos"][0]["sha256"] for row in rows if row["videos"][0]["path"] == "a.mp4"} == {digest}
    generate(folder / "records.jsonl", folder, tmp_path, seed=0, per_video=9)  # left alone
    with pytest.raises(ValueError, match="name another folder"):
        generate(folder / "records.jsonl", folder, tmp_path, seed=0, per_video=9, margin=0.2)


def test_the_frame_at_the_boundary_is_not_shown(folder, tmp_path):
    """A clip's `end` still shows a frame that begins there, which is why the cut comes before it."""
    generate(folder / "records.jsonl", folder, tmp_path, seed=0, per_video=9)
    row = next(row for row in load_rows(tmp_path / "rows.jsonl") if row["videos"][0]["end"] == 1.9)
    sampling = make_sampling(fps=5.0, temporal_factor=1)
    with VideoReader() as reader:
        path = str(folder / row["videos"][0]["path"])
        assert reader.plan(Clip(path=path, sampling=sampling, end=1.9)).pts[-1] == pytest.approx(1.8)
        assert reader.plan(Clip(path=path, sampling=sampling, end=2.0)).pts[-1] == pytest.approx(2.0)


def test_events_after_the_end_of_the_file(folder, tmp_path):
    (tmp_path / "records.jsonl").write_text(make_record("a.mp4", 6).model_dump_json())  # the last from 10 s on
    with pytest.raises(DataError, match=r"a.mp4: something starts at 10 s, but the file ends at 10.000 s"):
        generate(tmp_path / "records.jsonl", folder, tmp_path / "out", seed=0)
    (tmp_path / "records.jsonl").write_text(make_record("c.mp4").model_dump_json())
    with pytest.raises(VideoError, match=r"c\.mp4") as error:
        generate(tmp_path / "records.jsonl", folder, tmp_path / "out", seed=0)
    assert error.value.reason == "missing"


def test_videos_without_a_question_are_listed(folder, tmp_path):
    overlapping = Record(video="b.mp4", events=make_events((0, 3), (2, 5)))
    (tmp_path / "records.jsonl").write_text(
        make_record("a.mp4").model_dump_json() + "\n" + overlapping.model_dump_json()
    )
    generate(tmp_path / "records.jsonl", folder, tmp_path / "out", seed=0)
    assert json.loads((tmp_path / "out" / "skipped.jsonl").read_text()) == {"path": "b.mp4", "reason": "no_cut"}
    with pytest.raises(ValueError, match=r"hops=\[4\]"):
        generate(tmp_path / "records.jsonl", folder, tmp_path / "none", seed=0, hops=[4])


@pytest.mark.parametrize(
    "change", [{"hops": []}, {"hops": [0]}, {"hops": [1, 1]}, {"per_video": 0}, {"same_video": 4}, {"margin": -0.1}]
)
def test_parameters_out_of_range(change, folder, tmp_path):
    (name,) = change
    with pytest.raises(ValueError, match=f"^{name}="):
        generate(folder / "records.jsonl", folder, tmp_path / "out", seed=0, **change)

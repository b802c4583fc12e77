import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed, make_row, reason, say

from videorl.answers.gold import RowError
from videorl.rewards.registry import load
from videorl.rewards.terms.times import temporal_iou, temporal_r1_format, temporal_recall

GROUNDING = make_row("grounding", spans=[[2, 6]])


@pytest.mark.parametrize(
    ("answer", "iou"),
    [
        ("2 to 6", 1.0),
        ("3 to 5", 2 / 4),
        ("4 to 8", 2 / 6),
        ("0 to 4", 2 / 6),
        ("0 to 20", 4 / 20),  # the whole video earns its overlap and no more
        ("0:02 - 0:04", 2 / 4),
        ("6 to 8", 0.0),
        ("7 to 8", 0.0),
        ("0 to 1", 0.0),
        ("0 to 1" + "0" * 300, 0.0),  # 4 / 1e300
    ],
)
def test_temporal_iou(answer, iou):
    result = temporal_iou(say(answer), GROUNDING)
    assert result.value == pytest.approx(iou, abs=1e-12) and result.failure is None


@pytest.mark.parametrize(
    "answer", ["6 to 2", "4 to 4", "-2 to 6", "nan to 6", "2 to inf", "20% to 60%", "2", "2 to 6, 7 to 9"]
)
def test_unreadable_intervals_earn_nothing(answer):
    result = temporal_iou(say(answer), GROUNDING)
    assert result.value == 0.0 and result.failure is not None


def test_of_several_gold_spans_the_best_counts():
    several = make_row("grounding", spans=[[0, 1], [10, 14], (20, 30)])
    assert temporal_iou(say("10 to 14"), several).value == 1.0
    assert temporal_iou(say("12 to 25"), several).value == pytest.approx(5 / 18, abs=1e-12)  # 2/15 and 5/18
    assert temporal_iou(say("0 to 30"), several).value == pytest.approx(10 / 30, abs=1e-12)


spans = st.lists(st.integers(0, 10**7), min_size=2, max_size=2, unique=True).map(
    lambda ms: sorted(m / 1000 for m in ms)
)


@fixed
@given(spans, spans)
def test_iou_is_symmetric_in_range_and_the_ratio_of_lengths(a, b):
    there = temporal_iou(say(f"{a[0]} to {a[1]}"), make_row("grounding", spans=[b])).value
    back = temporal_iou(say(f"{b[0]} to {b[1]}"), make_row("grounding", spans=[a])).value
    overlap = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    assert there == back and 0.0 <= there <= 1.0
    assert there == pytest.approx(overlap / (a[1] - a[0] + b[1] - b[0] - overlap), abs=1e-9)


@pytest.mark.parametrize(
    "spans",
    [
        None,
        [],
        [2, 6],
        [[2]],
        [[6, 2]],
        [[2, 2]],
        [[-1, 2]],
        [["2", "6"]],
        ["26"],
        [[0, float("nan")]],
        [[0, float("inf")]],
        [[0, 10**400]],
        [[2, 6], None],
    ],
)
def test_bad_gold_spans_are_an_error(spans):
    with pytest.raises(RowError, match=r"row 'clip-7': spans="):
        temporal_iou(say("2 to 6"), make_row("grounding", spans=spans))


# --- notations and units ---------------------------------------------------------------------------------------------


def test_notations():
    in_json = '{"start_time": "3", "end_time": "5"}'
    assert temporal_iou(say(in_json), GROUNDING, mode="json").value == 2 / 4
    assert (
        temporal_iou("<time> 3 - 5 </time><pred_bbox></pred_bbox>", GROUNDING, mode="tag", tags="none").value == 2 / 4
    )
    assert reason(temporal_iou(say(in_json), GROUNDING)) == "no_interval"
    assert reason(temporal_iou(say("3 to 5"), GROUNDING, mode="json")) == "not_json"
    assert reason(temporal_iou(say("3 to 5"), GROUNDING, mode="tag")) == "wrong_block"
    whole = '{"start_time": "0", "end_time": "20"}'
    assert temporal_iou(say(whole), GROUNDING, mode="json").value == 4 / 20  # and no more


@pytest.mark.parametrize("text", ["[3, 5]", "{}", "[]", "3", '{"start_time": "3", "end_time": "5"} and more'])
def test_pasted_json_earns_nothing(text):
    result = temporal_iou(say(text), GROUNDING, mode="json")
    assert result.value == 0.0 and result.failure is not None


def test_spans_as_fractions_of_the_video():
    # of 50 s: [.1, .3] is 5 s to 15 s. Against 10 to 20 s: 5 / 15; in fractions .1 / .3
    row = make_row("grounding", spans=[[0.1, 0.3]], meta={"video_length": 50})
    answer = say('{"start_time": "10", "end_time": "20"}')
    assert temporal_iou(answer, row, mode="json", unit="fraction").value == pytest.approx(1 / 3, abs=1e-12)
    assert temporal_recall(answer, row, mode="json", unit="fraction", threshold=0.3).value == 1.0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"spans": [[5, 15]], "meta": {"video_length": 50}}, r"spans=\[\[5, 15\]\] must be fractions"),
        *[
            ({"spans": [[0.1, 0.3]], "meta": {"video_length": length}}, 'must have "video_length"')
            for length in (None, 0, -1, "50", True, float("nan"), float("inf"))
        ],
        ({"spans": [[0.1, 0.3]], "meta": None}, 'must have "video_length"'),
    ],
)
def test_fractions_need_a_length(fields, says):
    with pytest.raises(RowError, match=says):
        temporal_iou(say("1 to 2"), make_row("grounding", **fields), unit="fraction")


@pytest.mark.parametrize(
    ("answer", "gold", "recalled"),
    [
        # as on Charades-STA, R1 at IoU .3, .5, .7
        ("20.0 - 28.0", [24.3, 30.4], (1, 0, 0)),  # 3.7 / 10.4 = .356
        ("24.0 - 33.0 seconds", [24.3, 30.4], (1, 1, 0)),  # 6.1 / 9 = .678
        ("24.3 to 31.0", [24.3, 30.4], (1, 1, 1)),  # 6.1 / 6.7 = .910
        ("0.0 - 30.0", [0.0, 6.9], (0, 0, 0)),  # 6.9 / 30 = .23: the whole video
        ("2 - 4", [0, 4], (1, 1, 0)),  # exactly .5
        ("somewhere", [0, 4], (0, 0, 0)),
    ],
)
def test_recall_at_a_threshold(answer, gold, recalled):
    row = make_row("grounding", spans=[gold])
    found = tuple(temporal_recall(say(answer), row, threshold=threshold).value for threshold in (0.3, 0.5, 0.7))
    assert found == recalled


def test_recall_says_why_it_could_not_read():
    assert reason(temporal_recall(say("somewhere"), GROUNDING)) == "no_interval"
    for threshold in (0, -0.5, 1.5):
        with pytest.raises(ValueError, match=r"params\.threshold"):
            load("temporal_recall", threshold=threshold)


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (say('{"start_time": "2", "end_time": "5.5"}'), None),
        (say(' {"start_time" : "2" ,\n"end_time":"5"} '), None),
        (say('{"start_time": "5", "end_time": "2"}'), None),  # form alone
        (say('{"end_time": "5", "start_time": "2"}'), "wrong_schema"),
        (say('{"start_time": 2, "end_time": 5}'), "wrong_schema"),
        (say('{"start_time": "2", "end_time": "5", "x": "1"}'), "wrong_schema"),
        (say('{"start_time": "1.2.3", "end_time": "5"}'), "wrong_schema"),
        (say('{"start_time": "2", "end_time": "٥"}'), "wrong_schema"),
        (say('{"start_time": "2", "end_time": "0:05"}'), "wrong_schema"),
        (say('```json\n{"start_time": "2", "end_time": "5"}\n```'), "wrong_schema"),
        (say("2 to 5"), "wrong_schema"),
        ('{"start_time": "2", "end_time": "5"}', "wrong_tags"),
        (2 * say('{"start_time": "2", "end_time": "5"}'), "wrong_tags"),
        ("so " + say('{"start_time": "2", "end_time": "5"}'), "text_outside"),
    ],
)
def test_format_of_temporal_r1(response, why):
    result = temporal_r1_format(response, GROUNDING)
    assert result.value == (1.0 if why is None else 0.0)
    assert (result.failure and result.failure.reason) == why


def test_format_of_temporal_r1_prefilled():
    response = 'so</think><answer>{"start_time": "2", "end_time": "5"}</answer>'
    assert temporal_r1_format(response, GROUNDING, tags="prefilled").value == 1.0


LOADED = {
    mode: [
        load("temporal_iou", mode=mode, tags="none"),
        load("temporal_recall", mode=mode, tags="none", threshold=0.25),
        load("temporal_recall", mode=mode, tags="none", threshold=0.75),
        load("temporal_r1_format"),
    ]
    for mode in ("plain", "json", "tag")
}


@fixed
@given(st.text() | st.text('{}"start_ime:nd,0123456789.- '), st.sampled_from(["plain", "json", "tag"]))
def test_no_response_raises_or_leaves_the_range(text, mode):
    for response in (text, say(text), f"<time>{text}</time>"):
        overlap, low, high, form = (term(response, GROUNDING).value for term in LOADED[mode])
        assert (low, high) == (overlap >= 0.25, overlap >= 0.75) and form in (0.0, 1.0)

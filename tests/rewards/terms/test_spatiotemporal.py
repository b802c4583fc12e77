import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed, make_row, reason

from videorl.rewards.registry import load
from videorl.rewards.terms.spatiotemporal import tube_coverage, tube_format, tube_gain, tube_spatial
from videorl.rewards.terms.times import temporal_iou

GOLD = [10, 10, 30, 30]
SHIFTED = [20, 10, 40, 30]
# GOLD and SHIFTED share 10 x 20 = 200 of 400 + 400 - 200 = 600, which is their hull: GIoU 1/3.
# Their x differ by 10 of 100, twice: L1 .2 as a sum, .05 as a mean.
SHIFTED_SCORE, SHIFTED_MEAN_SCORE = 1 / 3 - 0.2, 1 / 3 - 0.05  # 2/15, 17/60

TUBE = {"fps": 2, "size": [100, 50], "boxes": {str(i): GOLD for i in range(4, 9)}}
ROW = make_row("grounding", spans=[[2, 4]], meta={"tube": TUBE})  # 2 s to 4 s: frames 4 to 8


def boxes_on(frames, box):
    return dict.fromkeys(frames, box)


def listed(boxes):
    return "\n".join(f"{i}. {box}" for i, box in boxes.items())


def write(time, think, pred):
    think, pred = (f"<{name}> {listed(b)} </{name}>" for name, b in (("think_bbox", think), ("pred_bbox", pred)))
    return f"<time> {time} </time>{think}\n{pred}"


def both(time, boxes):
    return write(time, boxes, boxes)


FIVE = range(4, 9)
IMPROVED = write("2 - 4", boxes_on(FIVE, SHIFTED), boxes_on(FIVE, GOLD))


def test_a_worked_example():
    # R_f + R_c + R_t + R_s + R_k / 2 = 1 + 1 + 1 + (2/15 + 1) + (13/15) / 2
    spatial = tube_spatial(IMPROVED, ROW)
    assert spatial.parts == {"think": pytest.approx(2 / 15, abs=1e-12), "pred": 1.0}
    total = (
        tube_format(IMPROVED, ROW).value
        + tube_coverage(IMPROVED, ROW).value
        + temporal_iou(IMPROVED, ROW, mode="tag", tags="none").value
        + spatial.value
        + 0.5 * tube_gain(IMPROVED, ROW).value
    )
    assert total == pytest.approx(3 + 17 / 15 + 13 / 30, abs=1e-12)


def test_l1_as_a_mean():
    assert tube_spatial(IMPROVED, ROW, l1="mean").value == pytest.approx(1 + SHIFTED_MEAN_SCORE, abs=1e-12)
    assert tube_gain(IMPROVED, ROW, l1="mean").value == pytest.approx(1 - SHIFTED_MEAN_SCORE, abs=1e-12)


@pytest.mark.parametrize(
    ("time", "boxes", "score"),
    [
        ("2 - 4", boxes_on(FIVE, GOLD), 1.0),
        ("2 - 4", boxes_on(FIVE, [10, 20, 30, 40]), 1 / 3 - 0.4),  # y differ by 10 of 50, twice
        # 3 s to 5 s are frames 6 to 10, of which the gold tube has 6, 7, 8
        ("3 - 5", boxes_on(range(6, 11), SHIFTED), SHIFTED_SCORE),
        ("3 - 5", {6: GOLD, 7: [30, 10, 10, 30], 8: SHIFTED}, (1 - 5 + SHIFTED_SCORE) / 3),  # an invalid box: -1 - 4
        ("2 - 2.5", {4: GOLD, 5: GOLD, 6: SHIFTED, 7: SHIFTED}, 1.0),  # frames 4, 5: what is listed beyond is unread
        ("2 - 4", {4: GOLD, 5: SHIFTED}, (1 + SHIFTED_SCORE) / 2),  # incomplete lists cost the coverage reward
        ("5 - 6", boxes_on(range(10, 13), GOLD), 0.0),  # no common frame
        ("2.1 - 2.4", boxes_on(FIVE, GOLD), 0.0),  # no frame at all
        ("2 - 4", boxes_on(FIVE, [10_000, 10_000, 10_001, 10_001]), -1 + (400 + 1) / (9991 * 9991) - 4),
    ],
)
def test_spatial_score(time, boxes, score):
    result = tube_spatial(both(time, boxes), ROW)
    assert result.parts == {"think": pytest.approx(score, abs=1e-9), "pred": pytest.approx(score, abs=1e-9)}
    assert result.value == pytest.approx(2 * score, abs=1e-9)
    assert tube_gain(both(time, boxes), ROW).value == 0.0


def test_a_worse_draft_earns_less_than_its_gain():
    honest = both("2 - 4", boxes_on(FIVE, GOLD))
    value = {r: tube_spatial(r, ROW).value + 0.5 * tube_gain(r, ROW).value for r in (honest, IMPROVED)}
    assert value[honest] == 2.0 and value[IMPROVED] == pytest.approx(17 / 15 + 13 / 30, abs=1e-12)


def test_a_worse_final_list_is_no_negative_gain():
    assert tube_gain(write("2 - 4", boxes_on(FIVE, GOLD), boxes_on(FIVE, SHIFTED)), ROW).value == 0.0


@pytest.mark.parametrize(
    ("response", "covers"),
    [
        (both("2 - 4", boxes_on(FIVE, SHIFTED)), 1.0),
        (both("2 - 4", boxes_on(range(20), SHIFTED)), 1.0),
        (both("1 - 9", boxes_on(range(2, 19), SHIFTED)), 1.0),  # it is about the answer's own interval
        (both("2.2 - 3.9", boxes_on(range(5, 8), SHIFTED)), 1.0),  # frames 5, 6, 7
        (write("2 - 4", boxes_on(FIVE, GOLD), boxes_on(range(4, 8), GOLD)), 0.0),
        (write("2 - 4", boxes_on(range(5, 9), GOLD), boxes_on(FIVE, GOLD)), 0.0),
        (both("2 - 4", {**boxes_on(FIVE, GOLD), 6: [3, 2, 1, 0]}), 0.0),
        (both("2.1 - 2.4", boxes_on(FIVE, GOLD)), 0.0),  # no frame in it
        (both("0 - 1" + "0" * 300, boxes_on(FIVE, GOLD)), 0.0),
        (both("9" * 308 + " - 1" + "9" * 308, boxes_on(FIVE, GOLD)), 0.0),
    ],
)
def test_coverage(response, covers):
    result = tube_coverage(response, ROW)
    assert result.value == covers


@pytest.mark.parametrize(
    ("fps", "time", "frames"),
    [
        (25, "0.28 - 0.36", range(7, 10)),  # .28 * 25 is a little more than 7 in floating point
        (30, "4 - 4.1", range(120, 124)),  # and 4.1 * 30 a little less than 123
    ],
)
def test_an_interval_includes_the_frames_at_its_ends(fps, time, frames):
    row = make_row("grounding", meta={"tube": {**TUBE, "fps": fps}})
    assert tube_coverage(both(time, boxes_on(frames, GOLD)), row).value == 1.0
    assert tube_coverage(both(time, boxes_on(frames[1:], GOLD)), row).value == 0.0
    assert tube_coverage(both(time, boxes_on(frames[:-1], GOLD)), row).value == 0.0


def test_format():
    assert tube_format(IMPROVED, ROW).value == tube_format(f"\n{IMPROVED}\n", ROW).value == 1.0


@pytest.mark.parametrize(
    ("response", "why"),
    [
        ("", "wrong_block"),
        (IMPROVED.replace("</time>", ""), "wrong_block"),
        (IMPROVED + "<time>2 - 4</time>", "wrong_block"),
        (IMPROVED + IMPROVED, "wrong_block"),
        (IMPROVED.replace("think_bbox", "think"), "wrong_block"),
        (IMPROVED.replace("2 - 4", "4 - 2"), "reversed"),
        (IMPROVED.replace("4. [", "[", 1), "no_boxes"),
        (IMPROVED.replace("5. [", "4. [", 1), "repeated_frame"),
    ],
)
def test_unreadable_responses_earn_nothing(response, why):
    for term in (tube_format, tube_coverage, tube_spatial, tube_gain):
        result = term(response, ROW)
        assert (result.value, reason(result)) == (0.0, why)


@pytest.mark.parametrize(
    ("response", "why"),
    [
        ("Here: " + IMPROVED, "text_outside"),
        (IMPROVED + ".", "text_outside"),
        (IMPROVED.replace("</time>", "</time>then"), "text_outside"),
        (both("2 - 4", {**boxes_on(FIVE, GOLD), 6: [3, 2, 1, 0]}), "invalid_box"),
        ("<pred_bbox>4. [1, 1, 2, 2]</pred_bbox><time>2 - 4</time><think_bbox>4. [1, 1, 2, 2]</think_bbox>", None),
    ],
)
def test_format_is_stricter_than_the_reading(response, why):
    result = tube_format(response, ROW)
    assert result.value == 0.0 and reason(result) == (why or "text_outside")
    assert tube_spatial(response, ROW).failure is None


corner = st.integers(-5, 60)
lists = st.dictionaries(st.integers(0, 12), st.lists(corner, min_size=4, max_size=4), min_size=1, max_size=10)


@fixed
@given(st.integers(0, 10), st.integers(1, 10), lists, lists, st.sampled_from(["sum", "mean"]))
def test_scores_stay_in_range_and_follow_their_definition(start, length, think, pred, l1):
    response = write(f"{start} - {start + length}", think, pred)
    spatial, gain = load("tube_spatial", l1=l1)(response, ROW), load("tube_gain", l1=l1)(response, ROW)
    worst = -5 if l1 == "sum" else -2
    assert all(worst <= part <= 1 for part in spatial.parts.values())
    assert gain.value == max(0.0, spatial.parts["pred"] - spatial.parts["think"])
    reordered = write(f"{start} - {start + length}", dict(reversed(think.items())), pred)
    assert tube_spatial(reordered, ROW, l1=l1) == tube_spatial(response, ROW, l1=l1)


LOADED = [load(name) for name in ("tube_format", "tube_coverage", "tube_spatial", "tube_gain")]


@fixed
@given(st.text() | st.text("<time>/pred_bbox[]0123456789., -"))
def test_no_response_raises_or_leaves_the_range(text):
    for response in (text, f"<time>{text}</time>", IMPROVED.replace("2 - 4", text), both("2 - 4", {4: text})):
        for term in LOADED:
            term(response, ROW)

import pytest
from responses import make_row

from videorl.answers.gold import RowError
from videorl.answers.gold_boxes import GoldFrame, Tube, gold_boxes, gold_keyframes, gold_tube

BOX = [1, 2, 3, 4]
TUBE = {"fps": 2, "size": [640, 360], "boxes": {"0": BOX, "12": BOX}}


def row(**meta):
    return make_row("custom", meta=meta)


def test_gold():
    box = (1.0, 2.0, 3.0, 4.0)
    assert gold_boxes(row(boxes=[BOX, BOX])) == [box, box]
    assert gold_tube(row(tube=TUBE)) == Tube(2.0, (640.0, 360.0), {0: box, 12: box})
    assert gold_keyframes(row(keyframes={"3": {"area": 0, "boxes": []}, "9": {"area": 7, "boxes": [BOX]}})) == {
        3: GoldFrame(0.0, []),
        9: GoldFrame(7.0, [box]),
    }


@pytest.mark.parametrize(
    "boxes", [None, [], BOX, [[3, 2, 1, 4]], [BOX, None], [BOX, [1, 2, 3, float("nan")]], {"a": BOX}, "[[1, 2, 3, 4]]"]
)
def test_bad_gold_boxes_are_an_error(boxes):
    with pytest.raises(RowError, match=r"row 'clip-7': meta\['boxes'\]=.* must be a list") as error:
        gold_boxes(row(boxes=boxes))
    assert error.value.reason == "bad_gold"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        *[({"fps": fps}, "fps") for fps in (None, 0, -1, "2", True, float("nan"), float("inf"), 10**400)],
        *[({"size": size}, "size") for size in (None, 640, [640], [640, 0], ["640", "360"], [640, 360, 3])],
        *[({"boxes": boxes}, "boxes") for boxes in (None, [], {}, [BOX], {"0": None}, {"0": [3, 2, 1, 4]})],
        *[({"boxes": {key: BOX}}, "boxes") for key in ("a", "-1", "1.5", "01", "", "9" * 5000, "٣")],
    ],
)
def test_bad_gold_tubes_are_an_error(change, says):
    with pytest.raises(RowError, match=rf"row 'clip-7': meta\['tube'\]=.* must have {says}"):
        gold_tube(row(tube={**TUBE, **change}))


def test_a_missing_tube_is_an_error():
    for bad in (row(), row(tube=[1]), make_row("custom", meta=None)):
        with pytest.raises(RowError, match=r"meta\['tube'\]"):
            gold_tube(bad)


@pytest.mark.parametrize(
    "keyframes",
    [
        *(None, {}, [], {"3": 5}, {"3": {"area": 5}}, {"3": {"boxes": [BOX]}}, {"x": {"area": 5, "boxes": [BOX]}}),
        {"3": {"area": -1, "boxes": [BOX]}},
        {"3": {"area": float("nan"), "boxes": [BOX]}},
        {"3": {"area": 5, "boxes": [[3, 2, 1, 4]]}},
        {"3": {"area": 0, "boxes": []}},  # the objects are nowhere: there is nothing to find
    ],
)
def test_bad_gold_keyframes_are_an_error(keyframes):
    with pytest.raises(RowError, match=r"row 'clip-7': meta\['keyframes'\]="):
        gold_keyframes(row(keyframes=keyframes))

import pytest
from responses import reason

from videorl.answers.scores import parse_scores

NAMES = ["Visual quality", "Text alignment", "Physical consistency"]


@pytest.mark.parametrize(
    "answer",
    [
        "Visual quality: 4\nText alignment: 3\nPhysical consistency: 5",
        "visual quality = 4, TEXT alignment: 3, **physical consistency**: 5.",
        "Physical consistency: 5; visual quality: 4; text alignment: 3",
        "1. Visual quality: 4\n2. Text alignment: 3\n3. Physical consistency: 5",
        "(1) visual quality: 4 (2) text alignment: 3 (3) physical consistency: 5",
        '{"visual_quality": 4, "text_alignment": 3, "physical_consistency": 5}',
        '```json\n{\n"Visual quality": 4,\n"Text alignment": 3,\n"Physical consistency": 5\n}\n```',
        "4, 3, 5",
        "[4 3 5]",
        "４,３,５",
    ],
)
def test_scores(answer):
    assert parse_scores(answer, NAMES, 1, 5) == (4, 3, 5)


def named(*scores):
    return "\n".join(f"{name}: {score}" for name, score in zip(NAMES, scores, strict=True))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "no_number"),
        ("4, 3", "wrong_count"),
        ("4, 3, 5, 5", "wrong_count"),
        ("4, 3, 5/5", "malformed_number"),
        ("4, 3, 0", "outside_range"),
        ("4, 3, 6", "outside_range"),
        ("4, 3, -5", "outside_range"),  # a sign belongs to its number
        ("4, 3, 4.5", "outside_range"),
        ("4, 3, 5.0", "outside_range"),
        ("4, 3, nan", "not_finite"),
        (named(4, 3, 6), "outside_range"),
        (named(4, 3, "4.5"), "outside_range"),
        (named(4, 3, "-5"), "outside_range"),
        (named(4, 3, "5/5"), "wrong_names"),
        (named(4, 3, "55%"), "wrong_names"),
        (named(4, 3, "high"), "wrong_names"),
        (named(4, 3, "5 or 4"), "wrong_names"),
        (named(4, 3, 5) + "\nVisual quality: 5", "wrong_names"),
        (named(4, 3, 5) + "\nOverall: 5", "wrong_names"),
        ("Visual quality: 4", "wrong_names"),
        ("Not Visual quality: 4\nText alignment: 3\nPhysical consistency: 5", "wrong_names"),
        ('{"visual quality": true, "text alignment": 3, "physical consistency": 5}', "wrong_names"),
        ("Visual quality: " + "9" * 4000, "wrong_names"),
    ],
)
def test_no_scores(answer, why):
    assert reason(parse_scores(answer, NAMES, 1, 5)) == why


def test_a_name_inside_another():
    assert parse_scores("text quality: 2, quality: 3", ["quality", "text quality"], 0, 9) == (3, 2)

from responses import COLOURS, make_row

from videorl.answers.gold import gold_letter, gold_number, gold_spans


def test_gold_letter():
    assert gold_letter(make_row("mc", choices=COLOURS, answer="B")) == "B"
    assert gold_letter(make_row("mc", choices=COLOURS, answer="(c)")) == "C"
    assert gold_letter(make_row("mc", choices=COLOURS, answer="Yellow")) == "D"
    assert gold_letter(make_row("mc", choices=["3", "4"], answer="4")) == "B"


def test_gold_number_keeps_its_form():
    assert [type(gold_number(make_row("numeric", answer=gold))) for gold in ("5", "5.0", 5, 5.0)] == [
        int,
        float,
        int,
        float,
    ]


def test_gold_spans():
    assert gold_spans(make_row("grounding", spans=[[2, 6]])) == [(2.0, 6.0)]

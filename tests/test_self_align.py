"""What is asked of a model that makes its own pairs, what becomes a pair, and what is kept of it."""

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fakes import FakeRenderer
from makers import make_clip

from videorl.data.schema import load_rows, parse_row
from videorl.self_align.__main__ import Records, ask, show, write_pairs
from videorl.self_align.methods import Made, Perturbed, VideoSAVi, compare, load_method, with_pair
from videorl.types import DataError

ROW = parse_row({"id": "r", "task": "open", "prompt": "?", "videos": [{"path": "a.mp4"}], "response": "a red car"})


class FakeSource(FakeRenderer):
    """A renderer of clips that have eight frames."""

    source = SimpleNamespace(plan=lambda clip: (SimpleNamespace(pts=range(8)), None))

    def prompt(self, row):
        return replace(super().prompt(row), clips=(make_clip("a.mp4"),))


class FakeModel:
    """Says what is next on its list, or the answer to an occasion; remembers what it was asked."""

    def __init__(self, *said):
        self.said, self.asked = list(said), []

    async def __call__(self, prompt, occasion):
        self.asked.append((prompt, occasion))
        text = self.said.pop(0)
        return (text, True) if isinstance(text, str) else text


def make(method, row, model):
    return asyncio.run(method.make(row, model))


# --- VideoSAVi -------------------------------------------------------------------------------------------------------

SPATIAL = ("Where is {answer}?", "on the left", "it is on the right", "on the right")


def test_a_critique_with_a_finding_makes_a_pair():
    model = FakeModel(*SPATIAL, "When?", "at once", "NONE.")
    spatial, temporal = make(VideoSAVi(FakeSource(), 0, iteration=2), ROW, model)
    assert spatial.outcome == "pair" and spatial.row is not None
    row = parse_row({name: value for name, value in spatial.row.items() if value is not None})
    assert (row["id"], row["prompt"], row["chosen"]) == ("r#spatial", "Where is {answer}?", "on the right")
    assert row["rejected"] == "on the left" and row["phrases"] == [{"chosen": [7, 12], "rejected": [7, 11]}]
    assert row["provenance"]["critique"] == "it is on the right" and row["provenance"]["iteration"] == 2
    assert (temporal.outcome, temporal.row) == ("nothing found", None)

    texts = [prompt.row["prompt"] for prompt, _ in model.asked]
    assert texts[1] == "Where is {answer}?"  # braces of the model's stay
    assert "Answer: on the left" in texts[2] and "Critique: it is on the right" in texts[3]
    assert [occasion for _, occasion in model.asked][:5] == [
        *(f"spatial {step}" for step in ("question", "answer", "critique", "revision")), "temporal question",
    ]  # fmt: skip
    assert len({prompt.clips for prompt, _ in model.asked}) == 1  # the same video each time


@pytest.mark.parametrize(
    "said, outcome",
    [
        ([("Where", False)], "question cut off"),
        (["Where?", "  "], "answer empty"),
        (["Where?", "left", "none of it is shown"], "nothing found"),
        (["Where?", "On the left", "wrong", "on the left!"], "identical"),
    ],
)
def test_what_makes_no_pair_is_said(said, outcome):
    first, *_ = make(VideoSAVi(FakeSource(), 0), ROW, FakeModel(*said, "When?", "now", "none"))
    assert (first.outcome, first.row) == (outcome, None)
    assert list(first.said)[1:] == ["question", "answer", "critique", "revision"][: len(said)]


def test_ones_own_templates(tmp_path):
    (tmp_path / "mine.yaml").write_text("questions: {colour: 'Which colour?'}\nno_finding: fine")
    model = FakeModel("Which one?", "red", "fine")
    (made,) = make(VideoSAVi(FakeSource(), 0, templates=str(tmp_path / "mine.yaml")), ROW, model)
    assert made.outcome == "nothing found" and model.asked[0][0].row["prompt"] == "Which colour?"
    (tmp_path / "mine.yaml").write_text("question: x")
    with pytest.raises(ValueError, match=r"mine\.yaml: .*question"):
        VideoSAVi(FakeSource(), 0, templates=str(tmp_path / "mine.yaml"))


# --- perturbed videos ------------------------------------------------------------------------------------------------


def test_what_is_said_of_a_perturbed_video_is_rejected():
    model = FakeModel("A red car.", ("a red", False), "a blue car")
    (made,) = make(Perturbed(FakeSource(), 0, share=0.0, frames=2, rule="last"), ROW, model)
    assert made.outcome == "pair" and made.row is not None
    assert (made.row["chosen"], made.row["rejected"]) == ("a red car", "a blue car")
    assert made.row["provenance"]["perturbation"] == "2 last frames"
    assert [prompt.clips[0].pick for prompt, _ in model.asked] == [(6, 7)] * 3
    assert len({occasion for _, occasion in model.asked}) == 3  # another seed each time


def test_frames_are_shuffled_in_a_share_of_the_rows():
    perturbed = Perturbed(FakeSource(), 0, share=0.5)
    shown = [perturbed.prompts(ROW | {"id": str(number)})[0].clips[0] for number in range(200)]
    shuffled = [clip for clip in shown if clip.shuffle is not None]
    assert 60 < len(shuffled) < 140
    assert all(clip.pick is None for clip in shuffled) and len({clip.shuffle for clip in shuffled}) == len(shuffled)


def test_after_three_tries_there_is_no_pair():
    (made,) = make(Perturbed(FakeSource(), 0), ROW, FakeModel(*["a red car"] * 3))
    assert (made.outcome, made.row) == ("identical", None)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"self_align.target: 'savi'; choose one of videosavi, perturbed"):
        load_method("savi", FakeSource(), 0, {})
    with pytest.raises(ValueError, match="tries"):
        load_method("perturbed", FakeSource(), 0, {"tries": 0})


def test_words_alone_are_compared():
    assert [compare(*texts) for texts in (("a b", "A  b!"), ("a", "b"), (" ", "b"))] == ["identical", "pair", "empty"]


# --- records ---------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_asked_about_are_set_aside():
    class Torn(FakeSource):
        def render(self, prompt):
            if prompt.id == "torn":
                raise DataError("truncated", "a.mp4 is cut")
            return super().render(prompt)

    rows = [ROW, ROW | {"id": "torn"}]
    media, set_aside = show(VideoSAVi(Torn(), 0), Torn(), rows)
    assert list(media) == ["r"] and set_aside == {"torn": [Made("truncated", {"error": "a.mp4 is cut"})]}
    (made,) = asyncio.run(ask(Perturbed(FakeSource(), 0), ROW | {"response": None}, FakeModel()))
    assert made.outcome == "no_response"


def test_records_are_read_again_and_a_torn_line_is_left_out(tmp_path):
    path = tmp_path / "records.jsonl"
    row = with_pair(ROW, "a red car", "a blue car", iteration=1)
    Records(path).add({"r": [Made("pair", {"answer": "a blue car"}, row)], "s": [Made("identical", {})]})
    with path.open("a") as file:
        file.write('{"id": "t", "ma')
    again = Records(path)
    assert list(again.made) == ["r", "s"]
    again.add({"t": [Made("no_response", {"error": "none"})]})
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["r", "s", "t"]

    write_pairs(again, tmp_path / "pairs.jsonl", "digest")
    (pair,) = load_rows(tmp_path / "pairs.jsonl")
    assert pair["provenance"] == {"model": "digest", "iteration": 1, "perturbation": None, "critique": None}

    again.check(0.5, 3)
    with pytest.raises(DataError, match=r"1 of 3 rows cannot be used, over data.max_bad_fraction=0.1: none"):
        again.check(0.1, 3)


def test_no_pair_at_all_is_an_error(tmp_path):
    records = Records(tmp_path / "records.jsonl")
    records.add({"r": [Made("identical", {})]})
    with pytest.raises(DataError, match="none of 1 questions gave a pair"):
        write_pairs(records, tmp_path / "pairs.jsonl", "digest")
    assert not (tmp_path / "pairs.jsonl").exists()

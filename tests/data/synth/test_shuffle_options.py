import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.data.schema import CanonicalRow, load_rows
from videorl.data.synth.shuffle_options import generate, shuffle_row
from videorl.types import DataError


def make_row(**changes):
    row = {
        "id": "q",
        "task": "mc",
        "prompt": "Which?",
        "choices": ["dog", "cat", "cow", "pig"],
        "answer": "C",
        "meta": {"kept": 1},
    }
    return CanonicalRow.model_validate(row | changes).model_dump()


@settings(derandomize=True, deadline=None)
@given(
    seed=st.integers(), count=st.integers(2, 8), gold=st.integers(0, 7), by_text=st.booleans(), identity=st.booleans()
)
def test_the_gold_answer_follows_its_text(seed, count, gold, by_text, identity):
    choices, gold = [f"option {i}" for i in range(count)], gold % count
    row = make_row(choices=choices, answer=choices[gold] if by_text else "abcdefgh"[gold])
    shuffled = shuffle_row(row, seed=seed, identity=identity)
    (step,) = shuffled["meta"]["provenance"]
    assert shuffled["choices"] == [choices[index] for index in step["permutation"]]
    assert sorted(step["permutation"]) == list(range(count))
    assert identity or step["permutation"] != list(range(count))
    answer = shuffled["answer"]
    assert (answer if by_text else shuffled["choices"]["ABCDEFGH".index(answer)]) == choices[gold]
    CanonicalRow.model_validate(shuffled)
    assert {key: shuffled[key] for key in ("id", "task", "prompt")} == {
        key: row[key] for key in ("id", "task", "prompt")
    }
    assert row["choices"] == choices and shuffled["meta"]["kept"] == 1


def test_identity_is_one_of_the_orders_where_it_is_allowed():
    orders = [tuple(shuffle_row(make_row(id=f"{i}"), seed=0)["choices"]) for i in range(240)]
    assert len(set(orders)) == 24  # all of 4!
    without = {tuple(shuffle_row(make_row(id=f"{i}"), seed=0, identity=False)["choices"]) for i in range(240)}
    assert set(orders) - without == {("dog", "cat", "cow", "pig")}


def test_provenance_is_appended():
    first = shuffle_row(make_row(), seed=1)
    second = shuffle_row(first, seed=2, copy=3)
    assert second["id"] == "q#3"
    assert second["meta"]["provenance"][0] == first["meta"]["provenance"][0]
    assert second["meta"]["provenance"][1] == {
        "generator": "shuffle_options",
        "version": 1,
        "seed": 2,
        "source": "q",
        "permutation": second["meta"]["provenance"][1]["permutation"],
    }


@pytest.mark.parametrize("option", ["All of the above", "both A and C", "The same as the previous one"])
def test_options_about_options_stay_where_they_are(option):
    row = make_row(choices=["dog", "cat", option], answer="C")
    shuffled = shuffle_row(row, seed=0, identity=False)
    assert (shuffled["choices"], shuffled["answer"]) == (row["choices"], "C")
    assert shuffled["meta"]["provenance"][0]["permutation"] is None


def test_rows_without_options_stay():
    row = make_row(task="numeric", choices=None, answer=3)
    assert shuffle_row(row, seed=0) | {"meta": {}} == row | {"meta": {}}


def test_rows_that_cannot_be_shuffled():
    with pytest.raises(DataError, match="shuffle before responses are made") as error:
        shuffle_row(make_row(response="<answer>C</answer>"), seed=0)
    assert error.value.reason == "has_response"
    with pytest.raises(DataError, match="chosen may name the old letters"):
        shuffle_row(make_row(chosen="C", rejected="B"), seed=0)
    with pytest.raises(DataError, match="may be a letter or the text of an option") as error:
        shuffle_row(make_row(choices=["b", "a"], answer="A"), seed=0)
    assert error.value.reason == "ambiguous_answer"


def test_a_data_set(tmp_path):
    path, out = tmp_path / "in.jsonl", tmp_path / "out"
    rows = [make_row(id=f"q{i}") for i in range(3)] + [make_row(id="n", task="numeric", choices=None, answer=3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    generate(str(path), out, seed=0, copies=2, identity=False)
    shuffled = load_rows(out / "rows.jsonl")
    assert [row["id"] for row in shuffled] == ["q0", "q1", "q2", "n", "q0#1", "q1#1", "q2#1", "n#1"]
    assert all(row["choices"] != ["dog", "cat", "cow", "pig"] for row in shuffled if row["choices"])
    before = (out / "rows.jsonl").read_bytes()
    generate(str(path), tmp_path / "again", seed=0, copies=2, identity=False)
    assert (tmp_path / "again" / "rows.jsonl").read_bytes() == before
    path.write_text(path.read_text().replace("pig", "hen"))
    with pytest.raises(ValueError, match="name another folder"):
        generate(str(path), out, seed=0, copies=2, identity=False)
    with pytest.raises(ValueError, match="copies=0"):
        generate(str(path), out, seed=0, copies=0)

import json

import pytest

from videorl.data.synth.folder import print_rows, provenance, write_rows, written_once


def test_a_folder_is_written_once(tmp_path):
    out = tmp_path / "data"
    with written_once(out, {"seed": 1, "range": (2, 3)}) as writing:
        assert writing
        write_rows(out / "rows.jsonl", [{"id": "a"}, {"id": "b"}])
        assert not (out / "manifest.json").exists()
    assert json.loads((out / "manifest.json").read_text()) == {"seed": 1, "range": [2, 3]}
    with written_once(out, {"seed": 1, "range": (2, 3)}) as writing:
        assert not writing
    assert [json.loads(line)["id"] for line in (out / "rows.jsonl").read_text().splitlines()] == ["a", "b"]


def test_an_interrupted_folder_is_written_again(tmp_path):
    with pytest.raises(KeyboardInterrupt), written_once(tmp_path, {"seed": 1}):
        raise KeyboardInterrupt
    with written_once(tmp_path, {"seed": 2}) as writing:
        assert writing


def test_other_parameters_are_refused_and_only_they_are_named(tmp_path):
    with written_once(tmp_path, {"seed": 1, "kind": "x"}):
        pass
    with pytest.raises(ValueError, match=r"\{'seed': 1\}, not \{'seed': 2\}: name another folder"):
        written_once(tmp_path, {"seed": 2, "kind": "x"}).__enter__()
    with pytest.raises(ValueError, match=r"\{'new': None\}, not \{'new': 0\}"):
        written_once(tmp_path, {"seed": 1, "kind": "x", "new": 0}).__enter__()


def test_rows_are_counted(tmp_path, capsys):
    write_rows(tmp_path / "train.jsonl", [{}] * 17)
    print_rows(tmp_path)
    printed = capsys.readouterr().out
    assert "train.jsonl" in printed and "17" in printed


def test_provenance():
    assert provenance("videossr", 1, 7, kind="blur") == {
        "generator": "videossr",
        "version": 1,
        "seed": 7,
        "kind": "blur",
    }

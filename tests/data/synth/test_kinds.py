import argparse
import subprocess
import sys

import pytest

from videorl.data.synth import KINDS


@pytest.mark.parametrize(
    "name", [name for name in KINDS if name not in ("examples", "long_video")]
)  # these read nothing
def test_a_kind_takes_its_arguments_and_runs(name, tmp_path):
    kind = KINDS[name]
    assert kind.name == name and kind.help
    parser = argparse.ArgumentParser()
    kind.add_arguments(parser)
    source = {
        "videossr": ["--videos", str(tmp_path / "none")],
        "next_event": ["--records", str(tmp_path / "none.jsonl"), "--media-root", str(tmp_path)],
        "trajectories": ["--tracks", str(tmp_path / "none.jsonl")],
        "shuffle_options": ["--path", str(tmp_path / "none.jsonl")],
    }[name]
    args = parser.parse_args([*source, "--out", str(tmp_path / "out"), "--seed", "3"])
    assert args.seed == 3
    with pytest.raises(ValueError, match="none"):  # what it should read is not there, and is named
        kind.run(args)
    assert not (tmp_path / "out").exists()


def test_the_table_imports_nothing_heavy():
    code = (
        "import sys, videorl.data.synth; print({'av', 'numpy', 'pydantic', 'torch', 'PIL', 'rich'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"

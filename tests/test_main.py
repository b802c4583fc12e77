"""The command `videorl`."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import videorl
from videorl.__main__ import COMMANDS, main
from videorl.imports import load_object

ROOT = Path(videorl.__file__).parent


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


def test_every_module_that_can_be_run_is_a_command():
    paths = [path for path in ROOT.rglob("*.py") if '\nif __name__ == "__main__":' in path.read_text()]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for path in paths}
    assert names - {"__main__"} == COMMANDS.keys()


def test_the_console_script_is_this_main():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert load_object(project["scripts"]["videorl"]) is main


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "COMMAND --help" in out
    for name, what in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(what)}$", out, re.MULTILINE)


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == videorl.__version__


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "'trian' is no command; did you mean 'train'?"),
        (["train-async", "recipe=x"], "did you mean 'train_async'?"),
        (["rewards.terms"], "did you mean 'rewards'?"),
        (["xyz"], "'xyz' is no command; there are"),
        ([], "required: COMMAND"),
        (["--recipe", "x"], "required: COMMAND"),
    ],
)
def test_what_is_no_command_exits_with_2(capsys, arguments, says):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_command_gets_the_arguments_behind_it(monkeypatch):
    ran = []
    monkeypatch.setattr(sys, "argv", ["videorl", "train", "recipe=quickstart", "--cfg", "job", "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(runpy, "run_module", lambda name, **options: ran.append((name, options, [*sys.argv])))
    assert main() == 0
    ((name, options, argv),) = ran
    assert (name, options) == ("videorl.train", {"run_name": "__main__", "alter_sys": True})
    assert argv[1:] == ["recipe=quickstart", "--cfg", "job", "--help"]


def test_commands_run_as_modules_do():
    of_command, of_module = run("-m", "videorl", "rewards", "list"), run("-m", "videorl.rewards", "list")
    assert of_command.returncode == 0 and of_command.stdout.startswith("name")
    assert of_command.stdout == of_module.stdout
    failed = run("-m", "videorl", "episodes", "show", "nowhere", "row-0")
    assert failed.returncode == 1 and "nowhere" in failed.stderr
    assert run("-m", "videorl", "episodes", "--help").stdout.startswith("usage: python -m videorl.episodes")


def test_code_of_the_folder_one_starts_from_is_found_as_with_m(tmp_path):
    """A console script stands in a folder of its own, which is what Python puts on the import path then."""
    script = tmp_path / "bin" / "videorl"
    script.parent.mkdir()
    script.write_text("import sys\nfrom videorl.__main__ import main\nsys.exit(main())\n")
    (tmp_path / "mine.py").write_text("def short(response, row):\n    return 0.75\n")
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "task": "open", "prompt": "?"}\n')
    (tmp_path / "rollouts.jsonl").write_text('{"prompt_id": "a", "response": "x"}\n')
    arguments = ("rewards", "score", "--reward", "mine:short", "--data", "rows.jsonl", "rollouts.jsonl")
    done = run(str(script), *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0.7500" in done.stdout


def test_nothing_heavy_is_imported_by_itself():
    code = (
        "import sys; from videorl.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'ray', 'vllm', 'numpy', 'pydantic', 'hydra'} & {*sys.modules}"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr

"""The command `cim`: its list, the options and help of every command, its doors, and what shells ask it."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

import pytest
from doors import TOOLS, command_of

from cim.cli import main as cli
from cim.cli.options import jobs, judge, learn, prepare, share

ROOT = TOOLS.parent
COMMANDS = list(cli.PACKAGES)
DOORS = sorted(
    path.relative_to(TOOLS).with_suffix("").as_posix()
    for path in TOOLS.rglob("*.py")
    if "\nCOMMAND = " in path.read_text(encoding="utf-8")
)
HEAVY = (
    "torch",
    "torchvision",
    "numpy",
    "cv2",
    "PIL",
    "scipy",
    "pydantic",
    "yaml",
    "matplotlib",
    "argcomplete",
)
LOADED = f"import json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"


def python(*words: str, **more) -> subprocess.CompletedProcess:
    """Python on these words, with this checkout's cim."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **more.pop("env", {})}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, **more)


def said(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of ``cim`` in this process, for questions that end at the parser."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    shown = capsys.readouterr()
    return stopped.value.code, shown.out, shown.err


# ---------------------------------------------------------------------- the list


@pytest.mark.parametrize("words", [("--help",), ("-h",), ()])
def test_help_lists_every_command_in_the_order_of_the_flow(capsys, words):
    code, out, _ = said(capsys, *words)
    assert code == (0 if words else 2)
    assert re.findall(r"^  ([a-z][a-z-]*) {2,}\S", out, re.M) == COMMANDS
    for group in cli.GROUPS:
        assert f"{group.title}:" in out
        assert all(text in out for text in group.commands.values())
    assert out.rstrip().splitlines()[-1].startswith("  cim run --images")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """`cim --help | head -1`: no traceback."""
    code = "import sys; from cim.cli.common import run; sys.exit(run(lambda: print('x' * 10 ** 7)))"
    command = f'{sys.executable} -c "{code}" | head -c 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "x" and done.stderr == ""


def test_version(capsys):
    assert said(capsys, "--version")[:2] == (0, f"cim {cli.__version__}\n")


@pytest.mark.parametrize(
    ("word", "near"), [("trian", "train"), ("evalute", "evaluate"), ("proposal", "proposals"), ("xyz", None)]
)
def test_an_unknown_command_ends_with_2_and_the_nearest_name(capsys, word, near):
    code, out, err = said(capsys, word, "--set", "a=1")
    assert code == 2 and not out
    last = err.rstrip().splitlines()[-1]
    assert f"no command {word}" in last
    assert (f"did you mean {near}?" if near else "cim --help") in last


def test_every_command_is_in_one_group_and_has_options_and_work_of_its_name():
    assert len(COMMANDS) == sum(len(group.commands) for group in cli.GROUPS)
    for group in cli.GROUPS:
        for command in group.commands:
            name = "import_" if command == "import" else command.replace("-", "_")
            work = (ROOT / "cim" / "cli" / group.package / f"{name}.py").read_text(encoding="utf-8")
            assert "\ndef main(args: argparse.Namespace)" in work
            assert "ArgumentParser(" not in work, "work gets its arguments parsed"


@pytest.mark.parametrize("module", [jobs, judge, learn, prepare, share], ids=lambda module: module.__name__)
def test_options_belong_to_commands(module):
    functions = {name: value for name, value in vars(module).items() if inspect.isfunction(value)}
    own = {name for name, value in functions.items() if value.__module__ == module.__name__}
    package = module.__name__.rpartition(".")[2]
    wanted = {name for name, home in cli.PACKAGES.items() if home == package}
    assert {name.rstrip("_").replace("_", "-") for name in own if not name.startswith("_")} == wanted


# ---------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_closes_with_an_example_that_it_understands(capsys, command):
    code, out, _ = said(capsys, command, "--help")
    assert code == 0
    assert out.startswith(f"usage: cim {command} ")
    body, _, example = out.partition("\nexample:\n")
    assert len(body) > 100
    lines = [line.partition("#")[0].strip() for line in example.strip().splitlines()]
    assert any(re.search(rf"\bcim {command}\b", line) for line in lines)
    for line in lines:
        words = line.split()
        words = words[words.index("cim") + 1 :]
        assert cli.parse(words).command == words[0]


def test_no_parser_and_no_help_needs_a_heavy_library():
    code = (
        f"from cim.cli.main import PACKAGES, parser_of, whole_parser\n"
        f"helps = [parser_of(name).format_help() for name in PACKAGES] + [whole_parser().format_help()]\n"
        f"{LOADED}"
    )
    done = python("-c", code)
    assert json.loads(done.stdout) == [], done.stderr


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["trian"], ["train"], ["--version"]])
def test_what_ends_at_the_arguments_loads_no_heavy_library(words):
    code = f"import sys\nfrom cim.cli.main import main\ntry:\n    main({words})\nexcept SystemExit:\n    pass\n{LOADED}"
    done = python("-c", code)
    assert json.loads(done.stdout.splitlines()[-1]) == [], done.stderr


def test_importing_cim_loads_nothing_heavy():
    assert json.loads(python("-c", f"import cim, cim.__main__\n{LOADED}").stdout) == []


def test_python_m_cim_is_cim(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["--help"], ["score", "--help"], ["trian"]):
        done = python("-m", "cim", *words)
        assert (done.returncode, done.stdout, done.stderr) == said(capsys, *words)


def test_the_installed_command_is_the_same_function():
    scripts = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.scripts]")[2]
    assert scripts.split("\n[")[0].strip() == 'cim = "cim.cli.main:main"'
    assert cli.__name__ == "cim.cli.main" and callable(cli.main)


# ---------------------------------------------------------------------- choices that settings have, too


def choices(section: str, key: str) -> tuple[str, ...]:
    """What the schema lets a setting be."""
    from cim.config.schema import Config

    annotation = Config.model_fields[section].annotation.model_fields[key].annotation
    assert annotation.__class__ is Literal["a"].__class__
    return get_args(annotation)


def option(command: str, flag: str):
    return next(action for action in cli.parser_of(command)._actions if flag in action.option_strings)


@pytest.mark.parametrize(
    ("command", "flag", "setting"),
    [
        ("threshold", "--kind", "export.threshold_kind"),
        ("threshold", "--empty-images", "export.empty_images"),
        ("threshold", "--scores", "export.scores"),
        ("evaluate", "--nms", "infer.nms"),
        ("proposals", "--method", "proposals.method"),
    ],
)
def test_choices_of_options_are_those_of_their_settings(command, flag, setting):
    assert set(option(command, flag).choices) == set(choices(*setting.split(".")))


def test_data_sets_are_those_of_the_settings():
    assert set(option("labels", "--dataset").choices) == set(choices("data", "dataset"))
    assert set(prepare.DATASETS) == set(choices("data", "dataset")) - {"folder"}  # which has no published tree


def test_choices_written_twice_for_quick_help_agree():
    from cim.cli.judge import visualize
    from cim.config.checks import PURPOSES
    from cim.inference.detections import Branch
    from cim.proposals.quality import COUNTS

    assert get_args(Branch) == judge.BRANCHES
    assert judge.MODES == visualize.MODES
    assert tuple(PURPOSES) == prepare.PURPOSES
    assert tuple(COUNTS) == prepare.COUNTS


def test_budgets_are_those_of_the_whole_job():
    from cim.cli.jobs.run import BUDGETS

    assert tuple(BUDGETS) == jobs.BUDGETS


def test_forms_of_masks_are_those_that_files_can_have():
    assert set(option("export", "--rle").choices) == set(option("threshold", "--rle").choices) == set(share.RLE)


# ---------------------------------------------------------------------- doors


def test_every_tool_is_a_door_but_the_check_of_the_docs():
    others = {path.relative_to(TOOLS).with_suffix("").as_posix() for path in TOOLS.rglob("*.py")} - set(DOORS)
    assert others == {"check_docs", "docs_commands", "docs_text"}


@pytest.mark.parametrize("door", DOORS)
def test_a_door_leads_to_a_command(capsys, door):
    words = command_of(door)
    assert words[0] in cli.PACKAGES
    code, out, _ = said(capsys, *words, "--help")
    assert code == 0 and out.startswith(f"usage: cim {words[0]} ")


def test_the_table_of_doors_is_whole():
    page = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `tools/([\w/]+)\.py`.* \| `cim ([^`]+)` \|$", page, re.M)
    assert dict(rows) == {door: " ".join(command_of(door)) for door in DOORS}


def test_a_door_opens_from_any_folder(tmp_path):
    done = python(str(TOOLS / "pre" / "create_cob_iou.py"), "--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("usage: cim overlaps ")


# ---------------------------------------------------------------------- shells


def completions(tmp_path: Path, line: str) -> set[str]:
    """What a shell is told when Tab is pressed at the end of a line: asked as argcomplete's shell code asks."""
    answer = tmp_path / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    done = python("-c", "import sys; from cim.cli.main import main; sys.exit(main())", env=asked)
    assert done.returncode == 0, done.stderr
    return set(answer.read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("cim tr", {"train"}),
        ("cim ev", {"evaluate"}),
        ("cim train --pre", {"--prepare"}),
        ("cim evaluate --branch m", {"mil"}),
        ("cim run --budget ", {"quick", "normal", "long"}),
    ],
)
def test_tab_completes(tmp_path, line, wanted):
    assert completions(tmp_path, line) == wanted


def test_tab_offers_every_command(tmp_path):
    assert completions(tmp_path, "cim ") >= set(COMMANDS)


def test_shells_can_register_it_without_asking():
    assert "PYTHON_ARGCOMPLETE_OK" in Path(cli.__file__).read_text(encoding="utf-8")[:1024]

"""Commands, configs and settings for tools/check_docs.py: are they what the tools understand?"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import re
import shlex
from pathlib import Path

import yaml
from docs_text import Code, Found
from pydantic import ValidationError

from cim.config.loading import find_config
from cim.config.schema import Config
from cim.core.errors import CimError

_PROGRAM = re.compile(r"^(?:\./)?((?:tools|scripts|benchmarks)/[\w./]+\.(?:py|sh))$")
_SETTING = re.compile(rf"(?<![\w./-])({'|'.join(Config.model_fields)})\.([a-z_]+)(?![\w/(])")
_SUFFIXES = set(re.findall(r"\w+", "py csv json jsonl yaml yml pkl sh md pth zip tar html mat npz txt png jpg log"))
_RUNNERS = ("python", "python3", "bash", "torchrun", "exec")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_|0-9]*|.*[$\[<*{].*|\.\.\.|…")
_CONNECTORS = {"&&", "||", ";", "|", ">", "&"}


def check_command(piece: Code, root: Path) -> Found:
    """Calls of our tools and scripts: the file exists, the options are its own, the config can be found."""
    if piece.kind in ("python", "yaml", "mermaid", "text"):
        return []
    try:
        words = shlex.split(piece.text, comments=True)
    except ValueError:
        return [] if piece.kind == "inline" else [(piece.line, f"not a shell command: {piece.text}")]
    found: Found = []
    for command in _split(words):
        at = next((i for i, word in enumerate(command) if _PROGRAM.match(word)), None)
        if at is None:
            continue
        program = root / _PROGRAM.match(command[at])[1]
        if program.is_file():  # else check_paths says so
            run_by = [word for word in command[:at] if word in _RUNNERS]
            found += [
                (piece.line, f"{program.name}: {text}") for text in _complaints(program, command[at + 1 :], run_by)
            ]
    return found


def _split(words: list[str]) -> list[list[str]]:
    commands: list[list[str]] = [[]]
    for word in words:
        if word in _CONNECTORS:
            commands.append([])
        elif word.endswith(";"):
            commands[-1].append(word[:-1])
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


def _complaints(program: Path, args: list[str], run_by: list[str]) -> list[str]:
    known, takes_config, target = options_of(program)
    flags = [arg.partition("=")[0] for arg in args if re.match(r"--?[a-z]", arg)]
    if known is not None and (strange := [flag for flag in flags if flag not in known]):
        return [f"no option {flag}" for flag in strange]
    if takes_config and args and not args[0].startswith("-") and not _own_file(args[0]):
        try:
            find_config(args[0])
        except CimError as error:
            return [str(error).splitlines()[0]]
    whole = not any(_PLACEHOLDER.fullmatch(arg) for arg in args)
    return _parsed(target, args) if target is not None and run_by and whole else []


def _own_file(name: str) -> bool:
    """A placeholder, or a yaml file of the reader's own."""
    return bool(_PLACEHOLDER.fullmatch(name)) or (name.endswith(".yaml") and not name.startswith("configs/"))


def _parsed(target: argparse.ArgumentParser, args: list[str]) -> list[str]:
    """What the tool's own parser says; it checks required options, choices and types."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            target.parse_args(args)
    except SystemExit as error:
        if error.code:
            return [said.getvalue().strip().splitlines()[-1]]
    return []


@functools.lru_cache
def options_of(program: Path) -> tuple[set[str] | None, bool, argparse.ArgumentParser | None]:
    """Its options (None: whatever is passed on), whether its first argument is a config, its parser."""
    text = program.read_text(encoding="utf-8")
    if program.suffix == ".sh":
        return _script_options(program, text)
    if "def get_parser" not in text:
        return set(re.findall(r"""["'](--?[a-z][\w-]*)["']""", text)) | {"--help"}, False, None
    spec = importlib.util.spec_from_file_location(f"documented_{program.stem}", program)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target = module.get_parser()
    flags = {flag for action in target._actions for flag in action.option_strings}
    positional = [action.dest for action in target._actions if not action.option_strings]
    return flags, positional[:1] == ["config"], target


def _script_options(program: Path, text: str) -> tuple[set[str] | None, bool, None]:
    """A script's options are those of its usage lines and those that every tool understands which it passes all to."""
    usage = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    takes_config = "[CONFIG]" in usage
    passed = [line for line in text.splitlines() if '"$@"' in line and not line.startswith("#")]
    if any("pytest" in line for line in passed):
        return None, takes_config, None
    tools = {name for line in passed for name in re.findall(r"tools/[\w/]+\.py", line)}
    sets = [options_of(program.parent.parent / name)[0] for name in tools if (program.parent.parent / name).is_file()]
    shared = set.intersection(*sets) if sets else set()
    return shared | set(re.findall(r"--[a-z][\w-]*", usage)) | {"--help"}, takes_config, None


def check_settings(piece: Code) -> Found:
    """``section.key`` names a setting of the config."""
    found: Found = []
    if piece.kind in ("python", "mermaid", "text"):
        return found
    for section, key in _SETTING.findall(piece.text):
        fields = Config.model_fields[section].annotation
        if key not in _SUFFIXES and key not in getattr(fields, "model_fields", {}):
            found.append((piece.line, f"no such setting: {section}.{key}"))
    return found


def check_yaml(piece: Code) -> Found:
    """A yaml block that has only sections of the config is a valid config."""
    if piece.kind != "yaml":
        return []
    try:
        values = yaml.safe_load(piece.text)
    except yaml.YAMLError as error:
        return [(piece.line, f"not yaml: {error}")]
    if not isinstance(values, dict) or not set(values) <= {*Config.model_fields, "base"}:
        return []
    values.pop("base", None)
    try:
        Config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        return [(piece.line, f"bad setting {'.'.join(map(str, first['loc']))}: {first['msg']}")]
    return []

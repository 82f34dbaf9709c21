"""Commands, configs and settings for tools/check_docs.py: are they what ``cim``, tools and scripts understand?"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import functools
import importlib.util
import io
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml
from docs_text import Code, Found
from pydantic import ValidationError

from cim.cli.main import PACKAGES, parser_of
from cim.config.loading import find_config
from cim.config.schema import Config
from cim.core.errors import CimError

_PROGRAM = re.compile(r"^(?:\./)?((?:tools|scripts|benchmarks)/[\w./]+\.(?:py|sh))$")
_DOOR = re.compile(r"^COMMAND = (\[.*\])$", re.M)
_CALLED = re.compile(r"(?:-m |\s)cim ([a-z]+)")
_SETTING = re.compile(rf"(?<![\w./-])({'|'.join(Config.model_fields)})\.([a-z_]+)(?![\w/(])")
_ENDINGS = "py csv json jsonl yaml yml pkl sh md pth zip tar html mat npz txt png jpg log onnx"
_SUFFIXES = set(_ENDINGS.split())
_RUNNERS = ("python", "python3", "bash", "torchrun", "exec")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_|0-9]*|.*[$\[<*{].*|\.\.\.|…")
_NOT_SHELL = {"python", "yaml", "mermaid", "text", "diff", "example"}
_CONNECTORS = {"&&", "||", ";", "|", ">", "&"}


@dataclass(frozen=True)
class Program:
    """What a line calls: a command of ``cim``, a door to one, a tool, or a script.

    Attributes:
        name: for messages.
        flags: its options; None: whatever is passed on.
        takes_config: its first argument is a config.
        parser: its own, where it has one.
        given: arguments that a door puts before those of its caller.
    """

    name: str
    flags: frozenset[str] | None
    takes_config: bool = False
    parser: argparse.ArgumentParser | None = None
    given: tuple[str, ...] = ()


def check_command(piece: Code, root: Path) -> Found:
    """Calls of ``cim``, our tools and scripts: they are there, the options are their own, the config can be found."""
    if piece.kind in _NOT_SHELL:
        return []
    try:
        words = shlex.split(piece.text, comments=True)
    except ValueError:
        return [] if piece.kind == "inline" else [(piece.line, f"not a shell command: {piece.text}")]
    found: Found = []
    for command in _split(words):
        found += [(piece.line, text) for text in _complaints(command, root, piece.kind)]
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


def _complaints(command: list[str], root: Path, kind: str) -> list[str]:
    if (at := _place_of_cim(command)) is not None:
        return _about_cim(command[at + 1 :], as_a_call=kind != "inline" or at > 0)
    at = next((i for i, word in enumerate(command) if _PROGRAM.match(word)), None)
    if at is None:
        return []
    path = root / _PROGRAM.match(command[at])[1]
    if not path.is_file():
        return []  # check_paths says so
    return _about(program_at(path), command[at + 1 :], as_a_call=any(word in _RUNNERS for word in command[:at]))


def _place_of_cim(command: list[str]) -> int | None:
    """Where the word ``cim`` is that calls it: the first word beside settings of the environment, or after ``-m``."""
    for at, word in enumerate(command):
        if word == "cim":
            before = [word for word in command[:at] if not re.match(r"[A-Z_]+=", word)]
            return at if not before or before[-1] == "-m" else None
    return None


def _about_cim(args: list[str], as_a_call: bool) -> list[str]:
    if not args or _PLACEHOLDER.fullmatch(args[0]):
        return []
    if args[0].startswith("-"):
        return [] if args[0] in ("--help", "-h", "--version") else [f"cim: no option {args[0]}"]
    if args[0] not in PACKAGES:
        near = difflib.get_close_matches(args[0], PACKAGES, n=1)
        return [f"no command cim {args[0]}" + (f"; {near[0]}?" if near else "")]
    return _about(cim_command((args[0],)), args[1:], as_a_call)


def _about(program: Program, args: list[str], as_a_call: bool) -> list[str]:
    flags = [arg.partition("=")[0] for arg in args if re.match(r"--?[a-z]", arg)]
    if program.flags is not None and (strange := [flag for flag in flags if flag not in program.flags]):
        return [f"{program.name}: no option {flag}" for flag in strange]
    if program.takes_config and args and not args[0].startswith("-") and not _own_file(args[0]):
        try:
            find_config(args[0])
        except CimError as error:
            return [f"{program.name}: {str(error).splitlines()[0]}"]
    whole = not any(_PLACEHOLDER.fullmatch(arg) for arg in args)
    if program.parser is None or not as_a_call or not whole:
        return []
    return [f"{program.name}: {text}" for text in _parsed(program.parser, [*program.given, *args])]


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
def cim_command(words: tuple[str, ...], name: str | None = None) -> Program:
    """A command of ``cim``, with the arguments that a door gives it."""
    parser = parser_of(words[0])
    return _with_parser(name or f"cim {words[0]}", parser, words[1:])


@functools.lru_cache
def program_at(path: Path) -> Program:
    """A file of tools/, scripts/ or benchmarks/."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sh":
        return _script(path, text)
    if door := _DOOR.search(text):
        return cim_command(tuple(ast.literal_eval(door[1])), path.name)
    if "def get_parser" not in text:
        flags = re.findall(r"""["'](--?[a-z][\w-]*)["']""", text)
        return Program(path.name, frozenset(flags) | {"--help"})
    spec = importlib.util.spec_from_file_location(f"documented_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return _with_parser(path.name, module.get_parser())


def _with_parser(name: str, parser: argparse.ArgumentParser, given: tuple[str, ...] = ()) -> Program:
    flags = frozenset(flag for action in parser._actions for flag in action.option_strings)
    positional = [action.dest for action in parser._actions if not action.option_strings]
    return Program(name, flags, positional[:1] == ["config"], parser, given)


def _script(path: Path, text: str) -> Program:
    """A script's options are those of its usage lines, and those common to all commands that it passes them to."""
    usage = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    takes_config = "[CONFIG]" in usage
    passed = [line for line in text.splitlines() if '"$@"' in line and not line.startswith("#")]
    if any("pytest" in line for line in passed):
        return Program(path.name, None, takes_config)
    tools = {path.parent.parent / name for line in passed for name in re.findall(r"tools/[\w/]+\.py", line)}
    called = [program_at(tool) for tool in sorted(tools) if tool.is_file()]
    called += [cim_command((name,)) for line in passed for name in _CALLED.findall(line) if name in PACKAGES]
    sets = [program.flags for program in called]
    shared = frozenset.intersection(*sets) if sets else frozenset()
    return Program(path.name, shared | set(re.findall(r"--[a-z][\w-]*", usage)) | {"--help"}, takes_config)


def check_settings(piece: Code) -> Found:
    """``section.key`` names a setting of the config."""
    found: Found = []
    if piece.kind in _NOT_SHELL - {"yaml", "example"}:
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

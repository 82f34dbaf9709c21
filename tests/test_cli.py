"""One-line errors, exit codes and common options."""

from __future__ import annotations

import argparse
import os
import pickle

import pytest

from cim.cli.common import add_config_args, add_stage_args, parser, run
from cim.core.errors import CimError


def fail(error: BaseException):
    def main():
        raise error

    return main


@pytest.mark.parametrize(("value", "code"), [(None, 0), (0, 0), (1, 1), (2, 2)])
def test_exit_codes(value, code):
    assert run(lambda: value) == code


def test_an_error_is_one_line_and_exit_code_2(capsys):
    error = CimError("no regions", path="a/b", expected="x", found="y", fix="run z")
    assert run(fail(error)) == 2
    shown = capsys.readouterr()
    assert shown.err == "error: no regions: a/b; expected x; found y; to fix: run z\n" and shown.out == ""


def test_errors_of_libraries_stay_on_one_line(capsys):
    assert run(fail(CimError("bad", found=ValueError("first\nsecond\n  third")))) == 2
    assert capsys.readouterr().err == "error: bad; found first second third\n"


def test_ctrl_c_and_bugs(capsys):
    assert run(fail(KeyboardInterrupt())) == 130
    assert "the same command continues" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # a bug shows its trace
        run(fail(ZeroDivisionError()))


def test_errors_travel_between_processes():
    error = CimError("no regions", path="a", expected=1, found=2, fix="x")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is CimError and str(again) == str(error) and again.fix == "x" and again.path == "a"


def test_options():
    target = parser("What it does.", "python tools/x.py voc")
    add_config_args(target)
    add_stage_args(target)
    args = target.parse_args(["voc", "--set", "a=1", "b=2", "--set", "c=3"])
    assert args.config == "voc" and args.set == ["a=1", "b=2", "c=3"]
    assert args.workers == (os.cpu_count() or 1) and not args.overwrite and args.scheduler is None
    assert target.parse_args(["voc"]).set == []  # the default is not the list filled above
    assert "example:\n  python tools/x.py voc" in target.format_help()
    assert isinstance(target, argparse.ArgumentParser)


@pytest.mark.parametrize("workers", ["0", "-3", "many"])
def test_workers_are_a_number_above_zero(workers, capsys):
    target = parser("", "")
    add_stage_args(target)
    with pytest.raises(SystemExit) as stopped:
        target.parse_args(["--workers", workers])
    assert stopped.value.code == 2 and "--workers" in capsys.readouterr().err

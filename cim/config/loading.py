"""Configs from yaml files that inherit from a base, with overrides of the command line."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.files import write_text

_INSTALLED = Path(__file__).resolve().parent.parent / "configs"  # setup.py puts them there
_CHECKOUT = _INSTALLED.parent.parent / "configs"
CONFIG_DIR = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


_TRUNK = "trunk"
_SEEING = ("proposals", "prm", "model")  # sections of networks that look at photos; Mask R-CNN has trunks of its own
_AXES = (96,)  # of a trunk's only map, for region pooling: half of what the light config takes of three maps


def load_config(name: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """A config from a yaml file (or the name of one in configs/), its ``base`` chain and ``key=value`` overrides.

    A base is a file beside the one that names it, or one of those in configs/. ``trunk: timm:NAME`` stands for the
    trunks of proposals, response network and CIM, ``trunk_weights`` for their weights.

    Raises:
        CimError: missing file, bad yaml, unknown key (the nearest name is offered), value of the wrong type.
    """
    path = find_config(name)
    values = _with_bases(path, ())
    for override in sorted(overrides, key=lambda text: not text.startswith(_TRUNK)):  # others refine what it says
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise CimError("override is not KEY=VALUE", found=override, fix="--set train.lr=0.001")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise CimError(f"override is not yaml: {override}") from None
        for keys, own in _spelt_out(key, value):
            _assign(values, keys, own)
        section, _, name = key.partition(".")
        if name == "updates" and not any(other.startswith(f"{section}.epochs=") for other in overrides):
            _assign(values, [section, "epochs"], None)  # a number given by hand is not overruled by a rule of the file
    values.setdefault("name", path.stem)
    values.setdefault("work_dir", f"runs/{values['name']}")
    try:
        return Config(**values)
    except ValidationError as error:
        raise _readable(error, path) from None


def override(key: str, value: object) -> str:
    """``key=value`` as :func:`load_config` takes it, safe for paths with any characters."""
    plain = value if isinstance(value, (bool, int, float, list)) else str(value)
    return f"{key}={yaml.safe_dump(plain, default_flow_style=True, width=float('inf')).splitlines()[0]}"


def find_config(name: str | Path) -> Path:
    """The yaml file meant by a path or by a bare name."""
    for path in (Path(name), CONFIG_DIR / name, CONFIG_DIR / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(p.stem for p in CONFIG_DIR.glob("*.yaml") if not p.stem.startswith("_"))
    raise CimError("no such config", path=name, expected=f"a yaml file or one of {', '.join(known)}")


def save_config(config: Config, path: str | Path) -> None:
    """The resolved config, as yaml that :func:`load_config` reads."""
    write_text(path, config_text(config))


def config_text(config: Config) -> str:
    """What :func:`save_config` writes."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise CimError("configs inherit from each other in a circle", path=path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise CimError("no such base config", path=path, found=f"named by {seen[-1]}") from None
    except IsADirectoryError:
        raise CimError("a folder where a config should be", path=path, found=f"named by {seen[-1]}") from None
    except OSError as error:
        raise CimError("cannot read this config", path=path, found=error.strerror) from None
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # also dates, numbers and keys that are none
        raise CimError("not a yaml file", path=path, found=error) from None
    if not isinstance(values, dict):
        raise CimError("config is not a mapping", path=path, expected="key: value lines", found=type(values).__name__)
    strange = [key for key in values if not isinstance(key, str)]
    if strange:
        raise CimError("a key that is no name", path=path, found=strange[0])
    for section in ("train", "refine"):  # a number of updates is not overruled by the rule of a base
        if isinstance(own := values.get(section), dict) and "updates" in own:
            own.setdefault("epochs", None)
    for key in (_TRUNK, f"{_TRUNK}_weights"):
        if key in values:
            for keys, own in _spelt_out(key, values.pop(key)):
                inner = values.setdefault(keys[0], {})
                if isinstance(inner, dict):  # else the schema will say what is wrong
                    inner.setdefault(keys[1], own)
    base = values.pop("base", None)
    if not isinstance(base, str | None):
        raise CimError("base is not a file name", path=path, found=base)
    if base is None:
        return values
    beside = path.parent / base
    try:
        below = beside if beside.exists() or not (CONFIG_DIR / base).is_file() else CONFIG_DIR / base
    except (OSError, ValueError) as error:
        raise CimError("base is not a file name", path=path, found=error) from None
    return _merged(_with_bases(below, (*seen, path)), values)


def _spelt_out(key: str, value: Any) -> list[tuple[list[str], Any]]:
    """The settings that a key stands for: itself, or those of all trunks.

    Raises:
        CimError: a trunk that is no model of timm.
    """
    if key == f"{_TRUNK}_weights":
        return [([section, "weights"], value) for section in _SEEING]
    if key != _TRUNK:
        return [(key.split("."), value)]
    if not isinstance(value, str) or not value.startswith("timm:"):
        fix = "set proposals.backbone, prm.backbone and model.backbone (with model.axes) for others"
        raise CimError("trunk is one for all networks", expected="timm:NAME", found=value, fix=fix)
    return [*(([section, "backbone"], value) for section in _SEEING), (["model", "axes"], _AXES)]


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def _assign(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise CimError("override goes through a value that is not a section", found=".".join(keys))
        values = inner
    values[keys[-1]] = value


def _readable(error: ValidationError, path: Path) -> CimError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return CimError(f"bad value for {key}", path=path, expected=first["msg"], found=repr(first["input"]))
    section: Any = Config
    for part in first["loc"][:-1]:
        section = section.model_fields[part].annotation
    near = difflib.get_close_matches(str(first["loc"][-1]), section.model_fields, n=1, cutoff=0.3)
    return CimError(f"unknown setting {key}", path=path, fix=f"did you mean {near[0]}?" if near else None)

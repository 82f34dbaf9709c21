"""Every reader of files fed with damaged ones: only CimError may come out, in bounded time and memory.

    python benchmarks/fuzz.py --seconds 600

Files of every kind that the project reads (benchmarks/fuzz_readers.py) are changed at random, also beneath their
checksums and inside their zip members, so that the change reaches the reader. Each is read in a process with a limit on
its memory, which a crash or a hang ends; it is replaced. What went wrong is printed once per kind and place, with the
file that did it kept in --keep. Exit code 1 when anything did. The same seed tries the same files.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import logging
import multiprocessing
import os
import random
import re
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from fuzz_readers import Reader, lay_out, readers

from cim.cli.common import parser, run
from cim.core.errors import CimError

SLOW = 10.0  # seconds of computing per file
_HANG = 60.0  # seconds until an answer, on a machine that may be busy with other things
MOST = 2**30  # bytes of memory per file
_SPACE = 4 * 2**30  # of addresses, beyond what the libraries have: then the process is stopped instead of the machine


class Fault(NamedTuple):
    """What went wrong: the reader, what came out, and the file."""

    reader: str
    what: str
    data: bytes


# ---------------------------------------------------------------------- changing files

_NUMBERS = (0, 1, 2, 127, 128, 255, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), -0.0),
    *("", "0", "a", "\ud800", "\0", "/etc/passwd", "../../../etc/passwd", "<script>", "x" * 5000, "nan"),
    *(
        [],
        {},
        [[]],
        [None],
        {"a": 1},
        [1, 2],
        {"size": [9, 9], "counts": "0"},
        {"size": [10**6] * 2, "counts": [10**12]},
    ),
)
_WORDS = (
    b"nan",
    b"inf",
    b"-1",
    b"1e999",
    b"99999999999999999999",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b'"',
    b",",
    b"<",
    b"&x;",
    b"[" * 3000,
    b"../../x",
    b"!!python/object:os.system",
    b"{",
    b"*a",
    b"&a [*a]",
    b"\xef\xbb\xbf",
    b": ",
    b"- ",
)


def mutated(reader: Reader, rng: random.Random) -> bytes:
    """A changed copy of the reader's good file."""
    if rng.random() < 0.3:
        return _bytes(reader.seed, rng)
    return {"bytes": _bytes, "json": _json, "zip": _zip, "png": _png, "text": _text}[reader.form](reader.seed, rng)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, numbers put in, parts left out, doubled or exchanged."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(changed) + 1)
        part = slice(at, at + rng.choice((1, 2, 4, 8, 64, 512)))
        kind = rng.randrange(7)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif kind == 2:
            form = rng.choice("<>") + rng.choice("HIQ")
            number = rng.choice(_NUMBERS) % (1 << 8 * struct.calcsize(form))
            changed[at : at + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == 3:
            del changed[part]
        elif kind == 4:
            changed[at:at] = changed[part]
        elif kind == 5 and rng.random() < 0.3:
            del changed[at:]
        else:
            other = rng.randrange(len(changed) + 1)
            changed[part] = changed[other : other + part.stop - part.start]
    return bytes(changed)


def _text(data: bytes, rng: random.Random) -> bytes:
    """Words exchanged for odd ones, among other changes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        words = re.split(rb"(\W)", data)
        words[rng.randrange(len(words))] = rng.choice((*_WORDS, rng.choice(words)))
        data = b"".join(words)
    return data if rng.random() < 0.8 else _bytes(data, rng)


def _json(data: bytes, rng: random.Random) -> bytes:
    """Values exchanged for odd ones, keys and entries left out or doubled."""
    holder = [json.loads(data)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(holder))
        inside, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.7:
            inside[key] = copy.deepcopy(rng.choice(_VALUES))
        elif kind < 0.8:
            other, name = rng.choice(places)
            inside[key] = copy.deepcopy(other[name])
        elif inside is not holder and kind < 0.9:
            del inside[key]
        elif isinstance(inside, list):
            inside.insert(0, copy.deepcopy(inside[key]))
        else:
            inside[rng.choice(("id", "extra", ""))] = copy.deepcopy(inside[key])
    text = json.dumps(holder[0]).encode()
    return text if rng.random() < 0.9 else _text(text, rng)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a json value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def _zip(data: bytes, rng: random.Random) -> bytes:
    """A member changed, renamed, left out or doubled, and the checksums made good."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    kind = rng.random()
    if kind < 0.75:
        members[at] = (
            name,
            _header(content, rng) if content[:6] == b"\x93NUMPY" and rng.random() < 0.5 else _bytes(content, rng),
        )
    elif kind < 0.85:
        del members[at]
    elif kind < 0.95:
        members[at] = (rng.choice(("../../../tmp/x.npy", "/tmp/x", members[0][0], "a")), content)
    else:
        members.append((name, rng.choice(members)[1]))
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w") as archive:
        warnings.simplefilter("ignore")  # of names that occur twice
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)  # without the time, which would make other files
    return made.getvalue()


def _header(content: bytes, rng: random.Random) -> bytes:
    """Another shape, type or order in the header of an array."""
    shapes = (
        "()",
        "(0,)",
        "(3,)",
        "(-1,)",
        "(1000000000000,)",
        "(2, 0)",
        "(3, 3, 3)",
        "(65536, 65536)",
        "(2147483647,)",
    )
    kinds = ("|O", "<f8", "<i8", "<u2", "|b1", "<U9", "|V4", "<c16", "|S1000000", "<M8[s]", "<f2")
    size = struct.unpack("<H", content[8:10])[0]
    text, body = content[10 : 10 + size].decode("latin1"), content[10 + size :]
    if rng.random() < 0.5:
        text = re.sub(r"\([^)]*\)", rng.choice(shapes), text)
    else:
        text = re.sub(r"'descr': '[^']*'", f"'descr': '{rng.choice(kinds)}'", text)
    text = text if rng.random() < 0.9 else text.replace("False", "True")
    return content[:8] + struct.pack("<H", len(text)) + text.encode("latin1") + body


def _png(data: bytes, rng: random.Random) -> bytes:
    """A chunk changed, left out, doubled or moved, and the checksums made good."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(chunks))
        kind, content = chunks[at]
        choice = rng.random()
        if choice < 0.7:
            chunks[at] = (kind, _bytes(content, rng))
        elif choice < 0.8:
            chunks.insert(rng.randrange(len(chunks)), chunks[at])
        elif choice < 0.9 and len(chunks) > 1:
            del chunks[at]
        else:
            kinds = (b"tRNS", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"iTXt", b"eXIf", b"PLTE", b"iCCP")
            chunks.insert(1, (rng.choice(kinds), _bytes(content + bytes(9), rng)))
    parts = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    return data[:8] + b"".join(parts)


# ---------------------------------------------------------------------- reading them


def attempt(reader: Reader, path: Path) -> str | None:
    """What comes out beside an answer or a CimError, as one line; None: nothing."""
    began, before = time.process_time(), _peak()
    try:
        reader.read(path)
    except CimError as error:
        if "\n" in str(error):
            return "a CimError of several lines"
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/cim/" in f.filename] or [None]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames[-1] else "?"
        return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:100]}"
    if time.process_time() - began > SLOW:
        return "too slow"
    if _peak() - before > MOST:
        return "too much memory"
    return None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _serve(pipe: Connection, folder: str, limits: bool) -> None:
    """Reads what the pipe names, answers what came out. Runs in a process that may die."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if limits:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        space = pages * resource.getpagesize() + _SPACE
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress bars, and what C libraries say
    known = {reader.name: reader for reader in readers()}
    pipe.send(None)
    while True:
        name = pipe.recv()
        pipe.send(attempt(known[name], Path(folder) / name))


class Server:
    """The process that reads, started again when it dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: multiprocessing.process.BaseProcess | None = None

    def read(self, reader: Reader, data: bytes) -> str | None:
        """As :func:`attempt`, of these bytes; also what killed the process."""
        path = self.folder / reader.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if self.process is None:
            context = multiprocessing.get_context("forkserver")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, str(self.folder), True), daemon=True)
            self.process.start()
            theirs.close()
            self.pipe.recv()
        self.pipe.send(reader.name)
        try:
            if self.pipe.poll(_HANG):
                return self.pipe.recv()
            fault = "no answer in time"
        except (EOFError, ConnectionResetError):
            fault = "the process died"
        self.close()
        return fault

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def fuzz(names: list[str], seconds: float | None, files: int | None, seed: int) -> tuple[Counter[str], list[Fault]]:
    """Files tried by reader, and the faults, one for each reader and place.

    Args:
        names: parts of the readers' names; all when empty.
        seconds: for how long, or
        files: how many of each reader.
        seed: of the changes.
    """
    chosen = [r for r in readers() if not names or any(name in r.name for name in names)]
    tried: Counter[str] = Counter()
    faults: dict[tuple[str, str], Fault] = {}
    end = None if seconds is None else time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        server = Server(Path(folder))
        number = 0
        while (end is None or time.monotonic() < end) and (files is None or number < files):
            for reader in chosen:
                data = mutated(reader, random.Random(f"{seed} {reader.name} {number}"))
                what = server.read(reader, data)
                tried[reader.name] += 1
                if what is not None:
                    faults.setdefault((reader.name, what.partition(": ")[0]), Fault(reader.name, what, data))
            number += 1
        server.close()
    return tried, list(faults.values())


def main(argv: list[str] | None = None) -> int:
    target = parser(__doc__ or "", "python benchmarks/fuzz.py --seconds 600")
    target.add_argument("--seconds", type=float, default=600, help="in all (600)")
    target.add_argument("--files", type=int, help="of each kind, instead of --seconds")
    target.add_argument("--only", nargs="+", default=[], metavar="NAME", help="readers whose names have this in them")
    target.add_argument("--seed", type=int, default=0)
    target.add_argument("--keep", type=Path, help="folder for the files that did harm")
    args: argparse.Namespace = target.parse_args(argv)
    tried, faults = fuzz(args.only, None if args.files else args.seconds, args.files, args.seed)
    for number, fault in enumerate(faults):
        print(f"{fault.reader}: {fault.what}")
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
            (args.keep / f"{number:03d}_{fault.reader.replace('/', '_')}").write_bytes(fault.data)
    print(f"{sum(tried.values())} files of {len(tried)} kinds tried, {len(faults)} kinds of faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(run(main))

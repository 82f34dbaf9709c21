"""Work for worker processes; apart from the tests so that those processes load little."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from cim.core.files import atomic


def threads(_: int) -> list[int]:
    """How many threads PyTorch, and every library of the linear algebra kind, computes in; after some work."""
    import torch
    from threadpoolctl import threadpool_info

    torch.conv2d(torch.rand(4, 8, 64, 64), torch.rand(8, 8, 3, 3))
    return [torch.get_num_threads(), *(library["num_threads"] for library in threadpool_info())]


def die(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_long(number: int, folder: Path) -> None:
    """A file named after the process, which then sleeps."""
    (folder / str(os.getpid())).touch()
    time.sleep(100)


def write_then_die_once(number: int, folder: Path) -> None:
    """A file named after the number; the first process that comes to number 5 is killed."""
    time.sleep(0.02)
    if number == 5 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    with atomic(folder / str(number)) as half:
        half.write_text(f"content {number}")

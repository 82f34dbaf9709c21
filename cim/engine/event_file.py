"""A run's scalars as a file of TensorBoard's, written when they come.

TensorBoard's own writer has a thread that dies of a full disk with a traceback and leaves half a record, after which
nothing in the file can be read. Here an update's scalars are added whole or not at all.
"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

from cim.core.files import append


class EventFile:
    """One file in a folder; nothing is written before the first scalars.

    Args:
        folder: of the run; TensorBoard shows the files in it as one.
        purge_step: what an interrupted run wrote from this update on is hidden.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        self._purge_step, self._begun = purge_step, False

    def add(self, update: int, scalars: dict[str, float]) -> None:
        """Name -> value, after so many updates.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow to import, needed here only
        from tensorboard.compat.proto.summary_pb2 import Summary

        now = time.time()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        events = [Event(wall_time=now, step=update, summary=Summary(value=values))]
        if not self._begun:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            start = SessionLog(status=SessionLog.START)
            events.insert(0, Event(wall_time=now, file_version="brain.Event:2"))
            events.insert(1, Event(wall_time=now, step=self._purge_step, session_log=start))
        append(self.path, b"".join(map(_record, events)))
        self._begun = True


def _record(event: Any) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter  # lengths and checksums

    content = io.BytesIO()
    RecordWriter(content).write(event.SerializeToString())
    return content.getvalue()

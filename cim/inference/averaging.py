"""Several trained networks as one: the mean of their scores for the same proposals.

Networks that differ by their seed alone differ in their mistakes; the mean of their scores evens some of them out
(docs/RESULTS.md has the numbers). The price is training them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from cim.core.errors import CimError
from cim.datasets.base import Record
from cim.storage.photos import PhotoFile, PhotoTable, drop_replaced, refuse_replaced
from cim.storage.store import Store


def average_scores(runs: Sequence[Store], output: Store, records: Sequence[Record]) -> None:
    """Write the mean scores of every image that ``output`` lacks.

    Args:
        runs: stores of kind "detections", as ``cim.inference.scores.score_dataset`` leaves them.
        output: a store of the same kind.

    Raises:
        CimError: an image that a run has not scored, or scored before its photo was replaced; runs that scored
            different proposals.
    """
    for run in runs:
        refuse_replaced(run, records, fix="cim score CONFIG, with that run's work_dir")
    drop_replaced(output, records)
    there = output.seen()
    for record in tqdm([r for r in records if not there(r.image_id)], desc="mean scores", unit="image"):
        photo = PhotoFile.of(record.path)
        output.save(record.image_id, **_mean([(run, run.load(record.image_id)) for run in runs], record.image_id))
        PhotoTable(output.root).note(record.image_id, photo)


def _mean(loaded: Sequence[tuple[Store, dict[str, np.ndarray]]], image_id: int | str) -> dict[str, np.ndarray]:
    first_store, first = loaded[0]
    for store, arrays in loaded[1:]:
        for name in ("scores", "mil"):
            if arrays[name].shape != first[name].shape:
                raise CimError(
                    f"scores of other proposals, image {image_id}",
                    path=store.root,
                    expected=f"{list(first[name].shape)} as in {first_store.root}",
                    found=list(arrays[name].shape),
                    fix="give all runs the same data.proposals",
                )
    names = ["scores", "mil"]
    if all("presence" in arrays for _, arrays in loaded):
        names.append("presence")
    return {
        name: np.asarray(np.mean([arrays[name] for _, arrays in loaded], axis=0, dtype=np.float64), np.float32)
        for name in names
    }

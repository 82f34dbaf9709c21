"""What the other programs are given: drawn photos with exact masks, exported in every format.

Each file here is about one program and is left out, visibly, where that is not installed. Run them in an environment
that has the program (docs/EXPORT.md says which were, and with which versions): ``pytest tests/consumers -s`` prints
the figures.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cim.datasets.drawn import make_demo
from cim.labels.formats.coco import read_coco
from cim.labels.formats.marks import VAL, LabelSet, Mark, together
from cim.labels.formats.table import FORMATS, in_split, write_formats

sys.path.insert(0, str(Path(__file__).parent))


@dataclass(frozen=True)
class Exported:
    """The exports, each in the folder of its format below ``folder``, and what they were made from."""

    folder: Path
    labels: LabelSet

    def truth(self, split: str) -> dict[str, list[Mark]]:
        """Marks by the name of the photo."""
        return {photo.name: marks for photo, marks in self.labels if photo.split == split}


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    make_demo(folder / "drawn", 24, 8)
    sets = [
        in_split(read_coco(folder / "drawn" / f"{split}_instances.json", folder / "drawn" / "images" / split), split)
        for split in ("train", VAL)
    ]
    labels = together(sets)
    list(write_formats(labels, list(FORMATS), folder))
    return Exported(folder, labels)

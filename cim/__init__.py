"""Complete Instances Mining: from photographs with plain tags to instance masks.

Three lines for a new photo::

    model = cim.load_model("runs/resnet50_voc")
    result = model.predict("photo.jpg")
    result.masks, result.boxes, result.labels, result.scores

The rooms, in the order of the flow, are described in docs/DESIGN.md. What is named here is loaded when it is first
used: importing ``cim`` alone opens no library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cim.core.errors import CimError
    from cim.core.regions import RegionSet
    from cim.prediction.predict import load_model
    from cim.prediction.result import Prediction

__version__ = "0.2.0"
__all__ = ["CimError", "Prediction", "RegionSet", "__version__", "load_model"]

_HOMES = {
    "CimError": "cim.core.errors",
    "Prediction": "cim.prediction.result",
    "RegionSet": "cim.core.regions",
    "load_model": "cim.prediction.predict",
}


if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'cim' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

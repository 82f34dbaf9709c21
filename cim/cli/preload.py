"""What the server of :mod:`cim.cli.worker` imports before it forks: the rooms of the flow, with all their libraries."""

import cim.inference.scores
import cim.labels.export
import cim.mask_rcnn.train
import cim.prm.first_labels
import cim.prm.train
import cim.report.page
import cim.training.train  # noqa: F401

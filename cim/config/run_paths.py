"""Where every artefact of a run lives: the only place that knows file names."""

from __future__ import annotations

from pathlib import Path

from cim.config.schema import Config

CORRECTIONS = "corrections.json"  # in the run folder
WORTH_A_LOOK = "worth_a_look.json"  # beside a report


class RunPaths:
    """Paths derived from a config; nothing is created here."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.work_dir = Path(config.work_dir)

    def owner(self, path: Path) -> Path:
        """The folder to lock for writing below ``path``: the run's where that lies in it, else itself."""
        inside = path.resolve().is_relative_to(self.work_dir.resolve())
        return self.work_dir if inside else path

    def _data_dir(self) -> Path:
        data = self.config.data
        return self.work_dir if data.dataset == "folder" else Path(data.root) / "cim"

    def proposals(self, split: str) -> Path:
        """Region store (or published pickle) of a split."""
        data = self.config.data
        given = (
            data.proposals if split == data.train_split else data.val_proposals if split == data.eval_split else None
        )
        return Path(given) if given else self._data_dir() / "proposals" / split

    @property
    def prm_dir(self) -> Path:
        """Run folder of the response network."""
        return self.work_dir / "prm"

    @property
    def prm_checkpoint(self) -> Path:
        given = self.config.prm.checkpoint
        return Path(given) if given else self.prm_dir / "final.pth"

    def peaks(self, split: str) -> Path:
        """Store of the peaks of a split."""
        return self.work_dir / "peaks" / split

    @property
    def first_labels(self) -> Path:
        """Clusters store (or published pickle) of the training split."""
        given = self.config.data.first_labels
        return Path(given) if given else self.work_dir / "first_labels"

    @property
    def scenes(self) -> Path:
        """Scenes of known truth for a second training."""
        given = self.config.data.scenes
        return Path(given) if given else self.work_dir / "scenes"

    @property
    def features(self) -> Path:
        """Feature maps of a frozen trunk."""
        given = self.config.data.features
        return Path(given) if given else self.work_dir / "features"

    @property
    def train_dir(self) -> Path:
        """Run folder of CIM training: checkpoints, log.jsonl, tensorboard, pictures."""
        return self.work_dir / "train"

    @property
    def checkpoint(self) -> Path:
        return self.train_dir / "final.pth"

    def detections(self, split: str) -> Path:
        """Store of per-image scores and detections; ``detections(split) / "results.json"`` is the COCO result file."""
        return self.work_dir / "detections" / split

    @property
    def metrics(self) -> Path:
        return self.work_dir / "metrics.json"

    @property
    def diagnosis(self) -> Path:
        return self.work_dir / "diagnosis.json"

    @property
    def verdicts(self) -> Path:
        """How each stage did, as far as that can be known without masks."""
        return self.work_dir / "verdicts.json"

    @property
    def pseudo_labels(self) -> Path:
        """Folder of msrcnn_pseudo_label.json and its thresholded copy."""
        return self.work_dir / "pseudo_labels"

    @property
    def refine_dir(self) -> Path:
        """Run folder of Mask R-CNN."""
        return self.work_dir / "mask_rcnn"

    @property
    def pictures(self) -> Path:
        return self.work_dir / "pictures"

    @property
    def corrections(self) -> Path:
        """What a person said in a review; known of the training photos from then on."""
        return self.work_dir / CORRECTIONS

    @property
    def report(self) -> Path:
        return self.work_dir / "report.html"

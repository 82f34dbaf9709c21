"""Downloads: none unless asked for, none with CIM_OFFLINE=1, and none whose hash is another than promised."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_run
import torch

from cim.core.errors import CimError
from cim.models import downloads
from cim.models.backbones import build_backbone

ROOT = Path(__file__).resolve().parent.parent
GUARDED = """
import os, sys
def guard(event, arguments):
    connects = event == "socket.connect" and isinstance(arguments[1], tuple)  # a text is a socket of this machine
    if connects or event in ("socket.getaddrinfo", "urllib.Request"):
        os.write(2, f"NETWORK {event} {arguments}".encode())
        os._exit(99)
sys.addaudithook(guard)
from cim.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def guarded(*words: object) -> subprocess.CompletedProcess[str]:
    """A command that ends with code 99 as soon as it looks for another machine."""
    command = [sys.executable, "-c", GUARDED, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_commands_need_no_network(tmp_path):
    config = small_run.small_config(tmp_path)
    for words in (
        ("score", config, "--workers", 1),
        ("predict", tmp_path / "photos" / "000.png", "--checkpoint", tmp_path / "run", "--output", tmp_path / "out"),
    ):
        done = guarded(*words)
        assert done.returncode == 0, done.stderr


def test_the_guard_would_notice(tmp_path):
    """Weights that are not in the cache are looked for."""
    words = ("proposals", "--images", small_run.draw(tmp_path, 1).parent / "photos", "--output", tmp_path / "store")
    os.environ["TORCH_HOME"] = str(tmp_path)
    try:
        assert guarded(*words).returncode == 99
        os.environ["CIM_OFFLINE"] = "1"
        done = guarded(*words)
    finally:
        os.environ.pop("CIM_OFFLINE", None)
        del os.environ["TORCH_HOME"]
    assert done.returncode == 2 and done.stderr.count("which CIM_OFFLINE forbids") == 1


@pytest.mark.parametrize(("value", "forbidden"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_what_turns_downloads_off(monkeypatch, value, forbidden):
    monkeypatch.setenv("CIM_OFFLINE", value)
    assert downloads.offline() == forbidden


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "mobilenet_v2", "hrnet_w48", "resnet18"])
def test_offline_refuses_every_trunk_that_is_not_here(monkeypatch, tmp_path, name):
    monkeypatch.setenv("CIM_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(CimError, match="CIM_OFFLINE forbids"):
        build_backbone(name)
    build_backbone("tiny", "none")


def cached(folder: Path, content: object, name: str | None = None) -> SimpleNamespace:
    """Weights of torchvision's in a cache of torch's."""
    (folder / "checkpoints").mkdir(parents=True)
    path = folder / "checkpoints" / "new.pth"
    torch.save(content, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    final = path.rename(path.with_name(name or f"net-{digest[:8]}.pth"))
    return SimpleNamespace(url=f"https://example.invalid/models/{final.name}")


def test_a_file_in_the_cache_is_enough(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setenv("CIM_OFFLINE", "1")
    weights = cached(tmp_path, {"a": torch.ones(3)})
    assert downloads.torchvision_weights(weights)["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["net-00000000.pth", "net.pth"])
def test_another_hash_than_promised_is_refused(monkeypatch, tmp_path, name):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    weights = cached(tmp_path, {"a": torch.ones(3)}, name)
    with pytest.raises(CimError, match="another hash"):
        downloads.torchvision_weights(weights)


def test_what_came_from_the_hub_is_compared_with_its_name(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--timm--x" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / hashlib.sha256(b"good").hexdigest()).write_bytes(b"good")
    (blobs / "0123456789012345678901234567890123456789").write_bytes(b"a small file, known by git's hash")
    downloads.check_hub("timm/x")
    (blobs / hashlib.sha256(b"good").hexdigest()).write_bytes(b"bad")
    with pytest.raises(CimError, match="another hash"):
        downloads.check_hub("timm/x")

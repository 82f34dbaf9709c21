"""Pickles of the published program: read without running anything, served like our own artefacts."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from cim.core.errors import CimError
from cim.core.regions import RegionSet
from cim.core.types import Clusters
from cim.storage.published import (
    PublishedProposals,
    clusters_from_mat,
    image_id_of,
    mat_from_clusters,
    open_clusters,
    open_regions,
    published_names,
    read_detections_pickle,
    read_pickle,
    write_pickle,
)
from cim.storage.store import Store

ARRAYS = [
    np.arange(12, dtype=np.float16).reshape(3, 4),
    np.asfortranarray(np.arange(12, dtype=">i4").reshape(3, 4)),
    np.arange(5) % 2 == 0,
    np.zeros((0, 7, 7), bool),
    np.array(3.5),
    np.array(["2007", "x"]),
    np.array([b"ab", b"c"]),
    np.array([1 + 2j], np.complex64),
]


def content() -> dict:
    nested = np.empty((2, 1), object)
    nested[0, 0], nested[1, 0] = np.eye(2), [np.int64(3), None]
    return {
        "arrays": ARRAYS,
        "nested": nested,
        "scalars": [np.float32(0.1), np.int64(-3), np.bool_(True)],
        "plain": (1, 2.5, "text", b"bytes", None, True, {"a"}, bytearray(b"x"), OrderedDict(a=1)),
    }


def same(one, other) -> None:
    if isinstance(other, np.ndarray):
        assert type(one) is np.ndarray and one.shape == other.shape
        assert one.dtype.newbyteorder("=") == other.dtype.newbyteorder("=")  # NumPy itself turns to native order
        for a, b in zip(one.ravel(), other.ravel(), strict=True):
            same(a, b)
    elif isinstance(other, dict):
        assert type(one) is type(other) and list(one) == list(other)
        for key in other:
            same(one[key], other[key])
    elif isinstance(other, (list, tuple)):
        assert type(one) is type(other) and len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert type(one) is type(other) and one == other


# ---------------------------------------------------------------------- the unpickler


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("old_numpy", [False, True])
def test_every_protocol_and_numpy(tmp_path, protocol, old_numpy):
    data = pickle.dumps(content(), protocol)
    if old_numpy:  # the module's name before NumPy 2; in binary protocols its length stands before it
        for new, old in ((b"numpy._core.", b"numpy.core."), (b"\x16numpy.core.m", b"\x15numpy.core.m")):
            data = data.replace(new, old)
        data = data.replace(b"\x13numpy.core.n", b"\x12numpy.core.n")
        data = pickle_without_frames(data) if protocol >= 4 else data
    (tmp_path / "x.pkl").write_bytes(data)
    same(read_pickle(tmp_path / "x.pkl"), content())


def pickle_without_frames(data: bytes) -> bytes:
    """Frames state lengths, which the edit above has changed; they are optional."""
    start = data.index(b"\x95")
    return data[:start] + data[start + 9 :] if data.count(b"\x95") == 1 else pytest.skip("several frames")


def test_python_2_strings(tmp_path):
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\n"
    array += b"tcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR"
    (tmp_path / "x.pkl").write_bytes(array + b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x01\\xff'\ntb.")
    np.testing.assert_array_equal(read_pickle(tmp_path / "x.pkl"), np.array([1, 255], np.uint8))


def test_shared_parts_stay_shared(tmp_path):
    layer: object = [np.ones(2)]
    for _ in range(60):  # 2**60 leaves if sharing were lost
        layer = [layer, layer]
    write_pickle(tmp_path / "x.pkl", layer)
    loaded = read_pickle(tmp_path / "x.pkl")
    assert loaded[0] is loaded[1]


class _Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(victim: Path) -> dict[str, bytes]:
    mark = f"open({str(victim)!r}, 'w').close()"
    return {
        "os.system": pickle.dumps(_Call(os.system, f"touch {victim}")),
        "eval": pickle.dumps({"masks": [_Call(eval, mark)]}),
        "exec in an old protocol": pickle.dumps(_Call(exec, mark), 0),
        "numpy's own loader": pickle.dumps(_Call(np.load, str(victim), None, True)),
        "a class of ours": pickle.dumps(RegionSet.from_masks(np.zeros((1, 1, 1), bool))),
        "getattr": pickle.dumps(_Call(getattr, "text", "format")),
    }


@pytest.mark.parametrize("kind", list(hostile(Path("x"))))
def test_hostile_pickles_are_refused_unexecuted(tmp_path, kind):
    victim = tmp_path / "executed"
    (tmp_path / "x.pkl").write_bytes(hostile(victim)[kind])
    with pytest.raises(CimError, match="pickle refused") as caught:
        read_pickle(tmp_path / "x.pkl")
    assert not victim.exists()
    assert "\n" not in str(caught.value) and "x.pkl" in str(caught.value)


@pytest.mark.parametrize(
    "program",
    [
        # bytes as object pointers: an object dtype whose state denies that it holds references
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntR"
        b"(I3\nS'|'\nNNNI8\nI8\nI0\ntbI00\nS'AAAAAAAA'\ntb.",
        # the same as a scalar
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI63\ntbS'AAAAAAAA'\ntR.",
        # a huge array by its constructor, with memory that nobody wrote
        b"cnumpy\nndarray\n(I99999999\ntR.",
        # more elements than bytes
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I99\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR"
        b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'AA'\ntb.",
        # a structured dtype
        b"cnumpy\ndtype\n(S'V8'\nI0\nI1\ntR(I3\nS'|'\nN(S'a'\nt}I8\nI1\nI16\ntb.",
        # the constructors themselves as data
        b"cnumpy.core.multiarray\n_reconstruct\n.",
        b"(lcnumpy\nndarray\na.",
    ],
)
def test_forged_arrays_are_refused(tmp_path, program):
    (tmp_path / "x.pkl").write_bytes(program)
    with pytest.raises(CimError, match="damaged or foreign pickle"):
        read_pickle(tmp_path / "x.pkl")


def test_truncated_foreign_and_missing_files(tmp_path):
    path = tmp_path / "x.pkl"
    with pytest.raises(CimError, match="missing file"):
        read_pickle(path)
    whole = pickle.dumps(content(), 4)
    for data in (b"", whole[:1], whole[: len(whole) // 2], whole[:-1], b"PK\x03\x04zip", b"\x89PNG\r\n", b"hello\n"):
        path.write_bytes(data)
        with pytest.raises(CimError) as caught:
            read_pickle(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(CimError, match="cannot read"):
        read_pickle(tmp_path)


# ---------------------------------------------------------------------- proposals


@pytest.fixture
def tree(tmp_path) -> Path:
    """A published data folder: two images with three and no proposals."""
    boxes = [np.array([[0, 1, 5, 6], [2, 2, 9, 9], [0, 0, 1, 1]], np.uint16), np.zeros((0, 4), np.uint16)]
    masks = [np.random.default_rng(0).random((3, 7, 7)) > 0.5, np.zeros((0, 7, 7), bool)]
    scores = [np.zeros(3), np.zeros(0)]
    value = {"indexes": [2007000100, 42], "masks": masks, "boxes": boxes, "scores": scores}
    write_pickle(tmp_path / "cob" / "some.pkl", value)
    write_pickle(tmp_path / "cob_iou" / "VOC2012" / "2007_000100.pkl", np.eye(3, dtype=np.float16))
    write_pickle(tmp_path / "cob_asy_iou" / "VOC2012" / "2007_000100.pkl", np.ones((3, 3), np.float16))
    write_pickle(tmp_path / "cob_iou" / "coco2017" / "000000000042.pkl", np.ones((5, 5), np.float16))
    return tmp_path


def test_published_proposals(tree):
    source = open_regions(tree / "cob" / "some.pkl")
    assert source.has(2007000100) and source.has("42") and not source.has(7)
    assert source.provenance["trained_on_masks"] is True
    proposals = source.load(2007000100)
    assert isinstance(proposals, PublishedProposals) and len(proposals) == 3
    assert proposals.boxes.dtype == np.float32 and proposals.boxes[1].tolist() == [2, 2, 9, 9]
    assert proposals.grids.dtype == bool and proposals.grids.shape == (3, 7, 7)
    found = proposals.overlaps()
    assert found.iou.dtype == np.float32
    np.testing.assert_array_equal(found.iou, np.eye(3))
    np.testing.assert_array_equal(found.containment, np.ones((3, 3)))


def test_published_proposals_that_do_not_fit(tree):
    source = open_regions(tree / "cob" / "some.pkl")
    empty = source.load(42)
    assert len(empty) == 0 and empty.boxes.shape == (0, 4) and empty.grids.shape == (0, 7, 7)
    with pytest.raises(CimError, match="not the overlaps of these proposals"):
        empty.overlaps()
    with pytest.raises(CimError, match="no proposals for image 7"):
        source.load(7)
    (tree / "cob_asy_iou" / "VOC2012" / "2007_000100.pkl").unlink()
    with pytest.raises(CimError, match="no cob_asy_iou file"):
        source.load(2007000100).overlaps()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "another kind of pickle"),
        ({"indexes": [1]}, "another kind of pickle"),
        ({"indexes": [1], "masks": [], "boxes": [], "scores": []}, "different lengths"),
        ({"indexes": [1, 1], "masks": [0, 0], "boxes": [0, 0], "scores": [0, 0]}, "listed twice"),
        ({"indexes": [1], "masks": [np.ones((2, 7, 7))], "boxes": [np.ones((3, 4))], "scores": [0]}, "bad proposals"),
        ({"indexes": [1], "masks": [None], "boxes": ["x"], "scores": [0]}, "bad proposals"),
    ],
)
def test_other_pickles_are_named(tmp_path, value, message):
    write_pickle(tmp_path / "cob" / "x.pkl", value)
    with pytest.raises(CimError, match=message):
        open_regions(tmp_path / "cob" / "x.pkl").load(1)


def test_our_region_store_is_a_source_too(tmp_path):
    store = Store.create(tmp_path / "s", "regions", {"maker": "me", "trained_on_masks": None})
    masks = np.random.default_rng(0).random((4, 5, 6)) > 0.5
    store.save_regions("a/b", RegionSet.from_masks(masks))
    source = open_regions(tmp_path / "s")
    assert source.has("a/b") and source.provenance["maker"] == "me"
    np.testing.assert_array_equal(source.load("a/b").masks(), masks)


def test_nothing_to_open(tmp_path):
    Store.create(tmp_path / "c", "clusters", {})
    for path, message in ((tmp_path, "no regions here"), (tmp_path / "c", "another kind")):
        with pytest.raises(CimError, match=message):
            open_regions(path)
    with pytest.raises(CimError, match="no clusters here"):
        open_clusters(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("2007_000100", 2007000100),
        ("COCO_train2014_000000000042", 42),
        ("COCO_val2014_000000000042", 42),
        ("000000000042", 42),
        ("photo_12", "photo_12"),
        ("0042", "0042"),
    ],
)
def test_image_ids(name, image_id):
    assert image_id_of(name) == image_id
    if isinstance(image_id, str):
        assert name in published_names(image_id) or image_id.isdigit()
    elif not name.startswith("COCO"):
        assert name in published_names(image_id)


# ---------------------------------------------------------------------- first labels and detections


def test_first_labels_from_the_published_matrix(reference, tmp_path):
    published = np.load(reference / "expected" / "label_assign_points.npz")
    write_pickle(
        tmp_path / "label_assign.pkl",
        {"indexes": [int(n.replace("_", "")) for n in published], "mat": list(published.values()), "score": []},
    )
    source = open_clusters(tmp_path / "label_assign.pkl")
    for name, mat in published.items():
        clusters = source.load(int(name.replace("_", "")))
        for row, class_id, cluster in zip(mat, clusters.class_ids, clusters.cluster, strict=True):
            assert (class_id, cluster) == ((int(row.argmax()), int(row.max())) if row.any() else (-1, 0))
        back = mat_from_clusters(clusters, mat.shape[1] - 1)
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, mat)
    assert not source.has(1)
    with pytest.raises(CimError, match="no first labels for image 1"):
        source.load(1)


def test_first_labels_from_our_store(tmp_path):
    store = Store.create(tmp_path / "c", "clusters", {})
    store.save(3, class_ids=np.array([-1, 0, 2]), cluster=np.array([0, 2, 1]))
    store.save(4, other=np.zeros(1))
    source = open_clusters(tmp_path / "c")
    clusters = source.load(3)
    assert isinstance(clusters, Clusters) and clusters.class_ids.dtype == np.int64
    assert clusters.class_ids.tolist() == [-1, 0, 2] and clusters.cluster.tolist() == [0, 2, 1]
    with pytest.raises(CimError, match="damaged clusters file"):
        source.load(4)


def test_bad_first_labels(tmp_path):
    assert len(clusters_from_mat(np.zeros((0, 21), np.float32))) == 0
    for mat, message in ((np.ones((2, 3)), "two classes"), (np.ones(3), "expected numbers"), (["x"], "expected num")):
        write_pickle(tmp_path / "x.pkl", {"indexes": [1], "mat": [mat]})
        with pytest.raises(CimError, match=message):
            open_clusters(tmp_path / "x.pkl").load(1)


def test_published_detections(tmp_path):
    one = {"boxes": np.zeros((2, 4)), "scores": np.ones((2, 20))}
    boxes = {"/home/someone/data/VOC2012/JPEGImages/2007_000100.jpg": one, "C:\\x\\000000000042.jpg": one}
    write_pickle(tmp_path / "detections.pkl", {"all_boxes": boxes, "cfg": "text"})
    found = read_detections_pickle(tmp_path / "detections.pkl")
    assert list(found) == [2007000100, 42]
    np.testing.assert_array_equal(found[42]["scores"], one["scores"])
    write_pickle(tmp_path / "x.pkl", {"all_boxes": {"a.jpg": [1]}})
    with pytest.raises(CimError, match=r"no boxes and scores for a\.jpg"):
        read_detections_pickle(tmp_path / "x.pkl")
    write_pickle(tmp_path / "x.pkl", [1])
    with pytest.raises(CimError, match="not a detections pickle"):
        read_detections_pickle(tmp_path / "x.pkl")

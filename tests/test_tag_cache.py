"""A large json is parsed once: what is kept beside it gives the same records, and never those of another file."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cim.core.errors import CimError
from cim.core.files import write_npz
from cim.datasets.base import Dataset, Record
from cim.datasets.coco import open_coco
from cim.datasets.tags import cache as tag_cache
from cim.datasets.tags import coco_json, json_lists
from cim.datasets.tags.cache import Stamp, cache_path
from cim.datasets.tags.coco_json import open_tag_file, read_tag_file
from cim.datasets.tags.json_lists import Unusual, read_lists
from cim.datasets.tags.table import TableRecords, TaggedImage, TagTable

SHARED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def small_files_count(monkeypatch):
    """Everything is kept, and entries are longer than what is read at once."""
    monkeypatch.setattr(tag_cache, "SMALLEST", 0)
    monkeypatch.setattr(json_lists, "_CHUNK", 7)


def write(path: Path, images: int = 4, name: str = "a") -> Path:
    """A plain json with one annotation per image but the last."""
    content = {
        "info": {"about": [1, 2.5, "x"]},
        "images": [{"id": n, "file_name": f"{name}{n}.jpg", "height": 20, "width": 30} for n in range(images)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 5 - n % 2, "segmentation": [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]}
            for n in range(images - 1)
        ],
        "categories": [{"id": 5, "name": "cat"}, {"id": 4, "name": "dog"}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def listed(path: Path) -> tuple:
    """All of a tag file that can be compared."""
    file = read_tag_file(path)
    return file.path, file.classes, file.category_ids, tuple(file.images), file.annotated


def outcome(function, *args) -> Any:
    """What it returns, or the error's text."""
    try:
        return function(*args)
    except CimError as error:
        return str(error)


@pytest.fixture
def no_parsing(monkeypatch):
    """A function after whose call nothing may open a json."""

    def forbid() -> None:
        def fail(*_: object) -> None:
            raise AssertionError("parsed again")

        monkeypatch.setattr(coco_json, "read_lists", fail)
        monkeypatch.setattr(coco_json, "_load", fail)

    return forbid


# ---------------------------------------------------------------------- the same as parsing as a whole


def version_one(path: Path) -> tuple[tuple, tuple, tuple, bool]:
    """Classes, category ids and images as version 0.1 made them."""
    content = coco_json._load(path, None)
    coco_json._check(content, path)
    classes, category_ids = coco_json._categories(content, path)
    tags = coco_json._tags(content, path, {number: index for index, number in enumerate(category_ids)})
    images = []
    for entry in content["images"]:
        size = (int(entry["height"]), int(entry["width"])) if entry.get("height") and entry.get("width") else None
        images.append(TaggedImage(entry["id"], entry["file_name"], size, tuple(sorted(tags[entry["id"]]))))
    return path, classes, category_ids, tuple(images), "annotations" in content


NUMBERS = st.one_of(st.integers(-3, 6), st.integers(2**62, 2**65), st.booleans(), st.sampled_from(["", "1", "ö\ud800"]))
SIDES = st.one_of(st.integers(0, 700), st.none(), st.integers(2**63, 2**64))
TEXTS = st.one_of(st.text(max_size=4), st.sampled_from(["\ud83d", "日本/a.jpg", "a\0b", '"]}', "\\"]))


@st.composite
def contents(draw) -> str:
    """json text: often a good COCO file, sometimes a bad one, keys in any order."""
    odd = draw(st.booleans())
    ids = draw(st.lists(NUMBERS if odd else st.integers(1, 50), max_size=5, unique=not odd))
    numbers = draw(st.lists(st.integers(1, 99), min_size=0 if odd else 1, max_size=4, unique=not odd))
    images = [
        {"file_name": draw(TEXTS) + str(n if draw(st.integers(0, 9)) else 0), "id": i, "coco_url": "http://x", "n": [n]}
        | ({"height": draw(SIDES), "width": draw(SIDES)} if draw(st.integers(0, 4)) else {})
        for n, i in enumerate(ids)
    ]
    annotations = [
        {"image_id": draw(st.sampled_from(ids)), "category_id": draw(st.sampled_from(numbers)), **mask}
        for mask in draw(
            st.lists(
                st.sampled_from([{}, {"segmentation": [[0.5] * 6]}, {"segmentation": {"counts": [3], "size": [1, 2]}}]),
                max_size=6,
            )
        )
        if ids and numbers
    ]
    if odd and draw(st.booleans()):
        annotations.append(draw(st.sampled_from([{"id": 1}, 7, {"image_id": 1}])))
    categories = [{"id": i, "name": draw(TEXTS) + str(i)} for i in numbers]
    content = {"images": images, "categories": categories, "annotations": annotations, "info": {"a": 1e5, "b": None}}
    keys = draw(st.permutations(list(content)))
    if odd:
        keys = keys[draw(st.integers(0, 1)) :]
    style = {"ensure_ascii": draw(st.booleans()), "indent": draw(st.sampled_from([None, 1]))}
    return json.dumps({key: content[key] for key in keys}, **style)


@SHARED
@given(text=contents())
def test_parsed_kept_and_read_again_are_what_version_one_found(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    expected = outcome(version_one, path)
    for _ in range(2):
        found = outcome(listed, path)
        assert found == expected
        assert repr(found) == repr(expected)  # True is no 1
        assert cache_path(path).is_file() == (not isinstance(expected, str))


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_every_truncation_has_the_error_of_the_whole(tmp_path, ensure_ascii):
    whole = json.dumps(json.loads(write(tmp_path / "x.json", 2, "ö").read_text()), ensure_ascii=ensure_ascii).encode()
    for length in range(len(whole)):
        (tmp_path / "x.json").write_bytes(whole[:length])
        expected = outcome(version_one, tmp_path / "x.json")
        assert isinstance(expected, str)
        assert outcome(listed, tmp_path / "x.json") == expected


GOOD = '{"images": [{"id": 1, "file_name": "a"}], "categories": [{"id": 1, "name": "b"}], "annotations": []'


@pytest.mark.parametrize(
    "text",
    [
        GOOD + ', "images": [{"id": 2, "file_name": "z"}]}',
        GOOD + ', "images": null}',
        GOOD + ', "image_id": 3}',
        GOOD + ', "counts": 3}',
        GOOD + ', "x": 12345678901234567890, "y": -1.5e-3, "z": NaN, "t": true}',
        GOOD + "} x",
        GOOD + "}}",
        GOOD + ",}",
        GOOD + ' "x": 1}',
        GOOD + ', "x": [1, 2,]}',
        GOOD + ', "x": [1 2]}',
        GOOD + ', "x": 01}',
        GOOD + ", 5: 1}",
        GOOD + ', "x" 1}',
        GOOD + ', "x": "\t"}',
        "\ufeff" + GOOD + "}",
        " \r\n\t" + GOOD.replace(" ", "\r\n") + "}\n",
        GOOD.replace("[]", "[1, null, []]") + "}",
        GOOD.replace("[]", '[{"image_id": 1.0, "category_id": true}]') + "}",
        GOOD.replace('"name": "b"', '"name": "b", "file_name": "icon.png"') + "}",
        GOOD.replace('"id": 1, "f', '"id": 1, "image_id": 3, "f') + "}",
        "{}",
        "[1]",
        '"text"',
        "",
        "nul",
    ],
)
def test_odd_texts(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    expected = outcome(version_one, path)
    assert outcome(listed, path) == expected
    assert outcome(listed, path) == expected


def test_broken_utf8(tmp_path):
    (tmp_path / "x.json").write_bytes(GOOD.replace("b", "\xff").encode("latin-1") + b"}")
    with pytest.raises(Unusual, match="UTF-8"):
        read_lists(tmp_path / "x.json", ["images"])
    with pytest.raises(CimError, match="not a json file"):
        read_tag_file(tmp_path / "x.json")


def test_lists_of_other_names_are_left_out(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, {"b": 2}, []], "c": [3], "d": {"e": []}, "f": [ ]}')
    assert read_lists(tmp_path / "x.json", ["a", "f"]) == {"a": [1, {"b": 2}, []], "c": None, "d": None, "f": []}


def test_parsing_needs_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lists, "_CHUNK", 2**16)
    path = write(tmp_path / "x.json")
    content = json.loads(path.read_text())
    content["annotations"] = [{"image_id": 1, "category_id": 4, "segmentation": [[1.5] * 20_000]} for _ in range(60)]
    path.write_text(json.dumps(content))
    assert path.stat().st_size > 6e6
    tracemalloc.start()
    read_tag_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2


# ---------------------------------------------------------------------- true to the json


def test_the_second_start_parses_nothing(tmp_path, no_parsing, caplog):
    path = write(tmp_path / "annotations" / "instances_val2017.json")
    with caplog.at_level(logging.INFO):
        first = open_coco(tmp_path, "val2017")
    assert "later starts need not parse it" in caplog.text
    no_parsing()
    again = open_coco(tmp_path, "val2017")
    assert again == first and list(again) == list(first) and again.digest == first.digest
    assert again[0] == Record(0, tmp_path / "val2017" / "a0.jpg", (20, 30), (1,))
    assert [p.name for p in path.parent.iterdir() if p != path] == [".instances_val2017.json.cim-tags.npz"]


def test_another_size_is_stale(tmp_path):
    path = write(tmp_path / "x.json")
    stamp = path.stat()
    listed(path)
    write(path, 5)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert len(listed(path)[3]) == 5
    assert listed(path) == version_one(path)


def test_another_time_is_stale(tmp_path, no_parsing):
    path = write(tmp_path / "x.json")
    listed(path)
    stamp = path.stat()
    write(path, name="b")
    assert path.stat().st_size == stamp.st_size
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert listed(path)[3][0].file_name == "b0.jpg"
    no_parsing()
    assert listed(path)[3][0].file_name == "b0.jpg"


def test_a_json_that_is_gone_has_no_tags(tmp_path):
    path = write(tmp_path / "x.json")
    listed(path)
    path.unlink()
    with pytest.raises(CimError, match="missing annotation file"):
        read_tag_file(path)


def test_another_format_is_made_again(tmp_path, monkeypatch, no_parsing):
    path = write(tmp_path / "x.json")
    with monkeypatch.context() as changed:
        changed.setattr(tag_cache, "FORMAT", tag_cache.FORMAT + 1)
        listed(path)
    before = cache_path(path).read_bytes()
    expected = listed(path)
    assert cache_path(path).read_bytes() != before
    no_parsing()
    assert listed(path) == expected


DAMAGE = {
    "empty": lambda good: b"",
    "half": lambda good: good[: len(good) // 2],
    "text": lambda good: b"not an archive",
    "a pickle": lambda good: pickle.dumps({"about": 1}),
    "another archive": lambda good: b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_made_again(tmp_path, kind, no_parsing, caplog):
    path = write(tmp_path / "x.json")
    expected = listed(path)
    cache_path(path).write_bytes(DAMAGE[kind](cache_path(path).read_bytes()))
    with caplog.at_level(logging.INFO):
        assert listed(path) == expected
    assert "is damaged and made again" in caplog.text
    no_parsing()
    assert listed(path) == expected


def test_no_flipped_bit_changes_a_tag(tmp_path):
    path = write(tmp_path / "x.json", 40)
    expected = listed(path)
    good = cache_path(path).read_bytes()
    for place in range(0, len(good), 3):
        cache_path(path).write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        assert listed(path) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"tags": np.array([7, 0, 1])},
        {"tags": np.array([-1, 0, 1])},
        {"tag_ends": np.array([0, 1, 2, 3])},
        {"tag_ends": np.array([0, 2, 1, 3, 3])},
        {"names": np.zeros(3, np.uint8)},
        {"ids": np.arange(3)},
        {"heights": np.arange(3)},
        {"ids": np.array([None] * 4, object)},
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change):
    path = write(tmp_path / "x.json")
    expected = listed(path)
    with np.load(cache_path(path)) as arrays:
        write_npz(cache_path(path), **{**arrays, **change})
    assert tag_cache.kept_tags(path, Stamp.of(path)) is None
    assert listed(path) == expected


def test_a_folder_in_its_place(tmp_path, caplog):
    path = write(tmp_path / "x.json")
    cache_path(path).mkdir()
    with caplog.at_level(logging.INFO):
        assert listed(path) == version_one(path)
    assert "cannot be kept beside it" in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path, caplog, monkeypatch):
    path = write(tmp_path / "x.json")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    for _ in range(2):
        with caplog.at_level(logging.INFO):
            assert listed(path) == version_one(path)
    assert caplog.text.count("cannot be kept beside it (Permission denied), every start parses it") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_name_too_long_for_a_second_file(tmp_path, caplog):
    path = write(tmp_path / f"{'x' * 245}.json")
    with caplog.at_level(logging.INFO):
        assert listed(path) == version_one(path)
    assert "cannot be kept beside it" in caplog.text
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_kept_of_a_small_json(tmp_path, monkeypatch):
    monkeypatch.setattr(tag_cache, "SMALLEST", 2**22)
    path = write(tmp_path / "x.json")
    assert listed(path) == version_one(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_nothing_is_kept_of_a_json_that_changes_under_the_reader(tmp_path, monkeypatch):
    path = write(tmp_path / "x.json")
    parse = coco_json.parse_tag_file

    def slow(*args):
        file = parse(*args)
        write(path, 9)
        return file

    with monkeypatch.context() as changed:
        changed.setattr(coco_json, "parse_tag_file", slow)
        assert len(listed(path)[3]) == 4
    assert not cache_path(path).exists()
    assert len(listed(path)[3]) == 9


def start_many(path: str, results: Any) -> None:
    json_lists._CHUNK, tag_cache.SMALLEST = 2**12, 0
    for _ in range(5):
        results.put(listed(Path(path)))
        cache_path(Path(path)).unlink(missing_ok=True)


def test_processes_that_write_at_once(tmp_path):
    path = write(tmp_path / "x.json", 300)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=start_many, args=(str(path), results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in range(15)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert found == [version_one(path)] * 15
    assert not list(tmp_path.glob("*.tmp*"))


# ---------------------------------------------------------------------- records, and who carries them


def plain(dataset: Dataset) -> Dataset:
    """The same with a tuple of records, as in version 0.1."""
    return replace(dataset, records=tuple(dataset))


def open_many(tmp_path: Path, images: int) -> Dataset:
    return open_tag_file("many", write(tmp_path / "x.json", images), tmp_path / "photos", "")


def test_records_behave_as_a_tuple(tmp_path):
    dataset = open_many(tmp_path, 5)
    records, same = dataset.records, plain(dataset).records
    assert len(records) == 5 and list(records) == list(same) and records == same and same == records
    assert [records[i] for i in range(-5, 5)] == [same[i] for i in range(-5, 5)]
    for part in (slice(None, 2), slice(1, None, 2), slice(None, None, -1), slice(4, 2), slice(3, 99)):
        assert records[part] == same[part] and isinstance(records[part], TableRecords)
        assert records[part][::2] == same[part][::2]
    assert records[1:3][-1] == same[2] and (same[0], *records[1:]) == same
    assert records[np.int64(2)] == same[2] and same[3] in records and records.index(same[4]) == 4
    assert records != same[:4] and records != (*same[:4], replace(same[4], tags=(1,))) and records != list(same)
    assert hash(dataset) == hash(plain(dataset)) and dataset == plain(dataset)
    for index in (5, -6):
        with pytest.raises(IndexError):
            records[index]
    assert all(type(value) is int for r in records for value in (r.image_id, *r.size, *r.tags))
    assert dataset.by_id == {record.image_id: record for record in same}


def test_no_images(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"images": [], "categories": []}')
    for _ in range(2):
        dataset = open_tag_file("none", path, tmp_path, "")
        assert len(dataset) == 0 and list(dataset) == [] and dataset.annotations is None


@pytest.mark.parametrize("height", ["0", "null", '36893488147419103232, "width": 0'])
def test_an_image_without_size(tmp_path, height):
    path = write(tmp_path / "x.json")
    path.write_text(path.read_text().replace('"height": 20, "width": 30}]', f'"height": {height}, "a": 0}}]'))
    for _ in range(2):
        with pytest.raises(CimError, match=r"image without height and width: .*x.json; found a3.jpg; to fix: do it"):
            open_tag_file("x", path, tmp_path, "do it")


def digest_of_version_one(dataset: Dataset) -> str:
    listed = sorted((str(record.image_id), record.size, record.tags) for record in dataset.records)
    return hashlib.sha256(json.dumps([dataset.classes, listed]).encode()).hexdigest()[:16]


@pytest.mark.parametrize("images", [1, 4, 1024, 1025, 2100])
def test_the_digest_is_that_of_version_one(tmp_path, images, monkeypatch):
    monkeypatch.setattr(json_lists, "_CHUNK", 2**16)
    dataset = open_many(tmp_path, images)
    assert dataset.digest == plain(dataset).digest == digest_of_version_one(dataset)
    none = replace(dataset, records=())
    assert none.digest == digest_of_version_one(none)


def test_a_digest_that_checkpoints_hold(tmp_path):
    assert open_many(tmp_path, 4).digest == "f8bfed3ead86f230"


def test_loader_workers_carry_tags_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lists, "_CHUNK", 2**16)
    path = write(tmp_path / "x.json", 3000)
    dataset = open_tag_file("many", path, tmp_path, "")
    sent = pickle.dumps(dataset)
    assert len(sent) < 25 * len(dataset) + 4000 < path.stat().st_size / 5
    assert b"segmentation" not in sent
    assert pickle.loads(sent) == dataset
    assert len(pickle.dumps(dataset.records[::100])) <= len(sent)


def test_a_table_keeps_whole_numbers_small():
    table = TagTable.of(TaggedImage(n, f"{n}", (480, 640), (0, 79)) for n in range(300))
    kinds = [getattr(table, name).dtype for name in ("ids", "heights", "tags", "tag_ends")]
    assert kinds == [np.uint16, np.uint16, np.uint8, np.uint16]
    assert table[-1] == TaggedImage(299, "299", (480, 640), (0, 79))


def test_the_json_that_the_benchmark_writes(tmp_path, monkeypatch):
    sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import coco_start

    monkeypatch.setattr(json_lists, "_CHUNK", 2**16)
    path = coco_start.json_path(tmp_path)
    coco_start.make_json(path, 500, 3500, 3.2)
    assert 2.9e6 < path.stat().st_size < 3.5e6
    dataset = open_coco(tmp_path, "train2017")
    assert (len(dataset), len(dataset.classes)) == (500, 80)
    assert sum(not record.tags for record in dataset) in range(5, 20)
    assert dataset == coco_start.open_whole(tmp_path)

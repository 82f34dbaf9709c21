"""The report of a run: numbers, pictures, absent and damaged parts, and a look in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from doors import run_tool
from PIL import Image
from small_photo_set import disc, rle, write_photo_set

from cim.evaluation.coco_results import load_ground_truth, read_results
from cim.evaluation.diagnosis import diagnose
from cim.evaluation.metrics import evaluate_voc, precision_curves
from cim.evaluation.metrics_file import merge_entries, metric_row
from cim.pictures.charts import HEIGHT, WIDTH, Line, line_chart, smooth
from cim.pictures.gallery import Budget, choose, image_quality, rank_photos
from cim.pictures.photo_set import PhotoSet

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture
def paths(tmp_path):
    return write_photo_set(tmp_path / "data", photos=9)


@pytest.fixture
def run_dir(tmp_path, paths):
    """A run with everything in it."""
    root = tmp_path / "a run"
    truth = load_ground_truth(paths["annotations"])
    results = read_results(paths["results"], truth)
    weak = [dict(result, score=1 - result["score"]) for result in results]
    rows = {"CIM": results, "WSDDN": weak, "oracle": results}
    merge_entries(root / "metrics.json", {"rows": {k: metric_row(truth, r, "voc") for k, r in rows.items()}})
    merge_entries(root / "diagnosis.json", {"rows": {k: diagnose(truth, r) for k, r in rows.items()}})
    (root / "detections" / "val").mkdir(parents=True)
    shutil.copy(paths["results"], root / "detections" / "val" / "results.json")
    for folder in ("train", "prm", "mask_rcnn"):
        (root / folder).mkdir()
        lines = [{"update": u, "losses": {"mil": 1 / u, "pcl": 3 / u}, "lr": 1e-3} for u in range(10, 800, 10)]
        text = "\n".join(map(json.dumps, lines)) + '\n{"update": 800, "lo'  # the last line cut by a kill
        (root / folder / "log.jsonl").write_text(text)
    (root / "train" / "pictures").mkdir()
    for update in range(0, 20000, 1000):
        Image.new("RGB", (400, 100), (update // 100, 90, 90)).save(
            root / "train" / "pictures" / f"mined_{update:08d}.png"
        )
    (root / "environment.json").write_text(json.dumps({"python": "3.11", "versions": {"torch": "2.12 <b>"}}))
    (root / "timings.json").write_text(json.dumps({"proposals": 61, "train": 20000.5}))
    return root


def main(arguments: list[str]) -> int:
    return run_tool("report", *arguments)


def _arguments(run_dir, paths, *more):
    return [str(run_dir), "--annotations", str(paths["annotations"]), "--images", str(paths["images"]), *more]


class _Tags(HTMLParser):
    """Fails on tags that are not closed in order, and collects what a page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "link", "img", "br", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_full_report_is_self_contained(run_dir, paths):
    assert main(_arguments(run_dir, paths)) == 0
    text = (run_dir / "report.html").read_text()
    page = _Tags(text)
    assert not page.open
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "@import" not in text and "url(" not in text and "<script" not in text
    assert len(text) < 8e6
    assert text.count('class="note"') == 2 and "no pseudo labels" in text
    assert sum(link.startswith("data:image/webp") for link in page.links) == 2 * 8 + 8  # 8 photos, 8 of 20 pictures
    assert "2.12 &lt;b&gt;" in text  # escaped
    assert "update 19,000" in text and "5.6 h" in text


def test_numbers_are_those_of_the_files(run_dir, paths):
    main(_arguments(run_dir, paths))
    text = (run_dir / "report.html").read_text()
    rows = json.loads((run_dir / "metrics.json").read_text())["rows"]
    table = re.search(r"<tr class=\"main\"><td>CIM</td>(.*?)</tr>", text, re.DOTALL)[1]
    shown = re.findall(r">([\d.]+)</td>", table)
    columns = [*(f"mAP@{iou}" for iou in ("0.25", "0.50", "0.70", "0.75")), "box_mAP", "box_CorLoc"]
    assert shown == [f"{rows['CIM'][column]:.1f}" for column in columns]
    fates = re.findall(r"<tr class=\"main\"><td>CIM</td>(.*?)</tr>", text, re.DOTALL)[-1]
    wanted = [f"{rows['CIM'][fate]:.1f}" for fate in ("found", "merged", "partial", "missed")]
    assert re.findall(r">([\d.]+)</td>", fates)[:4] == wanted
    assert "beside: merged" in text and "What became of the instances of every class" in text
    assert 'class="ceiling"><td>oracle' in text
    oracle = re.search(r"<td>oracle</td>(.*?)</tr>", text, re.DOTALL)[1]
    assert "best" not in oracle  # a ceiling is nobody's best


def test_empty_run_names_the_commands(tmp_path):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 0
    text = (tmp_path / "empty" / "report.html").read_text()
    assert text.count('class="note"') == 10
    for command in ("cim evaluate", "cim train", "cim export", "--annotations"):
        assert command in text
    assert not _Tags(text).open


def test_no_run_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no such run folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["metrics.json", "diagnosis.json", "detections/val/results.json"])
def test_damaged_files_are_told_and_the_rest_is_shown(run_dir, paths, capsys, name):
    (run_dir / name).write_text('{"rows": [')
    assert main(_arguments(run_dir, paths)) == 2
    assert Path(name).name in capsys.readouterr().err
    text = (run_dir / "report.html").read_text()
    assert "not a json file" in text and "Learning rate" in text


def test_an_unreadable_photo_is_left_out(run_dir, paths, capsys):
    (paths["images"] / "photo_0.png").write_bytes(b"no photo")
    assert main(_arguments(run_dir, paths)) == 2
    assert "photo_0.png" in capsys.readouterr().err
    assert "photo_1.png: overlap" in (run_dir / "report.html").read_text()


def test_budget_bounds_the_page():
    budget = Budget(100_000)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    uris = [budget.inline(noise) for _ in range(5)]
    assert uris[0] and uris[-1] is None and sum(len(uri or "") for uri in uris) <= 100_000


def test_photos_are_ranked_by_overlap(paths):
    photo_set = PhotoSet.read(paths["annotations"], paths["images"])
    ranked = rank_photos(photo_set, photo_set.results(paths["results"]))
    assert [scored.image_id for scored in ranked] == list(range(10, 18))  # 18 has no instances
    assert ranked[0].quality == 1.0
    ratio = disc((90, 120), 45, 30, 22).sum() / disc((90, 120), 45, 30, 25).sum()
    assert ranked[1].quality == pytest.approx(ratio)


def test_choice_repeats_no_photo():
    ranked = list(range(10))
    for each in range(1, 8):
        groups = choose(ranked, each)
        shown = [photo for group in groups.values() for photo in group]
        assert len(set(shown)) == len(shown) and groups["best"] == ranked[:each]
    assert choose(ranked, 2)["worst"] == [9, 8]
    assert choose([], 3) == {"best": [], "worst": [], "random": []}


def test_quality_counts_misses_duplicates_and_classes():
    size = (60, 60)
    a, b = rle(disc(size, 30, 15, 10)), rle(disc(size, 30, 45, 10))
    truth = [{"category_id": 1, "rle": a}, {"category_id": 2, "rle": b}]

    def found(*pairs):
        return [{"category_id": category, "segmentation": mask} for category, mask in pairs]

    assert image_quality(found((1, a), (2, b)), truth) == 1
    assert image_quality(found((1, a), (1, a)), truth) == 0.5
    assert image_quality(found((2, a), (1, b)), truth) == 0
    assert image_quality([], truth) == 0


def test_curves_hold_the_average_precision(paths):
    truth = load_ground_truth(paths["annotations"])
    curves = precision_curves(truth, paths["results"])
    assert curves.shape == (4, 101, 2)
    expected = evaluate_voc(truth, paths["results"], "pycocotools")["mAP@0.70"]
    assert 100 * curves[2].mean() == pytest.approx(expected)


# ---------------------------------------------------------------------- charts


def test_chart_places_points_where_they_belong():
    chart = line_chart([Line("a", [0, 50, 100], [0.0, 0.5, 1.0])], "x", "y", (0, 100), (0, 1))
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', chart)[1].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1) and y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert 0 < x0 < x2 <= WIDTH and 0 <= y2 < y0 <= HEIGHT
    assert not _Tags(chart).open


def test_logarithmic_chart_spaces_decades_evenly():
    chart = line_chart([Line("", [0, 1, 2], [0.01, 0.1, 1.0])], "x", "y", log=True)
    y = [float(p.split(",")[1]) for p in re.search(r'points="([^"]+)"', chart)[1].split()]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2)


@pytest.mark.parametrize("values", [[], [np.nan], [np.nan, np.inf]])
def test_nothing_to_draw_is_empty(values):
    assert line_chart([Line("a", range(len(values)), values)], "x", "y") == ""


@pytest.mark.parametrize("values", [[5.0], [3.0, 3.0], [0.0, 0.0], [-2.0, 1e-9], [1e9, 2e9]])
@pytest.mark.parametrize("log", [False, True])
def test_odd_ranges_are_drawn(values, log):
    chart = line_chart([Line("<a>", range(len(values)), values)], "x", "y", log=log)
    assert "nan" not in chart.replace("nano", "") and "<a>" not in chart


def test_long_lines_are_thinned_and_keep_their_mean():
    y = np.random.default_rng(0).random(50_000)
    chart = line_chart([Line("", np.arange(50_000), y)], "x", "y", y_range=(0, 1))
    assert len(re.search(r'points="([^"]+)"', chart)[1].split()) == 300


def test_smooth_against_a_loop():
    values = np.random.default_rng(1).random(57)
    half = int(57 * 0.2 / 2)
    slow = [values[max(i - half, 0) : i + half + 1].mean() for i in range(57)]
    np.testing.assert_allclose(smooth(values, 0.2), slow)
    assert len(smooth(np.zeros(0))) == 0


# ---------------------------------------------------------------------- a real browser


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the report is not looked at in a browser")
def test_no_sideways_scrolling_in_a_browser(run_dir, paths, tmp_path):
    """Chromium lays the page out as a phone and as a desk would; nothing is broken or wider than the screen."""
    main(_arguments(run_dir, paths))
    text = (run_dir / "report.html").read_text()
    # The page has no script; the test adds one that writes down what it measures, in a frame of a phone's width.
    probe = """<script>addEventListener('load', () => { const d = document.documentElement;
      document.querySelectorAll('img').forEach(i => i.loading = 'eager');
      Promise.all([...document.images].map(i => i.decode().then(() => 0, () => 1))).then(bad =>
        parent.postMessage([d.scrollWidth, d.clientWidth, bad.reduce((a, b) => a + b, 0), document.images.length,
          Math.max(...[...document.querySelectorAll('h2,p,li,.card,figure,.bars,.stacks')]
            .map(e => e.getBoundingClientRect().right))], '*')); });</script>"""
    (tmp_path / "inner.html").write_text(text.replace("</body>", probe + "</body>"))
    frames = "".join(f'<iframe width="{w}" height="800" src="inner.html"></iframe>' for w in (390, 1280))
    collect = "<script>const got = []; onmessage = e => { got.push(e.data); document.title = JSON.stringify(got); };"
    (tmp_path / "outer.html").write_text(f"{collect}</script><title>waiting</title>{frames}")
    measured: list = []
    for budget in (20, 40, 80, 160, 320):  # a loaded machine may end the browser's time before the frames are laid out
        profile = f"--user-data-dir={tmp_path / f'profile{budget}'}"
        dumped = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", profile,
             f"--virtual-time-budget={budget}000", "--dump-dom", (tmp_path / "outer.html").as_uri()],
            capture_output=True, text=True, timeout=90, check=False,
        ).stdout  # fmt: skip
        title = re.search(r"<title>(\[.*?)</title>", dumped)
        measured = json.loads(title[1]) if title else []
        if len(measured) == 2:
            break
    assert len(measured) == 2
    for scroll, width, broken, images, right in measured:
        assert scroll <= width and right <= width + 0.5
        assert broken == 0 and images == 24

"""The documentation says what the code does; and the check that holds it to that notices when it does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_rooms import ROOMS

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))  # at the end: tools/test.py and others have common names

import check_docs  # noqa: E402
import docs_text  # noqa: E402


def problems(folder: Path, text: str) -> list[str]:
    """What the check says about a page with this text, without file and line."""
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return [line.split(": ", 1)[1] for line in check_docs.check_pages([page])[0]]


def fenced(text: str, language: str = "bash") -> str:
    return f"Text.\n\n```{language}\n{text}\n```\n"


@pytest.mark.parametrize("page", check_docs.pages_of(ROOT), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_page_agrees_with_the_code(page: Path) -> None:
    assert check_docs.check_pages([page])[0] == []


def test_all_pages_are_there() -> None:
    names = {page.name for page in check_docs.pages_of(ROOT)}
    pages = "DATASET DESIGN DIFFERENCES EXPORT FAQ INSTALL PERFORMANCE PROPOSALS RESULTS TUTORIAL"
    assert names >= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", *(f"{name}.md" for name in pages.split())}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (fenced("python tools/pre/create_cob_iou.py --dataset voc --fast"), "no option --fast"),
        (fenced("python tools/pre/create_cob_iou.py --split val"), "required: --dataset"),
        (fenced("python tools/pre/create_cob_iou.py --dataset imagenet"), "invalid choice"),
        (fenced("python tools/nothing.py"), "no such file: tools/nothing.py"),
        (fenced("ls && bash scripts/train_CIM.sh resnet50_vok"), "no such config: resnet50_vok"),
        (fenced("bash scripts/train_CIM.sh resnet50_voc --split val"), "no option --split"),
        (fenced("GPUS=2 torchrun --standalone tools/train.py resnet50_voc \\\n  --sett a=1"), "no option --sett"),
        ("Text.\n\n    python tools/train.py resnet50_voc --gpus 2\n", "no option --gpus"),
        (fenced("cim trian resnet50_voc"), "no command cim trian; train?"),
        (fenced("cim --fast"), "cim: no option --fast"),
        (fenced("cim train resnet50_vok --prepare"), "no such config: resnet50_vok"),
        (fenced("cim export resnet50_voc --rle short"), "invalid choice"),
        (fenced("cim predict photos"), "required: --checkpoint"),
        (fenced("FOLDER=x python -m cim train resnet50_voc --gpus 2"), "cim train: no option --gpus"),
        (fenced("ls; torchrun --nproc_per_node 4 -m cim score resnet50_voc --sett a=1"), "no option --sett"),
        ("Write `cim score resnet50_voc\n--gpus 2` here.\n", "cim score: no option --gpus"),
        ("The `cim trian` command.\n", "no command cim trian"),
        (fenced("python tools/pre/create_cob_iou.py containment --dataset voc"), "unrecognized arguments: containment"),
        ("Write `tools/train.py resnet50_voc\n--gpus 2` here.\n", "no option --gpus"),
        ("Set `train.learning_rate`.\n", "no such setting: train.learning_rate"),
        (fenced("python tools/train.py resnet50_voc --set mining.metod=mist"), "no such setting: mining.metod"),
        (fenced("data:\n  root: x\n  rooot: y", "yaml"), "bad setting data.rooot"),
        (fenced("import cim\nx = (", "python"), "not Python"),
        (fenced("from cim.core.regions import RegionSets", "python"), "nothing to import: cim.core.regions.RegionSets"),
        (fenced("import os\n\nfrom cim.regions import Box", "python"), "nothing to import: cim.regions.Box"),
        ("A [link](nowhere.md).\n", "link leads nowhere: nowhere.md"),
        ("# One\n\nA [link](#two).\n", "no such heading: #two"),
        ("See `cim/regionz.py`.\n", "no such file: cim/regionz.py"),
    ],
)
def test_a_wrong_page_is_noticed(tmp_path: Path, text: str, said: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    "text",
    [
        fenced("python tools/train.py CONFIG --set train.lr=0.1  # a comment's apostrophe"),
        fenced("bash scripts/test.sh -k regions --durations 3"),
        fenced("GPUS=4 bash scripts/eval_CIM.sh hrnet48_voc runs/x --set infer.nms=mask"),
        fenced("python tools/train.py mine.yaml; pip install x --strange"),
        fenced("cim --help; cim COMMAND --help && cim train CONFIG; . .venv/bin/activate"),
        fenced("OMP_NUM_THREADS=1 cim demo --output runs/demo  # it's quick"),
        fenced("torchrun --nproc_per_node 4 -m cim train resnet50_voc --set train.lr=0.1"),
        "Name it `cim`, `import cim`, `cim train`, `cim predict --tags dog` or `pip install 'cim[sam]'`.\n",
        "`runs/x/train.csv`, `export.json`, [web](https://example.org/a.md), ![later](images/later.png)\n",
        fenced("name: [other]\nthing: 1", "yaml"),
        "# A `b` c\n\n[up](#a-b-c)\n",
        fenced("from cim.core.regions import Overlaps, RegionSet\nfrom cim.mining.miners import Miner", "python"),
        fenced("# cim/core/new.py\nx = 1", "python") + fenced("from cim.core.new import x", "python"),
        "",
    ],
)
def test_a_right_page_passes(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text) == []


def test_lines_are_counted_from_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("One\n\n```bash\ntrue\npython tools/nothing.py\n```\n`tools/none.py`\n", encoding="utf-8")
    assert [code.line for code in docs_text.read_page(page).code] == [4, 5, 7]
    assert [line.split(": ")[0] for line in check_docs.check_pages([page])[0]] == ["page.md:5", "page.md:7"]


def test_a_picture_may_come_later_but_not_be_large(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("![x](docs/images/a.png)", encoding="utf-8")
    found, notes = check_docs.check_pages([page], tmp_path)
    assert not found
    assert notes == ["README.md:1: picture not there: docs/images/a.png"]
    (tmp_path / "docs" / "images").mkdir(parents=True)
    (tmp_path / "docs" / "images" / "a.png").write_bytes(bytes(check_docs.IMAGE_LIMIT + 1))
    found, notes = check_docs.check_pages([page], tmp_path)
    assert len(found) == 1
    assert "at most 300,000" in found[0]
    assert not notes


def test_the_tool_ends_with_1_and_one_line_per_problem(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`tools/none.py`, `train.none`\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "tools" / "check_docs.py"), str(page)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    done = subprocess.run([*command[:2], "none.md"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no such page" in done.stderr


def test_the_house_is_drawn_in_the_order_of_its_rooms() -> None:
    house = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8").split("```text\ncim/")[1].split("```")[0]
    assert re.findall(r"^  (\w+)/ ", house, re.M) == ROOMS


def test_documents_name_no_machine() -> None:
    for page in check_docs.pages_of(ROOT):
        text = page.read_text(encoding="utf-8")
        assert "/home/" not in text, page.name
        assert not any(line.rstrip().endswith("!") for line in text.splitlines()), page.name

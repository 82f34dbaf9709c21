"""Reviews: what a person decides, the file that it is kept in, and the server of the page."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from small_review import BOXES, CAT, LEFT, RIGHT, SIZE, SPOT, WHOLE, as_runs, mask, small_review, text

from cim.cli.jobs import run as run_folder
from cim.cli.main import main, parse
from cim.config.build import build_dataset
from cim.config.loading import load_config, save_config
from cim.config.run_paths import RunPaths
from cim.core.errors import CimError
from cim.datasets.known import Known, Mark
from cim.review import decisions as edits
from cim.review.corrections import read_corrections, version_of, write_corrections
from cim.review.decisions import NOTHING, Decision, Found, Shape
from cim.review.desk import open_desk
from cim.review.server import serve
from cim.review.session import Conflict, Session

DOG, TAGGED_CAT = 1, 0  # classes
WHOLE_DOG, LEFT_DOG, RIGHT_DOG = (Shape(DOG, text(proposal)) for proposal in (WHOLE, LEFT, RIGHT))
A_CAT = Shape(TAGGED_CAT, text(CAT))
FOUND = Found(SIZE, {A_CAT: 0.7, WHOLE_DOG: 0.2})


# ---------------------------------------------------------------------- decisions


def test_a_class_is_settled_once_each_of_its_masks_was_decided():
    one = edits.accept(NOTHING, FOUND, [A_CAT])
    assert one == Decision((A_CAT,), (), {TAGGED_CAT: 1})
    assert edits.undecided(one, FOUND) == (WHOLE_DOG,)
    assert not edits.settled(one, (TAGGED_CAT, DOG))
    both = edits.accept_all(one, FOUND)
    assert both == Decision((A_CAT, WHOLE_DOG), (), {TAGGED_CAT: 1, DOG: 1})
    assert edits.settled(both, (TAGGED_CAT, DOG))
    two = Found(SIZE, {LEFT_DOG: 0.9, RIGHT_DOG: 0.8})
    assert edits.accept(NOTHING, two, [LEFT_DOG]).numbers == {DOG: None}
    assert edits.delete(edits.accept(NOTHING, two, [LEFT_DOG]), two, RIGHT_DOG).numbers == {DOG: 1}


def test_all_deleted_says_nothing_of_how_many_there_are():
    gone = edits.delete(NOTHING, FOUND, WHOLE_DOG)
    assert gone == Decision((), (WHOLE_DOG,), {DOG: None})
    assert edits.undecided(gone, FOUND) == (A_CAT,)
    assert edits.delete(edits.accept_all(NOTHING, FOUND), FOUND, WHOLE_DOG).numbers == {TAGGED_CAT: 1, DOG: None}


def test_two_parts_take_the_place_of_a_merged_mask():
    one = edits.add(NOTHING, FOUND, LEFT_DOG)
    assert one == Decision((LEFT_DOG,), (WHOLE_DOG,), {DOG: 1})
    two = edits.add(one, FOUND, RIGHT_DOG)
    assert two == Decision((LEFT_DOG, RIGHT_DOG), (WHOLE_DOG,), {DOG: 2})
    back = edits.add(two, FOUND, WHOLE_DOG)
    assert back == Decision((WHOLE_DOG,), (), {DOG: 1})


def test_a_mask_of_another_class_is_left_where_it_is():
    other = edits.add(NOTHING, FOUND, Shape(TAGGED_CAT, text(LEFT)))
    assert set(edits.undecided(other, FOUND)) == {A_CAT, WHOLE_DOG}


def test_numbers_that_are_not_met_stay_and_others_follow_the_masks():
    three = edits.set_number(NOTHING, DOG, 3)
    assert edits.settled(three, (DOG,))
    two = edits.add(edits.add(three, FOUND, LEFT_DOG), FOUND, RIGHT_DOG)
    assert two.numbers == {DOG: 3}
    assert edits.set_number(two, DOG, None).numbers == {DOG: None}
    met = edits.set_number(two, DOG, 2)
    assert edits.delete(met, FOUND, RIGHT_DOG).numbers == {DOG: 1}
    told = Found(SIZE, FOUND.scores, {DOG: 2})
    assert edits.accept_all(NOTHING, told).numbers == {TAGGED_CAT: 1, DOG: 2}


def test_a_number_that_is_met_hides_what_else_was_found():
    two = Found(SIZE, {LEFT_DOG: 0.9, RIGHT_DOG: 0.8})
    one = edits.set_number(edits.accept(NOTHING, two, [LEFT_DOG]), DOG, 1)
    assert edits.undecided(one, two) == ()
    assert edits.undecided(edits.delete(one, two, LEFT_DOG), two) == (RIGHT_DOG,)


@pytest.mark.parametrize(
    ("number", "told"), [(0, "fewer instances"), (-1, "beyond reason"), (1001, "beyond reason"), (1, "fewer instances")]
)
def test_numbers_that_cannot_be(number, told):
    two = edits.add(edits.add(NOTHING, FOUND, LEFT_DOG), FOUND, RIGHT_DOG)
    with pytest.raises(CimError, match=told):
        edits.set_number(two, DOG, number)


def test_a_class_that_is_not_there_is_settled_and_hides_what_was_found():
    none = edits.set_number(NOTHING, DOG, 0)
    assert edits.settled(none, (DOG,))
    assert edits.undecided(none, FOUND) == (A_CAT,)
    assert edits.accept_all(none, FOUND) == Decision((A_CAT,), (), {TAGGED_CAT: 1, DOG: 0})
    assert edits.add(none, FOUND, LEFT_DOG).numbers == {DOG: 1}  # it was there after all
    assert edits.undecided(edits.set_number(none, DOG, None), FOUND) == (A_CAT, WHOLE_DOG)


def test_masks_of_a_later_run_that_hardly_differ_were_decided_before():
    nearly = mask(WHOLE)
    nearly[10, 4] = False
    again = Found(SIZE, {Shape(DOG, as_runs(nearly)): 0.3})
    assert edits.undecided(edits.delete(NOTHING, FOUND, WHOLE_DOG), again) == ()
    assert edits.undecided(NOTHING, again) != ()


# ---------------------------------------------------------------------- the file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_review(tmp_path)[1]


def session_of(run: Path) -> Session:
    config = load_config(run / "config.yaml")
    path = RunPaths(config).corrections
    return Session(open_desk(config, path), path)


def test_what_was_decided_is_what_training_is_told(run):
    session = session_of(run)
    state = session.photo(0)
    assert state["name"] == "doubt.png"  # the more doubtful one
    version = session.change(0, state["version"], {"do": "add", "class_id": DOG, "proposal": LEFT})["version"]
    version = session.change(0, version, {"do": "add", "class_id": DOG, "proposal": RIGHT})["version"]
    session.change(1, version, {"do": "number", "class_id": DOG, "number": 2})
    config = load_config(run / "config.yaml", [f"data.known=[{run / 'corrections.json'}]"])
    known = {record.image_id: record.known for record in build_dataset(config.data, "train")}
    assert known["doubt.png"].counts == ((DOG, 2),)  # of the cat nothing was said
    assert [one.mask for one in known["doubt.png"].marks] == [text(LEFT), text(RIGHT)]
    assert known["doubt.png"].rejected == (Mark(DOG, mask=text(WHOLE)),)  # whose place they took
    off = load_config(run / "config.yaml", [f"data.known=[{run / 'corrections.json'}]", "data.rejected=false"])
    assert build_dataset(off.data, "train").by_id["doubt.png"].known.rejected == ()
    assert known["sure.png"] == Known(((DOG, 2),))


def test_a_class_that_is_not_there_loses_its_tag(run):
    session = session_of(run)
    state = session.change(0, "none", {"do": "number", "class_id": DOG, "number": 0})
    assert [shape["class_id"] for shape in state["shapes"]] == [TAGGED_CAT]
    config = load_config(run / "config.yaml", [f"data.known=[{run / 'corrections.json'}]"])
    record = build_dataset(config.data, "train").by_id["doubt.png"]
    assert record.tags == (TAGGED_CAT,)
    assert record.known == Known(absent=(DOG,))
    assert session_of(run).photo(0)["numbers"][1]["number"] == 0  # a later review may take it back


def test_masks_of_a_class_that_is_not_settled_do_not_count_yet(tmp_path):
    config, run = small_review(tmp_path)
    dataset, path = build_dataset(config.data, "train"), run / "corrections.json"
    images = Path(str(config.data.images))
    decision = Decision((LEFT_DOG,), (RIGHT_DOG,), {DOG: None})
    write_corrections(path, {"sure.png": decision}, dataset, images)
    assert read_corrections(path, dataset, images) == {"sure.png": decision}
    known = build_dataset(config.data.model_copy(update={"known": (str(path),)}), "train").by_id["sure.png"].known
    assert known == Known(rejected=(Mark(DOG, mask=text(RIGHT)),))  # what is wrong is wrong at once


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content["images"][0].update(file_name="other.png"),
        lambda content: content["annotations"][0].update(image_id=9),
        lambda content: content["annotations"][0]["segmentation"].update(size=[40, 61]),
        lambda content: content["annotations"][0]["segmentation"].update(counts="QQ0"),
        lambda content: content["categories"][1].update(name="cow"),
        lambda content: content["images"][0].pop("counts"),
        lambda content: content.clear(),
    ],
)
def test_a_damaged_file_is_told_in_one_line_and_kept(run, damage):
    session = session_of(run)
    session.change(0, "none", {"do": "accept all"})
    path = run / "corrections.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    for use in (lambda: session.overview(), lambda: session_of(run)):
        with pytest.raises(CimError, match="not a corrections file of this run") as error:
            use()
        assert "\n" not in str(error.value)
    assert json.loads(path.read_text()) == content


def test_ten_thousand_corrections_are_read_and_written(run):
    session = session_of(run)
    many = Decision((LEFT_DOG,) * 10_000, (), {DOG: 1000})
    desk, path = session.desk, run / "corrections.json"
    write_corrections(path, {"sure.png": many}, desk.dataset, desk.images)
    assert len(read_corrections(path, desk.dataset, desk.images)["sure.png"].accepted) == 10_000


# ---------------------------------------------------------------------- a session


def test_undo_goes_back_over_photos(run):
    session = session_of(run)
    start = session.photo(0)["shapes"]
    version = session.change(0, "none", {"do": "accept all"})["version"]
    version = session.change(1, version, {"do": "accept all"})["version"]
    answer = session.change(0, version, {"do": "undo"})
    assert (answer["place"], answer["state"], answer["undo"]) == (1, "open", 1)
    answer = session.change(0, answer["version"], {"do": "undo"})
    assert (answer["place"], answer["shapes"]) == (0, start)
    with pytest.raises(CimError, match="nothing to undo"):
        session.change(0, answer["version"], {"do": "undo"})


def test_an_older_page_and_a_changed_file_are_conflicts_and_nothing_is_overwritten(run):
    session, path = session_of(run), run / "corrections.json"
    session.change(0, "none", {"do": "accept all"})
    with pytest.raises(Conflict):
        session.change(1, "none", {"do": "accept all"})
    other = session_of(run)
    other.change(1, version_of(path), {"do": "number", "class_id": DOG, "number": 2})
    written = path.read_text()
    with pytest.raises(Conflict):
        session.change(0, session._version, {"do": "number", "class_id": DOG, "number": 5})
    assert path.read_text() == written
    states = [photo["state"] for photo in session.overview()["photos"]]
    assert states == ["done", "done"]


def test_a_change_that_cannot_be_saved_did_not_happen(run, monkeypatch):
    session = session_of(run)

    def full(*arguments: object) -> None:
        raise CimError("cannot write", found="disk full")

    monkeypatch.setattr("cim.review.session.write_corrections", full)
    with pytest.raises(CimError, match="disk full"):
        session.change(0, "none", {"do": "accept all"})
    assert session.overview()["photos"][0]["state"] == "open"


@pytest.mark.parametrize(
    "what",
    [
        {"do": "accept", "key": "nothing"},
        {"do": "add", "class_id": DOG, "proposal": 5},
        {"do": "add", "class_id": DOG, "proposal": -1},
        {"do": "add", "class_id": DOG, "proposal": True},
        {"do": "add", "class_id": 7, "proposal": 0},
        {"do": "number", "class_id": DOG, "number": 1.5},
        {"do": "number", "class_id": DOG, "number": -1},
        {"do": "something", "class_id": DOG},
    ],
)
def test_changes_that_make_no_sense(run, what):
    session = session_of(run)
    with pytest.raises(CimError):
        session.change(0, "none", what)
    assert not (run / "corrections.json").exists()


# ---------------------------------------------------------------------- the server


@pytest.fixture
def address(run):
    server, address = serve(session_of(run))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


def ask(address: str, what: object = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of a GET, or of a POST of json."""
    data = None if what is None else json.dumps(what).encode()
    kind = {} if what is None else {"Content-Type": "application/json"}
    request = urllib.request.Request(address, data, kind | headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def test_nobody_without_the_token_or_under_another_name_gets_in(address):
    root, token = address[:-1].rsplit("/", 1)
    assert len(token) >= 32
    change = {"place": 0, "version": "none", "do": "accept all"}
    for path in ("", "/", "/photos", f"/{token[:-1]}x/photos", f"/{token}x/photos", "//photos"):
        assert ask(root + path)[0] == 403
    assert ask(f"{root}/change", change)[0] == 403
    for host in ("evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1", ""):
        assert ask(f"{address}photos", Host=host)[0] == 403
        assert ask(f"{address}change", change, Host=host)[0] == 403
    status, _, headers = ask(f"{address}photos")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert ask(f"{address}photos", Host=root.replace("http://127.0.0.1", "localhost"))[0] == 200


def test_the_page_is_three_files_that_name_nothing_outside(address):
    for name, kind in (("", "text/html"), ("review.js", "text/javascript"), ("review.css", "text/css")):
        status, body, headers = ask(address + name)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert b"://" not in body
    for path in ("review.py", "../server.py", "photo/9", "photo/x", "picture/-1", "page/review.js", "change"):
        assert ask(address + path)[0] in (400, 404)


def test_pixels_and_proposals_arrive_bit_for_bit(address):
    told = json.loads(ask(f"{address}photo/0")[1])
    assert told["regions"][0] == len(BOXES)
    atoms = np.frombuffer(gzip.decompress(ask(f"{address}atoms/0")[1]), "<u4").reshape(SIZE)
    rows = np.frombuffer(gzip.decompress(ask(f"{address}members/0")[1]), np.uint8).reshape(len(BOXES), -1)
    members = np.unpackbits(rows, axis=1)[:, : told["regions"][1]].astype(bool)
    for proposal in BOXES:
        assert (members[proposal][atoms] == mask(proposal)).all()
    assert [row[1] for row in told["ranking"]] == pytest.approx([0.6, 0.5, 0.9, 0, 0.1])
    assert ask(f"{address}picture/0")[1][:2] == b"\xff\xd8"  # JPEG


def test_changes_over_http(address, run):
    change = {"place": 0, "version": "none", "do": "add", "class_id": DOG, "proposal": SPOT}
    status, body, _ = ask(f"{address}change", change)
    assert status == 200
    assert json.loads(body)["undo"] == 1
    assert ask(f"{address}change", change)[0] == 409
    version = json.loads(body)["version"]
    status, body, _ = ask(f"{address}change", change | {"version": version, "proposal": 99})
    assert status == 400
    assert "no such proposal" in json.loads(body)["error"]
    assert ask(f"{address}change", change | {"version": version}, **{"Content-Type": "text/plain"})[0] == 415
    for bad in (
        [1],
        {"do": "undo"},
        {"place": "0", "do": "undo"},
        {"place": 7, "version": version, "do": "accept all"},
    ):
        assert ask(f"{address}change", bad)[0] == 400
    assert ask(f"{address}change", change | {"more": "x" * 200_000})[0] == 413
    assert len(json.loads((run / "corrections.json").read_text())["annotations"]) == 1


# ---------------------------------------------------------------------- the command


def start(run: Path) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, "-m", "cim", "review", str(run)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background may ignore it
    )
    return process, process.stdout.readline().split()[-1]


def test_a_killed_server_loses_nothing_and_ctrl_c_is_a_normal_end(run):
    process, address = start(run)
    try:
        assert ask(f"{address}change", {"place": 0, "version": "none", "do": "accept all"})[0] == 200
    finally:
        process.kill()
        process.wait()
    process, address = start(run)
    try:
        assert [photo["state"] for photo in json.loads(ask(f"{address}photos")[1])["photos"]] == ["done", "open"]
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.stdout.close()
    assert [path.name for path in run.iterdir() if "corrections" in path.name] == ["corrections.json"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda run: run / "nowhere", "no such run folder"),
        (lambda run: run.parent / "photos", "no config in this run folder"),
        (lambda run: (run / "pseudo_labels" / "msrcnn_pseudo_label_0.3.json").unlink(), "no pseudo labels"),
        (lambda run: (run / "corrections.json").write_text("{"), "not a json file"),
    ],
)
def test_runs_that_cannot_be_reviewed(run, capsys, spoil, told):
    changed = spoil(run)
    assert main(["review", str(changed if isinstance(changed, Path) else run)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_the_same_cim_run_goes_on_from_the_corrections(run):
    photos = run.parent / "photos"
    words = ["run", "--images", str(photos), "--tags", str(run.parent / "tags.csv"), "--output", str(run)]
    args = parse([*words, "--config", "demo", "--device", "cpu"])
    before = run_folder.state_of(args)
    assert run_folder.resolve(args).data.known == ()
    session = session_of(run)
    session.change(0, "none", {"do": "accept all"})
    settings = run_folder.resolve(args)
    assert settings.data.known == (str(run / "corrections.json"),)
    save_config(settings, run / "config.yaml")
    assert run_folder.state_of(args) != before
    again = session_of(run)  # whose config now names the corrections
    assert again.desk.dataset.known_digest is None
    assert [photo["name"] for photo in session.overview()["photos"]] == ["doubt.png", "sure.png"]
    assert [(photo["name"], photo["state"]) for photo in again.overview()["photos"]] == [
        ("sure.png", "open"),
        ("doubt.png", "done"),  # drawn whole: beyond doubt
    ]


def test_a_photo_without_any_class_comes_last_in_the_next_review(run):
    session = session_of(run)
    version = session.change(0, "none", {"do": "number", "class_id": DOG, "number": 0})["version"]
    session.change(0, version, {"do": "number", "class_id": TAGGED_CAT, "number": 0})
    config = load_config(run / "config.yaml", [f"data.known=[{run / 'corrections.json'}]"])
    photos = Session(open_desk(config, run / "corrections.json"), run / "corrections.json").overview()["photos"]
    assert [(photo["name"], photo["doubt"], photo["state"]) for photo in photos] == [
        ("sure.png", 0.1, "open"),
        ("doubt.png", 0.0, "done"),
    ]

"""The library: what a run leaves alone, what survives a kill, what is refused, and the order of results."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antiphon.encoding import Embedded, Failed
from antiphon.errors import AudioError, DataError, LibraryError, MissingExtraError
from antiphon.library import Library, Summary, writing
from antiphon.library.query import WITHOUT_WEIGHT
from antiphon.windows import Window
from library import kills
from test_encoding import ToneModel, write_tones

pytest.importorskip("lancedb")
UGLY = ("it's.wav", 'say "hi".wav', "Größe 音.wav", "back\\slash%_.wav", "two\nlines.wav", "' OR 1=1 --.wav")


@pytest.fixture
def sounds(tmp_path) -> Path:
    """Four files: one low, one high, one of three windows, one deeper down."""
    folder = tmp_path / "sounds"
    write_tones(folder / "low.wav", (1, 0, 0, 0))
    write_tones(folder / "high.wav", (0, 0, 1, 0))
    write_tones(folder / "long.wav", (0, 0, 0, 1), (0, 1, 0, 0), (0, 1, 1, 0))
    write_tones(folder / "deep" / "mixed.wav", (1, 1, 0, 0))
    return folder


@pytest.fixture
def model() -> ToneModel:
    return ToneModel()


@pytest.fixture
def library(tmp_path, sounds, model) -> Library:
    made = Library.create(tmp_path / "library", model=model, root=sounds)
    made.sync(sounds, model=model)
    return made


def rows(library: Library) -> list[tuple]:
    """All rows in a fixed order, vectors as tuples."""
    path = library.export(library.folder.parent / "rows.parquet")
    table = pq.read_table(path).to_pylist()
    facts = ("path", "start_seconds", "end_seconds", "size", "mtime_ns")
    return sorted((*(row[name] for name in facts), tuple(np.round(row["vector"], 5))) for row in table)


def vectors(*named: tuple[str, list[float]]) -> list[Embedded]:
    """One file per name, one window per angle in degrees from the first axis."""
    made = []
    for name, angles in named:
        turned = np.deg2rad(np.array(angles))
        rows = np.stack([np.cos(turned), np.sin(turned), 0 * turned, 0 * turned], axis=1).astype(np.float32)
        windows = [Window(float(i), i + 1.0) for i in range(len(angles))]
        made.append(Embedded(f"/sounds/{name}", 1, 1, windows, rows))
    return made


def at_angles(tmp_path: Path, model: ToneModel, *named: tuple[str, list[float]]) -> Library:
    made = Library.create(tmp_path / "angles", model=model, root="/sounds")
    made.add(vectors(*named), model=model)
    return made


# --- what is in it


def test_create_add_and_open(tmp_path, sounds, model):
    made = Library.create(tmp_path / "new" / "library", model=model, root=sounds)
    assert made.stats() == {"files": 0, "windows": 0}
    summary = made.add([sounds / "low.wav", sounds / "long.wav"], model=model)
    assert summary == Summary(added=2, windows=4)
    opened = Library.open(tmp_path / "new" / "library")
    assert len(opened) == 2
    assert opened.stats() == {"files": 2, "windows": 4}
    assert sounds / "low.wav" in opened
    assert sounds / "high.wav" not in opened
    card = json.loads((opened.folder / "library.json").read_text())
    assert card.pop("created")[:2] == "20"
    assert card == {
        "format": 2,
        "model_source": "/models/tones",
        "model_fingerprint": model.fingerprint(),
        "dim": 4,
        "space": "projection",
        "clip_seconds": 1.0,
        "root": str(sounds),
    }


def test_rows_hold_path_times_file_facts_and_vectors(library, sounds):
    long = [row for row in rows(library) if row[0].endswith("long.wav")]
    stat = (sounds / "long.wav").stat()
    assert [row[:5] for row in long] == [
        (str(sounds / "long.wav"), float(i), i + 1.0, stat.st_size, stat.st_mtime_ns) for i in range(3)
    ]
    wanted = [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0.5**0.5, 0.5**0.5, 0]]
    np.testing.assert_allclose([row[5] for row in long], wanted, atol=1e-3)


def test_export_carries_the_card(library, tmp_path):
    path = library.export(tmp_path / "out.parquet")
    card = json.loads(pq.read_schema(path).metadata[b"antiphon"])
    assert card["model_fingerprint"] == library.card.model_fingerprint
    assert pq.read_table(path).num_rows == 6
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]
    with pytest.raises(LibraryError, match="cannot write"):
        library.export(tmp_path / "no" / "such" / "out.parquet")


def test_adding_again_replaces_and_a_file_given_twice_counts_once(tmp_path, model):
    made = at_angles(tmp_path, model, ("a", [0, 10, 20]), ("b", [30]))
    summary = made.add(vectors(("a", [40]), ("c", [50]), ("c", [60])), model=model)
    assert (summary.added, summary.changed, summary.windows) == (1, 1, 2)
    assert [row[0] for row in rows(made)] == ["/sounds/a", "/sounds/b", "/sounds/c"]
    assert rows(made)[2][5][0] == pytest.approx(0.5)
    assert made.add([], model=model) == Summary()


# --- bringing it up to date


def test_sync_leaves_the_unchanged_alone(library, sounds, model):
    before, version, model.batches = rows(library), library.version, []
    assert library.sync(sounds, model=model) == Summary(unchanged=4)
    assert model.batches == []
    assert (rows(library), library.version) == (before, version)


def test_sync_embeds_changed_and_new_files(library, sounds, model):
    write_tones(sounds / "long.wav", (1, 0, 0, 0))
    write_tones(sounds / "new.wav", (0, 0, 0, 1))
    summary = library.sync(sounds, model=model)
    assert summary == Summary(added=1, changed=1, unchanged=3, windows=2)
    assert library.stats() == {"files": 5, "windows": 5}
    (row,) = [row for row in rows(library) if row[0].endswith("long.wav")]
    np.testing.assert_allclose(row[5], [1, 0, 0, 0], atol=1e-3)
    assert library.sync(sounds, model=model) == Summary(unchanged=5)


def test_a_file_with_another_time_and_the_same_content_is_not_embedded_again(library, sounds, model):
    before, model.batches = rows(library), []
    os.utime(sounds / "long.wav", ns=(5, 5))
    assert library.sync(sounds, model=model) == Summary(unchanged=4)
    assert model.batches == []
    touched = [(*row[:4], 5, row[5]) if row[0].endswith("long.wav") else row for row in before]
    assert rows(library) == touched
    version = library.version
    assert library.sync(sounds, model=model) == Summary(unchanged=4)
    assert library.version == version


def test_what_a_manifest_says_is_kept_and_kept_up_to_date(library, sounds, model, tmp_path):
    table = tmp_path / "moods.csv"
    table.write_text("path,mood,year\nsounds/low.wav,calm,1990\nsounds/long.wav,tense,2001\n")
    model.batches = []
    assert library.sync(table, model=model) == Summary(unchanged=2)
    assert {hit.path for hit in library.search(model=model, words="low", where="mood = 'tense' AND year > 2000")} == {
        str(sounds / "long.wav")
    }
    version = library.version
    assert library.sync(table, model=model) == Summary(unchanged=2)
    assert library.version == version
    table.write_text("path,mood,year\nsounds/low.wav,calm,1990\nsounds/long.wav,calm,2001\n")
    assert library.sync(table, model=model) == Summary(unchanged=2)
    assert model.batches == []
    assert library.table.count("mood = 'calm'") == 4  # one window and three
    assert library.stats() == {"files": 4, "windows": 6}


def test_missing_files_stay_until_pruned_and_other_folders_are_safe(library, sounds, model, tmp_path):
    other = write_tones(tmp_path / "other" / "x.wav", (1, 0, 0, 0))
    library.sync(other.parent, model=model)
    other.unlink()
    (sounds / "deep" / "mixed.wav").unlink()
    assert library.sync(sounds, model=model) == Summary(unchanged=3, missing=1)
    assert sounds / "deep" / "mixed.wav" in library
    assert library.sync(sounds, model=model, prune=True) == Summary(unchanged=3, missing=1)
    assert sounds / "deep" / "mixed.wav" not in library
    assert other in library
    assert library.sync(sounds, model=model) == Summary(unchanged=3)


def test_bad_files_are_listed_and_counted(library, sounds, model):
    (sounds / "zero.wav").touch()
    (sounds / "text, with comma.wav").write_text("not a sound")
    assert library.sync(sounds, model=model) == Summary(unchanged=4, failed=2)
    with (library.folder / "errors.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in listed] == ["text, with comma.wav", "zero.wav"]
    assert "empty" in listed[1]["reason"]
    for path in (sounds / "zero.wav", sounds / "text, with comma.wav"):
        path.unlink()
    library.sync(sounds, model=model)
    assert (library.folder / "errors.csv").read_text() == "path,reason\n"


def test_a_file_that_turned_bad_loses_its_rows_but_an_unreachable_one_keeps_them(library, sounds, model):
    (sounds / "low.wav").write_text("not a sound any more")
    assert library.sync(sounds, model=model) == Summary(unchanged=3, failed=1)
    assert sounds / "low.wav" not in library
    gone = Failed(str(sounds / "high.wav"), "input/output error")
    (sounds / "high.wav").rename(sounds / "away")
    assert library.add([gone], model=model).failed == 1
    assert sounds / "high.wav" in library


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names")
def test_names_with_quotes_and_unicode_survive_change_prune_and_search(tmp_path, sounds, library, model):
    for name in UGLY:
        write_tones(sounds / name, (0, 1, 0, 0), (1, 0, 0, 0))
    assert library.sync(sounds, model=model).added == len(UGLY)
    for name in UGLY:
        write_tones(sounds / name, (0, 1, 0, 0))
        assert sounds / name in library
    assert library.sync(sounds, model=model) == Summary(changed=len(UGLY), unchanged=4, windows=len(UGLY))
    assert library.stats() == {"files": 4 + len(UGLY), "windows": 6 + len(UGLY)}
    for name in UGLY:
        found = library.search(model=model, like=sounds / name, top=50)
        assert {Path(hit.path) for hit in found} == set(sounds.rglob("*.wav")) - {sounds / name}
    for name in UGLY:
        (sounds / name).unlink()
    assert library.sync(sounds, model=model, prune=True).missing == len(UGLY)
    assert library.stats() == {"files": 4, "windows": 6}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_name_that_is_no_unicode_counts_as_failed(sounds, library, model):
    write_tones(sounds / "x.wav", (1, 0, 0, 0)).rename(os.fsdecode(os.fsencode(sounds) + b"/caf\xe9.wav"))
    assert library.sync(sounds, model=model) == Summary(unchanged=4, failed=1)
    assert b"caf\xe9.wav,its name is not valid UTF-8" in (library.folder / "errors.csv").read_bytes()


def test_chunks_end_by_files_windows_and_time(monkeypatch):
    items = vectors(*((str(i), [0] * (1 + 8 * (i == 2))) for i in range(7)))
    monkeypatch.setattr(writing, "CHUNK_FILES", 3)
    sizes = [len(chunk) for chunk in writing._chunks(items)]
    assert sizes == [3, 3, 1]
    monkeypatch.setattr(writing, "CHUNK_WINDOWS", 9)
    assert [len(chunk) for chunk in writing._chunks(items[1:])] == [2, 3, 1]
    monkeypatch.setattr(writing, "CHUNK_SECONDS", 0.0)
    assert [len(chunk) for chunk in writing._chunks(items)] == [1] * 7


def test_progress_counts_files_to_do(library, sounds, model):
    for i in range(3):
        write_tones(sounds / f"new {i}.wav", (1, 0, 0, 0))
    calls: list[tuple] = []
    library.sync(sounds, model=model, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3, 1.0), (2, 3, 2.0), (3, 3, 3.0)]


def test_many_commits_are_compacted(tmp_path, model, monkeypatch):
    monkeypatch.setattr(writing, "CHUNK_FILES", 1)
    monkeypatch.setattr(writing, "COMPACT_COMMITS", 4)
    made = at_angles(tmp_path, model, *((str(i), [i]) for i in range(10)))
    assert made.table.lance.stats()["fragment_stats"]["num_fragments"] == 1
    assert len(made) == 10


# --- kills, readers, second writers

INDEXER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_encoding import ToneModel
from antiphon import library
from antiphon.library import table, writing
writing.CHUNK_FILES = 8
make_rows = table.rows
def rows(*args):
    print("commit", flush=True)
    time.sleep(float(sys.argv[4]))
    return make_rows(*args)
table.rows = rows
model = ToneModel(seconds=0.02)
made = library.Library.open_or_create(sys.argv[3], model=model, root=sys.argv[2])
print("start", flush=True)
made.sync(sys.argv[2], model=model, batch_size=2, progress=lambda done, *_: print(done, flush=True))
print("end", flush=True)
"""


def index_and_kill(sounds: Path, folder: Path, line: str, *, pause: float = 0.0) -> None:
    """Run an indexer in a process of its own and kill -9 it as soon as it prints `line`.

    It pauses that many seconds in every commit, after old rows went and before new ones come.
    """
    arguments = [
        sys.executable,
        "-c",
        INDEXER,
        str(Path(__file__).parents[1]),
        str(sounds),
        str(folder),
        str(pause),
    ]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for printed in process.stdout:
            if printed.strip() == line:
                process.kill()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_kill_9_at_any_moment_loses_and_doubles_nothing(tmp_path, model):
    sounds = tmp_path / "sounds"
    for i in range(60):
        write_tones(sounds / f"{i:02}.wav", *[(1, i, 0, i % 7)] * (1 + i % 3))
    whole = Library.create(tmp_path / "whole", model=model, root=sounds)
    whole.sync(sounds, model=model)
    killed = tmp_path / "killed"
    files = []
    for line in ("commit", "13", "commit"):  # in the first commit, between two, in a later one
        index_and_kill(sounds, killed, line)
        left = Library.open(killed)
        assert set(rows(left)) <= set(rows(whole))
        files.append(len(left))
        assert all(  # never half a file
            sum(row[0] == path for row in rows(left)) == sum(row[0] == path for row in rows(whole))
            for path in left.table.known()
        )
    assert files[1] >= files[0] + 8  # what was committed before the kill is there, and the run went on from there
    assert files == sorted(files)
    assert files[-1] < 60
    left = Library.open_or_create(killed, model=model, root=sounds)
    summary = left.sync(sounds, model=model)
    assert (summary.unchanged, summary.added) == (files[-1], 60 - files[-1])
    assert rows(left) == rows(whole)

    for i in range(20):
        write_tones(sounds / f"{i:02}.wav", (0, 0, 1, i))
    index_and_kill(sounds, killed, "commit", pause=30)
    assert len(left) == 60 - 8  # killed between taking old rows out and putting new ones in
    for each in (left, whole):
        each.sync(sounds, model=model)
    assert rows(left) == rows(whole)
    assert left.sync(sounds, model=model) == Summary(unchanged=60)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_20_kills_at_random_moments_lose_and_double_nothing(tmp_path, model):
    """Of a folder that changes before each: files written anew, touched, spoilt, deleted, back again."""
    folder = kills.Folder(tmp_path / "sounds", seed=0)

    def left() -> pa.Table | None:
        if not (tmp_path / "killed" / "library.json").exists():
            return None
        return Library.open(tmp_path / "killed").table.rows(["path", "start_seconds", "digest"])

    kills.outlive("library", folder, tmp_path / "killed", left)
    folder.check(left())
    whole = Library.create(tmp_path / "whole", model=model, root=folder.place)
    whole.sync(folder.place, model=model)
    killed = Library.open(tmp_path / "killed")
    assert rows(killed) == rows(whole)
    assert (killed.folder / "errors.csv").read_text() == (whole.folder / "errors.csv").read_text()
    unchanged = len(killed)
    assert killed.sync(folder.place, model=model).unchanged == unchanged


def test_a_kill_in_create_leaves_a_library_that_opens(tmp_path, library, sounds, model):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / ".library.json.part").write_text('{"form')  # killed before the card took its place
    assert len(Library.create(bare, model=model, root=sounds)) == 0
    early = tmp_path / "early"
    early.mkdir()
    (early / "library.json").write_text((library.folder / "library.json").read_text())  # ... before the table
    assert Library.open_or_create(early, model=model, root=sounds).sync(sounds, model=model).added == 4


def test_readers_go_on_while_a_writer_adds(tmp_path, sounds, model, monkeypatch):
    monkeypatch.setattr(writing, "CHUNK_FILES", 2)
    for i in range(30):
        write_tones(sounds / f"{i}.wav", (1, 0, 0, i), (0, 1, 0, 0))
    writer = Library.create(tmp_path / "library", model=model, root=sounds)
    writer.add([sounds / "low.wav"], model=model)
    reader = Library.open(writer.folder)
    counts, faults, stop = [], [], threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                counts.append(len(reader))
                assert reader.search(model=model, words="low", top=3)[0].score > 0.99
        except Exception as fault:
            faults.append(fault)

    thread = threading.Thread(target=read)
    thread.start()
    writer.sync(sounds, model=ToneModel(seconds=0.02), batch_size=2)
    stop.set()
    thread.join()
    assert faults == []
    assert counts == sorted(counts)
    assert len(set(counts)) > 2  # it saw the library grow
    assert reader.stats() == {"files": 34, "windows": 66}


@pytest.mark.skipif(os.name == "nt", reason="flock")
def test_a_second_writer_is_refused_while_the_first_writes(library, sounds, model):
    write_tones(sounds / "new.wav", (1, 0, 0, 0))
    refused = []

    def progress(done: int, total: int | None, seconds: float) -> None:
        with pytest.raises(LibraryError, match="another process") as error:
            Library.open(library.folder).sync(sounds, model=model)
        refused.append(error)

    library.sync(sounds, model=model, progress=progress)
    assert len(refused) == 1
    assert Library.open(library.folder).sync(sounds, model=model) == Summary(unchanged=5)


# --- search


def test_order_best_window_and_score_by_hand_made_vectors(tmp_path, model):
    made = at_angles(tmp_path, model, ("far", [90, 80]), ("near", [70, 10, 40]), ("middle", [30]), ("back", [180]))
    found = made.search(model=model, words="low")
    assert [Path(hit.path).name for hit in found] == ["near", "middle", "far", "back"]
    assert (found[0].path, found[0].start_seconds, found[0].end_seconds) == ("/sounds/near", 1.0, 2.0)
    assert (found[2].start_seconds, found[2].end_seconds) == (1.0, 2.0)
    assert [hit.score for hit in found] == pytest.approx(np.cos(np.deg2rad([10, 30, 80, 180])), abs=1e-6)
    assert made.search(model=model, words="low", top=2) == found[:2]


def test_without_turns_the_query_by_the_stated_weight(tmp_path, model):
    turned = -np.rad2deg(np.arctan(WITHOUT_WEIGHT))
    made = at_angles(tmp_path, model, ("plain", [0]), ("turned", [turned]), ("unwanted", [90]))
    found = made.search(model=model, words="low", without="middle")
    assert [Path(hit.path).name for hit in found] == ["turned", "plain", "unwanted"]
    assert found[0].score == pytest.approx(1, abs=1e-6)


def test_words_and_sound_have_equal_weight_and_the_sound_itself_is_left_out(library, sounds, model):
    found = library.search(model=model, like=sounds / "low.wav")
    assert sounds / "low.wav" not in [Path(hit.path) for hit in found]
    assert Path(found[0].path) == sounds / "deep" / "mixed.wav"
    found = library.search(model=model, words="middle", like=sounds / "high.wav")
    assert Path(found[0].path) == sounds / "long.wav"
    assert found[0].start_seconds == 2.0  # the window with both tones
    assert found[0].score == pytest.approx(1, abs=1e-3)


def test_like_leaves_itself_out_by_any_of_its_names(library, sounds, model, monkeypatch, tmp_path):
    (tmp_path / "link.wav").symlink_to(sounds / "low.wav")
    monkeypatch.chdir(sounds / "deep")
    for name in ("../low.wav", Path("../deep/../low.wav"), tmp_path / "link.wav"):
        found = library.search(model=model, like=name)
        assert len(found) == 3
        assert sounds / "low.wav" not in [Path(hit.path) for hit in found]


def test_a_file_of_very_many_windows_does_not_crowd_out_the_others(tmp_path, model):
    made = at_angles(tmp_path, model, ("long", [0.01 * i for i in range(3000)]), ("b", [60]), ("c", [50]))
    found = made.search(model=model, words="low", top=3)
    assert [Path(hit.path).name for hit in found] == ["long", "c", "b"]
    assert [Path(hit.path).name for hit in made.search(model=model, words="low", top=1)] == ["long"]
    assert len(made.search(model=model, words="low", top=99)) == 3


def test_search_equals_a_plain_reference(tmp_path, model):
    random = np.random.default_rng(0)
    angles = {str(i): list(random.uniform(0, 360, random.integers(1, 9))) for i in range(200)}
    made = at_angles(tmp_path, model, *angles.items())
    best = {name: np.cos(np.deg2rad(turned)).max() for name, turned in angles.items()}
    wanted = sorted(best, key=lambda name: -best[name])[:25]
    found = made.search(model=model, words="low", top=25)
    np.testing.assert_allclose([hit.score for hit in found], [best[name] for name in wanted], atol=1e-6)
    assert {Path(hit.path).name for hit in found} == set(wanted)


# --- refusals


def test_search_says_what_is_missing(library, sounds, model, tmp_path):
    for query in ({}, {"words": "  "}, {"without": "low"}):
        with pytest.raises(LibraryError, match="nothing to search for"):
            library.search(model=model, **query)
    with pytest.raises(LibraryError, match="top=0"):
        library.search(model=model, words="low", top=0)
    with pytest.raises(LibraryError, match="cancel out"):
        library.search(model=model, words="unknown")
    with pytest.raises(AudioError, match=r"nowhere\.wav"):
        library.search(model=model, like=sounds / "nowhere.wav")
    with pytest.raises(LibraryError, match=r"empty.*antiphon index"):
        Library.create(tmp_path / "none", model=model, root=sounds).search(model=model, words="low")


def test_another_models_library_is_refused_everywhere(library, sounds):
    other = ToneModel(name="other")
    for act in (
        lambda: library.sync(sounds, model=other),
        lambda: library.add([sounds / "low.wav"], model=other),
        lambda: library.search(model=other, words="low"),
        lambda: Library.open_or_create(library.folder, model=other, root=sounds),
    ):
        with pytest.raises(LibraryError, match=r"made with model '/models/tones'.*use that model.*new folder"):
            act()
    assert library.stats() == {"files": 4, "windows": 6}


def test_folders_that_do_not_serve(tmp_path, sounds, library, model):
    silent = tmp_path / "silent"
    silent.mkdir()
    with pytest.raises(DataError, match="no sound files"):
        library.sync(silent, model=model)
    with pytest.raises(DataError, match="nowhere"):
        library.sync(tmp_path / "nowhere", model=model)
    (silent / "a.wav").touch()
    with pytest.raises(DataError, match=r"none of the 1 .*errors\.csv"):
        library.sync(silent, model=model)
    assert "a.wav" in (library.folder / "errors.csv").read_text()


def test_folders_that_are_no_library(tmp_path, sounds, library, model):
    with pytest.raises(LibraryError, match="not a library"):
        Library.open(sounds)
    with pytest.raises(LibraryError, match="not a library"):
        Library.open(tmp_path / "nowhere")
    with pytest.raises(LibraryError, match="holds other files"):
        Library.create(sounds, model=model, root=sounds)
    with pytest.raises(LibraryError, match="holds a library already"):
        Library.create(library.folder, model=model, root=sounds)
    below_a_file = sounds / "low.wav" / "library"  # even root cannot write there
    with pytest.raises(LibraryError, match="cannot make a library"):
        Library.create(below_a_file, model=model, root=sounds)
    with pytest.raises(LibraryError, match="not a library"):
        Library.open(below_a_file)


@pytest.mark.parametrize(
    ("text", "message"), [('{"form', "cannot read"), ("{}", "cannot read"), ('{"format": 99}', "format 99")]
)
def test_a_card_that_cannot_be_used(library, text, message):
    (library.folder / "library.json").write_text(text)
    with pytest.raises(LibraryError, match=message):
        Library.open(library.folder)


def test_a_damaged_table_and_a_vanished_one_are_library_errors(library, sounds, model):
    for manifest in (library.folder / "windows.lance" / "_versions").iterdir():
        manifest.write_bytes(b"junk")
    with pytest.raises(LibraryError, match="cannot open the table"):
        Library.open(library.folder)


def test_without_the_extra_the_message_names_it(library, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(MissingExtraError, match=r"antiphon\[library\]"):
        Library.open(library.folder)

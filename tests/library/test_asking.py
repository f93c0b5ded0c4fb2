"""A library that is asked: examples, filters, diversity, several in one folder, states, and many askers at once."""

import threading
from pathlib import Path

import numpy as np
import pytest

from antiphon import library as room
from antiphon.errors import AudioError, LibraryError
from antiphon.library import Example, Library, Summary, writing
from antiphon.library import library as library_module
from antiphon.library.view import View
from library.toys import Toy, file, library_of, names, units
from test_encoding import ToneModel, write_tones

pytest.importorskip("lancedb")
SAID = {name: np.eye(4)[i] for i, name in enumerate(("low", "middle", "high", "top"))}


@pytest.fixture
def model() -> Toy:
    return Toy(said=SAID)


@pytest.fixture
def sounds(tmp_path) -> Path:
    """One file for each tone, one with two at once, one with three after each other; a table that tells of them."""
    folder = tmp_path / "sounds"
    for i, name in enumerate(SAID):
        write_tones(folder / f"{name}.wav", tuple(np.eye(4)[i]))
    write_tones(folder / "both.wav", (1, 0, 1, 0))
    write_tones(folder / "long.wav", (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1))
    lines = ["path,mood,stars", "low.wav,dark,1", "high.wav,bright,4", "both.wav,Dark blue,5", "top.wav,it's odd,2.5"]
    (folder / "about.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def library(tmp_path, sounds, model) -> Library:
    made = Library.create(tmp_path / "library", model=model, root=sounds)
    made.sync([sounds, sounds / "about.csv"], model=model)
    model.batches.clear()
    return made


# --- by example


def test_several_examples_ask_for_what_fits_all_and_come_not_themselves(library, sounds, model):
    found = library.search(model=model, like=[sounds / "low.wav", str(sounds / "high.wav")])
    assert names(found)[0] == "both.wav"
    assert found[0].score == pytest.approx(1, abs=1e-3)
    assert not {"low.wav", "high.wav"} & set(names(found))
    assert len(found) == 4
    heavy = library.search(model=model, like=[sounds / "both.wav", Example(sounds / "top.wav", weight=100)])
    assert (names(heavy)[0], heavy[0].start_seconds) == ("long.wav", 2.0)
    none = library.search(model=model, like=[Example(sounds / "top.wav", weight=0), sounds / "both.wav"])
    assert set(names(none)[:2]) == {"low.wav", "high.wav"} or none[0].score == pytest.approx(0.5**0.5, abs=1e-3)


def test_an_example_in_the_library_is_not_decoded_under_any_of_its_names(library, sounds, model, tmp_path, monkeypatch):
    monkeypatch.chdir(sounds)
    (tmp_path / "link.wav").symlink_to(sounds / "long.wav")
    (known,) = [hit for hit in library.search(model=model, words="top", top=9) if names([hit]) == ["long.wav"]]
    model.batches.clear()
    model.heard = 0
    for name in (sounds / "long.wav", "long.wav", "../sounds/long.wav", tmp_path / "link.wav", known.id):
        query = library.query(model=model, like=Example(name, 1.0, 2.0))
        np.testing.assert_allclose(query, [0, 1, 0, 0], atol=2e-3)
        query = library.query(model=model, like=name)
        np.testing.assert_allclose(query, units([1, 1, 0, 1])[0], atol=2e-3)
        assert "long.wav" not in names(library.search(model=model, like=Example(name, 1.0, 2.0), top=99))
    (sounds / "long.wav").unlink()  # nobody opens it
    assert names(library.search(model=model, like=known.id, top=1)) != ["long.wav"]
    assert (model.heard, model.batches) == (0, [])


def test_an_example_that_is_not_in_the_library_is_decoded_once(library, sounds, model, tmp_path):
    new = write_tones(tmp_path / "new.wav", (0, 0, 1, 0), (0, 1, 0, 0))
    model.heard = 0
    found = library.search(model=model, like=Example(new, 0.0, 1.0), top=1)
    assert (names(found), model.heard) == (["high.wav"], 1)
    assert names(library.search(model=model, like=Example(new, 1.0), top=1)) in (["middle.wav"], ["long.wav"])
    with pytest.raises(AudioError, match="gone"):
        library.search(model=model, like=sounds / "gone.wav")


def test_an_example_can_be_a_vector(library, model):
    found = library.search(model=model, like=Example(np.array([0.1, 0, 5, 0], np.float32)), top=2)
    assert names(found) == ["high.wav", "both.wav"]
    with pytest.raises(LibraryError, match=r"shape \(3,\) came"):
        library.search(model=model, like=Example(np.ones(3, np.float32)))


def test_unlike_and_several_withouts(library, sounds, model):
    plain = {hit.path: hit.score for hit in library.search(model=model, words="low", top=9)}
    turned = {
        hit.path: hit.score for hit in library.search(model=model, words="low", unlike=sounds / "high.wav", top=9)
    }
    assert set(turned) == set(plain)  # what is unwanted is not left out but sinks
    both = str(sounds / "both.wav")
    assert plain[both] == pytest.approx(0.5**0.5, abs=1e-3)
    assert turned[both] < 0.6 * plain[both]
    query = library.query(model=model, words="low", without=["middle", "top"])
    np.testing.assert_allclose(query, units([1, -0.5, 0, -0.5])[0], atol=1e-6)
    query = library.query(model=model, words=["low", "middle"], unlike=[sounds / "high.wav", sounds / "top.wav"])
    assert query[0] == pytest.approx(query[1], abs=1e-3)
    assert query[2] == pytest.approx(query[3], abs=1e-3)
    assert query[2] < 0


def test_weights_of_words_and_sounds(library, sounds, model):
    like = sounds / "high.wav"
    asked = {"words": "top", "like": like, "model": model}
    np.testing.assert_allclose(library.query(**asked, like_weight=0), [0, 0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(library.query(**asked, words_weight=0), [0, 0, 1, 0], atol=2e-3)
    np.testing.assert_allclose(library.query(**asked, like_weight=1e5), [0, 0, 1, 0], atol=2e-3)
    heavy = library.search(**asked, like_weight=1e5)
    assert names(heavy)[0] == "both.wav"
    text, sound = np.eye(4, dtype=np.float32)[3], library.query(model=model, like=like)
    rows = np.stack([row for name in library.table.known() for row in library.file(name).vectors])
    apart = [(rows @ part).std() for part in (text, sound)]
    np.testing.assert_allclose(library.query(**asked), units(text / apart[0] + sound / apart[1])[0], atol=1e-5)


# --- filters


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("mood = 'dark'", {"low.wav"}),
        ("mood = 'it''s odd'", {"top.wav"}),
        ("lower(mood) LIKE 'dark%' AND stars >= 1", {"low.wav", "both.wav"}),
        ("stars > 2 AND stars < 4.5", {"high.wav", "top.wav"}),
        ("stars IS NULL", {"middle.wav", "long.wav"}),
        ("path LIKE '%/long.wav'", {"long.wav"}),
        ("seconds > 2 OR mood = 'bright'", {"long.wav", "high.wav"}),
        ("start_seconds > 1", {"long.wav"}),
        ("stars > 99", set()),
        ("", {"low.wav", "middle.wav", "high.wav", "top.wav", "both.wav", "long.wav"}),
    ],
)
def test_filters_over_its_own_columns_and_a_manifests(library, model, where, kept):
    for by in ("moment", "file", "window"):
        for diversity in (0, 0.5):
            found = library.search(model=model, words="low", where=where, by=by, diversity=diversity, top=20)
            assert set(names(found)) == kept
    if where == "start_seconds > 1":
        assert found[0].start_seconds == 2.0
        assert library.search(model=model, words="low", where=where)[0].score == pytest.approx(0, abs=1e-3)


def test_hits_bring_what_is_known(library, model):
    hits = {names([hit])[0]: hit for hit in library.search(model=model, words="low", top=9)}
    assert hits["both.wav"].tags == {"mood": "Dark blue", "stars": 5.0}
    assert hits["long.wav"].tags == {}
    assert hits["long.wav"].seconds == 3.0
    known = library.file(hits["both.wav"].id)
    assert known is not None
    assert (known.path, known.tags) == (hits["both.wav"].path, hits["both.wav"].tags)
    assert known.peaks is not None
    assert known.peaks.shape == (1, 64)
    assert library.file("0" * 16) is None


@pytest.mark.parametrize(
    "where",
    [
        "nosuch = 1",
        "stars >",
        "stars > 'x'",
        "mood",
        "nosuch(mood) = 1",
        "path = 'x",
        "count(*) > 1",
        "vector > 1",
        "a.b = 1",
        "  ",
        "\x00",
        "CAST(mood AS INT) > 1",
        "DROP TABLE windows",
        "(SELECT 1) = 1",
    ],
)
def test_a_filter_that_is_none_is_told_in_one_line(library, model, where):
    with pytest.raises(LibraryError) as error:
        library.search(model=model, words="low", where=where)
    said = str(error.value)
    assert len(said.splitlines()) == 1
    assert f"where={where!r} is no filter for this library (" in said
    assert "over the columns id, path, start_seconds, end_seconds, seconds, size, mtime_ns, title, artist" in said
    assert said.endswith("bpm, year, mood, stars")
    for inner in (".rs", "/root", ".lance", "lance-", "{", "Valid fields", "digest", "peaks", str(library.folder)):
        assert inner not in said.replace(repr(where), "")


def test_columns_and_values(library):
    columns = library.columns()
    assert {name: columns[name] for name in ("path", "mood", "stars", "bpm", "seconds", "title")} == {
        "path": "text",
        "mood": "text",
        "stars": "number",
        "bpm": "number",
        "seconds": "number",
        "title": "text",
    }
    assert not {"vector", "peaks", "digest"} & set(columns)
    assert library.values("mood") == ["Dark blue", "bright", "dark", "it's odd"]
    assert library.values("mood", prefix="DARK") == ["Dark blue", "dark"]
    assert library.values("mood", most=1) == ["Dark blue"]
    assert library.values("mood", prefix="%") == [] == library.values("artist")
    assert len(library.values("path")) == 6
    for column in ("stars", "nosuch", "vector", "digest"):
        with pytest.raises(LibraryError, match=rf"'{column}' holds no text here; these do: .*mood"):
            library.values(column)


# --- what comes back


def test_ten_takes_of_one_hit_do_not_fill_the_page(tmp_path):
    random = np.random.default_rng(0)
    query = units(np.eye(16)[0])[0]
    takes = [file(f"take {i}.wav", np.eye(16)[0] + 0.3 * np.eye(16)[1]) for i in range(10)]
    others = [file(f"{i}.wav", 1.5 * np.eye(16)[0] + random.normal(size=16) / 2) for i in range(60)]
    made = library_of(tmp_path / "library", Toy(16), [*takes, *others])

    def takes_shown(**options) -> int:
        return sum(name.startswith("take") for name in names(made.nearest(query, top=10, **options)))

    assert takes_shown() == 10
    assert takes_shown(diversity=0.7) == 1
    for by in ("moment", "window", "file"):
        shown = made.nearest(query, top=10, by=by, diversity=0.7)
        assert shown[0] == made.nearest(query, top=10, by=by)[0]
        assert len({hit.path for hit in shown}) == 10
    assert takes_shown(diversity=0.3) >= takes_shown(diversity=0.7)
    assert len(made.nearest(query, top=500, diversity=0.5)) == 70


def test_by_moment_window_and_file(library, model, sounds):
    query = library.query(model=model, words=["low", "middle", "top"])
    files = library.nearest(query, by="file", top=99)
    assert names(files)[0] == "long.wav"
    assert files[0].score == pytest.approx(1, abs=1e-3)  # the mean of its windows is what is asked for
    moments = library.nearest(query, top=99)
    assert len(moments) == len(files) == 6
    assert max(hit.score for hit in moments) == pytest.approx(3**-0.5, abs=1e-3)
    windows = library.nearest(query, by="window", top=99)
    assert len(windows) == 8
    assert sorted(hit.start_seconds for hit in windows if names([hit]) == ["long.wav"]) == [0, 1, 2]
    for hits, total in ((files, 6), (moments, 6), (windows, 8)):
        scores = np.array([hit.score for hit in hits])
        assert (np.diff(scores) <= 0).all()
        below = [100 * (scores < hit.score - 1e-6).sum() / total for hit in hits]
        assert [hit.percentile for hit in hits] == pytest.approx(below, abs=100 * 4 / total)
    assert files[0].percentile == pytest.approx(100 * 5 / 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top=0"),
        ({"diversity": -0.1}, r"diversity=-0\.1"),
        ({"diversity": 1.1}, "diversity from 0 to 1"),
        ({"diversity": float("nan")}, "diversity=nan"),
    ],
)
def test_numbers_that_do_not_serve(library, options, message):
    with pytest.raises(LibraryError, match=message):
        library.nearest(np.eye(4, dtype=np.float32)[0], **options)


@pytest.mark.parametrize("vector", [np.ones(3), np.zeros(0), np.full(4, np.nan), np.array([1, 0, 0, np.inf])])
def test_vectors_that_do_not_serve(library, vector):
    with pytest.raises(LibraryError, match=r"a vector of shape .* came; 4 finite numbers are needed"):
        library.nearest(vector.astype(np.float32))


# --- several in one folder


def test_several_libraries_in_one_folder(tmp_path, sounds, model):
    place = tmp_path / "libraries"
    assert Library.names(place) == []
    for name, of in (("tones", model), ("others", ToneModel(name="other"))):
        made = Library.create(place / name, model=of, root=sounds)
        made.sync(sounds / "low.wav", model=of)
    (place / "notes").mkdir()
    assert Library.names(place) == ["others", "tones"]
    assert Library.names(place / "tones") == ["tones"]
    assert Library.names(str(place / "tones") + "/") == ["tones"]
    opened = Library.open(place, "tones")
    assert names(opened.search(model=model, words="low")) == ["low.wav"]
    assert Library.open(place, name="others").card.model_fingerprint != opened.card.model_fingerprint
    assert Library.open(place / "tones").location == opened.location == Library.open(place / "tones", "tones").location
    with pytest.raises(LibraryError, match=r"use that model"):
        Library.open(place, "others").search(model=model, words="low")
    with pytest.raises(LibraryError, match=r"holds several libraries: name one of others, tones"):
        Library.open(place)
    for name in ("nosuch", "notes", "../libraries/tones", ".", ""):
        with pytest.raises(LibraryError, match=r"holds no library '.*'; it holds others, tones"):
            Library.open(place, name)
    with pytest.raises(LibraryError, match=r"holds no library 'x'; it holds none"):
        Library.open(tmp_path / "nowhere", "x")
    with pytest.raises(LibraryError, match=r"holds no library 'others'; it holds tones"):
        Library.open(place / "tones", "others")


def test_the_only_library_in_a_folder_is_meant(tmp_path, sounds, model):
    Library.create(tmp_path / "libraries" / "tones", model=model, root=sounds)
    assert Library.open(tmp_path / "libraries").location == str(tmp_path / "libraries" / "tones")
    with pytest.raises(LibraryError, match="holds other files"):
        Library.open_or_create(tmp_path / "libraries", model=model, root=sounds)


# --- states


def test_rollback_and_its_undoing(tmp_path, model):
    made = library_of(tmp_path / "library", model, [file("a", [[1, 0, 0, 0]] * 3), file("b", [0, 1, 0, 0])])
    other = Library.open(made.folder)
    before = made.version
    made.add([file("c", [0, 0, 1, 0]), file("a", [0, 0, 0, 1])], model=model)
    after = made.version
    assert after > before
    assert made.stats() == {"files": 3, "windows": 3}
    numbers = [one.version for one in made.versions()]
    assert numbers == sorted(numbers)
    assert {before, after} <= set(numbers)
    by_number = {one.version: one.windows for one in made.versions()}
    assert by_number[before] in (4, None)
    made.rollback(before)
    for each in (made, other):
        assert each.stats() == {"files": 2, "windows": 4}
        assert names(each.search(model=model, words="low")) == ["a", "b"]
        assert "/sounds/c" not in each
    assert made.version > after  # a rollback is a state of its own
    made.rollback(after)
    assert other.stats() == {"files": 3, "windows": 3}
    assert names(other.search(model=model, words="high"))[0] == "c"
    for number in (0, -1, 10_000):
        with pytest.raises(LibraryError, match=rf"has no version {number}; it has 1 to \d+"):
            made.rollback(number)
    made.rollback(before)
    assert made.add([file("d", [0, 0, 1, 0])], model=model) == Summary(added=1, windows=1)  # goes on from there
    assert made.stats() == {"files": 3, "windows": 5}


def test_rollback_before_a_column_came(library, sounds, model, tmp_path):
    made = Library.create(tmp_path / "plain", model=model, root=sounds)
    made.sync(sounds, model=model)
    before = made.version
    (sounds / "new.csv").write_text("path,colour\nlow.wav,red\n")
    write_tones(sounds / "low.wav", (1, 0, 0, 0), (1, 0, 0, 0))
    made.sync(sounds / "new.csv", model=model)
    assert made.values("colour") == ["red"]
    made.rollback(before)
    assert "colour" not in made.columns()
    assert len(made.search(model=model, words="low")) == 6
    with pytest.raises(LibraryError, match="colour"):
        made.search(model=model, words="low", where="colour = 'red'")


def test_remove_files_and_folders(tmp_path, model):
    paths = ["a/1", "a/2", "a/deep/3", "ab/4", "it's/5", "c%/6", "cx/7"]
    made = library_of(tmp_path / "library", model, [file(path, [[1, 0, 0, 0]] * 2) for path in paths])
    version = made.version
    assert made.remove("/sounds/nosuch") == 0
    assert made.remove([]) == 0
    assert made.version == version
    assert made.remove("/sounds/a") == 3  # and not what begins alike
    assert made.remove(Path("/sounds/it's/5")) == 1
    assert made.remove(iter(["/sounds/c%/", "/sounds/c%/6", "/sounds/gone"])) == 1
    assert sorted(made.table.known()) == ["/sounds/ab/4", "/sounds/cx/7"]
    assert made.stats() == {"files": 2, "windows": 4}
    assert set(names(made.search(model=model, words="low"))) == {"4", "7"}
    assert made.remove("/") == 2
    with pytest.raises(LibraryError, match="empty"):
        made.search(model=model, words="low")


def test_removed_files_stay_on_the_disk(library, sounds, model):
    assert library.remove(sounds) == 6
    assert (sounds / "low.wav").exists()
    assert library.sync(sounds, model=model).added == 6


# --- many askers


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "antiphon-library"]


def test_with_patience_the_old_view_answers_while_the_new_one_is_read(tmp_path, model, monkeypatch):
    made = library_of(tmp_path / "library", model, [file("a", [1, 0, 0, 0])])
    reader = Library.open(made.folder, patience_seconds=1000)
    eager = Library.open(made.folder)
    assert names(reader.search(model=model, words="low")) == ["a"]
    made.add([file("b", [1, 1, 0, 0])], model=model)
    assert names(eager.search(model=model, words="low")) == ["a", "b"]
    assert names(reader.search(model=model, words="low")) == ["a"]  # it has not looked again
    assert reading_threads() == []
    plain, may_go, loads = View.load, threading.Event(), []

    def load(table, version):
        loads.append(version)
        assert may_go.wait(60)
        return plain(table, version)

    monkeypatch.setattr(library_module.View, "load", load)
    reader._looked -= 2000
    for _ in range(3):
        assert names(reader.search(model=model, words="low")) == ["a"]  # at once: the new one waits to be read
    (reading,) = reading_threads()
    may_go.set()
    reading.join(60)
    assert loads == [made.version]
    assert names(reader.search(model=model, words="low")) == ["a", "b"]
    assert reading_threads() == []


def test_where_the_new_version_cannot_be_read_the_old_one_answers_on(tmp_path, model, monkeypatch):
    made = library_of(tmp_path / "library", model, [file("a", [1, 0, 0, 0])])
    reader = Library.open(made.folder, patience_seconds=1000)
    assert names(reader.search(model=model, words="low")) == ["a"]
    made.add([file("b", [1, 1, 0, 0])], model=model)
    tried = []

    def fails(*_):
        tried.append(1)
        raise LibraryError("the share is down")

    with monkeypatch.context() as patch:
        patch.setattr(library_module.View, "load", fails)
        for times in (1, 2):
            reader._looked -= 2000
            assert names(reader.search(model=model, words="low")) == ["a"]
            for thread in reading_threads():  # it ends quietly: an exception in it would fail the test
                thread.join(60)
            assert len(tried) == times
            assert names(reader.search(model=model, words="low")) == ["a"]
            assert len(tried) == times  # not again before its time
    reader._looked -= 2000
    reader.search(model=model, words="low")
    for thread in reading_threads():
        thread.join(60)
    assert names(reader.search(model=model, words="low")) == ["a", "b"]


def test_an_empty_library_with_patience_is_looked_at_again(tmp_path, model):
    made = library_of(tmp_path / "library", model, [])
    reader = Library.open(made.folder, patience_seconds=1000)
    with pytest.raises(LibraryError, match="empty"):
        reader.search(model=model, words="low")
    assert reader.file("x") is None
    made.add([file("b", [1, 1, 0, 0])], model=model)
    reader._looked -= 2000
    with pytest.raises(LibraryError, match="empty"):
        reader.search(model=model, words="low")
    for thread in reading_threads():
        thread.join(60)
    assert names(reader.search(model=model, words="low")) == ["b"]


@pytest.mark.parametrize("exact_below", [library_module.EXACT_BELOW, 100])
def test_threads_search_while_a_writer_adds(tmp_path, model, monkeypatch, exact_below):
    monkeypatch.setattr(writing, "CHUNK_FILES", 20)
    monkeypatch.setattr(library_module, "EXACT_BELOW", exact_below)
    random = np.random.default_rng(0)
    made = library_of(tmp_path / "library", model, [file("first", [1, 0, 0, 0], bpm=50.0)])
    reader, faults, seen = Library.open(made.folder), [], [[], []]
    removing, stop = threading.Event(), threading.Event()

    def read(own: list[int], by: str) -> None:
        try:
            while not stop.is_set():
                hits = reader.search(model=model, words="low", top=1000, by=by, diversity=0.1 * (by == "file"))
                assert hits[0].path == "/sounds/first"
                if not removing.is_set():
                    own.append(len(hits))
                assert names(reader.search(model=model, words="low", where="bpm < 60")) == ["first"]
                known = reader.file(hits[-1].id)
                if known is None:
                    assert removing.is_set()
                else:
                    assert len(known.vectors) == (1 if known.path == "/sounds/first" else 2)  # never half a file
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=read, args=(own, by)) for own, by in zip(seen, ("moment", "file"), strict=True)]
    for thread in threads:
        thread.start()
    for turn in range(5):
        rows = units(np.concatenate([np.zeros((40, 1)), random.normal(size=(40, 3))], axis=1))
        made.add([file(f"{turn} {i}", [row, row], bpm=100.0) for i, row in enumerate(rows)], model=model)
    removing.set()
    made.remove([f"/sounds/4 {i}" for i in range(40)])
    stop.set()
    for thread in threads:
        thread.join(60)
    assert faults == []
    for own in seen:
        assert own == sorted(own)
        assert own
    assert len(reader.search(model=model, words="low", top=1000)) == 161


def test_the_room_names_what_others_use():
    assert sorted(room.__all__) == room.__all__
    assert all(hasattr(room, name) for name in room.__all__)

"""What other tools read of a library: Parquet, NumPy, FAISS, and playlists."""

import json
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from antiphon.errors import LibraryError
from antiphon.library import Hit, Library, exports, writing
from library.toys import Toy, file, library_of

pytest.importorskip("lancedb")


@pytest.fixture
def library(tmp_path, monkeypatch) -> Library:
    """40 files in several commits, three windows each, one with odd letters in name and tags."""
    monkeypatch.setattr(writing, "CHUNK_FILES", 7)
    random = np.random.default_rng(0)
    files = [file(f"{i:02}.wav", random.normal(size=(3, 4)), bpm=100.0 + i) for i in range(39)]
    files.append(file('it\'s "音".wav', random.normal(size=(3, 4)), title="Größe, 'x'", comment="a\nb"))
    return library_of(tmp_path / "library", Toy(), files)


def test_parquet_there_and_back(library, tmp_path):
    path = library.export(tmp_path / "out.parquet")
    assert path == tmp_path / "out.parquet"
    found = pq.read_table(path)
    assert json.loads(found.schema.metadata[b"antiphon"]) == asdict(library.card)
    assert found.column_names == library.table.schema().names
    rows = {(row["path"], row["start_seconds"]): row for row in found.to_pylist()}
    assert len(rows) == 120
    for row in library.table.rows(library.table.schema().names).to_pylist():
        assert rows[row["path"], row["start_seconds"]] == row
    odd = rows['/sounds/it\'s "音".wav', 2.0]
    assert (odd["title"], odd["comment"], odd["bpm"], odd["end_seconds"]) == ("Größe, 'x'", "a\nb", None, 3.0)


def test_numpy_without_pickles(library, tmp_path):
    library.export(tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert sorted(found) == ["ends", "paths", "starts", "vectors"]
        assert (found["vectors"].shape, found["vectors"].dtype) == ((120, 4), np.float32)
        np.testing.assert_array_equal(found["ends"] - found["starts"], 1)
        for place in (0, 60, 119):
            known = library.file(str(found["paths"][place]))
            assert known is not None
            np.testing.assert_array_equal(known.vectors[int(found["starts"][place])], found["vectors"][place])
        assert '/sounds/it\'s "音".wav' in found["paths"]


def test_faiss_gives_the_same_neighbours_and_its_rows_are_the_parquet_files(library, tmp_path):
    faiss = pytest.importorskip("faiss")
    library.export(tmp_path / "out.faiss")
    index, rows = faiss.read_index(str(tmp_path / "out.faiss")), pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert index.ntotal == len(rows) == 120
    for place in (0, 55, 119):
        np.testing.assert_array_equal(index.reconstruct(place), np.float32(rows[place]["vector"]))
    query = np.float32([0.5, -0.5, 0.5, 0.5])
    scores, places = index.search(query[None], 15)
    hits = library.nearest(query, top=15, by="window")
    assert [(rows[i]["path"], rows[i]["start_seconds"]) for i in places[0]] == [
        (hit.path, hit.start_seconds) for hit in hits
    ]
    np.testing.assert_allclose(scores[0], [hit.score for hit in hits], atol=1e-6)


def test_faiss_and_its_parquet_are_of_one_state_while_a_writer_adds(library, tmp_path, monkeypatch):
    faiss = pytest.importorskip("faiss")
    plain = exports._faiss

    def then_one_comes(*args) -> None:
        plain(*args)
        library.remove("/sounds/00.wav")
        library.add([file("late.wav", [1, 0, 0, 0])], model=Toy())

    monkeypatch.setattr(exports, "_faiss", then_one_comes)
    library.export(tmp_path / "out.faiss")
    index, rows = faiss.read_index(str(tmp_path / "out.faiss")), pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert index.ntotal == len(rows) == 120
    assert "/sounds/late.wav" not in [row["path"] for row in rows]
    assert "/sounds/late.wav" in library


@pytest.mark.parametrize("kind", ["parquet", "numpy", "faiss"])
def test_an_empty_library_and_a_place_that_cannot_be_written(library, tmp_path, kind):
    if kind == "faiss":
        pytest.importorskip("faiss")
    name = f"x{exports.SUFFIXES[kind]}"
    with pytest.raises(LibraryError, match=r"cannot write '.*nowhere.*': choose another place|cannot write"):
        library.export(tmp_path / "nowhere" / name)
    (tmp_path / name).mkdir()
    with pytest.raises(LibraryError, match="cannot write"):
        library.export(tmp_path / name)
    empty = library_of(tmp_path / "empty", Toy(), [])
    assert empty.export(tmp_path / "of none", to=kind).stat().st_size > 0
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_the_kind_goes_by_to_or_by_the_suffix(library, tmp_path):
    library.export(str(tmp_path / "A.NPZ"))
    assert np.load(tmp_path / "A.NPZ")["vectors"].shape == (120, 4)
    assert pq.read_table(library.export(tmp_path / "b.data", to="parquet")).num_rows == 120
    for name, to in (("c.csv", None), ("c", None), ("c.parquet", "csv"), ("c.parquet", "faiss")):
        with pytest.raises(LibraryError, match=r"cannot export to .*parquet, numpy, faiss"):
            library.export(tmp_path / name, to=to)
    assert not list(tmp_path.glob("c*"))


def test_an_export_that_breaks_leaves_the_old_file(library, tmp_path, monkeypatch):
    (tmp_path / "x.npz").write_text("old")
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(LibraryError, match="No space left on device"):
        library.export(tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_text() == "old"
    assert not list(tmp_path.glob(".*part"))


# --- playlists


def hit(path: str, seconds: float = 1.0, **tags: str) -> Hit:
    return Hit("0" * 16, path, 0.0, 1.0, 0.5, 50.0, seconds, tags)


def test_a_playlist_with_odd_names(tmp_path):
    hits = [
        hit("/sounds/plain.wav", 12.6),
        hit("/sounds/x.wav", 0.2, title="Größe", artist="Ada"),
        hit("/sounds/y.wav", title="two\nlines\r\n#EXTM3U", artist="B"),
        hit("/sounds/two\nlines,\r#1 音.wav"),
        hit("s3://bucket/z.wav", artist="C"),
    ]
    text = exports.playlist(hits)
    assert text == (
        "#EXTM3U\n"
        "#EXTINF:13,plain\n/sounds/plain.wav\n"
        "#EXTINF:0,Ada - Größe\n/sounds/x.wav\n"
        "#EXTINF:1,B - two lines #EXTM3U\n/sounds/y.wav\n"
        "#EXTINF:1,two lines, #1 音\n/sounds/two%0Alines,%0D#1 音.wav\n"
        "#EXTINF:1,C - z\ns3://bucket/z.wav\n"
    )
    exports.write_playlist(hits, tmp_path / "list.m3u8")
    assert (tmp_path / "list.m3u8").read_bytes() == text.encode()
    paths = [line for line in text.splitlines() if not line.startswith("#")]
    assert paths[:3] == [one.path for one in hits[:3]]
    assert exports.playlist([]) == "#EXTM3U\n"
    with pytest.raises(LibraryError, match="cannot write"):
        exports.write_playlist(hits, tmp_path / "nowhere" / "list.m3u8")


def test_two_exports_at_once(library, tmp_path):
    threads = [
        threading.Thread(target=library.export, args=(tmp_path / name,)) for name in ("a.parquet", "b.npz", "c.parquet")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pq.read_table(tmp_path / "a.parquet").equals(pq.read_table(tmp_path / "c.parquet"))
    assert Path(tmp_path / "b.npz").exists()

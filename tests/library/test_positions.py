"""The map: the same each time, like beside like, and files that come later move nothing."""

import zipfile

import numpy as np
import pytest

from antiphon.encoding import Embedded
from antiphon.library import Library, positions
from library.toys import Toy, file, library_of

pytest.importorskip("lancedb")
pytest.importorskip("sklearn")
DIM = 8


def three_kinds(count: int = 20, *, first: int = 0) -> list[Embedded]:
    """Files of three well separated kinds, a quarter of a cosine apart from a direction that all share."""
    random = np.random.default_rng(first)
    made = []
    for i in range(first, first + count):
        for kind in range(3):
            rows = 2 * np.eye(DIM)[7] + np.eye(DIM)[kind] + 0.05 * random.normal(size=(1 + i % 3, DIM))
            made.append(file(f"{'abc'[kind]}{i:02}.wav", rows))
    return made


@pytest.fixture
def library(tmp_path) -> Library:
    return library_of(tmp_path / "library", Toy(DIM), three_kinds())


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """In place of t-SNE, which takes its time, two of the axes; how many landmarks each map was made of."""
    calls: list[int] = []

    def embedded(vectors):
        calls.append(len(vectors))
        return (0.5 + 0.4 * vectors[:, :2]).astype(np.float32)

    monkeypatch.setattr(positions, "_embedded", embedded)
    return calls


def mapped(library: Library, **options) -> dict[str, np.ndarray]:
    """Places by the file's name."""
    ids, places = library.positions(**options)
    found = {}
    for id, place in zip(ids, places, strict=True):
        known = library.file(id)
        assert known is not None
        found[known.path.removeprefix("/sounds/")] = place
    return found


def test_like_lies_beside_like_within_the_square_and_the_same_each_time(library):
    ids, places = library.positions()
    assert (len(ids), places.shape, places.dtype) == (60, (60, 2), np.float32)
    assert ids == sorted(set(ids))
    assert places.min() >= 0
    assert places.max() <= 1
    assert np.ptp(places, axis=0).min() > 0.5  # the room is used
    assert len(np.unique(places, axis=0)) == 60
    found = mapped(library)
    of_kind = {kind: np.stack([place for name, place in found.items() if name[0] == kind]) for kind in "abc"}
    for name, place in found.items():
        far = {kind: np.linalg.norm(others - place, axis=1) for kind, others in of_kind.items()}
        near = min(np.sort(distances)[0] for kind, distances in far.items() if kind != name[0])
        assert np.sort(far[name[0]])[1] < near  # the nearest other is of its kind; 0 is itself
    again = library_of(library.folder.parent / "again", Toy(DIM), three_kinds())
    np.testing.assert_array_equal(again.positions()[1], places)
    np.testing.assert_array_equal(library.positions()[1], places)  # from what was kept


def test_files_that_come_later_lie_with_their_like_and_move_nothing(library, monkeypatch):
    before = mapped(library)
    library.add(three_kinds(4, first=90), model=Toy(DIM))
    library.add([file("d.wav", np.eye(DIM)[5])], model=Toy(DIM))  # unlike all: it shifts the mean of the library
    monkeypatch.setattr(positions, "_embedded", None)  # nothing is made anew
    after = mapped(library)
    assert len(after) == 73
    for name, place in before.items():
        np.testing.assert_allclose(after[name], place, atol=1e-6)
    for name in set(after) - set(before) - {"d.wav"}:
        nearest = min(before, key=lambda other: float(np.linalg.norm(before[other] - after[name])))
        assert nearest[0] == name[0]
    library.remove([f"/sounds/a{i:02}.wav" for i in range(10)])
    for name, place in mapped(library).items():
        np.testing.assert_allclose(place, after[name], atol=1e-6)


def test_a_library_that_has_outgrown_its_map_gets_a_new_one(library, drawn):
    library.positions()
    assert drawn == [60]
    library.add(three_kinds(9, first=30), model=Toy(DIM))
    library.positions()
    assert drawn == [60]  # 87 files are less than half as many again
    library.add(three_kinds(2, first=50), model=Toy(DIM))
    library.positions()
    assert drawn == [60, 93]
    library.remove([path for path in library.table.known() if "/a" in path or "/b" in path])
    library.positions()
    assert drawn == [60, 93, 31]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """One wrong byte in the numbers: the zip's checksum tells."""
    return content[:300] + bytes([content[300] ^ 255]) + content[301:]


@pytest.mark.parametrize(
    "damage", [cut, flip, lambda content: b"", lambda content: b"junk" * 99], ids=["cut", "flip", "empty", "junk"]
)
def test_a_damaged_map_is_made_anew(library, drawn, damage):
    wanted = library.positions()[1]
    kept = library.folder / positions.CACHE
    kept.write_bytes(damage(kept.read_bytes()))
    np.testing.assert_array_equal(library.positions()[1], wanted)
    assert zipfile.is_zipfile(kept)
    np.testing.assert_array_equal(library.positions()[1], wanted)
    assert drawn == [60, 60]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("landmarks", np.zeros((0, DIM))),
        ("landmarks", np.zeros((60, DIM + 1))),
        ("landmarks", np.full((60, DIM), np.nan)),
        ("at", np.zeros((59, 2))),
        ("files", np.zeros(3)),
        ("centre", None),
        ("centre", np.array([{}])),  # a pickle
    ],
)
def test_a_map_of_another_library_or_version_is_made_anew(library, drawn, name, value):
    wanted = library.positions()[1]
    kept = library.folder / positions.CACHE
    with np.load(kept) as found:
        parts = {**found, name: value}
    np.savez(kept, allow_pickle=True, **{key: part for key, part in parts.items() if part is not None})
    np.testing.assert_array_equal(library.positions()[1], wanted)
    assert drawn == [60, 60]


def test_a_map_that_cannot_be_kept_is_shown_all_the_same(library, drawn):
    (library.folder / positions.CACHE).mkdir()
    (library.folder / positions.CACHE / "x").touch()
    first = library.positions()[1]
    assert drawn == [60]
    np.testing.assert_array_equal(library.positions()[1], first)


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 7])
@pytest.mark.parametrize("alike", [False, True])
def test_a_few_files_have_a_map_too(tmp_path, count, alike):
    rows = [np.eye(DIM)[0 if alike else i] for i in range(count)]
    made = library_of(tmp_path / "library", Toy(DIM), [file(f"{i}.wav", row) for i, row in enumerate(rows)])
    ids, places = made.positions()
    assert (len(ids), places.shape) == (count, (count, 2))
    assert np.isfinite(places).all()
    assert ((places >= 0) & (places <= 1)).all()
    assert len(np.unique(places, axis=0)) == count


def test_most_draws_evenly_and_tells_how_far_it_is(library, drawn, monkeypatch):
    everything = library.positions()[0]
    monkeypatch.setattr(positions, "_IDS_AT_ONCE", 4)
    (library.folder / positions.CACHE).unlink()
    told: list[float] = []
    ids, places = library.positions(most=10, progress=told.append)
    assert ids == [everything[i] for i in (0, 6, 13, 19, 26, 32, 39, 45, 52, 59)]
    assert places.shape == (10, 2)
    assert np.diff(told).min() > -1e-9
    assert told[:3] == pytest.approx([0.4 / 3, 0.8 / 3, 0.4])
    assert told[-1] <= 1


def test_more_files_than_landmarks(tmp_path, monkeypatch):
    monkeypatch.setattr(positions, "LANDMARKS", 30)
    made = library_of(tmp_path / "library", Toy(DIM), three_kinds(60))
    found = mapped(made)
    assert len(found) == 180
    with np.load(made.folder / positions.CACHE) as kept:
        assert kept["landmarks"].shape == (30, DIM)
    of_kind = {kind: np.stack([place for name, place in found.items() if name[0] == kind]) for kind in "abc"}
    middles = {kind: np.median(places, axis=0) for kind, places in of_kind.items()}
    right = sum(
        min(middles, key=lambda kind: float(np.linalg.norm(middles[kind] - place))) == name[0]
        for name, place in found.items()
    )
    assert right >= 175

"""The view against naive loops, and the index against the view: filters, ties, long files, empty results."""

from pathlib import Path

import numpy as np
import pytest

from antiphon.errors import LibraryError
from antiphon.library import index as index_module
from antiphon.library import library as library_module
from antiphon.library.index import Index
from antiphon.library.view import View
from library.toys import Toy, file, library_of, names, units

pytest.importorskip("lancedb")
DIM = 16
FILTERS = (
    None,
    "bpm > 150",
    "genre = 'rare'",
    "genre = 'rare' -- few",
    "start_seconds >= 2",
    "bpm > 1000",
    "genre = 'none' OR bpm IS NULL",
)


def sounds_like(random, centres, count: int) -> np.ndarray:
    """Windows of one file: near a centre of their own, as real ones are."""
    return centres[random.integers(len(centres))] + 0.6 * random.normal(size=(count, DIM)) / 4


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """500 files of 1 to 8 windows, one of 900, and 12 copies of one; every 50th is rare, every 7th has no tempo."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(30, DIM))
    files = []
    for i in range(500):
        tags = {"genre": "rare" if i % 50 == 0 else "common", **({"bpm": 60.0 + i % 120} if i % 7 else {})}
        files.append(file(f"{i:03}.wav", sounds_like(random, centres, 1 + i % 8), **tags))
    files.append(file("long.wav", centres[0] + 0.1 * random.normal(size=(900, DIM)), genre="long"))
    files += [file(f"take {i:02}.wav", np.eye(DIM)[3], genre="copy") for i in range(12)]
    made = library_of(tmp_path_factory.mktemp("view") / "library", Toy(DIM), files)
    made.table.build_index()
    return made.table


@pytest.fixture(scope="module")
def view(table) -> View:
    return View.load(table, table.version)


@pytest.fixture(scope="module")
def index(table) -> Index:
    return Index(table, table.version)


@pytest.fixture
def exact(monkeypatch) -> None:
    """All partitions are looked into, and enough candidates compared."""
    monkeypatch.setattr(index_module, "NPROBES", 10_000)
    monkeypatch.setattr(index_module, "REFINE", 20)


@pytest.fixture(scope="module")
def rows(table) -> list[dict]:
    """All windows as a naive loop reads them."""
    columns = ["path", "start_seconds", "vector", "bpm", "genre"]
    found = table.rows(columns).to_pylist()
    return sorted(found, key=lambda row: (row["path"], row["start_seconds"]))


KEPT = {
    None: lambda row: True,
    "bpm > 150": lambda row: row["bpm"] is not None and row["bpm"] > 150,
    "genre = 'rare'": lambda row: row["genre"] == "rare",
    "genre = 'rare' -- few": lambda row: row["genre"] == "rare",
    "start_seconds >= 2": lambda row: row["start_seconds"] >= 2,
    "bpm > 1000": lambda row: False,
    "genre = 'none' OR bpm IS NULL": lambda row: row["bpm"] is None,
}


def naive(rows: list[dict], query: np.ndarray, *, by: str, where: str | None, skip: set[str]):
    """`(path, start, score, percentile)` of every result in order, file by file."""
    files: dict[str, list[dict]] = {}
    for row in rows:
        files.setdefault(row["path"], []).append({**row, "score": float(np.dot(row["vector"], query))})
    results, population = [], []
    for path, windows in files.items():
        total = np.sum([row["vector"] for row in windows], axis=0)
        mean = float(total @ query / np.linalg.norm(total))
        kept = [row for row in windows if KEPT[where](row) and path not in skip]
        if by == "window":
            population += [row["score"] for row in windows]
            results += [(path, row["start_seconds"], row["score"]) for row in kept]
            continue
        population.append(mean if by == "file" else max(row["score"] for row in windows))
        if kept:
            best = max(kept, key=lambda row: row["score"])
            results.append((path, best["start_seconds"], mean if by == "file" else best["score"]))
    results.sort(key=lambda result: -result[2])
    below = np.sort(population)
    return [(*one, 100 * float(np.mean(below < one[2] - 1e-6))) for one in results]


def check(found, query, wanted, *, most: int, rank: float) -> None:
    """The same results; where scores differ by rounding alone, in any order. `rank`: tolerance of percentiles."""
    assert len(found.scores) == len(found.rows) == len(found.vectors) == min(most, len(wanted))
    np.testing.assert_allclose(found.scores, [one[2] for one in wanted[:most]], atol=2e-6)
    np.testing.assert_allclose(found.percentiles, [one[3] for one in wanted[:most]], atol=rank)
    np.testing.assert_allclose(found.vectors @ query, found.scores, atol=2e-6)
    there = list(zip(found.rows["path"].to_pylist(), found.rows["start_seconds"].to_pylist(), strict=True))
    assert len(set(there)) == len(there)
    if len(wanted) > most:  # those that tie for the last place may be others
        wanted = [one for one in wanted if one[2] >= wanted[most - 1][2] - 2e-6]
    assert set(there) <= {one[:2] for one in wanted}


QUERIES = units(np.random.default_rng(5).normal(size=(3, DIM)))
SKIP = {"/sounds/long.wav", "/sounds/001.wav", "/sounds/not there.wav"}


@pytest.mark.parametrize("where", FILTERS)
@pytest.mark.parametrize("by", ["moment", "window", "file"])
def test_view_and_index_equal_a_naive_loop(view, index, rows, exact, by, where):
    for query, skip, most in zip(QUERIES, (set(), SKIP, set()), (10, 7, 5000), strict=True):
        wanted = naive(rows, query, by=by, where=where, skip=skip)
        check(view.nearest(query, by=by, most=most, where=where, skip=skip), query, wanted, most=most, rank=0.1)
        if by == "file" and most < 5000:  # those of the best windows come into question: nearly the same
            found = index.nearest(query, by=by, most=most, where=where, skip=skip)
            assert len(found.scores) == min(most, len(wanted))
            shared = {one[0] for one in wanted[:most]} & set(found.rows["path"].to_pylist())
            assert len(shared) >= 0.7 * len(found.scores)
            continue
        # by rank, where files that were left out count as the best; else against a sample that is all of this table
        rank = 100 * len(SKIP) / 513 + 1e-6 if skip and by != "window" else 0.1
        rank = max(rank, 100 * 12 / 513 + 1e-6 if most == 5000 else 0)  # copies have a rank each
        check(index.nearest(query, by=by, most=most, where=where, skip=skip), query, wanted, most=most, rank=rank)


def test_the_index_finds_nearly_the_same_with_its_own_settings(view, index):
    queries = units(np.random.default_rng(6).normal(size=(20, DIM)))
    for by in ("moment", "window", "file"):
        shared = 0
        for query in queries:
            pages = [each.nearest(query, by=by, most=10, where=None, skip=()).rows for each in (view, index)]
            near, far = [
                set(zip(page["path"].to_pylist(), page["start_seconds"].to_pylist(), strict=True)) for page in pages
            ]
            shared += len(near & far)
        assert shared >= 0.9 * 200, by


def test_a_filter_that_keeps_little_still_fills_the_page(index, view, monkeypatch):
    """The few that it keeps may lie in any partition."""
    monkeypatch.setattr(index_module, "NPROBES", 1)
    for query in QUERIES:
        found = index.nearest(query, by="moment", most=10, where="genre = 'rare'", skip=())
        wanted = view.nearest(query, by="moment", most=10, where="genre = 'rare'", skip=())
        assert found.rows["path"].to_pylist() == wanted.rows["path"].to_pylist()


def test_a_file_of_very_many_windows_hides_no_other(index, view, exact, rows):
    query = units(np.mean([row["vector"] for row in rows if row["genre"] == "long"], axis=0))[0]
    assert view.nearest(query, by="window", most=100, where=None, skip=()).rows["genre"].unique().to_pylist() == [
        "long"
    ]
    for each in (view, index):
        found = each.nearest(query, by="moment", most=20, where=None, skip=())
        assert found.rows["path"].to_pylist()[0] == "/sounds/long.wav"
        assert len(set(found.rows["path"].to_pylist())) == 20
        np.testing.assert_allclose(found.percentiles, 100 * (1 - np.arange(1, 21) / 513), atol=1e-6)
        found = each.nearest(query, by="moment", most=20, where=None, skip=["/sounds/long.wav"])
        assert "/sounds/long.wav" not in found.rows["path"].to_pylist()


def test_equals_come_by_path_and_each_page_begins_as_the_shorter_one(view, index, exact):
    query = np.eye(DIM, dtype=np.float32)[3]
    copies = [f"/sounds/take {i:02}.wav" for i in range(12)]
    for by in ("moment", "window", "file"):
        for most in (1, 5, 12, 13):
            found = view.nearest(query, by=by, most=most, where=None, skip=()).rows["path"].to_pylist()
            assert found[:12] == copies[:most]
            assert len(found) == most
        assert index.nearest(query, by=by, most=12, where=None, skip=()).rows["path"].to_pylist() == copies
        kept = [path for path in copies if path != copies[4]]
        for each in (view, index):
            found = each.nearest(query, by=by, most=11, where="genre = 'copy'", skip=[copies[4]])
            assert found.rows["path"].to_pylist() == kept


def test_files_and_spread_are_the_same(view, index, table):
    query, other = QUERIES[:2]
    np.testing.assert_allclose(view.spread(np.stack([query, other])), index.spread(np.stack([query, other])), rtol=1e-4)
    np.testing.assert_allclose(view.spread(query[None]), (view.vectors @ query).std(), rtol=1e-4)
    assert view.windows == index.windows == table.count()
    for path in ("/sounds/long.wav", "/sounds/007.wav", "/sounds/499.wav"):
        ours, theirs = view.file(path), index.file(path)
        assert ours is not None
        assert theirs is not None
        assert (ours.id, ours.path, ours.size, ours.seconds, ours.tags) == (
            theirs.id,
            theirs.path,
            theirs.size,
            theirs.seconds,
            theirs.tags,
        )
        for name in ("starts", "ends", "vectors"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert ours.peaks is theirs.peaks is None
        by_id = index.file(ours.id)
        assert by_id is not None
        assert by_id.path == path
    assert view.file("/sounds/none") is index.file("/sounds/none") is None


def test_percentiles_under_a_filter_come_from_a_sample_of_files(view, table, monkeypatch, exact):
    monkeypatch.setattr(index_module, "_SAMPLE", 800)
    sampled = Index(table, table.version)
    assert len(sampled.sample) < 0.6 * table.count()
    for by in ("moment", "window", "file"):
        pair = [
            each.nearest(QUERIES[1], by=by, most=400, where="bpm > 60", skip=()).percentiles for each in (view, sampled)
        ]
        assert np.abs(pair[0] - pair[1]).max() < 25
        assert np.abs(pair[0] - pair[1]).mean() < 10


def test_bad_filters_are_told_alike(view, index):
    for where in ("nosuch > 1", "bpm >", "genre = 'x"):
        for each in (view, index):
            with pytest.raises(LibraryError) as error:
                each.nearest(QUERIES[0], by="moment", most=5, where=where, skip=())
            assert f"where={where!r} is no filter" in str(error.value)


def test_filters_are_remembered_and_forgotten(view):
    first = view.nearest(QUERIES[0], by="window", most=5, where="bpm > 70", skip=()).scores
    for i in range(40):
        view.nearest(QUERIES[0], by="window", most=5, where=f"bpm > {i}", skip=["/sounds/001.wav"])
    assert len(view._kept) == 32
    np.testing.assert_array_equal(
        view.nearest(QUERIES[0], by="window", most=5, where="bpm > 70", skip=()).scores, first
    )
    assert all(kept.sum() > 0 for kept in view._kept.values())


def test_an_empty_table_has_an_empty_view(tmp_path):
    made = library_of(tmp_path / "none", Toy(DIM), [])
    empty = View.load(made.table, made.version)
    assert (empty.windows, empty.file("x")) == (0, None)


def test_a_library_changes_to_the_index_when_it_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(library_module, "EXACT_BELOW", 600)
    random = np.random.default_rng(1)
    model = Toy(DIM)
    some = [file(f"{i}.wav", random.normal(size=(2, DIM)), genre=f"g{i % 3}") for i in range(299)]
    made = library_of(tmp_path / "library", model, some)
    query = QUERIES[0]
    small = made.nearest(query, top=20)
    assert isinstance(made._seen, View)
    made.add([file("new.wav", [query, -query], bpm=99.0)], model=model)
    large = made.nearest(query, top=20)
    assert isinstance(made._seen, Index)
    assert names(large)[0] == "new.wav"
    assert (large[0].score, large[0].tags) == (pytest.approx(1, abs=1e-6), {"bpm": 99})
    assert len({*names(large)[1:]} & {*names(small)}) >= 15
    made.add([file("late.wav", query)], model=model)  # after the index was built: found all the same
    assert set(names(made.nearest(query, top=2))) == {"late.wav", "new.wav"}
    assert made.nearest(query, where="bpm > 98")[0].path == "/sounds/new.wav"
    assert made.nearest(query, where="bpm > 100") == [] == made.nearest(query, where="bpm > 100", diversity=0.5)
    assert len(set(names(made.nearest(query, top=10, diversity=0.5)))) == 10
    assert names(made.search(model=model, like="/sounds/late.wav", top=1)) == ["new.wav"]
    assert made.remove(["/sounds/late.wav", "/sounds/new.wav"]) == 2
    assert not {"new.wav", "late.wav"} & set(names(made.nearest(query, top=50)))
    assert Path(made.nearest(query, top=1)[0].path).name == names(small)[0]

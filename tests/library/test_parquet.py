"""Embeddings in a Parquet file: what a run leaves alone, what it changes, what is refused, what survives a kill."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antiphon import embed, engines
from antiphon.embed import Plan
from antiphon.errors import DataError, LibraryError
from antiphon.library import Summary, parquet, writing
from library import kills
from test_encoding import ToneModel, write_tones


@pytest.fixture
def sounds(tmp_path) -> Path:
    folder = tmp_path / "sounds"
    write_tones(folder / "high.wav", (0, 0, 1, 0))
    write_tones(folder / "long.wav", (0, 0, 0, 1), (0, 1, 0, 0), (0, 1, 1, 0))
    write_tones(folder / "low.wav", (1, 0, 0, 0))
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out" / "rows.parquet"


def bring(out: Path, inputs, *, model: ToneModel | None = None, **options) -> Summary:
    model = model or ToneModel()
    plan = inputs if isinstance(inputs, Plan) else embed.plan(inputs)
    return parquet.bring_up_to_date(out, plan, model=model, engine=engines.local(model), **options)


def rows(out: Path) -> list[tuple]:
    """All rows in a fixed order, vectors as tuples."""
    names = ("path", "start_seconds", "end_seconds", "seconds", "size", "mtime_ns", "digest")
    found = pq.read_table(out).to_pylist()
    return sorted((*(row[name] for name in names), tuple(np.round(row["vector"], 5))) for row in found)


def cells(out: Path, *names: str) -> dict[str, tuple]:
    return {Path(row["path"]).name: tuple(row[name] for name in names) for row in pq.read_table(out).to_pylist()}


def failed(out: Path) -> dict[str, str]:
    with out.with_suffix(".errors.csv").open(newline="") as file:
        return {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}


def test_a_first_run_writes_a_row_per_window(sounds, out):
    assert bring(out, sounds) == Summary(added=3, windows=5)
    stat = (sounds / "long.wav").stat()
    long = [row for row in rows(out) if row[0].endswith("long.wav")]
    assert [row[:6] for row in long] == [
        (str(sounds / "long.wav"), float(i), i + 1.0, 3.0, stat.st_size, stat.st_mtime_ns) for i in range(3)
    ]
    wanted = [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0.5**0.5, 0.5**0.5, 0]]
    np.testing.assert_allclose([row[-1] for row in long], wanted, atol=1e-3)
    assert sorted(os.listdir(out.parent)) == [".rows.parquet.lock", "rows.errors.csv", "rows.parquet"]
    assert failed(out) == {}
    card = json.loads(pq.read_schema(out).metadata[b"antiphon"])
    assert (card["model_fingerprint"], card["root"]) == (ToneModel().fingerprint(), str(sounds))


def test_rows_are_those_of_a_library(sounds, out, tmp_path):
    pytest.importorskip("lancedb")
    from antiphon.library import Library

    model = ToneModel()
    library = Library.create(tmp_path / "library", model=model, root=sounds)
    library.sync(sounds, model=model)
    exported = pq.read_table(library.export(tmp_path / "export.parquet"))
    bring(out, sounds)
    own = pq.read_table(out)
    assert own.schema.names == exported.schema.names
    assert own.schema.types == exported.schema.types
    order = [("path", "ascending"), ("start_seconds", "ascending")]
    assert own.sort_by(order).to_pylist() == exported.sort_by(order).to_pylist()
    # and so a library's export can be gone on with
    assert bring(tmp_path / "export.parquet", sounds) == Summary(unchanged=3)


def test_unchanged_leaves_the_file_as_it_is(sounds, out):
    bring(out, sounds)
    before, stat = out.read_bytes(), out.stat()
    model = ToneModel()
    assert bring(out, sounds, model=model) == Summary(unchanged=3)
    assert model.batches == []
    assert out.read_bytes() == before
    assert out.stat().st_mtime_ns == stat.st_mtime_ns
    assert not out.with_name("rows.parquet.parts").exists()


def test_changed_and_new_files_are_embedded_and_the_rest_stays(sounds, out):
    bring(out, sounds)
    before = rows(out)
    write_tones(sounds / "long.wav", (1, 0, 0, 0))
    write_tones(sounds / "new.wav", (0, 1, 0, 0))
    model = ToneModel()
    assert bring(out, sounds, model=model) == Summary(added=1, changed=1, unchanged=2, windows=2)
    assert sum(model.batches) == 2
    after = rows(out)
    assert [row for row in before if "long" not in row[0]] == [
        row for row in after if row[0] in {r[0] for r in before} and "long" not in row[0]
    ]
    (row,) = [row for row in after if "long" in row[0]]
    np.testing.assert_allclose(row[-1], [1, 0, 0, 0], atol=1e-3)
    assert len(after) == 4


def test_a_touched_file_gets_its_new_time_and_is_not_embedded_again(sounds, out):
    bring(out, sounds)
    before = rows(out)
    os.utime(sounds / "long.wav", ns=(7, 7))
    model = ToneModel()
    assert bring(out, sounds, model=model) == Summary(unchanged=3)
    assert model.batches == []
    assert rows(out) == [(*row[:5], 7, *row[6:]) if "long" in row[0] else row for row in before]
    written = out.read_bytes()
    bring(out, sounds)
    assert out.read_bytes() == written


def test_files_that_fail_are_listed_and_lose_their_rows(sounds, out):
    (sounds / "bad, with comma.wav").write_text("no sound")
    assert bring(out, sounds) == Summary(added=3, failed=1, windows=5)
    assert list(failed(out)) == ["bad, with comma.wav"]
    (sounds / "low.wav").write_text("not a sound any more")
    assert bring(out, sounds) == Summary(unchanged=2, failed=2)
    assert set(cells(out, "path")) == {"high.wav", "long.wav"}
    write_tones(sounds / "low.wav", (1, 0, 0, 0))
    (sounds / "bad, with comma.wav").unlink()
    assert bring(out, sounds) == Summary(added=1, unchanged=2, windows=1)
    assert failed(out) == {}


def test_a_file_that_cannot_be_reached_keeps_its_rows(sounds, out):
    bring(out, sounds)
    before = rows(out)
    plan = embed.plan(sounds)
    (sounds / "low.wav").rename(sounds / "away")
    assert bring(out, plan) == Summary(unchanged=2, failed=1)
    assert rows(out) == before


def test_what_is_not_asked_for_stays_until_it_is_pruned(sounds, out):
    bring(out, sounds)
    (sounds / "low.wav").unlink()
    before = out.read_bytes()
    assert bring(out, sounds) == Summary(unchanged=2, missing=1)
    assert out.read_bytes() == before
    assert bring(out, sounds, prune=True) == Summary(unchanged=2, missing=1)
    assert set(cells(out, "path")) == {"high.wav", "long.wav"}
    assert bring(out, sounds, prune=True) == Summary(unchanged=2)
    assert bring(out, sounds / "high.wav", prune=True) == Summary(unchanged=1, missing=1)
    assert len(rows(out)) == 1


def test_none_that_can_be_read_is_an_error_and_the_reasons_are_beside_it(sounds, out, tmp_path):
    for path in sounds.iterdir():
        path.write_text("no sound")
    with pytest.raises(DataError, match=r"none of the 3 .*rows\.errors\.csv"):
        bring(out, sounds)
    assert len(failed(out)) == 3


def test_columns_of_a_manifest_that_come_later(sounds, out, tmp_path):
    (tmp_path / "first.csv").write_text("path,mood\nsounds/high.wav,bright\n")
    bring(out, tmp_path / "first.csv")
    assert cells(out, "mood") == {"high.wav": ("bright",)}
    (tmp_path / "second.csv").write_text("path,energy,bpm\nsounds/low.wav,0.5,120\n")
    bring(out, tmp_path / "second.csv")
    names = ("mood", "energy", "bpm")
    assert cells(out, *names) == {"high.wav": ("bright", None, None), "low.wav": (None, 0.5, 120.0)}
    bring(out, sounds)
    assert cells(out, *names) == {
        "high.wav": ("bright", None, None),
        "low.wav": (None, 0.5, 120.0),
        "long.wav": (None, None, None),
    }


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("path,mood\nsounds/high.wav,7\n", "path,mood\nsounds/low.wav,dark\n", "column 'mood' holds number.*text"),
        ("path,bpm\nsounds/high.wav,fast\n", None, "column 'bpm' holds number.*text"),
        ("path,size\nsounds/high.wav,1\n", None, "column 'size', which"),
    ],
)
def test_columns_that_do_not_fit_are_refused(sounds, out, tmp_path, first, second, message):
    (tmp_path / "first.csv").write_text(first)
    if second is not None:
        bring(out, tmp_path / "first.csv")
    (tmp_path / "second.csv").write_text(second or first)
    with pytest.raises(LibraryError, match=message) as error:
        bring(out, tmp_path / "second.csv")
    assert "\n" not in str(error.value)
    assert not out.with_name("rows.parquet.parts").exists()
    assert bring(out, sounds).failed == 0


def test_a_row_for_each_file_is_the_mean_of_its_windows(sounds, out):
    assert bring(out, sounds, windows="mean") == Summary(added=3, windows=3)
    (row,) = [row for row in rows(out) if "long" in row[0]]
    assert row[1:4] == (0.0, 3.0, 3.0)
    total = np.array([0, 1 + 0.5**0.5, 0.5**0.5, 1])
    np.testing.assert_allclose(row[-1], total / np.linalg.norm(total), atol=1e-3)
    assert cells(out, "peaks")["long.wav"] == (None,)
    before = out.read_bytes()
    assert bring(out, sounds, windows="mean") == Summary(unchanged=3)
    assert out.read_bytes() == before
    with pytest.raises(LibraryError, match=r"another kind of rows \(mean\)"):
        bring(out, sounds)


def test_what_is_not_its_own_is_refused(sounds, out, tmp_path):
    bring(out, sounds)
    with pytest.raises(LibraryError, match=r"another model .*--out"):
        bring(out, sounds, model=ToneModel(name="other"))
    assert len(rows(out)) == 5
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("text")
    (tmp_path / "folder.parquet").mkdir()
    for name in ("other.parquet", "text.parquet", "folder.parquet"):
        with pytest.raises(LibraryError, match=rf"{name}.*--out"):
            bring(tmp_path / name, sounds)
    assert (tmp_path / "text.parquet").read_text() == "text"
    assert sorted(os.listdir(tmp_path / "folder.parquet")) == []
    with pytest.raises(LibraryError, match="cannot write"):
        bring(sounds / "low.wav" / "x.parquet", sounds)


@pytest.mark.skipif(os.name == "nt", reason="flock")
def test_a_second_writer_is_refused(sounds, out):
    refused = []

    def progress(done: int, total: int | None, seconds: float) -> None:
        with pytest.raises(LibraryError, match="another process") as error:
            bring(out, sounds)
        refused.append(error)

    bring(out, sounds, progress=progress)
    assert len(refused) == 3


def test_many_parts_become_one_file_and_a_file_given_twice_counts_once(sounds, out, monkeypatch):
    monkeypatch.setattr(writing, "CHUNK_FILES", 1)
    monkeypatch.setattr(parquet, "_ROWS_AT_ONCE", 2)
    assert bring(out, sounds) == Summary(added=3, windows=5)
    wanted = rows(out)
    model = ToneModel()
    out.unlink()

    def twice(paths):
        yield from engines.local(model)(paths)
        yield from engines.local(model)(paths)

    plan = embed.plan(sounds)
    parquet.bring_up_to_date(out, plan, model=model, engine=twice)
    assert rows(out) == wanted


def test_a_run_that_stops_goes_on_from_its_parts(sounds, out, monkeypatch):
    """A fault in the middle, as a kill would be: what was committed is not embedded again."""
    monkeypatch.setattr(writing, "CHUNK_FILES", 1)
    model = ToneModel()

    def faulty(paths):
        for done, item in enumerate(engines.local(model)(paths)):
            if done == 2:
                raise ZeroDivisionError
            yield item

    plan = embed.plan(sounds)
    with pytest.raises(ZeroDivisionError):
        parquet.bring_up_to_date(out, plan, model=model, engine=faulty)
    assert not out.exists()
    assert len(list(out.with_name("rows.parquet.parts").glob("*.parquet"))) == 2
    model = ToneModel()
    assert bring(out, sounds, model=model) == Summary(added=1, unchanged=2, windows=1)
    assert sum(model.batches) == 1
    assert len(rows(out)) == 5
    with pytest.raises(LibraryError, match="another model"):
        bring(out, sounds, model=ToneModel(name="other"))


def test_parts_of_another_model_are_refused(sounds, out, monkeypatch):
    def faulty(paths):
        yield next(engines.local(ToneModel())(paths))
        raise ZeroDivisionError

    monkeypatch.setattr(writing, "CHUNK_FILES", 1)
    plan = embed.plan(sounds)
    with pytest.raises(ZeroDivisionError):
        parquet.bring_up_to_date(out, plan, model=ToneModel(), engine=faulty)
    with pytest.raises(LibraryError, match=r"rows\.parquet\.parts.*another model"):
        bring(out, sounds, model=ToneModel(name="other"))


@pytest.mark.parametrize("before", ["join", "parts are gone"])
def test_a_kill_around_the_join_loses_and_doubles_nothing(sounds, out, monkeypatch, before):
    """Parts that are in the file already, and are still there."""
    bring(out, sounds)
    write_tones(sounds / "low.wav", (0, 1, 0, 0))
    with monkeypatch.context() as patch:
        if before == "join":
            patch.setattr(parquet, "_join", lambda *_: 1 / 0)
        else:
            patch.setattr(parquet.shutil, "rmtree", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bring(out, sounds)
    model = ToneModel()
    assert bring(out, sounds, model=model) == Summary(unchanged=3)
    assert model.batches == []
    assert len(rows(out)) == 5
    np.testing.assert_allclose(rows(out)[-1][-1], [0, 1, 0, 0], atol=1e-3)
    assert not out.with_name("rows.parquet.parts").exists()


def test_names_that_are_no_unicode_count_as_failed(sounds, out):
    if os.name == "nt":
        pytest.skip("no such names")
    try:
        (sounds / "low.wav").rename(os.fsdecode(os.fsencode(sounds) + b"/caf\xe9.wav"))
    except OSError:
        pytest.skip("no such names here")
    assert bring(out, sounds) == Summary(added=2, failed=1, windows=4)


def test_a_stream_in_any_order_gives_the_same_rows(sounds, out):
    bring(out, sounds)
    wanted = rows(out)
    model = ToneModel()
    out.unlink()
    plan = embed.plan(sounds)
    parquet.bring_up_to_date(out, plan, model=model, engine=lambda paths: iter([*engines.local(model)(paths)][::-1]))
    assert rows(out) == wanted


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_20_kills_at_random_moments_lose_and_double_nothing(tmp_path):
    out = tmp_path / "killed.parquet"
    folder = kills.Folder(tmp_path / "sounds", seed=1)
    kills.outlive("parquet", folder, out, lambda: pq.read_table(out) if out.exists() else None)
    folder.check(pq.read_table(out))
    bring(tmp_path / "whole.parquet", folder.place)
    assert rows(out) == rows(tmp_path / "whole.parquet")
    assert failed(out) == failed(tmp_path / "whole.parquet")

"""Engines: on Ray's workers as in this process, the same table comes out."""

import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

import antiphon
from antiphon import embed, engines
from antiphon.encoding import Embedded, Failed
from antiphon.errors import LibraryError, MissingExtraError
from antiphon.library import Summary, parquet
from test_encoding import ToneModel, write_tones

FILES, BAD = 70, 2  # three portions of Ray's


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "sounds"
    for i in range(FILES):
        write_tones(folder / f"{i:02}.wav", *[(1, i, i % 3, i % 7)] * (1 + i % 3))
    for i in range(BAD):
        (folder / f"{40 * i:02} bad.wav").write_text("no sound")
    return folder


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return antiphon.load(tiny_model_folder)


def table(path: Path) -> pa.Table:
    return pq.read_table(path).sort_by([("path", "ascending"), ("start_seconds", "ascending")])


def same(one: pa.Table, other: pa.Table) -> None:
    """The same rows; vectors but for the rounding of other batches."""
    assert one.drop_columns("vector").equals(other.drop_columns("vector"))
    vectors = [np.array(each["vector"].to_pylist()) for each in (one, other)]
    np.testing.assert_allclose(*vectors, atol=1e-5)


def test_local_streams_what_embed_files_gives(tmp_path):
    path = write_tones(tmp_path / "a.wav", (1, 0, 0, 0))
    found = engines.local(ToneModel())([str(path), str(tmp_path / "gone.wav")])
    first = next(found)
    assert isinstance(first, Embedded)
    assert len(first.facts.digest) == 32
    assert [type(item) for item in found] == [Failed]


@pytest.mark.slow
def test_an_hour_of_sound_passes_through_a_few_seconds_of_memory(tmp_path):
    """As a FLAC of silence, with all that a library keeps of it; decoded whole it would be 115 MB."""
    rate, path = 8000, tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", rate, 1) as file:
        for _ in range(60):
            file.write(np.zeros(60 * rate, np.int16))
    tracemalloc.start()
    (item,) = engines.local(ToneModel())([str(path)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(item, Embedded)
    assert len(item.windows) == len(item.vectors) == len(item.facts.peaks) == 3600
    assert item.windows[-1].end_seconds == 3600
    assert peak < 15e6  # of which the results of 3,600 windows are 3


def test_ray_says_what_it_needs(monkeypatch):
    model = ToneModel()
    model.source = None
    with pytest.raises(LibraryError, match="save it"):
        engines.ray(model)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"antiphon\[ray\]"):
        engines.ray(ToneModel())


@pytest.fixture(scope="module")
def cluster():
    """A Ray of two workers on this machine."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(num_cpus=2, num_gpus=0, object_store_memory=80 * 2**20, include_dashboard=False, logging_level="ERROR")
        yield ray
        ray.shutdown()
    assert not _rays()


def _rays() -> list[str]:
    """Ray's own processes that this one started."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = place.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue
        if rest.split()[1] == str(os.getpid()) and rest.split()[0] != "Z" and name in ("raylet", "gcs_server"):
            found.append(name)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning:ray")
def test_two_workers_of_ray_give_the_same_table(cluster, sounds, model, tmp_path):
    assert _rays()
    plan = embed.plan(sounds)
    results = list(engines.ray(model, batch_size=8)(plan.sounds))
    assert sorted(item.path for item in results) == plan.sounds  # each once, in any order
    assert sum(isinstance(item, Failed) for item in results) == BAD
    assert list(engines.ray(model)([])) == []
    clips = sum(-(-(1 + i % 3) // 2) for i in range(FILES))  # of two seconds
    wanted = Summary(added=FILES, failed=BAD, windows=clips)
    for name, engine in (("local", engines.local(model)), ("ray", lambda paths: iter(results))):
        out = tmp_path / f"{name}.parquet"
        assert parquet.bring_up_to_date(out, plan, model=model, engine=engine) == wanted
    same(table(tmp_path / "local.parquet"), table(tmp_path / "ray.parquet"))
    listed = [(tmp_path / f"{name}.errors.csv").read_text().splitlines() for name in ("local", "ray")]
    assert sorted(listed[0]) == sorted(listed[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning:ray")
def test_a_library_by_ray_is_one_by_this_process(cluster, sounds, model, tmp_path):
    pytest.importorskip("lancedb")
    from antiphon.library import Library

    for name, engine in (("local", None), ("ray", engines.ray(model, batch_size=8))):
        made = Library.create(tmp_path / name, model=model, root=sounds)
        summary = made.sync(sounds, model=model, engine=engine)
        assert (summary.added, summary.failed) == (FILES, BAD)
        assert made.sync(sounds, model=model, engine=engine).unchanged == FILES
        made.export(tmp_path / f"{name}.parquet")
    same(table(tmp_path / "local.parquet"), table(tmp_path / "ray.parquet"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning:ray")
def test_another_model_on_the_workers_is_one_line(cluster, sounds, tiny_model_folder):
    other = ToneModel()
    other.source = str(tiny_model_folder)
    with pytest.raises(LibraryError, match="is another one on") as error:
        list(engines.ray(other)([str(sounds / "00.wav")]))
    assert "\n" not in str(error.value)

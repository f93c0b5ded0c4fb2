"""Training from tar shards: their order, shares and resumption; shards afar, over a network that fails."""

import hashlib
import http.server
import io
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from antiphon import addresses, audio, remote
from antiphon.data import loaders, shards
from antiphon.data import manifest as tables
from antiphon.data.loaders import TrainLoader, by_shards
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import AudioError, DataError, MissingExtraError, OptionError

RATE = 8000
SOUNDS = 45


class Files(http.server.BaseHTTPRequestHandler):
    """Files with ETag and ranges, from `content`. What the path contains is what goes wrong.

    `drops`: every second answer with bytes stops in its middle. `busy`: 503 three times. `lies`: its size
    is 10 more than it has. `plain`: knows no ranges. `gone`: 404.
    """

    protocol_version = "HTTP/1.1"
    content: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[Counter] = Counter()
    lock = threading.Lock()

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(head=True)

    def do_GET(self, head=False):
        with self.lock:
            self.asked[self.command, self.path] += 1
            count = sum(self.asked[command, self.path] for command in ("GET", "HEAD"))
        if self.path not in self.content or ("busy" in self.path and count <= 3):
            return self.answer(404 if self.path not in self.content else 503, b"")
        data = self.content[self.path]
        said = len(data) + 10 * ("lies" in self.path)
        tag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if head or not asked or "plain" in self.path:
            return self.answer(200, b"" if head else data, promised=said if head else len(data), **tag)
        body = data[int(asked[1]) : int(asked[2]) + 1]
        cut = len(body) // 2 if "drops" in self.path and count % 2 else len(body)
        tag["Content-Range"] = f"bytes {asked[1]}-{int(asked[1]) + len(body) - 1}/{said}"
        return self.answer(206, body[:cut], promised=len(body), **tag)

    def answer(self, status, body, *, promised=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if promised is None else promised))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = promised is not None and promised != len(body)


@pytest.fixture(scope="module")
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, no waiting, and nothing remembered."""
    monkeypatch.setenv("ANTIPHON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(remote, "_copies", {})
    monkeypatch.setattr(remote, "_refused", {})
    Files.content, Files.asked = {}, Counter()
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """45 sounds of half a second in shards of 4; sound i is the constant (i + 1) / 100."""
    folder = tmp_path_factory.mktemp("written")
    pairs = []
    for number in range(SOUNDS):
        soundfile.write(folder / f"{number}.wav", np.full(RATE // 2, (number + 1) / 100, np.float32), RATE)
        pairs.append(Pair(id=str(number), audio=str(folder / f"{number}.wav"), captions=(f"sound {number}",)))
    return shards.write(Manifest.from_pairs(pairs), folder / "shards", shard_size=4, workers=2)


def folder_of(manifest):
    return Path(addresses.file_of(manifest[0].audio)).parent


def moved(manifest, base):
    """The manifest with its shards below the URL `base`."""
    pairs = [
        Pair(id=p.id, audio=f"{base}/{os.path.basename(p.audio)}", captions=p.captions, split=p.split) for p in manifest
    ]
    return Manifest.from_pairs(pairs)


def loader(manifest, **settings):
    return TrainLoader(
        manifest,
        **{"sample_rate": RATE, "clip_samples": RATE // 4, "batch_size": 6, "seed": 5, "cache_gb": 0.0, **settings},
    )


def listed(batches):
    return [(batch.ids, batch.captions, batch.wave.numpy().tobytes()) for batch in batches]


# The order


def naive(sizes, *, seed, epoch, rank, world, count):
    """The shards of one process, window by window, from lists."""
    order = np.random.default_rng([seed, epoch]).permutation(len(sizes))
    turn = {int(shard): place for place, shard in enumerate(np.argsort(order))}
    items = [(turn[shard], shard) for shard, size in enumerate(sizes) for _ in range(size)]
    mine = sorted(items)[rank * count : (rank + 1) * count]
    stretch = list(dict.fromkeys(shard for _, shard in mine))
    windows = np.array_split(stretch, max(1, -(-len(stretch) // loaders.WINDOW)))
    return [sorted(shard for _, shard in mine if shard in window) for window in windows]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    world=st.integers(1, 4),
    share=st.integers(1, 5),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 9),
)
def test_every_process_hears_its_own_stretch_of_shards_once(sizes, world, share, seed, epoch):
    shards = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    count = len(shards) // (share * world) * share
    heard = []
    for rank in range(world):
        place = {"seed": seed, "epoch": epoch, "rank": rank, "world": world, "count": count}
        order = by_shards(shards, **place)
        np.testing.assert_array_equal(order, by_shards(shards.astype(np.int32), **place))
        assert len(order) == count
        start = 0
        for window in naive(sizes, **place):
            assert len(set(window)) <= loaders.WINDOW
            assert sorted(shards[order[start : start + len(window)]].tolist()) == window
            start += len(window)
        assert start == count
        heard.append(order)
    together = np.concatenate(heard)
    assert len(np.unique(together)) == len(together)
    assert len(shards) - len(together) < share * world


def test_epochs_and_seeds_and_windows_are_shuffled():
    shards = np.repeat(np.arange(30), 20)
    place = {"seed": 0, "epoch": 0, "rank": 0, "world": 1, "count": 600}
    first = by_shards(shards, **place)
    assert not np.array_equal(first, by_shards(shards, **{**place, "epoch": 1}))
    assert not np.array_equal(first, by_shards(shards, **{**place, "seed": 1}))
    assert len(set(shards[first[:40]])) >= 6  # 40 of a window's 8 shards
    assert (np.diff(first) == 1).sum() < 60  # neighbours stay so one time in 160
    with pytest.raises(ValueError, match="601 of 600 items"):
        by_shards(shards, **{**place, "count": 601})


def test_plain_files_are_shuffled_as_ever(written):
    files = [str(folder_of(written).parent / f"{number}.wav") for number in range(SOUNDS)]
    plain = Manifest.from_pairs(Pair(id=str(n), audio=file, captions=("x",)) for n, file in enumerate(files))
    for manifest, settings in ((plain, {}), (written, {"order": "items"})):
        order = np.random.default_rng([5, 2]).permutation(SOUNDS)[:42]
        ids = [name for batch in loader(manifest, **settings).epoch(2) for name in batch.ids]
        assert ids == [manifest[int(index)].id for index in order]
    with pytest.raises(OptionError, match="not every sound is in a tar"):
        loader(plain, order="shards")
    with pytest.raises(OptionError, match=r"data\.order=tars: allowed are items, shards and null"):
        loader(plain, order="tars")


def test_the_loader_hears_shards_in_their_order_and_can_be_entered_anywhere(written):
    made = loader(written)
    whole = listed(made.epoch(1))
    ids = [name for batch in whole for name in batch[0]]
    assert len(ids) == len(set(ids)) == 42
    numbers = np.array([int(re.search(r"-(\d+)\.tar", pair.audio)[1]) for pair in written])
    order = by_shards(numbers, seed=5, epoch=1, rank=0, world=1, count=42)
    assert ids == [written[int(index)].id for index in order]
    for batch in made.epoch(1):
        levels = batch.to("cpu").wave.mean(dim=1).tolist()
        assert levels == pytest.approx([(int(name) + 1) / 100 for name in batch.ids], abs=1e-3)
    for start in range(8):
        assert listed(loader(written, workers=3).epoch(1, start=start)) == whole[start:]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_have_equal_shares_and_no_sound_twice(written, world):
    for epoch in range(3):
        heard = [[batch.ids for batch in loader(written, rank=rank, world=world).epoch(epoch)] for rank in range(world)]
        assert {len(batches) for batches in heard} == {7}
        assert {len(ids) for batches in heard for ids in batches} == {6 // world}
        ids = [name for batches in heard for batch in batches for name in batch]
        assert len(ids) == len(set(ids)) == 42


# Shards afar


def serve(manifest, *, under):
    for file in folder_of(manifest).iterdir():
        if file.is_file():
            Files.content[f"/{under}/{file.name}"] = file.read_bytes()


@pytest.mark.parametrize("under", ["fine", "drops", "busy", "plain"])
def test_training_over_http_is_training_from_disk(written, endpoint, monkeypatch, under):
    monkeypatch.setattr(remote, "_CHUNK", 4000)
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0, 0.0, 0.0))
    serve(written, under=under)
    afar = moved(written, f"{endpoint}/{under}")
    made = loader(afar)
    assert listed(made.epoch(0)) == listed(loader(written).epoch(0))
    assert not made.failed


def test_a_manifest_on_a_server_names_sounds_beside_it(written, endpoint):
    serve(written, under="fine")
    afar = tables.read(f"{endpoint}/fine/manifest.parquet")
    assert [pair.audio for pair in afar] == [pair.audio for pair in moved(written, f"{endpoint}/fine")]
    assert listed(loader(afar).epoch(0)) == listed(loader(written).epoch(0))
    with pytest.raises(DataError, match=r"cannot fetch '.*nothing\.parquet'"):
        tables.read(f"{endpoint}/fine/nothing.parquet")


def test_training_from_an_object_store_is_training_from_disk(written):
    store = fsspec.filesystem("memory")
    for file in folder_of(written).glob("*.tar"):
        store.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    assert listed(loader(moved(written, "memory://bucket")).epoch(0, start=3)) == listed(
        loader(written).epoch(0, start=3)
    )


def test_a_process_fetches_no_shards_but_its_own(written, endpoint):
    serve(written, under="fine")
    afar = moved(written, f"{endpoint}/fine")
    batches = list(loader(afar, rank=0, world=2).epoch(0))
    sounds = {pair.id: pair for pair in afar}
    own = {addresses.parted(sounds[name].audio)[0].removeprefix(endpoint) for b in batches for name in b.ids}
    assert own == {path for _, path in Files.asked}
    assert len(own) <= 7  # of 12


def test_shards_are_fetched_before_they_are_heard_and_not_all_at_once(written, monkeypatch):
    monkeypatch.setattr(loaders, "WINDOW", 2)
    for file in folder_of(written).glob("*.tar"):
        fsspec.filesystem("memory").pipe_file(f"/bucket/{file.name}", file.read_bytes())
    local, fetched, there = remote.local, [], threading.Condition()

    def only_ahead(url):
        """Readers wait until the shard is there; they never fetch it."""
        with there:
            if threading.current_thread().name.startswith("antiphon-fetch"):
                fetched.append(url)
                there.notify_all()
            assert there.wait_for(lambda: url in fetched, timeout=10)
        return local(url)

    monkeypatch.setattr(remote, "local", only_ahead)
    afar = moved(written, "memory://bucket")
    made = loader(afar, workers=4)
    heard = [addresses.parted(afar[index].audio)[0] for index in made._order(0).ravel()]
    due, lead = made._due(made._order(0).ravel())
    assert [(place, url) for place, url in due] == sorted((heard.index(url), url) for url in set(heard))
    assert lead == 2 * 42 // len(due)  # sounds of two shards
    assert len(list(made.epoch(0))) == 7
    assert sorted(fetched) == sorted(url for _, url in due)


def test_a_shard_is_fetched_once_by_threads_and_processes(written, endpoint, cache):
    serve(written, under="fine")
    url = f"{endpoint}/fine/data-000000.tar"
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(remote.local, [url] * 32))) == 1
    assert Files.asked["GET", "/fine/data-000000.tar"] == 1
    code = "import sys; from antiphon import remote; print(open(remote.local(sys.argv[1]), 'rb').read() != b'')"
    other = f"{endpoint}/fine/data-000001.tar"
    jobs = [subprocess.Popen([sys.executable, "-c", code, other], stdout=subprocess.PIPE) for _ in range(3)]
    assert [job.communicate()[0].strip() for job in jobs] == [b"True"] * 3
    assert Files.asked["GET", "/fine/data-000001.tar"] == 1
    assert sorted(file.name[20:] for file in cache.glob("[!.]*")) == ["-data-000000.tar", "-data-000001.tar"]


def test_a_connection_may_drop_as_often_as_it_brings_something(endpoint, monkeypatch):
    monkeypatch.setattr(remote, "_CHUNK", 1000)
    Files.content["/drops.tar"] = content = os.urandom(40_000)
    assert Path(remote.local(f"{endpoint}/drops.tar")).read_bytes() == content
    assert Files.asked["GET", "/drops.tar"] >= 60  # 40 that came, and 20 or more that did not


def test_what_a_killed_process_had_fetched_is_kept(endpoint, monkeypatch):
    monkeypatch.setattr(remote, "_CHUNK", 1000)
    Files.content["/a.tar"] = content = os.urandom(10_000)
    pulled = []
    pull = remote._pull

    def killed(files, path, part, **size):
        if not pulled:
            part.write_bytes(content[:7000])
        pulled.append(part.stat().st_size)
        pull(files, path, part, **size)

    monkeypatch.setattr(remote, "_pull", killed)
    assert Path(remote.local(f"{endpoint}/a.tar")).read_bytes() == content
    assert pulled == [7000]
    assert Files.asked["GET", "/a.tar"] == 3


def test_a_file_that_changes_is_fetched_anew_by_the_next_process(endpoint, monkeypatch):
    url = f"{endpoint}/a.tar"
    Files.content["/a.tar"] = b"old"
    old = remote.local(url)
    Files.content["/a.tar"] = b"new"
    assert remote.local(url) == old
    monkeypatch.setattr(remote, "_copies", {})
    assert Path(remote.local(url)).read_bytes() == b"new"
    assert Path(old).read_bytes() == b"old"


def test_what_was_used_longest_ago_is_deleted(cache, monkeypatch):
    store = fsspec.filesystem("memory")
    monkeypatch.setenv("ANTIPHON_CACHE_GB", "3500e-9")
    for name in "abcd":
        store.pipe_file(f"/bucket/{name}.tar", name.encode() * 1000)
    paths = [Path(remote.local(f"memory://bucket/{name}.tar")) for name in "abc"]
    for path, age in zip(paths, (300, 500, 400), strict=True):
        os.utime(path, (time.time() - age, time.time() - 1000))
    before = paths[0].stat().st_mtime_ns
    remote.local("memory://bucket/a.tar")  # used now, and not changed
    assert paths[0].stat().st_mtime_ns == before
    remote.local("memory://bucket/d.tar")
    assert [path.exists() for path in paths] == [True, False, True]
    assert Path(remote.local("memory://bucket/b.tar")).read_bytes() == b"b" * 1000  # fetched again
    assert [path.exists() for path in paths] == [True, True, False]
    assert Path(remote.local("memory://bucket/c.tar")).exists()  # and what is in use is not deleted for it
    assert paths[0].exists()
    monkeypatch.setenv("ANTIPHON_CACHE_GB", "much")
    store.pipe_file("/bucket/e.tar", b"e")
    with pytest.raises(OptionError, match="ANTIPHON_CACHE_GB='much'"):
        remote.local("memory://bucket/e.tar")


def test_what_cannot_be_fetched_says_so_once(written, endpoint, monkeypatch):
    serve(written, under="lies")
    for url, says in {
        f"{endpoint}/gone.tar": "404",
        f"{endpoint}/lies/data-000000.tar": r"bytes came of \d+",
        "http://127.0.0.1:1/a.tar": "127.0.0.1",
        "memory://bucket/gone.tar": "there is no such file",
        "nonsense://a.tar": "Protocol not known",
    }.items():
        for _ in range(2):
            with pytest.raises(AudioError, match=says) as caught:
                audio.read(f"{url}#a.flac")
            assert f"cannot fetch '{url}'" in str(caught.value)
            assert "\n" not in str(caught.value)
    assert Files.asked["GET", "/gone.tar"] == 1  # once after HEAD; the second time it is remembered


def test_a_missing_package_names_the_extra(monkeypatch):
    def lacking(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacking)
    with pytest.raises(MissingExtraError, match=r"'s3://b/a.tar' needs .* pip install 'antiphon\[remote\]'"):
        audio.read("s3://b/a.tar#a.flac")


def test_a_full_disk_says_so(endpoint, monkeypatch):
    Files.content["/a.tar"] = b"1" * 1000

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote, "_pull", full)
    with pytest.raises(AudioError, match=r"no space left in .*cache.*ANTIPHON_CACHE_GB"):
        remote.local(f"{endpoint}/a.tar")


def test_a_shard_cut_in_the_middle_is_named(written, endpoint):
    serve(written, under="fine")
    whole = Files.content["/fine/data-000003.tar"]
    Files.content["/fine/data-000003.tar"] = whole[: len(whole) // 2]
    made = loader(moved(written, f"{endpoint}/fine"))
    ids = [name for batch in made.epoch(0) for name in batch.ids]
    lost = {pair.id for pair in written if "data-000003.tar" in pair.audio}
    assert len(ids) == 42
    assert not lost & set(ids)
    assert made.failed
    for address, reason in made.failed.items():
        assert address.startswith(f"{endpoint}/fine/data-000003.tar#")
        assert f"cannot read '{endpoint}/fine/data-000003.tar': cut off" in reason


def test_a_sound_of_a_parquet_file_afar():
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream, table = io.BytesIO(), io.BytesIO()
    soundfile.write(stream, np.full(100, 0.5, np.float32), RATE, format="WAV", subtype="FLOAT")
    pq.write_table(pa.table({"audio": [{"bytes": stream.getvalue(), "path": None}]}), table)
    fsspec.filesystem("memory").pipe_file("/bucket/t.parquet", table.getvalue())
    assert audio.read("memory://bucket/t.parquet#audio/0")[0].tolist() == [0.5] * 100
    with pytest.raises(AudioError, match=r"memory://bucket/t\.parquet#audio/1'"):
        audio.read("memory://bucket/t.parquet#audio/1")

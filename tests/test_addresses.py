"""Sounds inside tars, Parquet files and arrays are read as the files would be that they came from."""

import hashlib
import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from antiphon import addresses, audio, windows
from antiphon.errors import AudioError

RATE = 8000
WAVE = (np.sin(np.arange(1200) / 9) * 0.5).astype(np.float32)


def encoded(wave=WAVE, kind="FLAC", **options):
    stream = io.BytesIO()
    soundfile.write(stream, wave, RATE, format=kind, **options)
    return stream.getvalue()


def write_tar(path, files, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files.items():
            one = tarfile.TarInfo(name)
            one.size = len(content)
            archive.addfile(one, io.BytesIO(content))
    return path


@pytest.fixture
def sounds(tmp_path):
    """The same sound as a file, in a tar, in Parquet and as an array."""
    (tmp_path / "a.wav").write_bytes(encoded(kind="WAV", subtype="FLOAT"))
    content = (tmp_path / "a.wav").read_bytes()
    write_tar(tmp_path / "s.tar", {"x.json": b"{}", "in/ä b#.wav": content, "z.txt": b"1"})
    rows = [{"bytes": b"%d" % row, "path": None} for row in range(25)]
    rows[17] = {"bytes": content, "path": "a.wav"}
    pq.write_table(pa.table({"my/audio": rows, "text": ["t"] * 25}), tmp_path / "s.parquet", row_group_size=10)
    np.save(tmp_path / "a.npy", WAVE)
    return tmp_path


@pytest.mark.parametrize("address", ["s.tar#in/ä b#.wav", "s.parquet#my/audio/17", f"a.npy#rate={RATE}"])
def test_an_address_reads_as_the_file_does(sounds, address):
    path = str(sounds / address)
    assert audio.probe(path) == audio.probe(sounds / "a.wav")
    wave, rate = audio.read(path)
    assert rate == RATE
    np.testing.assert_array_equal(wave, WAVE)
    np.testing.assert_array_equal(audio.read(path, start_seconds=0.05, seconds=0.02)[0], WAVE[400:560])
    np.testing.assert_array_equal(np.concatenate(list(audio.blocks(path, frames=500))), WAVE)
    ((_, clip),) = windows.clips_of(path, clip_samples=1200, target_rate=RATE, policy="all")
    np.testing.assert_array_equal(clip, WAVE)
    assert addresses.file_of(path) == str(sounds / address.split("#")[0])


def test_the_digest_is_of_the_sound_and_not_of_what_holds_it(sounds):
    file = hashlib.sha256((sounds / "a.wav").read_bytes()).digest()
    assert audio.digest(sounds / "a.wav") == file
    assert audio.digest(sounds / "s.tar#in/ä b#.wav") == file
    assert audio.digest(sounds / "s.parquet#my/audio/17") == file
    assert audio.digest(sounds / f"a.npy#rate={RATE}") != audio.digest(sounds / "a.npy#rate=16000")


def test_what_is_an_address_and_what_a_name(tmp_path):
    assert addresses.split("b/song #1.wav") is None
    assert addresses.split("b/a.tar#") is None
    assert addresses.split("b/a.tar.gz#x") is None
    assert addresses.split("b/A.TAR#x#y.tar#z") == ("b/A.TAR", "x#y.tar#z")
    folder = tmp_path / "a.tar#b"
    folder.mkdir()
    (folder / "c.npy#rate=8000").write_bytes(encoded())
    assert addresses.split(str(folder / "c.npy#rate=8000")) is None  # there is a file of this very name
    np.save(folder / "d.npy", WAVE)
    assert addresses.split(f"{folder}/d.npy#rate=8000") == (f"{folder}/d.npy", "rate=8000")
    np.testing.assert_array_equal(audio.read(folder / "d.npy#rate=8000")[0], WAVE)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.stack([WAVE, -WAVE / 2]), WAVE / 4),
        (WAVE.astype(np.float64), WAVE),
        (np.array([0, 16384, -32768], np.int16), [0.0, 0.5, -1.0]),
    ],
)
def test_arrays_are_down_mixed_and_scaled(tmp_path, array, expected):
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_allclose(audio.read(tmp_path / "a.npy#rate=8000")[0], expected, atol=1e-7)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((64, 1001), np.float32), "at most 8 channels"),
        (np.zeros((1, 64, 1001), np.float32), "shape (1, 64, 1001)"),
        (np.zeros(0, np.float32), "it is empty"),
        (np.full(9, np.nan), "NaN"),
        (np.array(["text"]), "allowed are floats"),
    ],
)
def test_spectrograms_and_other_arrays_are_refused(tmp_path, array, says):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(AudioError, match=r"a\.npy#rate=8000") as caught:
        audio.read(tmp_path / "a.npy#rate=8000")
    assert says in str(caught.value)
    assert "not a spectrogram" in str(caught.value)


def test_what_cannot_be_read_says_so(sounds):
    for address, says in {
        "gone.tar#a.wav": "there is no such file",
        "s.tar#gone.wav": "the tar holds no file of that name",
        "s.tar#x.json": "allowed is what libsndfile decodes",
        "s.parquet#my/audio/25": "no bytes of a sound are there",
        "s.parquet#my/audio/-1": "no bytes of a sound are there",
        "s.parquet#text/1": "no bytes of a sound are there",
        "s.parquet#gone/1": "no bytes of a sound are there",
        "s.parquet#my/audio/3": "allowed is what libsndfile decodes",
        "a.npy": "does not know its sample rate",
        "a.npy#rate=x": "does not know its sample rate",
        "a.npy#rate=7": "from 1000 to 768000",
    }.items():
        with pytest.raises(AudioError) as caught:
            audio.read(sounds / address)
        assert says in str(caught.value)
        assert address in str(caught.value)
        assert "\n" not in str(caught.value)
    (sounds / "s.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(AudioError, match="damaged Parquet"):
        audio.read(sounds / "s.parquet#my/audio/3")
    np.save(sounds / "b.npy", np.array([{}]))
    with pytest.raises(AudioError, match=r"b\.npy"):
        audio.read(sounds / "b.npy#rate=8000")


def test_a_tar_cut_anywhere_is_refused(tmp_path):
    whole = write_tar(tmp_path / "a.tar", {"a.flac": b"1" * 700, "b.flac": b"2" * 100}).read_bytes()
    assert list(addresses.members(str(tmp_path / "a.tar"))) == ["a.flac", "b.flac"]
    # Headers and contents of the two are at 0, 512, 1536, 2048; the zeros begin at 2560.
    for length in (1, 511, 600, 1536, 1600, 2047, 2100, 2560):
        (tmp_path / "a.tar").write_bytes(whole[:length])
        with pytest.raises(AudioError, match="get it again"):
            addresses.members(str(tmp_path / "a.tar"))
    (tmp_path / "a.tar").write_bytes(whole[:1536] + b"?" * 512 + whole[2048:])  # a header overwritten
    with pytest.raises(AudioError, match="damaged after 1 files, at byte 1536"):
        addresses.members(str(tmp_path / "a.tar"))


def test_a_tar_that_changes_is_read_anew(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.flac": encoded()})
    assert len(audio.read(tmp_path / "a.tar#a.flac")[0]) == 1200
    write_tar(tmp_path / "a.tar", {"first.txt": b"1" * 3000, "a.flac": encoded(WAVE[:500])})
    assert len(audio.read(tmp_path / "a.tar#a.flac")[0]) == 500


def test_compressed_tars_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.flac"))
    with pytest.raises(AudioError, match="compressed or no tar"):
        audio.read(tmp_path / "a.tar#a.flac")

"""What files say of themselves: each container's own tags, broken ones, and those in a tar."""

import io
import struct
import tarfile
from pathlib import Path

import mutagen
import mutagen.aiff
import mutagen.flac
import mutagen.id3
import mutagen.oggopus
import mutagen.oggvorbis
import mutagen.wave
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon import addresses, tags

WAVE = 0.1 * np.sin(np.arange(4800) / 7).astype(np.float32)
SUBTYPES = {".opus": "OPUS", ".ogg": "VORBIS"}
ALL = {
    "title": "Tin Roof",
    "artist": "Ada, Ben",
    "album": "Weather",
    "genre": "Ambient",
    "key": "F#m",
    "comment": "it rained",
    "bpm": 120.5,
    "year": 1999.0,
}


def sound(path: Path) -> Path:
    container = "OGG" if path.suffix in SUBTYPES else None
    soundfile.write(path, WAVE, 48000, format=container, subtype=SUBTYPES.get(path.suffix))
    return path


def id3(path: Path, *frames: mutagen.id3.Frame) -> Path:
    """A sound with these frames in its ID3 tag."""
    file = mutagen.File(sound(path))
    if file.tags is None:
        file.add_tags()
    for frame in frames:
        file.tags.add(frame)
    file.save()
    return path


def vorbis(path: Path, comments: dict[str, str | list[str]]) -> Path:
    file = mutagen.File(sound(path))
    file.update(comments)
    file.save()
    return path


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def with_chunks(path: Path, *chunks: bytes, first: bool = False) -> Path:
    """A WAV with more chunks, behind the samples or before all others."""
    data = sound(path).read_bytes()
    more = b"".join(chunks)
    body = data[:12] + more + data[12:] if first else data + more
    path.write_bytes(body[:4] + struct.pack("<I", len(body) - 8) + body[8:])
    assert len(soundfile.read(path)[0]) == len(WAVE)
    return path


def acid(tempo: float) -> bytes:
    return chunk(b"acid", struct.pack("<IHHfIHHf", 2, 60, 0x8000, 0.0, 8, 4, 4, tempo))


def info(**texts: bytes) -> bytes:
    return chunk(b"LIST", b"INFO" + b"".join(chunk(name.encode(), text + b"\0") for name, text in texts.items()))


FRAMES = (
    mutagen.id3.TIT2(text="Tin Roof"),
    mutagen.id3.TPE1(text=["Ada", "Ben"]),
    mutagen.id3.TALB(text="Weather"),
    mutagen.id3.TCON(text="Ambient"),
    mutagen.id3.TKEY(text="F#m"),
    mutagen.id3.COMM(lang="eng", desc="", text="it rained"),
    mutagen.id3.TBPM(text="120.5"),
    mutagen.id3.TDRC(text="1999-03-01"),
)


@pytest.mark.parametrize("suffix", [".mp3", ".aiff", ".wav"])
def test_id3_in_every_container_that_has_it(tmp_path, suffix):
    assert tags.read(id3(tmp_path / f"a{suffix}", *FRAMES)) == ALL


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".opus"])
def test_vorbis_comments_in_every_container_that_has_them(tmp_path, suffix):
    comments = {
        "TITLE": "Tin Roof",
        "Artist": ["Ada", "Ben"],
        "album": "Weather",
        "GENRE": "Ambient",
        "initialkey": "F#m",
        "DESCRIPTION": "it rained",
        "BPM": "120.5",
        "date": "1999-03-01",
    }
    assert tags.read(vorbis(tmp_path / f"a{suffix}", comments)) == ALL


def test_what_only_a_riff_info_list_says(tmp_path):
    told = info(INAM=b"Tin Roof", IART=b"Ada", IPRD=b"Weather", IGNR=b"Ambient", ICMT=b"it  rained\n", ICRD=b"2019")
    wanted = {"title": "Tin Roof", "artist": "Ada", "album": "Weather", "genre": "Ambient", "comment": "it rained"}
    assert tags.read(with_chunks(tmp_path / "a.wav", told)) == wanted
    assert tags.read(with_chunks(tmp_path / "b.wav", told, first=True)) == wanted


def test_id3_counts_before_riff_info(tmp_path):
    path = with_chunks(tmp_path / "a.wav", info(INAM=b"of RIFF", IART=b"Ada"), acid(90.0))
    file = mutagen.wave.WAVE(path)
    file.add_tags()
    file.tags.add(mutagen.id3.TIT2(text="of ID3"))
    file.tags.add(mutagen.id3.TBPM(text="91"))
    file.save()
    assert tags.read(path) == {"title": "of ID3", "artist": "Ada", "bpm": 91.0}


@pytest.mark.parametrize("first", [True, False])
def test_the_tempo_of_an_acid_chunk_before_or_after_the_sound(tmp_path, first):
    assert tags.read(with_chunks(tmp_path / "a.wav", acid(127.996), first=first)) == {"bpm": 128.0}


@pytest.mark.parametrize("tempo", [0.0, 19.9, 1000.0, float("nan"), float("inf"), -120.0])
def test_a_tempo_that_is_none(tmp_path, tempo):
    assert tags.read(with_chunks(tmp_path / "a.wav", acid(tempo))) == {}


def test_samples_that_look_like_an_acid_chunk_are_none(tmp_path):
    body = np.frombuffer(acid(120.0) * 50, np.int16)
    soundfile.write(tmp_path / "a.wav", body, 48000)
    assert acid(120.0) in (tmp_path / "a.wav").read_bytes()
    assert tags.read(tmp_path / "a.wav") == {}


def test_an_acid_chunk_cut_off_and_one_too_short(tmp_path):
    path = with_chunks(tmp_path / "a.wav", acid(120.0))
    path.write_bytes(path.read_bytes()[:-4])
    assert tags.read(path) == {}
    assert tags.read(with_chunks(tmp_path / "b.wav", chunk(b"acid", b"\0" * 8))) == {}


def test_very_many_chunks_end_the_search(tmp_path):
    """A file of nothing but empty chunks would else be walked for minutes."""
    many = chunk(b"junk", b"") * 5000
    reads = 0

    class Counting(io.BytesIO):
        def read(self, *size: int) -> bytes:
            nonlocal reads
            reads += 1
            return super().read(*size)

    assert tags._acid_tempo(Counting(many + acid(120.0))) is None
    assert reads <= 200


@pytest.mark.parametrize(
    ("text", "bpm"),
    [
        ("120", 120.0),
        ("120,5", 120.5),
        ("120.50 BPM", 120.5),
        ("0", None),
        ("000.00", None),
        ("fast", None),
        ("", None),
        ("99999", None),
        ("9" * 400, None),
    ],
)
def test_a_tempo_as_people_write_it(tmp_path, text, bpm):
    found = tags.read(vorbis(tmp_path / "a.flac", {"bpm": text}))
    assert found == ({} if bpm is None else {"bpm": bpm})


def test_a_name_without_a_value_leaves_the_word_to_the_next_one(tmp_path):
    assert tags.read(vorbis(tmp_path / "a.flac", {"bpm": "0", "tempo": "98", "comment": " ", "description": "x"})) == {
        "comment": "x",
        "bpm": 98.0,
    }


def test_id3s_own_words_and_a_comment_that_is_none(tmp_path):
    frames = (
        mutagen.id3.TXXX(desc="INITIALKEY", text="8A"),
        mutagen.id3.TXXX(desc="tempo", text="77"),
        mutagen.id3.COMM(lang="eng", desc="iTunNORM", text=" 0000 0001 0002"),
        mutagen.id3.COMM(lang="eng", desc="ID3v1 Comment", text="said by a person"),
    )
    assert tags.read(id3(tmp_path / "a.mp3", *frames)) == {"key": "8A", "comment": "said by a person", "bpm": 77.0}


def test_a_genre_that_id3_numbers(tmp_path):
    assert tags.read(id3(tmp_path / "a.mp3", mutagen.id3.TCON(text="(17)")))["genre"] == "Rock"
    body = sound(tmp_path / "b.mp3").read_bytes()
    old = b"TAG" + b"Old".ljust(30, b"\0") + bytes(60) + b"1987" + bytes(30) + bytes([17])
    (tmp_path / "b.mp3").write_bytes(body + old)
    assert tags.read(tmp_path / "b.mp3") == {"title": "Old", "genre": "Rock", "year": 1987.0}


def test_a_huge_comment_is_cut_and_odd_letters_stay_one_line(tmp_path):
    path = vorbis(tmp_path / "a.flac", {"comment": "ä " * 100_000, "title": "one\r\ntwo\tthree"})
    found = tags.read(path)
    assert found["comment"] == ("ä " * 250)
    assert found["title"] == "one two three"
    path = id3(tmp_path / "b.mp3", mutagen.id3.TIT2(text="音 \n x"))
    assert tags.read(path) == {"title": "音 x"}


def test_pictures_and_unknown_frames_are_no_tags(tmp_path):
    picture = mutagen.id3.APIC(mime="image/png", type=3, desc="cover", data=b"\0" * 100_000)
    assert tags.read(id3(tmp_path / "a.mp3", picture, mutagen.id3.TIT2(text="x"))) == {"title": "x"}


@pytest.mark.parametrize("suffix", [".mp3", ".aiff", ".wav", ".flac", ".ogg", ".opus"])
def test_a_file_without_tags_has_none(tmp_path, suffix):
    assert tags.read(sound(tmp_path / f"a{suffix}")) == {}


def test_what_is_no_sound_has_no_tags(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("not a sound")
    (tmp_path / "riff.wav").write_bytes(b"RIFF\xff\xff\xff\xffWAVE")
    (tmp_path / "folder.wav").mkdir()
    for name in ("empty.wav", "text.mp3", "riff.wav", "folder.wav", "gone.wav", "gone.tar#a.wav", "nul\0.wav"):
        assert tags.read(tmp_path / name) == {}


@pytest.mark.parametrize("suffix", [".mp3", ".wav", ".flac", ".ogg"])
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_damaged_file_never_raises(tmp_path_factory, suffix, data):
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    if not path.exists():
        (vorbis(path, {"title": "x", "bpm": "9"}) if suffix in (".flac", ".ogg") else id3(path, *FRAMES))
        path.with_suffix(".whole").write_bytes(path.read_bytes())
        path.with_suffix(f"{suffix}.whole").write_bytes(path.read_bytes())
    whole = bytearray(path.with_suffix(f"{suffix}.whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, min(len(whole), 2000) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for name, cell in tags.read(path).items():
        assert isinstance(cell, str if name in tags.TEXTS else float)


def test_a_member_of_a_tar_has_its_own(tmp_path):
    paths = [
        id3(tmp_path / "a.mp3", *FRAMES),
        vorbis(tmp_path / "b.flac", {"title": "in a tar"}),
        with_chunks(tmp_path / "c.wav", info(INAM=b"riff"), acid(100.0)),
    ]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for path in paths:
            tar.add(path, path.name)
    assert set(addresses.members(str(tmp_path / "x.tar"))) == {"a.mp3", "b.flac", "c.wav"}
    assert tags.read(f"{tmp_path}/x.tar#a.mp3") == ALL
    assert tags.read(f"{tmp_path}/x.tar#b.flac") == {"title": "in a tar"}
    assert tags.read(f"{tmp_path}/x.tar#c.wav") == {"title": "riff", "bpm": 100.0}
    assert tags.read(f"{tmp_path}/x.tar#d.wav") == {}


def test_names_are_in_a_fixed_order(tmp_path):
    assert list(tags.read(id3(tmp_path / "a.wav", *reversed(FRAMES)))) == [*tags.TEXTS, *tags.NUMBERS]

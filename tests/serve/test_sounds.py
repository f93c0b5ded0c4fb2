"""Files by their id: bytes, ranges, WAV for players, waveforms; and nothing that is not in the library."""

import os
import tarfile

import httpx
import numpy as np
import pytest
import soundfile

from antiphon import waveform
from antiphon.library import Library
from antiphon.serve.playing import requested, sound_bytes
from antiphon.serve.problems import Refused
from serve.conftest import UGLY, serving, tones


def test_what_is_known_of_a_file(client, ids, sounds):
    answer = client.get(f"/api/files/{ids['long.wav']}").json()
    assert answer["windows"] == [[0, 1], [1, 2], [2, 3]]
    assert (answer["name"], answer["folder"], answer["seconds"]) == ("long.wav", "", 3)
    assert answer["size"] == (sounds / "long.wav").stat().st_size
    assert client.get(f"/api/files/{ids['apple.aiff']}").json()["folder"] == "deep"


# Bytes and ranges


def test_a_file_comes_as_it_is(client, ids, sounds):
    content = (sounds / "long.wav").read_bytes()
    answer = client.get(f"/api/audio/{ids['long.wav']}")
    assert answer.content == content
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["content-disposition"] == "inline; filename*=UTF-8''long.wav"
    ugly = client.get(f"/api/audio/{ids[UGLY]}", params={"download": 1})
    assert ugly.headers["content-disposition"] == "attachment; filename*=UTF-8''it%27s%20m%C3%A4rchen.wav"


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-99", 0, 99),
        ("bytes=100-", 100, None),
        ("bytes=-10", -10, None),
        ("bytes=5-5", 5, 5),
        ("bytes=0-99999999999", 0, None),
    ],
)
def test_a_range_is_that_part(client, ids, sounds, header, first, last):
    content = (sounds / "long.wav").read_bytes()
    part = content[first:] if last is None else content[first : last + 1]
    answer = client.get(f"/api/audio/{ids['long.wav']}", headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, part)
    start = len(content) - 10 if first < 0 else first
    assert answer.headers["content-range"] == f"bytes {start}-{start + len(part) - 1}/{len(content)}"
    assert answer.headers["content-length"] == str(len(part))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-2",
        "bytes=0-1,4-5",
        "items=0-5",
        "bytes=--5",
        "bytes=0-1" + ",0-1" * 40,
    ],
)
def test_ranges_that_make_no_sense_give_the_whole(client, ids, sounds, header):
    answer = client.get(f"/api/audio/{ids['low.wav']}", headers={"Range": header})
    assert answer.status_code == (422 if len(header) > 200 else 200)
    assert answer.status_code == 422 or answer.content == (sounds / "low.wav").read_bytes()


@pytest.mark.parametrize("header", ["bytes=999999999-", "bytes=-0", "bytes=999999999-9999999999"])
def test_a_range_beyond_the_end_is_416(client, ids, sounds, header):
    answer = client.get(f"/api/audio/{ids['low.wav']}", headers={"Range": header})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{(sounds / 'low.wav').stat().st_size}"
    assert list(answer.json()) == ["error"]


def test_a_range_of_what_has_changed_is_the_whole(client, ids, sounds):
    address = f"/api/audio/{ids['low.wav']}"
    tag = client.get(address).headers["etag"]
    assert client.get(address, headers={"Range": "bytes=0-9", "If-Range": tag}).status_code == 206
    assert client.get(address, headers={"Range": "bytes=0-9", "If-Range": '"old"'}).status_code == 200


def test_ranges_by_hand():
    assert requested("bytes=2-4", size=10) == (2, 5)
    assert requested("bytes=-4", size=10) == (6, 10)
    assert requested("bytes=-40", size=10) == (0, 10)
    assert requested(None, size=10) is None
    with pytest.raises(Refused):
        requested("bytes=0-", size=0)


# WAV for players


def test_what_browsers_do_not_play_comes_as_wav(client, ids, sounds, tmp_path):
    plain = client.get(f"/api/audio/{ids['apple.aiff']}")
    assert plain.content == (sounds / "deep" / "apple.aiff").read_bytes()
    assert plain.headers["content-type"] == "audio/aiff"
    answer = client.get(f"/api/audio/{ids['apple.aiff']}", params={"playable": 1})
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.headers["content-disposition"].endswith("''apple.wav")
    (tmp_path / "a.wav").write_bytes(answer.content)
    wave, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 8000
    np.testing.assert_allclose(wave, tones((1, 0, 0.5, 0)), atol=2**-14)
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    for name in ("low.wav", "stereo.flac"):  # these they play
        address = f"/api/audio/{ids[name]}"
        assert client.get(address, params={"playable": 1}).content == client.get(address).content


@pytest.mark.parametrize(
    "header", ["bytes=0-20", "bytes=30-60", "bytes=44-", "bytes=1001-2000", "bytes=-3", "bytes=45-45"]
)
def test_a_range_of_a_wav_made_on_the_way(client, ids, header):
    address = f"/api/audio/{ids['apple.aiff']}?playable=1"
    whole = client.get(address).content
    first, stop = requested(header, size=len(whole))
    answer = client.get(address, headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, whole[first:stop])


def test_wav_of_many_channels_and_of_loud_floats(tmp_path):
    wave = np.stack([tones((1, 0, 0, 0))] * 3, axis=1)
    soundfile.write(tmp_path / "three.aiff", wave, 8000, subtype="PCM_24")
    (tmp_path / "three.wav").write_bytes(b"".join(_all(sound_bytes(str(tmp_path / "three.aiff"), playable=True))))
    found, _ = soundfile.read(tmp_path / "three.wav", always_2d=True)
    assert found.shape == (8000, 1)
    np.testing.assert_allclose(found[:, 0], wave[:, 0], atol=2**-14)
    soundfile.write(tmp_path / "loud.au", np.stack([[2.0, -2.0, 0.5], [0, 0, 0]], axis=1), 8000, subtype="FLOAT")
    (tmp_path / "loud.wav").write_bytes(b"".join(_all(sound_bytes(str(tmp_path / "loud.au"), playable=True))))
    found, _ = soundfile.read(tmp_path / "loud.wav", always_2d=True)
    np.testing.assert_allclose(found[:, 0], [1, -1, 0.5], atol=1e-4)
    assert found.shape == (3, 2)


def _all(sound):
    return sound.read(0, sound.size)


def test_a_member_of_a_tar_and_an_array(tmp_path, sounds, model):
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        archive.add(sounds / "low.wav", "a/low.wav")
        archive.add(sounds / "deep" / "apple.aiff", "a/apple.aiff")
    address = f"{tmp_path / 'some.tar'}#a/low.wav"
    found, content = sound_bytes(address, playable=True), (sounds / "low.wav").read_bytes()
    assert (b"".join(_all(found)), found.media_type) == (content, "audio/wav")
    assert b"".join(found.read(10, 99)) == content[10:99]
    aiff = sound_bytes(f"{tmp_path / 'some.tar'}#a/apple.aiff", playable=True)
    assert aiff.media_type == "audio/wav"
    assert len(b"".join(_all(aiff))) == 44 + 2 * 8000
    np.save(tmp_path / "a.npy", tones((1, 0, 0, 0)).astype(np.float32))
    array = sound_bytes(f"{tmp_path / 'a.npy'}#rate=8000", playable=False)
    assert (array.media_type, array.size) == ("audio/wav", 44 + 2 * 8000)
    for gone in (f"{tmp_path / 'some.tar'}#a/none.wav", f"{tmp_path / 'none.tar'}#a.wav", f"{tmp_path}/a.npy#rate=x"):
        with pytest.raises(Refused) as refused:
            sound_bytes(gone, playable=False)
        assert refused.value.status_code == 404


# Nothing else


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "....//....//etc/passwd",
     "/etc/passwd", "%00", "0000000000000000", "0000000000000000%00.wav", "ABCDEF0123456789", "é" * 16, "0" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("address", ["/api/audio/", "/api/files/", "/api/waveform/", "/page/", "/api/similar?id="])
def test_no_path_leads_out(client, address, name):
    answer = client.get(f"{address}{name}")
    assert answer.status_code in (400, 404, 422), answer.text
    assert "root:" not in answer.text
    assert list(answer.json()) == ["error"]


def test_a_file_that_became_something_else_is_gone(tmp_path, sounds, model):
    """A link to a secret, a pipe, a folder, nothing: all 404, at once, in one line."""
    folder = tmp_path / "sounds"
    for name in ("link", "pipe", "folder", "gone", "noise", "stays"):
        (folder / f"{name}").parent.mkdir(exist_ok=True)
        (folder / f"{name}.wav").write_bytes((sounds / "low.wav").read_bytes())
    library = Library.create(tmp_path / "library", model=model, root=folder)
    library.sync(folder, model=model)
    ids = {
        name: library.file(str(folder / f"{name}.wav")).id
        for name in ("link", "pipe", "folder", "gone", "noise", "stays")
    }
    (tmp_path / "secret").write_text("secret")
    for name in ("link", "pipe", "folder", "gone"):
        (folder / f"{name}.wav").unlink()
    (folder / "link.wav").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe.wav")
    (folder / "folder.wav").mkdir()
    (folder / "noise.wav").write_bytes(b"no sound any more")

    from antiphon.serve.app import create_app

    with (
        serving(create_app({"x": library}, {"x": model})) as url,
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        for name in ("link", "pipe", "folder", "gone"):
            for playable in (0, 1):
                answer = client.get(f"/api/audio/{ids[name]}", params={"playable": playable})
                assert answer.status_code == 404, name
                assert list(answer.json()) == ["error"]
        assert client.get(f"/api/audio/{ids['noise']}").status_code == 200
        assert client.get(f"/api/audio/{ids['noise']}", params={"playable": 1}).status_code == 404
        assert client.get(f"/api/audio/{ids['stays']}").status_code == 200


# Waveforms


def test_a_waveform_is_what_is_heard(client, ids, sounds):
    answer = client.get(f"/api/waveform/{ids['long.wav']}", params={"points": 30})
    wave, _ = soundfile.read(sounds / "long.wav")
    expected = [round(255 * min(1.0, np.abs(part).max())) for part in np.split(wave, 30)]
    assert answer.json()["seconds"] == 3
    np.testing.assert_allclose(answer.json()["peaks"], expected, atol=30)  # bins of the windows do not meet the points
    assert "max-age" in answer.headers["cache-control"]
    assert len(client.get(f"/api/waveform/{ids['long.wav']}").json()["peaks"]) == 200


def test_a_file_without_an_outline_is_decoded_once(library, sounds, tmp_path):
    from dataclasses import replace

    from antiphon.serve.outlines import Outlines

    soundfile.write(tmp_path / "a.wav", np.r_[np.full(80_000, 0.25), np.full(64_000, 1.0)], 8000, subtype="FLOAT")
    file = replace(library.file(str(sounds / "low.wav")), path=str(tmp_path / "a.wav"), peaks=None)
    outlines = Outlines(limit_seconds=20)
    try:
        np.testing.assert_array_equal(outlines.of(file, points=9), [64] * 5 + [255] * 4)  # 18 s in points of 2 s
        (tmp_path / "a.wav").unlink()
        np.testing.assert_array_equal(outlines.of(file, points=9), [64] * 5 + [255] * 4)
        with pytest.raises(Refused) as refused:
            outlines.of(replace(file, path=str(tmp_path / "b.wav")), points=9)
        assert refused.value.status_code == 404
    finally:
        outlines.close()
    assert waveform.BINS == 64

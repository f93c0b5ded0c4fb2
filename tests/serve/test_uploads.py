"""Sounds that strangers send: malformed, huge, slow; a worker that is killed and comes back."""

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from antiphon.serve import uploads
from antiphon.serve.problems import Refused
from antiphon.serve.worker import Worker
from serve.conftest import tones

SOUND = {"Content-Type": "audio/wav"}


@pytest.fixture
def worker():
    made = Worker(limit_seconds=20)
    yield made
    made.close()


@pytest.fixture(scope="module")
def silence(tmp_path_factory) -> Path:
    """Two hours of it in a small file."""
    path = tmp_path_factory.mktemp("silence") / "long.flac"
    with soundfile.SoundFile(path, "w", samplerate=8000, channels=1, format="FLAC") as file:
        for _ in range(12):
            file.write(np.zeros(8000 * 600, np.int16))
    assert path.stat().st_size < 400_000
    return path


def riff(*, frames: int = 8000, channels: int = 1, rate: int = 8000, data: int | None = None, bits: int = 16) -> bytes:
    """A WAV whose header may lie."""
    size = frames * channels * bits // 8 if data is None else data
    form = struct.pack(
        "<HHIIHH", 1, channels, rate, rate * channels * bits // 8 & 0xFFFFFFFF, channels * bits // 8 & 0xFFFF, bits
    )
    return (
        b"RIFF"
        + struct.pack("<I", 0xFFFFFFFF & (size + 36))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", size & 0xFFFFFFFF)
    )


def test_the_process_knows_no_torch():
    code = "import sys, antiphon.serve.decoding; print({'torch', 'fastapi', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


MALFORMED = {
    "text": b"this is no sound",
    "one byte": b"\0",
    "zeros": bytes(100_000),
    "only a RIFF header": riff(frames=0),
    "a header that promises 4 GB": riff(data=0xFFFFFFFF),
    "rate 0": riff(rate=0) + bytes(16_000),
    "rate 4 GHz": riff(rate=0xFFFFFFFF) + bytes(16_000),
    "0 channels": riff(channels=0) + bytes(16_000),
    "65535 channels": riff(channels=65535, frames=1) + bytes(200_000),
    "a cut FLAC": b"fLaC\0\0\0\x22" + bytes(20),
    "an Ogg page of noise": b"OggS" + os.urandom(5000),
    "an ID3 tag without end": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(1000),
    "a zip": b"PK\x03\x04" + bytes(1000),
    "html": b"<html><script>alert(1)</script></html>",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_sound_is_refused_in_one_line(client, name):
    for answer in (
        client.post("/api/similar", content=MALFORMED[name], headers=SOUND),
        client.post("/api/embed", files={"sound": ("a song.wav", MALFORMED[name])}),
    ):
        assert answer.status_code == 415, answer.text
        error = answer.json()["error"]
        assert "\n" not in error
        assert "Traceback" not in error
        assert tempfile.gettempdir() not in error  # names no path of the server
    assert "a song.wav" in error or "gave up" in error or "memory" in error


def test_requests_without_a_sound(client):
    assert client.post("/api/similar", content=b"", headers=SOUND).status_code == 400
    assert client.post("/api/similar", files={"other": b"x"}).status_code == 400
    assert client.post("/api/similar", data={"sound": "text"}).status_code == 415  # a form, but not of files
    assert client.post("/api/similar", files={"sound": ("a.wav", b"")}).status_code == 400
    assert client.post("/api/similar", content=b"x").status_code == 415
    assert client.post("/api/similar", content=b"x", headers={"Content-Type": "text/html"}).status_code == 415
    assert client.post("/api/similar", files=[("sound", b"x"), ("more", b"y")]).status_code == 400
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/api/similar", content=b"no boundary here", headers=broken).status_code == 400
    assert client.post("/api/similar", content=b"x", headers={"Content-Type": "multipart/form-data"}).status_code == 400
    head = (
        b'--x\r\nContent-Disposition: form-data; name="sound"; filename="' + b"a" * 50_000 + b'"\r\n\r\nx\r\n--x--\r\n'
    )
    assert client.post("/api/similar", content=head, headers=broken).status_code in (400, 415)


def test_hours_of_silence_in_a_tiny_file_are_cut_short(with_settings, silence):
    """Two hours of silence are 300 kB of FLAC; as many seconds as are allowed are decoded and no more."""
    client = with_settings(max_upload_seconds=30)
    answer = client.post("/api/similar", content=silence.read_bytes(), headers=SOUND)
    assert answer.status_code == 413
    assert "30 s" in answer.json()["error"]
    part = client.post("/api/similar", content=silence.read_bytes(), headers=SOUND, params={"start": 3600, "end": 3601})
    assert part.status_code in (200, 400)  # silence has no direction to search in, a model's affair
    assert (
        client.post("/api/similar", content=silence.read_bytes(), headers=SOUND, params={"end": 31}).status_code == 413
    )


def test_exactly_the_seconds_that_are_allowed(with_settings, tmp_path):
    client = with_settings(max_upload_seconds=2)
    for frames, status in ((16_000, 200), (16_001, 413)):
        soundfile.write(tmp_path / "a.wav", np.resize(tones((1, 0, 0, 0)), frames), 8000)
        assert (
            client.post("/api/similar", content=(tmp_path / "a.wav").read_bytes(), headers=SOUND).status_code == status
        )


def test_a_thousand_channels_take_bounded_memory(worker, tmp_path):
    """libsndfile allows 1024 channels: a second of them is 188 MB of floats, and is averaged block by block."""
    with soundfile.SoundFile(tmp_path / "wide.wav", "w", samplerate=48_000, channels=1024, subtype="PCM_U8") as file:
        for _ in range(48):
            file.write(np.full((1000, 1024), 0.5, np.float32))
    result = worker.run(
        "copy",
        source=str(tmp_path / "wide.wav"),
        target=str(tmp_path / "plain.wav"),
        start_seconds=0.0,
        end_seconds=None,
        most_seconds=10,
    )
    assert result == {"seconds": 1.0}
    np.testing.assert_allclose(soundfile.read(tmp_path / "plain.wav")[0], 0.5, atol=0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of the system are POSIX")
def test_a_job_that_wants_too_much_memory_ends_alone(worker, tmp_path):
    """What the limit does: an allocation of 3 GB fails in the process, which answers and goes on."""
    from antiphon.serve import decoding

    code = (
        "import antiphon.serve.decoding as d, numpy as np, json\n"
        "d._limit_process()\n"
        "d.JOBS['copy'] = lambda **_: {'bytes': np.ones(3 << 30, np.uint8).nbytes}\n"
        'print(json.dumps(d.answer(\'{"job": "copy", "limit_seconds": 60}\')))\n'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert json.loads(done.stdout)["error"] == "sound", done.stderr
    assert decoding.MEMORY_BYTES < 3 << 30


def test_decoding_that_takes_too_long_is_killed_and_the_next_is_served(silence, tmp_path):
    """A sound that never ends: a named pipe nobody writes to is refused; a huge one is cut off by the clock."""
    soundfile.write(tmp_path / "short.wav", tones((1, 0, 0, 0)), 8000)
    worker = Worker(limit_seconds=20)
    try:
        worker.run("outline", source=str(tmp_path / "short.wav"))
        first = worker._process
        worker._limit_seconds = 0.05
        with pytest.raises(Refused, match=r"more than 0\.05 s") as refused:
            worker.run("outline", source=str(silence))
        assert refused.value.status_code == 504
        assert first.poll() is not None
        worker._limit_seconds = 20
        assert worker.run("outline", source=str(tmp_path / "short.wav"))["spans"] == [[0, 1]]
        assert worker._process is not first
    finally:
        worker.close()


def test_a_late_sound_is_504(with_settings, silence):
    client = with_settings(decode_seconds=0.01, max_upload_seconds=1e6)
    answer = client.post("/api/similar", content=silence.read_bytes(), headers=SOUND)
    assert answer.status_code == 504
    assert "0.01 s" in answer.json()["error"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the clock is POSIX")
def test_a_worker_whose_server_died_ends_itself(tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import antiphon.serve.decoding as d, time\nd.JOBS['copy'] = lambda **_: time.sleep(60)\nd.main()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        process.stdin.write(b'{"job": "copy", "limit_seconds": 0.1}\n')
        process.stdin.flush()
        assert process.wait(30) == -signal.SIGALRM


def test_a_worker_that_dies_is_started_again(worker, tmp_path):
    soundfile.write(tmp_path / "a.wav", tones((1, 0, 0, 0)), 8000)
    worker.run("outline", source=str(tmp_path / "a.wav"))
    worker._process.kill()
    worker._process.wait()
    assert worker.run("outline", source=str(tmp_path / "a.wav"))["spans"] == [[0, 1]]
    process = worker._process
    worker.close()
    assert process.poll() is not None
    with pytest.raises(Refused, match="stopping"):
        worker.run("outline", source=str(tmp_path / "a.wav"))


def test_too_many_waiting_are_sent_away(tmp_path):
    worker = Worker(limit_seconds=20, most_waiting=1)
    worker._places.acquire()
    with pytest.raises(Refused) as refused:
        worker.run("outline", source="x")
    assert refused.value.status_code == 503
    assert int(refused.value.headers["Retry-After"]) == 10


def test_a_sound_that_does_not_arrive_is_not_waited_for(with_settings):
    client = with_settings(upload_wait_seconds=0.2)

    def slow():
        yield b"RIFF"
        time.sleep(0.5)
        yield b"more"

    answer = client.post("/api/similar", content=slow(), headers=SOUND)
    assert answer.status_code == 408


def test_nothing_is_left_on_disk(with_settings, sounds, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    client = with_settings()
    for content in ((sounds / "low.wav").read_bytes(), b"no sound"):
        client.post("/api/similar", content=content, headers=SOUND)
        client.post("/api/similar", files={"sound": content})
    assert not list(Path(tmp_path).iterdir())


def test_uploads_are_forgotten(monkeypatch):
    memory, now = uploads.Memory(), [0.0]
    monkeypatch.setattr(uploads, "time", SimpleNamespace(monotonic=lambda: now[0]))
    vector = np.ones(4, np.float32)
    first = memory.keep(vector, library="a")
    assert memory.vector(first, library="a") is vector
    now[0] = 3601.0
    with pytest.raises(Refused, match="send the sound again"):
        memory.vector(first, library="a")
    kept = [memory.keep(vector, library="a") for _ in range(1001)]
    assert len(memory._kept) == 1000
    assert kept[0] not in memory._kept
    assert len(set(kept)) == 1001

"""Searching and embedding over HTTP: what the library gives, and what is refused."""

import json
import os
import threading

import numpy as np
import pytest
import soundfile

from serve.conftest import LONG, tones


def names(answer) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [result["name"] for result in answer.json()["results"]]


def wav(path, *weights) -> bytes:
    soundfile.write(path, tones(*weights), 8000, subtype="FLOAT")
    return path.read_bytes()


def test_words_find_the_file_that_sounds_so_at_its_best_moment(client, sounds):
    answer = client.post("/api/search", json={"words": "top"}).json()
    best = answer["results"][0]
    assert (best["name"], best["folder"], best["path"]) == ("long.wav", "", str(sounds / "long.wav"))
    assert (best["start"], best["end"], best["seconds"]) == (0, 1, 3)
    assert best["score"] == pytest.approx(1, abs=1e-4)
    assert best["percentile"] == pytest.approx(100 * 5 / 6, abs=0.01)  # five of six files fit less
    assert "curve" not in best
    assert answer["version"] >= 1
    assert answer["took_ms"] > 0
    folders = {result["name"]: result["folder"] for result in answer["results"]}
    assert folders["apple.aiff"] == "deep"
    assert set(client.get("/api/search", params={"q": "top"}).json()["results"][0]) == set(best)


def test_a_curve_has_a_point_for_each_window(client):
    best = client.post("/api/search", json={"words": "middle", "curve": True, "where": "path LIKE '%long%'"}).json()
    (result,) = best["results"]
    assert [point[0] for point in result["curve"]] == [0.5, 1.5, 2.5]
    assert [point[1] for point in result["curve"]] == pytest.approx([0, 1, 2**-0.5], abs=1e-3)


def test_a_long_curve_keeps_the_best_of_each_run(library):
    from antiphon.library import File
    from antiphon.serve.searching import curve

    starts = np.arange(1000.0)
    vectors = np.zeros((1000, 4), np.float32)
    vectors[777, 0] = 0.9
    file = File("0" * 16, "/x.wav", 1, 1000.0, {}, starts, starts + 1, vectors, None)
    points = curve(file, np.array([1, 0, 0, 0], np.float32), most=200)
    assert len(points) == 200
    assert max(points, key=lambda point: point[1]) == (777.5, pytest.approx(0.9))


def test_get_and_post_answer_alike(client):
    got = client.get("/api/search", params={"q": "high", "without": "low", "top": 3, "by": "file", "diversity": 0.2})
    asked = {"words": "high", "without": "low", "top": 3, "by": "file", "diversity": 0.2}
    assert got.json()["results"] == client.post("/api/search", json=asked).json()["results"]
    assert len(names(got)) == 3


def test_by_window_gives_every_window(client):
    answer = client.post(
        "/api/search", json={"words": "middle", "by": "window", "filters": {"path": {"contains": "LONG"}}}
    )
    assert names(answer) == ["long.wav"] * 3


def test_more_like_this_leaves_it_out_and_looks_at_the_part_that_is_meant(client, ids):
    assert "low.wav" not in names(client.get("/api/similar", params={"id": ids["low.wav"]}))
    part = {"id": ids["long.wav"], "start": 0, "end": 1}
    assert names(client.get("/api/similar", params=part))[0] == "stereo.flac"  # middle and top
    both = {"like": [part], "unlike": [{"id": ids["stereo.flac"]}], "words": "low", "words_weight": 0.5}
    found = names(client.post("/api/search", json=both))
    assert {"long.wav", "stereo.flac"}.isdisjoint(found)


def test_a_sound_sent_in_is_searched_like_and_remembered(client, tmp_path):
    sound = wav(tmp_path / "a.wav", (0, 0, 1, 0))
    raw = client.post("/api/similar", content=sound, headers={"Content-Type": "audio/wav"}, params={"top": 2})
    form = client.post("/api/similar", files={"sound": ("../../evil name.wav", sound)}, params={"top": 2})
    assert names(raw) == names(form)
    assert names(raw)[0] == "high.wav"
    again = client.post("/api/search", json={"like": [{"upload": raw.json()["upload"]}], "top": 2})
    assert names(again) == names(raw)
    other = {"like": [{"upload": raw.json()["upload"]}], "library": "again"}
    assert client.post("/api/search", json=other).status_code == 404  # its vector is of the other library's model
    assert client.post("/api/search", json={"like": [{"upload": "0" * 16}]}).status_code == 404


def test_start_and_end_choose_a_part_of_what_is_sent_in(client, tmp_path):
    sound = wav(tmp_path / "a.wav", *LONG)
    head = {"Content-Type": "audio/wav"}
    first = client.post("/api/similar", content=sound, headers=head, params={"end": 1}).json()["results"][0]
    assert (first["name"], first["start"], first["score"]) == ("long.wav", 0, pytest.approx(1, abs=1e-4))
    second = client.post("/api/similar", content=sound, headers=head, params={"start": 1, "end": 2}).json()["results"][
        0
    ]
    assert (second["name"], second["start"]) == ("long.wav", 1)
    bad = client.post("/api/similar", content=sound, headers=head, params={"start": 2, "end": 1})
    assert bad.status_code == 400
    late = client.post("/api/similar", content=sound, headers=head, params={"start": 99})
    assert late.status_code == 415
    assert "earlier start" in late.json()["error"]


def test_embedding_a_sound_is_what_indexing_it_gave(client, library, sounds):
    """The way through the worker changes no vector: FLAC, AIFF, float WAV, one window and three."""
    for file in (sounds / "long.wav", sounds / "deep" / "stereo.flac", sounds / "deep" / "apple.aiff"):
        answer = client.post("/api/embed", content=file.read_bytes(), headers={"Content-Type": "audio/x"}).json()
        kept = library.file(str(file))
        np.testing.assert_allclose(answer["vectors"], kept.vectors, atol=1e-6)
        np.testing.assert_allclose(answer["mean"], kept.mean(), atol=1e-6)
        assert answer["windows"] == np.stack([kept.starts, kept.ends], axis=1).tolist()
        assert answer["seconds"] == kept.seconds
        assert (answer["dim"], answer["space"]) == (4, "projection")


def test_embedding_texts(client, model):
    texts = ["low", "low high", "top"]
    answer = client.post("/api/embed", json={"texts": texts}).json()
    np.testing.assert_allclose(answer["vectors"], model.encode_text(texts).numpy(), atol=1e-6)
    assert answer["dim"] == 4
    assert "windows" not in answer


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (400, {}),
        (400, {"words": "   "}),
        (400, {"unlike": [{"id": "0" * 16}]}),
        (400, {"words": "low", "where": "nosuch = 1"}),
        (400, {"words": "low", "where": "seconds >"}),
        (400, {"words": "low", "where": "repeat(path, 1000000000) = 'x'"}),
        (400, {"words": "low", "filters": {"nosuch": {"min": 1}}}),
        (400, {"words": "low", "filters": {"path": {"min": 1}}}),
        (400, {"words": "low", "filters": {"seconds": {"contains": "1"}}}),
        (400, {"like": [{}]}),
        (400, {"like": [{"id": "0" * 16, "upload": "0" * 16}]}),
        (404, {"like": [{"id": "0" * 16}]}),
        (404, {"words": "low", "library": "nosuch"}),
        (422, {"words": "low", "top": 0}),
        (422, {"words": "low", "top": 201}),
        (422, {"words": "low", "by": "name"}),
        (422, {"words": "low", "diversity": 1.5}),
        (422, {"words": "x" * 2001}),
        (422, {"like": [{"id": "../../etc/passwd"}]}),
        (422, {"like": [{"id": "0" * 16, "weight": -1}]}),
        (422, {"words": "low", "unknown": 1}),
        (422, {"words": ["low"]}),
        (422, []),
    ],
)
def test_bad_searches_are_refused_in_one_line(client, status, asked):
    answer = client.post("/api/search", json=asked)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert "\n" not in answer.json()["error"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"words": "\\ud800"}', b'{"words": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"words": 1e999}']
)
def test_bodies_that_are_no_search(client, body):
    for address in ("/api/search", "/api/embed"):
        answer = client.post(address, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), answer.text
        assert list(json.loads(answer.text)) == ["error"]


def test_a_surrogate_in_a_query_is_no_fault(client):
    assert client.get("/api/search?q=low+%ED%A0%80%FF").status_code == 200


def test_many_at_once_get_what_one_gets(client, model):
    """Each of 24 threads asks other words; answers do not mix, and their texts share calls of the model."""
    words = [" ".join(sorted({("low", "middle", "high", "top")[(n >> bit) % 4] for bit in (0, 2)})) for n in range(16)]
    alone = {text: client.post("/api/search", json={"words": text}).json()["results"] for text in set(words)}
    wrong: list[str] = []

    def ask(text: str) -> None:
        for _ in range(5):
            if client.post("/api/search", json={"words": text}).json()["results"] != alone[text]:
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(text,)) for text in words * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_second_library_is_asked_by_name(client):
    stats = client.get("/api/stats", params={"library": "again"}).json()
    assert (stats["library"], stats["libraries"], stats["files"], stats["windows"]) == (
        "again",
        ["tones", "again"],
        6,
        8,
    )
    assert client.get("/api/stats", params={"library": "x"}).status_code == 404


def test_suggestions_begin_with_what_is_typed(client, sounds):
    prefix = f"{sounds}{os.sep}l"
    values = client.get("/api/suggest", params={"column": "path", "prefix": prefix}).json()["values"]
    assert values == [str(sounds / "long.wav"), str(sounds / "low.wav")]
    assert client.get("/api/suggest", params={"column": "nosuch"}).status_code == 400
    assert client.get("/api/suggest", params={"column": "vector"}).status_code == 400

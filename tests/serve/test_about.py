"""The server as a whole: figures, the map, the page, the OpenAPI, and the command's start and end."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from antiphon.errors import LibraryError
from antiphon.library import Library
from antiphon.serve.maps import Maps
from antiphon.serve.problems import Refused
from antiphon.serve.shelf import Shelf


def test_stats_say_what_there_is(client, library, sounds):
    stats = client.get("/api/stats").json()
    assert (stats["name"], stats["library"], stats["libraries"]) == ("tones", "tones", ["tones", "again"])
    assert (stats["files"], stats["windows"], stats["root"]) == (6, 8, str(sounds))
    assert stats["hours"] == pytest.approx(8 / 3600)
    assert stats["model"] == {"source": "/models/tones", "dim": 4, "space": "projection", "clip_seconds": 1.0}
    kinds = {column["name"]: column["kind"] for column in stats["columns"]}
    assert (kinds["path"], kinds["seconds"]) == ("text", "number")
    assert "vector" not in kinds
    assert (stats["version"], stats["token_needed"], stats["max_upload_mb"]) == (library.version, False, 64)


def test_health(client):
    assert client.get("/healthz").json() == {"status": "ok"}


def test_figures_count_by_route_and_status(with_settings, ids, sounds):
    client = with_settings()
    for _ in range(3):
        client.get("/api/search?q=low")
    client.get("/api/search?q=low&top=0")
    for id in ids.values():
        client.get(f"/api/files/{id}")
    client.request("PROPFIND", "/pot")
    client.get("/random/path/1")
    client.post("/api/similar", files={"sound": (sounds / "low.wav").read_bytes()})
    client.post("/api/similar", files={"sound": b"x"})
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert found["antiphon_requests_total", "/api/search", "200", "GET"] == 3
    assert found["antiphon_requests_total", "/api/search", "422", "GET"] == 1
    assert found["antiphon_requests_total", "/api/files/{id}", "200", "GET"] == 6
    assert found["antiphon_requests_total", "404", "none", "other"] == 1
    assert found["antiphon_requests_total", "404", "GET", "none"] == 1
    assert found["antiphon_request_seconds_count", "/api/search"] == 4
    assert found["antiphon_uploads_total", "embedded"] == 1
    assert found["antiphon_uploads_total", "415"] == 1
    assert found["antiphon_library", "files", "tones"] == 6
    assert found["antiphon_library", "tones", "windows"] == 8
    assert found[("process_resident_memory_bytes",)] > 0


# The map


class Slow:
    """A library whose map takes as long as it is let."""

    def __init__(self, library: Library) -> None:
        self.library, self.go, self.made, self.version = library, threading.Event(), 0, 1
        self.error: Exception | None = None
        self.card = library.card

    def positions(self, *, most, progress):
        progress(0.4)
        assert self.go.wait(10)
        if self.error:
            raise self.error
        self.made += 1
        ids = [self.library.file(path).id for path in sorted(self.library.table.known())]
        return [*ids, "0" * 16], np.linspace(0, 1, 2 * len(ids) + 2).reshape(-1, 2).astype(np.float32)

    def paths(self):
        return self.library.paths()


@pytest.fixture
def slow(library, model):
    found = Slow(library)
    shelf = object.__new__(Shelf)  # past the type check: a library that is none
    shelf.__dict__.update(name="slow", library=found, model=model)
    return found, shelf


def until(condition, *, seconds: float = 10.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def test_a_map_is_made_in_the_background_and_once(slow):
    found, shelf = slow
    maps = Maps()
    assert maps.of(shelf)[0] == 202
    until(lambda: b'"done": 0.4' in maps.of(shelf)[1])
    found.go.set()
    status, content = until(lambda: (answer := maps.of(shelf))[0] == 200 and answer)
    import json

    made = json.loads(content)
    assert (made["state"], made["version"]) == ("ready", 1)
    assert len(made["points"]) == len(made["names"]) == 6  # the file that is gone is left out
    assert made["names"][-1] == "low.wav"
    assert all(len(id) == 16 and 0 <= x <= 1 and 0 <= y <= 1 for id, x, y in made["points"])
    assert (found.made, maps.of(shelf)) == (1, (status, content))


def test_a_changed_library_shows_the_last_map_until_the_new_one_is_there(slow, monkeypatch):
    from antiphon.serve import maps as module

    found, shelf = slow
    found.go.set()
    maps = Maps()
    first = until(lambda: (answer := maps.of(shelf))[0] == 200 and answer)
    found.version = 2
    assert maps.of(shelf) == first  # too early for another one
    assert found.made == 1
    monkeypatch.setattr(module, "_AGE_SECONDS", 0.0)
    assert maps.of(shelf)[0] == 200
    until(lambda: b'"version": 2' in maps.of(shelf)[1])


def test_a_map_that_fails_says_so_and_is_tried_again(slow):
    found, shelf = slow
    found.go.set()
    found.error = LibraryError("no room on the disk")
    maps = Maps()
    maps.of(shelf)

    with pytest.raises(Refused, match="no room on the disk") as refused:
        until(lambda: maps.of(shelf)[0] == 200)
    assert refused.value.status_code == 503
    found.error = ZeroDivisionError("secret")
    with pytest.raises(Refused, match="log says why"):
        until(lambda: maps.of(shelf)[0] == 200)
    found.error = None
    assert until(lambda: maps.of(shelf)[0] == 200)


def test_a_map_of_a_real_library(client, ids):
    pytest.importorskip("sklearn")
    answer = until(lambda: (answer := client.get("/api/map")).status_code != 202 and answer)
    assert {point[0] for point in answer.json()["points"]} == set(ids.values())
    assert set(answer.json()["names"]) == set(ids)


# The page


def test_the_page_is_served_by_name_alone(client):
    from importlib.resources import files

    page = files("antiphon.serve") / "page"
    if not page.is_dir():
        pytest.skip("the page is not there")
    assert client.get("/").content == (page / "index.html").read_bytes()
    kinds = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
    for file in page.iterdir():
        answer = client.get(f"/page/{file.name}")
        assert answer.content == file.read_bytes()
        assert answer.headers["content-type"].partition(";")[0] == kinds[Path(file.name).suffix]
    for name in ("__init__.py", "app.py", "..%2fapp.py", "%2e%2e%2fapp.py", "page"):
        assert client.get(f"/page/{name}").status_code == 404


# The OpenAPI


def test_every_route_is_described(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/api/audio/{id}",
        "/api/embed",
        "/api/files/{id}",
        "/api/map",
        "/api/search",
        "/api/similar",
        "/api/stats",
        "/api/suggest",
        "/api/waveform/{id}",
        "/healthz",
        "/metrics",
    }
    for path in paths.values():
        for operation in path.values():
            assert {"401", "422", "429"} <= set(operation["responses"])
            assert operation.get("summary")
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}


# The command


RUN = """
import sys, threading
sys.path.insert(0, sys.argv[2])
from antiphon.library import Library
from antiphon.serve.server import run
from antiphon.serve.settings import Settings
from test_encoding import ToneModel
run({"tones": Library.open(sys.argv[1])}, {"tones": ToneModel()}, Settings(port=0, token="0123456789abcdef"))
print("ended")
"""


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is a signal")
def test_a_server_says_where_it_is_and_ends_quietly(library, sounds):
    command = [sys.executable, "-c", RUN, str(library.folder), str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            assert url.endswith("/?token=0123456789abcdef")
            sound = urllib.request.Request(url.split("?")[0] + "api/similar", data=(sounds / "low.wav").read_bytes())
            sound.add_header("Content-Type", "audio/wav")
            sound.add_header("Authorization", "Bearer 0123456789abcdef")
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(sound, timeout=60) as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (out, error, process.returncode) == ("ended\n", "", 0)
    assert not _workers_of(process.pid)


def _workers_of(pid: int) -> list[str]:
    """Processes whose parent was the server; orphans have another."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f" {pid} " in (folder / "stat").read_text().rpartition(")")[2][:20]:
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found

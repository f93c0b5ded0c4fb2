"""The hub's files, fetched by huggingface_hub from a real HTTP server that speaks as much of the hub's API as it uses.

The endpoint, the cache and offline mode are read when huggingface_hub is imported, so fetching happens in processes of
their own, many ids in each.
"""

import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest

from antiphon.encoders.hub import is_hub_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = bytes(range(256)) * 4096  # 1 MiB: kept as large files are, under its SHA-256
SETTINGS = b'{"model_type": "clap"}'
GOOD = {
    "config.json": SETTINGS,
    "model.safetensors": LARGE,
    "pytorch_model.bin": LARGE[::-1],
    "README.md": b"# words",
    "tokenizer.json": b"{}",
    "onnx/model.safetensors": LARGE[:999],
    "training/checkpoint.pt": LARGE[1:],
}
MODELS = {
    "anna/good": GOOD,
    "anna/torch": {"config.json": SETTINGS, "pytorch_model.bin": LARGE},
    "anna/files": {"best.pt": LARGE, "deep/er/last [1].pt": LARGE[:1000]},
    "anna/drops": {"config.json": SETTINGS, "model.safetensors": LARGE * 24},
    "anna/short": {"config.json": SETTINGS, "model.safetensors": LARGE},
    "anna/wrong": {"config.json": SETTINGS, "model.safetensors": LARGE},
    "anna/gone": {"config.json": SETTINGS, "model.safetensors": LARGE},
    "anna/gated": {},
    "anna/down": {},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Model info, file tree, and files with ETag, commit, size and ranges; `anna/...` misbehaves as its name says."""

    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    log: ClassVar[list[tuple[str, str, str | None]]] = []
    sent: ClassVar[Counter] = Counter()

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        with self.lock:
            self.log.append((self.command, path, self.headers.get("Range")))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self.api(*found.groups())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.file(found[1], found[3].replace("%20", " ").replace("%5B", "[").replace("%5D", "]"))
        else:
            self.answer(404, b"")

    def answer(self, status, body, *, promised=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if promised is None else promised))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        if promised is not None and promised != len(body):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def api(self, model, kind, revision):
        if model == "anna/gated":
            return self.answer(403, b"", X_Error_Code="GatedRepo")
        if model == "anna/down":
            return self.answer(503, b"")
        if model not in MODELS:  # so does the hub answer somebody who is not logged in
            return self.answer(401, b"", X_Error_Code="RepoNotFound")
        if revision not in (None, "main", "v1", COMMIT):
            return self.answer(404, b"", X_Error_Code="RevisionNotFound")
        files = MODELS[model]
        if kind == "tree":
            content = [self.entry(name, data) for name, data in files.items()]
        else:
            content = {"id": model, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        return self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    @staticmethod
    def entry(name, data):
        large = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return {
            "type": "file",
            "path": name,
            "size": len(data),
            "oid": oid,
            **({"lfs": large} if len(data) > 500 else {}),
        }

    def file(self, model, name):
        data = MODELS[model][name]
        entry = self.entry(name, data)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if self.command == "HEAD":
            return self.answer(200, data, **headers)
        with self.lock:
            self.sent[model, name] += 1
            count = self.sent[model, name]
        large = "lfs" in entry
        if large and model == "anna/short":
            return self.answer(200, data[:1000], **headers)
        if large and model == "anna/wrong" and count == 1:
            return self.answer(200, data[::-1], **headers)
        if large and model == "anna/gone" and count > 1:
            return self.answer(200, b"", promised=len(data), **headers)
        if large and model in ("anna/drops", "anna/gone") and count == 1:
            return self.answer(200, data[: len(data) // 2], promised=len(data), **headers)
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.answer(206, data[start:], **headers)
        return self.answer(200, data, **headers)


@pytest.fixture(scope="module")
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


DRIVER = """
import json, sys
from pathlib import Path
from antiphon.encoders.hub import fetch
from antiphon.errors import WeightsError

limit = {limit}
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for source, more in json.loads(sys.argv[1]):
    try:
        path = fetch(source, **more)
        files = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
        print(json.dumps(dict(path=str(path), files=files)))
    except WeightsError as error:
        print(json.dumps(dict(error=str(error))))
"""


def run(home, endpoint, *asked, limit=0, offline=False, within=()):
    """Fetch each of `asked` (an id, or an id and options) in one process of its own; a list of what came of each."""
    jobs = [(ask, {}) if isinstance(ask, str) else ask for ask in asked]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1" if offline else "0"}
    done = subprocess.run(
        [*within, sys.executable, "-c", DRIVER.format(limit=limit), json.dumps(jobs)],
        capture_output=True,
        text=True,
        env=environment | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no progress bars without a terminal, and no log beside the error"
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(result.get("error", "").isprintable() for result in results), "an error is one line"
    return results


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


ONLINE = {
    "folder": "anna/good",
    "torch": "anna/torch",
    "file": "anna/files/best.pt",
    "deep": "anna/files/deep/er/last [1].pt",
    "tag": ("anna/good", {"revision": "v1"}),
    "patterns": ("anna/good", {"patterns": ["*.json", "training/*.pt"]}),
    "drops": "anna/drops",
    "short": "anna/short",
    "wrong": "anna/wrong",
    "wrong again": "anna/wrong",
    "gated": "anna/gated",
    "down": "anna/down",
    "none": "anna/none",
    "no revision": ("anna/good", {"revision": "v9"}),
    "no file": "anna/files/worst.pt",
    "no weights": "anna/files",
    "no id": "anna/../good",
    "one word": "good",
}


@pytest.fixture(scope="module")
def online(endpoint, home):
    return dict(zip(ONLINE, run(home, endpoint, *ONLINE.values()), strict=True))


def test_a_folder_holds_what_is_needed_and_no_more(online):
    assert online["folder"]["files"] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (Path(online["folder"]["path"]) / "model.safetensors").read_bytes() == LARGE
    assert online["tag"]["path"] == online["folder"]["path"]


def test_pytorch_model_where_there_is_no_safetensors(online):
    assert online["torch"]["files"] == ["config.json", "pytorch_model.bin"]


def test_single_files(online):
    assert Path(online["file"]["path"]).read_bytes() == LARGE
    assert Path(online["deep"]["path"]).read_bytes() == LARGE[:1000]
    assert Path(online["deep"]["path"]).name == "last [1].pt"


def test_patterns_of_ones_own(online):
    assert (Path(online["patterns"]["path"]) / "training/checkpoint.pt").read_bytes() == LARGE[1:]
    assert "pytorch_model.bin" not in online["patterns"]["files"]


def test_a_dropped_connection_is_resumed(online):
    """Half of 24 MiB comes; huggingface_hub keeps whole blocks of 10 MiB and asks for the rest."""
    assert (Path(online["drops"]["path"]) / "model.safetensors").read_bytes() == LARGE * 24
    ranges = [
        asked
        for command, path, asked in Hub.log
        if command == "GET" and path == f"/anna/drops/resolve/{COMMIT}/model.safetensors"
    ]
    assert ranges[0] is None
    assert len(ranges) == 2
    start = int(re.fullmatch(r"bytes=(\d+)-", ranges[1])[1])
    assert 0 < start <= 12 * len(LARGE)


def test_files_that_fail_their_check(online, home):
    assert "cannot download 'anna/short'" in online["short"]["error"]
    assert "should be of size 1048576 but has size 1000" in online["short"]["error"]
    assert "'model.safetensors' did not arrive as the hub promised it (SHA-256 " in online["wrong"]["error"]
    assert (Path(online["wrong again"]["path"]) / "model.safetensors").read_bytes() == LARGE
    assert not list(home.rglob("*.incomplete"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gated", "'anna/gated' is gated: accept its terms at https://huggingface.co/anna/gated, then"),
        ("down", "cannot reach the hub at http"),
        ("none", "there is no 'anna/none' here or on the hub (https://huggingface.co/anna/none): check the name"),
        ("no revision", "'anna/good' has no revision 'v9': https://huggingface.co/anna/good/commits/main lists them"),
        ("no file", "has no file 'worst.pt'; give one of anna/files/best.pt, anna/files/deep/er/last [1].pt"),
        ("no weights", "has neither *.safetensors nor pytorch_model.bin; give one of anna/files/best.pt, "),
        ("no id", "'anna/../good' is no id of the hub: those look like owner/name"),
        ("one word", "'good' is no id of the hub: those look like owner/name"),
    ],
)
def test_what_the_hub_does_not_give(online, name, said):
    assert said in online[name]["error"]


def test_cached_files_need_no_network(online, home, endpoint):
    asked = len(Hub.log)
    results = run(
        home,
        endpoint,
        *["anna/good", "anna/torch", "anna/files/best.pt", ("anna/good", {"revision": COMMIT})],
        *["anna/other", "anna/files/other.pt", "anna/short", "anna/other/x.pt"],
        offline=True,
    )
    assert len(Hub.log) == asked
    assert [result["path"] for result in results[:4]] == [
        online[name]["path"] for name in ("folder", "torch", "file", "folder")
    ]
    for result, name in zip(results[4:], ["anna/other", "", "anna/short", "anna/other/x.pt"], strict=True):
        if name:
            model = "/".join(name.split("/")[:2])
            assert result["error"] == (
                f"'{name}' is not in the cache ({home / 'hub'}); with a network run again without HF_HUB_OFFLINE, or "
                f"put the files of https://huggingface.co/{model} into a folder and give that folder"
            )
    assert "has no file 'other.pt'" in results[5]["error"], "the list of files is in the cache as well"


def test_no_network(online, home):
    """Nothing listens at the endpoint: what is in the cache is taken, the rest is an error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    cached, missing = run(home, nowhere, "anna/good", "anna/other")
    assert cached["path"] == online["folder"]["path"]
    assert missing["error"].startswith(f"cannot reach the hub at {nowhere} (ConnectError: ")
    assert missing["error"].endswith(
        f"'anna/other' is not in the cache ({home / 'hub'}): check the network and run again, or put the files of "
        "https://huggingface.co/anna/other into a folder and give that folder"
    )


def test_a_second_call_downloads_nothing(online, home, endpoint):
    asked = len(Hub.log)
    run(home, endpoint, "anna/good", ("anna/good", {"revision": COMMIT}))
    assert not [path for _, path, _ in Hub.log[asked:] if "/resolve/" in path]


def test_no_space_left(tmp_path, endpoint):
    """A process may write files of 300 kB at most; a real full disk where an ordinary user may mount one."""
    (result,) = run(tmp_path, endpoint, "anna/good", limit=300_000)
    said = f"no space left for 'anna/good' in the cache ({tmp_path / 'hub'}): free some, or set HF_HOME to another disk"
    assert result["error"] == said
    assert not list(tmp_path.rglob("*.incomplete"))
    mount = ["unshare", "-Urm", "sh", "-c", f'mount -t tmpfs -o size=600k none {tmp_path} && exec "$@"', "sh"]
    if shutil.which("unshare") and subprocess.run([*mount, "true"], capture_output=True).returncode == 0:
        (result,) = run(tmp_path, endpoint, "anna/good", within=mount)
        assert result["error"] == said


@pytest.mark.slow
def test_a_connection_that_keeps_dropping(tmp_path, endpoint):
    (result,) = run(tmp_path, endpoint, "anna/gone")
    assert result["error"].startswith("cannot download 'anna/gone' (RemoteProtocolError: ")
    assert result["error"].endswith("check the network and run again")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("laion/clap-htsat-unfused", True),
        ("lukewys/laion_clap/630k-audioset-best.pt", True),
        ("m-a-p/MERT-v1-95M", True),
        ("owner/name/deep/er/file.safetensors", True),
        ("name", False),
        ("model.pt", False),
        ("runs/best.pt", False),
        ("owner/name/folder", False),
        ("./owner/name", False),
        ("../name", False),
        ("/owner/name", False),
        ("~/models/name", False),
        ("owner\\name", False),
        ("C:/models", False),
        ("owner/name/", False),
        ("owner/na me", False),
        ("owner/-name", False),
        ("owner/a--b", False),
        ("https://huggingface.co/owner/name", False),
        ("", False),
    ],
)
def test_is_hub_id(text, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(text) is answer


def test_what_starts_with_a_folder_that_is_there_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("runs/slap")
    assert not is_hub_id("runs/slap/model.pt")

"""A real HTTP server for miniatures of public sets. It misbehaves: see `Files`."""

import hashlib
import http.server
import re
import socket
import threading
from collections import Counter
from typing import ClassVar

import pytest

from antiphon.data.sets import download


class Files(http.server.BaseHTTPRequestHandler):
    """Files with ETag and ranges, from `content`. What the path contains is what goes wrong.

    Every file larger than 100 bytes stops in the middle of the first answer. `wrong` sends other bytes the first time,
    `always-wrong` each time, `plain` knows no ranges and no ETag, `weak` only a weak one, `busy` answers 503 once,
    `page` sends HTML, `moved` redirects, `changing` is another file from the second request on.
    """

    protocol_version = "HTTP/1.1"
    content: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[tuple[str, str | None]]] = []
    count: ClassVar[Counter] = Counter()
    lock = threading.Lock()

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.split("?")[0]
        with self.lock:
            self.asked.append((path, self.headers.get("Range")))
            self.count[path] += 1
            count = self.count[path]
        if path.endswith("/moved"):
            return self.answer(302, b"", Location=path.removesuffix("/moved") + "/file")
        if path not in self.content:
            return self.answer(404, b"")
        if "busy" in path and count == 1:
            return self.answer(503, b"")
        if "page" in path:
            return self.answer(200, b"<html>please log in</html>", Content_Type="text/html")
        data = self.content[path]
        if "changing" in path and count > 1:
            data = data[::-1]
        if "always-wrong" in path or ("wrong" in path and count <= 2):  # both halves of the first time
            data = bytes(255 - byte for byte in data)
        return self.file(path, data, count)

    def file(self, path, data, count):
        tag = f'"{hashlib.sha1(data).hexdigest()}"'
        headers = {"Content_Type": "application/octet-stream"}
        if "plain" not in path:
            headers["ETag"] = f"W/{tag}" if "weak" in path else tag
        drops = len(data) > 100 and count == 1
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and "plain" not in path and self.headers.get("If-Range") == tag:
            start = int(asked[1])
            if start >= len(data):
                return self.answer(416, b"", Content_Range=f"bytes */{len(data)}")
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.answer(206, data[start:], **headers)
        body = data[: len(data) // 2] if drops else data
        return self.answer(200, body, promised=len(data), **headers)

    def answer(self, status, body, *, promised=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if promised is None else promised))
        self.end_headers()
        self.wfile.write(body)
        if promised is not None and promised != len(body):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


@pytest.fixture(scope="session")
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(endpoint, monkeypatch):
    """`server.content["/path"] = bytes` is served at `server.at("/path")`."""
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    download._lists.clear()
    Files.content, Files.asked = {}, []
    Files.count.clear()
    Files.at = staticmethod(lambda path: endpoint + path)
    return Files

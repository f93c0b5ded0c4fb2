"""Who is let in: hosts, origins, tokens, sizes, rates; and what every answer carries."""

import socket
import threading
from urllib.parse import urlsplit

import httpx
import pytest

from antiphon.errors import LibraryError, OptionError
from antiphon.serve.limits import Buckets, client_of
from serve.conftest import TOKEN, serving


def raw(client: httpx.Client, request: bytes) -> bytes:
    """The answer to bytes as they are, up to where the server closes."""
    place = urlsplit(str(client.base_url))
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while block := connection.recv(65536):
            answer += block
    return answer


def is_one_line(answer: httpx.Response) -> bool:
    error = answer.json()["error"]
    return list(answer.json()) == ["error"] and error and "\n" not in error and "Traceback" not in error


# What every answer carries


@pytest.mark.parametrize(
    "address", ["/", "/page/index.html", "/healthz", "/metrics", "/api/stats", "/nosuch", "/openapi.json"]
)
def test_every_answer_is_locked_down(client, address):
    headers = client.get(address, headers={"Origin": "https://evil.example"}).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "no-referrer"
    assert "cache-control" in headers
    assert "server" not in headers
    assert not [name for name in headers if name.startswith("access-control")]


def test_no_cross_origin_question_is_answered(client):
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = client.options("/api/search", headers=asked)
    assert answer.status_code in (403, 405)
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("method", "address", "status"),
    [
        ("GET", "/nosuch", 404),
        ("GET", "/docs", 404),
        ("GET", "/api/search/", 404),
        ("DELETE", "/api/search", 405),
        ("TRACE", "/healthz", 405),
        ("PUT", "/", 405),
        ("GET", "/api/files/xyz", 422),
        ("GET", "/api/waveform/0000000000000000?points=0", 422),
        ("GET", "/api/files/0000000000000000", 404),
        ("GET", "/api/similar?id=0000000000000000&start=nan", 422),
        ("GET", "/api/search", 422),
    ],
)
def test_refusals_are_one_line_of_json(client, method, address, status):
    answer = client.request(method, address)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert is_one_line(answer)
    assert status != 405 or "allow" in answer.headers


def test_a_fault_of_ours_shows_nothing_of_itself(with_settings, library, monkeypatch, caplog):
    client = with_settings()

    def broken(*_, **__):
        raise ZeroDivisionError("secret /etc/passwd")

    monkeypatch.setattr(library, "columns", broken, raising=False)
    answer = client.get("/api/stats")
    assert answer.status_code == 500
    assert is_one_line(answer)
    assert "secret" not in answer.text
    assert "nosniff" in answer.headers["x-content-type-options"]
    assert "secret /etc/passwd" in caplog.text  # but the log has it
    assert 'route="/api/stats",status="500"} 1.0' in client.get("/metrics").text


# Host and Origin


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:1234", "[::1]:80", "LOCALHOST"])
def test_names_of_this_machine_are_let_in(client, host):
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "192.168.0.1",
        "",
        "[::1",
        "localhost:80, evil:80",
        "@127.0.0.1@x",
    ],
)
def test_names_that_are_made_to_mean_this_machine_are_not(client, host):
    answer = client.get("/api/stats", headers={"Host": host})
    assert answer.status_code == 403
    assert is_one_line(answer)


def test_pages_of_other_sites_may_ask_nothing(client):
    own = str(client.base_url).rstrip("/")
    search = {"words": "low"}
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", own.replace("127.0.0.1", "localhost"), "x"):
        answer = client.post("/api/search", json=search, headers={"Origin": origin})
        assert answer.status_code == 403, origin
        assert is_one_line(answer)
    assert client.post("/api/search", json=search, headers={"Origin": own}).status_code == 200
    for site in ("cross-site", "same-site"):
        asked = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
        assert client.get("/api/stats", headers=asked).status_code == 403
        assert client.get("/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).status_code == 200
        assert (
            client.post("/api/search", json=search, headers=asked | {"Sec-Fetch-Mode": "navigate"}).status_code == 403
        )
    for site in ("same-origin", "none"):
        assert client.get("/api/stats", headers={"Sec-Fetch-Site": site}).status_code == 200


# Token


def test_other_machines_need_a_token(library, model):
    from antiphon.serve.server import with_token
    from antiphon.serve.settings import Settings

    for host in ("0.0.0.0", "192.168.1.2", "::", "sounds.example"):
        with pytest.raises(OptionError, match="token"):
            Settings(host=host)
        token = with_token(host, None)
        assert token is not None
        assert Settings(host=host, token=token).token == token
        assert with_token(host, None) != token
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        assert Settings(host=host).token is None
        assert with_token(host, None) is None
    for token in ("short", "x" * 15, "sixteen letters!", "ümläutümläutümläut"):
        with pytest.raises(OptionError, match="16"):
            Settings(token=token)


def test_without_the_token_only_the_page_is_there(with_settings):
    client = with_settings(host="0.0.0.0", token=TOKEN)
    assert client.get("/", headers={"Host": "any.example"}).status_code in (200, 404)  # 404 where the page is not built
    assert client.get("/page/nosuch.js").status_code == 404
    assert client.get("/healthz").status_code == 200
    closed = ["/api/stats", "/metrics", "/openapi.json", "/api/audio/0000000000000000", "/nosuch", "/healthz/", "/page"]
    for address in closed:
        for headers in (
            {},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": TOKEN},
            {"Cookie": "antiphon-1=x"},
        ):
            answer = client.get(address, headers=headers)
            assert answer.status_code == 401, (address, headers)
            assert is_one_line(answer)
    assert client.get(f"/api/stats?token={TOKEN}").status_code == 401
    answer = client.get("/api/stats", headers={"Authorization": f"bearer {TOKEN}"})
    assert answer.status_code == 200
    assert answer.json()["token_needed"] is True


def test_a_link_with_the_token_makes_a_cookie(with_settings):
    client = with_settings(token=TOKEN)
    assert client.get("/?token=wrong").status_code == 401
    assert "set-cookie" not in client.get("/?token=wrong").headers
    answer = client.get("/", params={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/api/stats").status_code == 200  # the client keeps cookies
    client.cookies.clear()
    assert client.get("/api/stats").status_code == 401


# Sizes


def test_a_large_body_is_refused_by_its_length_and_by_its_bytes(with_settings):
    client = with_settings(max_upload_mb=1)
    sound = {"Content-Type": "audio/wav"}
    declared = client.post("/api/similar", content=bytes(3_000_000), headers=sound)
    assert declared.status_code == 413
    assert is_one_line(declared)
    chunked = client.post("/api/similar", content=(bytes(50_000) for _ in range(60)), headers=sound)
    assert chunked.status_code == 413
    assert is_one_line(chunked)
    form = client.post(
        "/api/similar", files={"sound": ("a.wav", bytes(1_050_000))}
    )  # under the limit with its envelope
    assert form.status_code == 413
    form = client.post("/api/similar", files={"sound": ("a.wav", bytes(3_000_000))})
    assert form.status_code == 413
    searched = client.post("/api/search", content=(b" " * 50_000 for _ in range(30)))
    assert searched.status_code == 413
    assert client.post("/api/search", content=b" " * 1_100_000).status_code == 413
    assert (
        client.post("/api/similar", content=bytes(1_100_000), headers={"Content-Type": "application/json"}).status_code
        == 413
    )


def test_a_large_body_is_not_waited_for(with_settings):
    """The refusal of a length that is promised comes before a byte of the body."""
    client = with_settings(max_upload_mb=1)
    head = b"POST /api/similar HTTP/1.1\r\nHost: localhost\r\nContent-Type: audio/wav\r\n"
    place = urlsplit(str(client.base_url))
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(head + b"Content-Length: 99999999999\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 6\r\n\r\n",
        b"GET /api/stats HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /api/stats HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\nConnection: close\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET http://evil.example/api/stats HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    ],
)
def test_requests_that_are_no_http(client, request_):
    answer = raw(client, request_ + b"\r\n")
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403", b"HTTP/1.1 404"))
    assert b"Traceback" not in answer


# Rates


def test_who_asks_too_fast_waits(with_settings):
    client = with_settings(rate=0.02, burst=1)  # loopback has ten times as much
    answers = [client.get("/healthz") for _ in range(11)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429]
    assert is_one_line(answers[-1])
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 5  # a token each five seconds


def test_sounds_have_a_rate_of_their_own(with_settings):
    client = with_settings(upload_rate=0.01, upload_burst=1)
    head = {"Content-Type": "audio/wav"}
    answers = [client.post("/api/similar", content=b"x", headers=head).status_code for _ in range(11)]
    assert answers == [415] * 10 + [429]
    assert client.post("/api/embed", json={"texts": ["low"]}).status_code == 200  # texts are no sounds


def test_a_bucket_fills_again():
    bucket = Buckets(rate=2, burst=3)
    assert [bucket.take("a", now=0.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take("a", now=0.0) == 0.5
    assert bucket.take("b", now=0.0) == 0
    assert bucket.take("a", now=0.4) == pytest.approx(0.1)
    assert bucket.take("a", now=0.5) == 0
    assert [bucket.take("a", now=100.0) for _ in range(4)] == [0, 0, 0, 0.5]  # never more than the burst


def test_a_million_addresses_take_bounded_memory():
    bucket = Buckets(rate=1, burst=1)
    for number in range(10_000):
        bucket.take(str(number), now=0.0)
    assert len(bucket) == 4096


def test_an_ipv6_network_is_one_client():
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:1")
    assert client_of("2001:db8::1") != client_of("2001:db8:0:1::1")
    assert client_of("::ffff:10.0.0.1") != client_of("::ffff:10.0.0.2")
    assert (client_of("10.0.0.1"), client_of("::1"), client_of("unix")) == ("10.0.0.1", "::1", "unix")


# Starting


def test_another_models_library_is_not_served(library, model):
    from antiphon.serve.app import create_app
    from test_encoding import ToneModel

    with pytest.raises(LibraryError, match="was made with"):
        create_app({"tones": library}, {"tones": ToneModel(name="another")})
    with pytest.raises(LibraryError, match="no library"):
        create_app({}, {})


def test_a_taken_port_is_one_line(library, model):
    from antiphon.serve.server import run
    from antiphon.serve.settings import Settings

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OptionError, match=f"port {port} is taken"):
            run({"tones": library}, {"tones": model}, Settings(port=port))
    with pytest.raises(OptionError, match=r"can't listen on 192\.0\.2\.1"):
        run({"tones": library}, {"tones": model}, Settings(host="192.0.2.1", token=TOKEN))


def test_threads_and_processes_end_with_the_server(library, model, sounds):
    from antiphon.serve.app import create_app

    before = set(threading.enumerate())
    with serving(create_app({"tones": library}, {"tones": model})) as url:
        sound = {"sound": (sounds / "low.wav").read_bytes()}
        assert httpx.post(f"{url}/api/similar", files=sound, trust_env=False).status_code == 200
        assert httpx.get(f"{url}/api/search?q=low", trust_env=False).status_code == 200
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("antiphon")]
    assert not left

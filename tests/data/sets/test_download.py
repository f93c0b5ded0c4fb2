import hashlib
import json
import threading
from types import SimpleNamespace

import pytest

from antiphon.data.sets import download
from antiphon.data.sets.contract import Source
from antiphon.data.sets.download import Records, fetch
from antiphon.errors import DataError

DATA = bytes(range(256)) * 40  # 10,240 bytes
MD5, SHA256 = hashlib.md5(DATA).hexdigest(), hashlib.sha256(DATA).hexdigest()


def serve(server, path, data=DATA, checksum=""):
    server.content[path] = data
    return Source(server.at(path), checksum)


def ranges(server):
    return [asked for _, asked in server.asked]


def test_a_dropped_connection_goes_on_where_it_stopped(server, tmp_path):
    counted = []
    got = fetch(serve(server, "/a.zip", checksum=f"md5:{MD5}"), tmp_path / "a.zip", advance=counted.append)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert (got.sha256, got.bytes) == (SHA256, len(DATA))
    assert ranges(server) == [None, "bytes=5120-"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_a_download_of_another_day_goes_on(server, tmp_path):
    source = serve(server, "/a.zip")
    server.count["/a.zip"] = 1  # no drop
    (tmp_path / "a.zip.part").write_bytes(DATA[:1000])
    (tmp_path / "a.zip.part.version").write_text(f'"{hashlib.sha1(DATA).hexdigest()}"')
    fetch(source, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert ranges(server) == ["bytes=1000-"]


def test_a_part_of_another_version_of_the_file_is_not_gone_on_with(server, tmp_path):
    source = serve(server, "/a.zip")
    (tmp_path / "a.zip.part").write_bytes(b"x" * 1000)
    (tmp_path / "a.zip.part.version").write_text('"older"')
    fetch(source, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_a_file_that_changes_on_the_way_is_never_half_of_each(server, tmp_path):
    fetch(serve(server, "/changing.zip"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA[::-1]


@pytest.mark.parametrize("kind", ["plain", "weak"])
def test_a_server_without_ranges_or_a_strong_tag_is_asked_for_all_of_it(server, tmp_path, kind):
    fetch(serve(server, f"/{kind}.zip"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert ranges(server) == [None, None]


def test_a_part_that_is_complete_is_only_checked(server, tmp_path):
    source = serve(server, "/a.zip", checksum=f"sha256:{SHA256}")
    (tmp_path / "a.zip.part").write_bytes(DATA)
    (tmp_path / "a.zip.part.version").write_text(f'"{hashlib.sha1(DATA).hexdigest()}"')
    fetch(source, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert ranges(server) == [f"bytes={len(DATA)}-"]


def test_wrong_bytes_are_fetched_once_more(server, tmp_path):
    fetch(serve(server, "/wrong.zip", checksum=f"md5:{MD5}"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_wrong_bytes_twice_are_an_error_and_leave_nothing(server, tmp_path):
    source = serve(server, "/always-wrong.zip", checksum=f"md5:{MD5}")
    with pytest.raises(DataError, match=rf"did not arrive as it should, twice: its MD5 is \w+, not {MD5}$"):
        fetch(source, tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["/busy.zip", "/x/moved"])
def test_what_passes_is_tried_again_and_redirects_are_followed(server, tmp_path, path):
    server.content["/x/file"] = DATA
    fetch(serve(server, path), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_a_file_that_is_not_there_says_where_to_put_it(server, tmp_path):
    with pytest.raises(DataError) as caught:
        fetch(Source(server.at("/none.zip")), tmp_path / "a.zip")
    assert str(caught.value) == (
        f"cannot download {server.at('/none.zip')} (HTTP Error 404: Not Found): check the network and run again, or "
        f"put the file at {tmp_path / 'a.zip'}"
    )
    assert len(server.asked) == 1, "404 does not pass"


def test_nobody_listens(server, tmp_path):
    with pytest.raises(DataError, match=r"cannot download http://127\.0\.0\.1:9/a\.zip .*refused"):
        fetch(Source("http://127.0.0.1:9/a.zip"), tmp_path / "a.zip")


def test_a_mirror_is_taken_where_the_first_address_fails(server, tmp_path):
    server.content["/mirror.zip"] = DATA
    source = Source(server.at("/none.zip"), f"md5:{MD5}", mirrors=(server.at("/mirror.zip"),))
    fetch(source, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_a_web_page_is_no_archive(server, tmp_path):
    with pytest.raises(DataError, match="sent a web page in place of a file"):
        fetch(serve(server, "/page.zip"), tmp_path / "a.zip")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/etc/passwd"])
def test_only_http_is_fetched(server, tmp_path, url):
    with pytest.raises(DataError, match="is no http"):
        fetch(Source(url), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_file_put_by_hand_is_checked_and_kept(server, tmp_path):
    (tmp_path / "a.zip").write_bytes(DATA)
    fetch(Source(server.at("/none.zip"), f"md5:{MD5}"), tmp_path / "a.zip")
    assert not server.asked
    (tmp_path / "a.zip").write_bytes(DATA[1:])
    with pytest.raises(DataError, match=r"a\.zip is not the file of .*; delete it to download it"):
        fetch(Source(server.at("/none.zip"), f"md5:{MD5}"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").exists(), "what somebody put there is not ours to delete"


def test_a_published_list_of_checksums(server, tmp_path):
    server.content["/sums.txt"] = f"{'0' * 64} other.tar\n{SHA256} a.tar\n".encode()
    source = serve(server, "/a.tar", checksum=f"list:{server.at('/sums.txt')}")
    fetch(source, tmp_path / "a.tar")
    with pytest.raises(DataError, match=r"sums\.txt lists no checksum of c\.tar"):
        fetch(serve(server, "/c.tar", checksum=f"list:{server.at('/sums.txt')}"), tmp_path / "c.tar")
    with pytest.raises(DataError, match="its SHA256 is"):
        fetch(serve(server, "/x/other.tar", checksum=f"list:{server.at('/sums.txt')}"), tmp_path / "other.tar")
    assert sum(path == "/sums.txt" for path, _ in server.asked) == 2, "one dropped and resumed; then it is known"


def test_without_a_checksum_the_first_download_is_written_down_and_later_ones_are_compared(server, tmp_path):
    file = tmp_path / "set.checksums.json"
    source = serve(server, "/a.zip")
    fetch(source, tmp_path / "1" / "a.zip", records=Records(file))
    assert json.loads(file.read_text()) == {"a.zip": {"sha256": SHA256, "bytes": len(DATA), "url": source.url}}
    fetch(source, tmp_path / "2" / "a.zip", records=Records(file))
    server.content["/a.zip"] = DATA[1:]
    with pytest.raises(
        DataError, match=r"not the file of the first download .*; if it is known to have changed, delete"
    ):
        fetch(source, tmp_path / "3" / "a.zip", records=Records(file))
    assert not list((tmp_path / "3").iterdir())


def test_a_damaged_record_says_so(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        Records(tmp_path / "x.json")


def test_a_disk_that_is_too_small_is_known_before_a_byte_is_written(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"needs another 0\.0 GB .* free some"):
        fetch(serve(server, "/a.zip"), tmp_path / "a.zip")
    assert not (tmp_path / "a.zip.part").exists()


def test_a_stopped_download_keeps_what_came(server, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(DataError, match="was stopped"):
        fetch(serve(server, "/a.zip"), tmp_path / "a.zip", stop=stop)
    assert 0 < (tmp_path / "a.zip.part").stat().st_size < len(DATA)
    fetch(Source(server.at("/a.zip")), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA

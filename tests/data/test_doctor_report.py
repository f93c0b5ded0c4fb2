"""The doctor's page: self-contained, escaped, and true to the examination."""

from tests.data.test_doctor import pair, save
from tests.data.test_fingerprints import melody

from antiphon.data import doctor_report
from antiphon.data.doctor import check
from antiphon.data.manifest import Manifest


def test_names_are_escaped_and_nothing_is_loaded(tmp_path):
    well, nothing = save(tmp_path / "well.wav", melody(0)), tmp_path / "<b>nothing.wav"
    nothing.write_bytes(b"")
    examination = check(Manifest.from_pairs([pair(well), pair(nothing)]))
    doctor_report.write(examination, tmp_path / "out" / "report.html", title="A & B")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "A &amp; B" in page
    assert "&lt;b&gt;nothing.wav" in page
    assert "<b>" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page


def test_the_report_counts(tmp_path):
    paths = [save(tmp_path / f"{seed}.wav", melody(seed)) for seed in range(6)]
    pairs = [pair(path, split="train", label="dog" if number < 4 else "cat") for number, path in enumerate(paths)]
    save(tmp_path / "low.wav", melody(9)[::2], rate=11025)
    examination = check(Manifest.from_pairs([*pairs, pair(tmp_path / "low.wav")]))
    shown = {
        one.title: [(name, count) for name, count, _ in one.bars] for one in doctor_report.distributions(examination)
    }
    assert shown == {
        "Length": [("2\N{EN DASH}5 s", 7)],
        "Sample rate": [("22,050 Hz", 6), ("11,025 Hz", 1)],
        "Channels": [("1", 7)],
        "Split": [("train", 6), ("none", 1)],
        "Captions of a sound": [("1", 7)],
        "Label": [("dog", 4), ("cat", 2)],
    }
    assert ("Labels, largest to smallest", "2.0 to 1") in doctor_report.facts(examination)


def test_long_lists_are_cut_and_said_to_be(tmp_path):
    nothing = [tmp_path / f"{number}.wav" for number in range(23)]
    for path in nothing:
        path.write_bytes(b"")
    examination = check(Manifest.from_pairs([pair(path, caption=f"no {path.stem}") for path in nothing]))
    (section,) = doctor_report.sections(examination)
    assert (section.name, section.count, len(section.examples)) == ("empty", 23, 20)
    doctor_report.write(examination, tmp_path / "report.html")
    assert "3 more in findings.csv" in (tmp_path / "report.html").read_text(encoding="utf-8")

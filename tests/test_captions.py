"""Captions from keywords: the words (`captions`), and the door that reads and writes manifests (`caption`)."""

import itertools
from collections import Counter

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import logging

from antiphon import caption
from antiphon.captions import KINDS, NEUTRAL, de_bias, draws, drop_tags, from_tags, keywords, one_of, swap
from antiphon.data import manifest as tables
from antiphon.data.pairs import Pair
from antiphon.errors import DataError, OptionError, WeightsError
from antiphon.text import clean
from encoders.toys import KINDS as TOYS
from encoders.toys import write_tokenizer

logging.disable_progress_bar()

WORDS = st.lists(st.sampled_from(["dog", "bark", "rain", "wind", "p.a.", "{}", "drum kit"]), unique=True, min_size=1)


def generator(number=0):
    return draws(seed=0, row=str(number))


# Templates and dropout


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        (["rain"], "The sounds of rain"),
        (["rain", "wind"], "The sounds of rain and wind"),
        (["rain", "wind", "p.a."], "The sounds of rain, wind, and p.a."),
        (["{}", "{0}"], "The sounds of {} and {0}"),
    ],
)
def test_tags_in_the_template_by_hand(tags, wanted):
    assert from_tags(tags) == wanted


def test_a_template_of_ones_own():
    assert from_tags(["a", "b"], template="We hear {}!") == "We hear a and b!"
    for template in ("no place", "{} and {}", ""):
        with pytest.raises(OptionError, match="must have one"):
            from_tags(["a"], template=template)
    with pytest.raises(OptionError, match="at least one"):
        from_tags([])


def test_a_row_s_draws_are_its_own_on_every_machine():
    assert draws(seed=0, row="kick.wav").random() == 0.8210217658548672  # of Python 3.2 and later
    numbers = [draws(seed=s, row=r, number=n).random() for s in (0, 1) for r in ("a", "b", "1 a") for n in (0, 1)]
    assert len(set(numbers)) == len(numbers)


@settings(deadline=None)
@given(WORDS, st.floats(0, 1), st.integers(0, 99))
def test_dropping_leaves_some_tags_each_once(tags, share, number):
    left = drop_tags(tags, share=share, draw=generator(number))
    assert 1 <= len(left) == len(set(left))
    assert set(left) <= set(tags)
    assert left == drop_tags(tags, share=share, draw=generator(number))
    if share == 0:
        assert sorted(left) == sorted(tags)
    if share == 1:
        assert len(left) == 1


def test_tags_are_dropped_as_often_as_asked_and_come_in_every_order():
    tags = [f"tag{number}" for number in range(10)]
    left = [drop_tags(tags, share=0.3, draw=generator(number)) for number in range(500)]
    assert sum(map(len, left)) / 5000 == pytest.approx(0.7, abs=0.03)  # 4.6 standard deviations
    firsts = Counter(one[0] for one in left)
    assert min(firsts[tag] for tag in tags) > 20  # 50 expected
    orders = {tuple(drop_tags("abc", share=0, draw=generator(number))) for number in range(100)}
    assert orders == set(itertools.permutations("abc"))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_are_from_0_to_1(share):
    with pytest.raises(OptionError, match="from 0 to 1"):
        drop_tags(["a"], share=share, draw=generator())


# From tags, in training


@pytest.mark.parametrize(
    ("tags", "label", "wanted"),
    [
        (["dog_bark", " rain. ", "dog bark", "..."], "wind", ["dog bark", "rain"]),
        (["...", ""], "glass_breaking", ["glass breaking"]),
        ([], "glass_breaking", ["glass breaking"]),
        ([], None, []),
        (["\u30c9\u30e9\u30e0", "caf\u0065\u0301"], None, ["\u30c9\u30e9\u30e0", "caf\u00e9"]),
    ],
)
def test_keywords_by_hand(tags, label, wanted):
    assert keywords(tags, label=label) == wanted


def test_captions_are_made_of_tags_as_often_as_asked():
    own = ["A dog", "Barking"]
    for share in (0, 0.3, 1):
        drawn = Counter(one_of(own, tags=["dog"], share=share, draw=generator(number)) for number in range(1000))
        assert drawn["The sounds of dog"] == pytest.approx(1000 * share, abs=65)  # 4.5 standard deviations
        assert drawn["A dog"] == pytest.approx(500 * (1 - share), abs=70)
        assert drawn["Barking"] == pytest.approx(500 * (1 - share), abs=70)


def test_an_epoch_s_caption_is_drawn_anew_and_stays_when_drawn_again():
    def drawn(epoch):
        draw = draws(seed=0, row="a", number=epoch)
        return one_of([], tags=["dog_bark", "rain"], share=0, drop=0.5, template="{}!", draw=draw)

    assert {drawn(epoch) for epoch in range(50)} == {"dog bark!", "rain!", "dog bark and rain!", "rain and dog bark!"}
    assert [drawn(epoch) for epoch in range(50)] == [drawn(epoch) for epoch in range(50)]


def test_a_sound_without_the_words_that_are_asked_for_takes_others():
    assert one_of(["A dog"], tags=["..."], share=1, draw=generator()) == "A dog"
    assert one_of([], tags=[], label="dog_bark", share=0, draw=generator()) == "The sounds of dog bark"
    with pytest.raises(OptionError, match="without caption, tag or label"):
        one_of([], tags=[], share=0, draw=generator())
    with pytest.raises(OptionError, match=r"2 captions to make of tags came: it must be from 0 to 1"):
        one_of(["A dog"], tags=[], share=2, draw=generator())
    with pytest.raises(OptionError, match=r"-1 tags to drop came"):
        one_of([], tags=["a"], share=0, drop=-1, draw=generator())


# De-bias


@pytest.mark.parametrize(
    ("came", "wanted"),
    [
        ("A man talks and women laugh", "A person talks and people laugh"),
        ("Ladies and gentlemen, a guy and some guys", "People and people, a person and some people"),
        ("a boy, a girl, boys, girls", "a child, a child, children, children"),
        ("MEN shout. Woman!", "PEOPLE shout. Person!"),
        ("a man's voice, the men's choir", "a person's voice, the people's choir"),
        ("the girls' choir and the boys\u2019 choir", "the children's choir and the children's choir"),
        ("the sound of 'boys'", "the sound of 'children'"),
        # he and she keep their verbs, and are the last one named
        ("he sings while she has a drink", "the person sings while the person has a drink"),
        ("He's whistling. SHE IS TOO", "The person's whistling. THE PERSON IS TOO"),
        ("a man talks, a girl laughs and she claps", "a person talks, a child laughs and the child claps"),
        ("a girl laughs, a man talks and he claps", "a child laughs, a person talks and the person claps"),
        # her and his: owned or not
        ("her voice and his dog", "their voice and their dog"),
        ("Her own soft voice", "Their own soft voice"),
        ("a crowd cheers her", "a crowd cheers them"),
        ("a crowd cheers her, and him", "a crowd cheers them, and them"),
        ("a crowd cheers her on and follows her to town", "a crowd cheers them on and follows them to town"),
        ("they gave her a guitar", "they gave them a guitar"),
        ("the song is hers, the guitar his", "the song is theirs, the guitar theirs"),
        ("a friend of his and of hers", "a friend of theirs and of theirs"),
        ("her on-stage laugh", "their on-stage laugh"),
        ("he talks to himself, she to herself", "the person talks to themselves, the person to themselves"),
        # what only looks like it
        ("human, manual, mandolin, walkman, sheep, helium, boyish", None),
        ("man-made noise of a one-man band", None),
        ("a boy band and two girl groups", None),
        ("male choir, female voice", None),
        ("hi\u017f h\u0131s h\u0130s \u00e9his her\u00e9", None),  # no capitals of i and s, no ends of words
        ("", None),
        # limits that are told
        ("he hears her sing", "the person hears their sing"),
        ("a man and a woman", "a person and a person"),
    ],
)
def test_de_bias_by_hand(came, wanted):
    assert de_bias(came) == (came if wanted is None else wanted)


@settings(deadline=None)
@given(st.lists(st.sampled_from([*NEUTRAL, "Man", "HER", "sings", "on", "dog", ",", "'s", "the"]), max_size=12))
def test_no_gendered_word_is_left(words):
    neutral = de_bias(" ".join(words))
    assert not set(neutral.lower().replace("'s", " ").replace(",", " ").split()) & set(NEUTRAL)
    assert de_bias(neutral) == neutral


@settings(deadline=None)
@given(st.text(max_size=40))
def test_captions_without_people_stay(text):
    if not any(word in text.lower() for word in NEUTRAL):
        assert de_bias(text) == text


# Hard negatives


def test_swap_by_hand():
    kinds = {"instrument": ["piano", "organ"], "tempo": ["slow", "fast"]}
    of = "A slow piano, and then another PIANO"
    made = {swap(of, kinds=kinds, draw=generator(number)) for number in range(20)}
    assert made == {"A fast piano, and then another PIANO", "A slow organ, and then another ORGAN"}
    assert swap("A piano plays", kinds=kinds, draw=generator()) == "An organ plays"
    assert swap("an  organ plays", kinds=kinds, draw=generator()) == "a  piano plays"
    assert swap("Slow", kinds=kinds, draw=generator()) == "Fast"


@pytest.mark.parametrize(
    ("of", "tags"),
    [
        ("rain", []),  # nothing to swap
        ("pianos, a grand-piano, slowly", []),  # not these words
        ("a piano", ["organ"]),  # true as well
        ("a piano", ["church organ"]),  # true in part
        ("a piano and organs", []),  # said already
        ("a piano and an organ", []),
    ],
)
def test_no_negative_that_may_be_true(of, tags):
    assert swap(of, tags=tags, kinds={"instrument": ["piano", "organ"]}, draw=generator()) is None


def test_letters_that_only_pass_for_others_are_not_swapped():
    kinds = {"tempo": ["slow", "fast"], "instrument": ["dize", "tambour\u00e9"]}
    assert swap("\u017flow d\u0131ze", kinds=kinds, draw=generator()) is None
    assert swap("A TAMBOUR\u00c9", kinds=kinds, draw=generator()) == "A DIZE"


def test_no_negative_that_says_the_same_more_or_less_closely():
    kinds = {"instrument": ["guitar", "electric guitar", "acoustic guitar"]}
    assert swap("a guitar", kinds=kinds, draw=generator()) is None
    assert swap("an electric guitar", kinds=kinds, draw=generator()) == "an acoustic guitar"
    assert swap("an electric guitar", tags=["guitar"], kinds=kinds, draw=generator()) is None
    assert swap("a dog", kinds={}, draw=generator()) is None
    assert swap("an electric guitar", tags=["...", ""], kinds=kinds, draw=generator()) == "an acoustic guitar"


TERMS = [term for terms in KINDS.values() for term in terms]


@settings(deadline=None)
@given(st.lists(st.sampled_from(TERMS), min_size=1, max_size=3, unique=True), st.sets(st.sampled_from(TERMS)))
def test_one_word_is_exchanged_for_another_of_its_kind(said, tags):
    of = " / ".join(said)
    negative = swap(of, tags=sorted(tags), draw=generator())
    if negative is None:
        return
    (place,) = [place for place, (old, new) in enumerate(zip(said, negative.split(" / "), strict=True)) if old != new]
    new = negative.split(" / ")[place]
    assert any(said[place] in terms and new in terms for terms in KINDS.values())
    assert new not in tags
    assert new not in of


def test_long_captions_take_no_longer_for_each_character():
    blanks = " " * 500_000
    assert swap(f"a{blanks}organic an{blanks}", draw=generator()) is None
    assert swap(f"an{blanks}organ", kinds={"": ["organ", "harp"]}, draw=generator()) == f"a{blanks}harp"
    assert swap("a slow " * 150_000, kinds={"": ["slow", "fast"]}, draw=generator()) == "a fast " * 150_000
    assert de_bias(f"her{blanks}dog his{blanks}") == f"their{blanks}dog theirs{blanks}"
    assert de_bias("she sings to her. " * 60_000) == "the person sings to them. " * 60_000
    assert len(from_tags(["ab"] * 250_000)) == len("The sounds of and ") + 250_000 * 4 - 2


def test_each_word_is_of_one_kind():
    assert len(set(TERMS)) == len(TERMS)
    assert all(term == term.lower() for term in TERMS)


def test_words_and_replacements_are_drawn_evenly():
    kinds = {"instrument": ["piano", "harp", "flute"], "tempo": ["slow", "fast"]}
    made = Counter(swap("a slow piano", kinds=kinds, draw=generator(number)) for number in range(400))
    assert made["a fast piano"] == pytest.approx(200, abs=45)
    assert made["a slow harp"] == pytest.approx(100, abs=45)
    assert made["a slow flute"] == pytest.approx(100, abs=45)


# A language model


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A folder with a tiny T5 of large random weights, which say more than one thing."""
    folder = tmp_path_factory.mktemp("t5")
    values = {name: value for name, value in TOYS["t5"].architecture.items() if name != "model_type"}
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**values, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    model.save_pretrained(folder)
    write_tokenizer("t5", folder)
    return folder


def test_keywords_in_a_batch_are_written_of_as_alone(t5):
    writer = caption.Writer(str(t5))
    lists = [["fast", "drums"], ["bell"], ["a dark plucked string", "hum", "reverb"]]
    together = writer.write(lists)
    assert len(set(together)) == 3
    assert together == [writer.write([words])[0] for words in lists]
    model = transformers.T5ForConditionalGeneration.from_pretrained(t5).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(t5)
    ids = tokenizer("fast drums", return_tensors="pt").input_ids
    beams = {"num_beams": 4, "length_penalty": 1.5, "no_repeat_ngram_size": 3, "early_stopping": True}
    (written,) = model.generate(ids, max_new_tokens=64, **beams)
    assert together[0] == clean(tokenizer.decode(written, skip_special_tokens=True))


def test_k2t_has_its_keywords_between_bars(t5, monkeypatch):
    writer = caption.Writer(str(t5))
    asked = []
    monkeypatch.setattr(writer.tokenizer, "encode", lambda texts, max_length: asked.append(texts) or 1 / 0)
    for separator, wanted in ((writer.separator, "fast drums bell"), (caption._SEPARATORS["k2t"], "fast drums| bell")):
        writer.separator = separator
        with pytest.raises(ZeroDivisionError):
            writer.write([["fast drums", "bell"]])
        assert asked.pop() == [wanted]


def test_models_that_cannot_write_are_refused(t5, tmp_path):
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="model_type 'bert', which writes no sentences"):
        caption.Writer(str(tmp_path))
    with pytest.raises(OptionError, match="device"):
        caption.Writer(str(t5), device="meta")
    with pytest.raises(WeightsError, match="cannot read"):
        caption.Writer(str(tmp_path / "missing"))
    model = transformers.T5ForConditionalGeneration.from_pretrained(t5)
    transformers.T5EncoderModel.from_pretrained(t5).save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"has no weights for decoder\."):
        caption.Writer(str(tmp_path))


# The door

ROWS = """audio,tags,label,caption,split
a.wav,dog_bark|rain|wind,,A dog,train
b.wav,,glass_breaking,,train
c.wav,,,Only words,test
d.wav,...,,Nothing to say,test
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text(ROWS)
    return path


def captions_of(path):
    return {pair.id: pair.captions for pair in tables.read(path)}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_captions_by_template(table, tmp_path, suffix):
    out = tmp_path / f"out.{suffix}"
    told = caption.run(table, out=out)
    assert captions_of(out) == {
        "a.wav": ("The sounds of dog bark, rain, and wind",),
        "b.wav": ("The sounds of glass breaking",),
        "c.wav": ("Only words",),
        "d.wav": ("Nothing to say",),
    }
    assert told == {"sounds": 4, "captioned": 2, "captions": 4}
    before, after = tables.read(table).table, tables.read(out).table
    assert after.drop_columns("captions").equals(before.drop_columns("captions"))


def test_captions_beside_those_that_are_there(table, tmp_path):
    told = caption.run(table, out=tmp_path / "out.csv", keep=True)
    assert captions_of(tmp_path / "out.csv")["a.wav"] == ("A dog", "The sounds of dog bark, rain, and wind")
    assert told == {"sounds": 4, "captioned": 2, "captions": 5}
    caption.run(tmp_path / "out.csv", out=tmp_path / "out.csv", keep=True)  # in place: equal captions stay one
    assert captions_of(tmp_path / "out.csv")["a.wav"] == ("A dog", "The sounds of dog bark, rain, and wind")


def test_captions_that_are_there_are_cleaned_when_asked(tmp_path):
    (tmp_path / "in.csv").write_text(
        'audio,tags,caption\na.wav,,Metal_Hit_03.wav\nb.wav,rain,"\u201cRain.\u201d"\nc.wav,,...\n', encoding="utf-8"
    )
    told = caption.run(tmp_path / "in.csv", out=tmp_path / "out.csv", clean=True, count=0)
    assert captions_of(tmp_path / "out.csv") == {"a.wav": ("Metal Hit",), "b.wav": ("Rain",), "c.wav": ("...",)}
    assert told == {"sounds": 3, "captioned": 0, "captions": 3}
    caption.run(tmp_path / "in.csv", out=tmp_path / "out.csv", clean=True, keep=True)
    assert captions_of(tmp_path / "out.csv")["b.wav"] == ("Rain", "The sounds of rain")


def test_long_and_foreign_words_go_through(tmp_path):
    words = {"a.wav": "x" * 1_000_000, "-b \u00fc.wav": '\u30c9\u30e9\u30e0 \U0001f941, "loud"\nand soft'}
    pairs = [Pair(id=name, audio=f"/{name}", captions=("old",), tags=(tag, "rain")) for name, tag in words.items()]
    tables.Manifest.from_pairs(pairs).write(tmp_path / "in.csv")
    for suffix in ("csv", "jsonl", "parquet"):
        caption.run(tmp_path / "in.csv", out=tmp_path / f"out.{suffix}", count=2)
        for name, made in captions_of(tmp_path / f"out.{suffix}").items():
            tag = words[name].replace("\n", " ")
            assert set(made) <= {f"The sounds of {tag} and rain", f"The sounds of rain and {tag}"}


def test_a_row_gets_the_same_captions_in_any_order_and_company(table, tmp_path):
    settings = {"count": 4, "drop": 0.5, "templates": ["{}", "we hear {}"]}
    head, *rows = ROWS.splitlines()
    (tmp_path / "turned.csv").write_text("\n".join([head, *rows[::-1]]))
    (tmp_path / "one.csv").write_text("\n".join([head, rows[0]]))
    made = []
    for name, size in (("pairs", 64), ("turned", 1), ("one", 2)):
        caption.run(tmp_path / f"{name}.csv", out=tmp_path / f"out-{name}.csv", batch_size=size, **settings)
        made.append(captions_of(tmp_path / f"out-{name}.csv")["a.wav"])
    assert len(made[0]) > 1
    assert made[0] == made[1] == made[2]
    caption.run(table, out=tmp_path / "seed.csv", seed=1, **settings)
    assert captions_of(tmp_path / "seed.csv")["a.wav"] != made[0]


def test_captions_by_a_model_are_the_same_whatever_the_batch(t5, table, tmp_path):
    made = []
    for size in (1, 3):
        caption.run(table, out=tmp_path / "out.csv", model=str(t5), count=2, batch_size=size)
        made.append(captions_of(tmp_path / "out.csv"))
    assert made[0] == made[1]
    assert made[0]["a.wav"] != made[0]["b.wav"]
    assert made[0]["c.wav"] == ("Only words",)


@pytest.mark.parametrize(
    ("asked", "wanted"), [(None, "a person and glass breaking"), (False, "a man and glass breaking")]
)
def test_what_a_model_writes_is_made_neutral_unless_asked_otherwise(table, tmp_path, monkeypatch, asked, wanted):
    class Fake(caption.Writer):
        def __init__(self, model, *, device):
            """Needs no weights."""

        def write(self, lists):
            return [f"a man and {words[0]}" for words in lists]

    monkeypatch.setattr(caption, "Writer", Fake)
    caption.run(table, out=tmp_path / "out.csv", model="any", de_bias=asked)
    assert captions_of(tmp_path / "out.csv")["b.wav"] == (wanted,)


def test_templates_are_made_neutral_only_when_asked(tmp_path):
    (tmp_path / "in.csv").write_text('audio,tags\na.wav,"Male speech, man speaking"\n')
    for asked, wanted in ((None, "man"), (True, "person")):
        caption.run(tmp_path / "in.csv", out=tmp_path / "out.csv", de_bias=asked)
        assert captions_of(tmp_path / "out.csv")["a.wav"] == (f"The sounds of Male speech, {wanted} speaking",)


def test_a_run_that_ends_early_leaves_what_was_there(table, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    out.write_text("before")
    real = caption.make
    calls = []

    def make(*args, **more):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(caption, "make", make)
    with pytest.raises(KeyboardInterrupt):
        caption.run(table, out=out, batch_size=1)
    assert out.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.csv", "out.csv"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"out": "x.txt"}, r"suffix must be \.csv"),
        ({"count": 0}, "--count 0: must be 1 or more"),
        ({"count": -1, "clean": True}, "--count -1: must be 1 or more"),
        ({"templates": []}, "no template came"),
        ({"batch_size": 0}, "--batch-size 0: must be 1 or more"),
        ({"drop": 2}, "from 0 to 1"),
        ({"templates": ["{}", "none"]}, "must have one"),
    ],
)
def test_wrong_values_are_told_before_anything_is_read(tmp_path, values, message):
    with pytest.raises(OptionError, match=message):
        caption.run(tmp_path / "missing.csv", **{"out": tmp_path / "out.csv", **values})


def test_a_table_without_tags_is_told(tmp_path):
    (tmp_path / "in.csv").write_text("audio,caption\na.wav,A dog\n")
    with pytest.raises(DataError, match="no row has a tag or label"):
        caption.run(tmp_path / "in.csv", out=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()

"""Captions as text: languages told without a model, and templates."""

import pytest

from antiphon.data import doctor_words


@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("a dog barks in the rain while a car is passing by", "English"),
        ("Ein Hund bellt, und der Regen fällt auf das Dach", "German"),
        ("un chien aboie sous la pluie et une voiture passe dans la rue", "French"),
        ("un perro ladra en la lluvia mientras los coches pasan por la calle", "Spanish"),
        ("un cane abbaia nella pioggia e una macchina passa per la strada", "Italian"),
        ("um cão late na chuva e os carros passam por uma rua", "Portuguese"),
        ("een hond blaft in de regen en het verkeer rijdt door de straat", "Dutch"),
        ("собака лает", "Cyrillic script"),
        ("雨の中で犬が吠える", "CJK script"),
        ("dark metal, slow", doctor_words.LATIN),
        ("808", ""),
    ],
)
def test_languages(caption, language):
    assert doctor_words.language(caption) == language


def test_the_usual_language():
    latin = doctor_words.LATIN
    assert doctor_words.usual([latin] * 9 + ["English"] * 2 + ["German"]) == "English"
    assert doctor_words.usual(["CJK script"] * 3 + ["English"]) == "CJK script"
    assert doctor_words.usual([latin, ""]) == latin
    assert doctor_words.usual([]) == ""
    assert doctor_words.is_foreign(latin, "CJK script")
    assert not doctor_words.is_foreign(latin, "English")
    assert not doctor_words.is_foreign("English", latin)
    assert not doctor_words.is_foreign("", latin)


def test_templates():
    nouns = [f"{a}{b}" for a in "abcdefgh" for b in "xyz"]
    found = doctor_words.templates(
        [*(f"this is a {noun}" for noun in nouns), *(f"{noun} rings out now" for noun in nouns[:9])]
    )
    assert found == [("this is a ...", 24, "this is a ax")]
    assert doctor_words.templates(f"this is a {noun}" for noun in nouns[:19]) == []


def test_plain_captions_are_equal_but_for_case_punctuation_and_spacing():
    assert doctor_words.plain("A  dog, barks!") == doctor_words.plain("a dog barks") == "a dog barks"
    assert doctor_words.plain("a dog barks") != doctor_words.plain("a dog bark")

"""What is shown is whole: characters that are cut between tokens, and stops that span them."""

import random

import pytest
from helpers import gpt2_vocabulary_missing

from nanogpt.sampling import readable
from nanogpt.tokenizer import get_tokenizer

BYTES = get_tokenizer("bytes")


def as_it_comes(ids, stops=(), enc=BYTES, max_tokens=None):
    """What is shown after each id; it may only grow, until it is over."""
    shown = []
    for n in range(len(ids) + 1):
        text, over = readable(enc, ids[:n], len(ids) if max_tokens is None else max_tokens, stops)
        assert text.startswith(shown[-1] if shown else "")
        shown.append(text)
        if over:
            break
    assert over
    return shown


def test_no_half_characters():
    """Of one to four bytes each, one byte a token."""
    text = "aé€😀"
    assert as_it_comes(list(text.encode())) == [
        "", "a", "a", "aé", "aé", "aé", "aé€", "aé€", "aé€", "aé€", "aé€😀"]


def test_half_a_character_at_the_end_is_left_out():
    assert as_it_comes(list("aé€".encode())[:-1])[-1] == "aé"


def test_bytes_that_are_no_text_are_marked():
    """Once it is clear that they will not become a character."""
    assert as_it_comes([97, 0xFF, 0xC3, 98]) == ["", "a", "a", "a", "a\ufffd\ufffdb"]


def test_any_text():
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(draw.choices("ab\0\né€\u0800😀", k=draw.randrange(20)))
        ids = list(text.encode())[: draw.randrange(40)]
        assert as_it_comes(ids)[-1] == bytes(ids).decode("utf-8", "ignore")


def test_the_end_of_a_document():
    assert as_it_comes([97, 98, 256, 99], max_tokens=9) == ["", "a", "ab", "ab"]
    assert as_it_comes([256], max_tokens=9) == ["", ""]


@pytest.mark.parametrize("text, stops, expected", [
    ("one\n\ntwo", ["\n\n"], "one"),
    ("one\ntwo", ["\n\n"], "one\ntwo"),
    ("aaab", ["aab"], "a"),
    ("xyz", ["z", "y"], "x"),
    ("xyz", ["xyzz"], "xyz"),
    ("a€b", ["€"], "a"),
    ("stop", ["stop"], ""),
    ("ab", ["abc", "b"], "a"),
])
def test_stops(text, stops, expected):
    """One byte a token: nothing of the stop is ever shown."""
    assert as_it_comes(list(text.encode()), stops)[-1] == expected
    assert as_it_comes(list(text.encode()) + [256], stops, max_tokens=99)[-1] == expected


def test_any_stops():
    """The first that is complete ends the text; of several at once, the longest."""
    draw = random.Random(0)
    for _ in range(500):
        text, *stops = ("".join(draw.choices("ab\n", k=draw.randint(1, 12 if i == 0 else 4)))
                        for i in range(draw.randint(1, 4)))
        ends = [n for n in range(len(text) + 1) if any(map(text[:n].endswith, stops))]
        longest = max((len(stop) for stop in stops if ends and text[: ends[0]].endswith(stop)),
                      default=0)
        expected = text[: ends[0] - longest] if ends else text
        assert as_it_comes(list(text.encode()), stops)[-1] == expected, (text, stops)


def test_what_may_become_a_stop_is_held_back():
    assert as_it_comes(list(b"a--b--->"), ["--->"]) == ["", "a", "a", "a", "a--b", "a--b", "a--b",
                                                       "a--b", "a--b"]


@pytest.mark.skipif(gpt2_vocabulary_missing() != "", reason=gpt2_vocabulary_missing())
def test_characters_cut_between_gpt2s_tokens():
    enc = get_tokenizer("gpt2")
    text = "naïve 日本語 🤖 ок"
    ids = enc.encode_ordinary(text)
    shown = as_it_comes(ids, enc=enc)
    assert shown[-1] == text and len(set(shown)) < len(shown)  # some tokens end no character
    assert not any("\ufffd" in part for part in shown)

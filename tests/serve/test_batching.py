"""Texts of many threads in few calls of the model, and the same vectors as without."""

import threading
import time

import numpy as np
import pytest
import torch

from antiphon.encoding import EmbeddingModel
from antiphon.serve import batching
from antiphon.serve.batching import Batched
from test_encoding import ToneModel


class SlowModel(ToneModel):
    """A text is the vector of its letters a to d; 20 ms a call, one call at a time, `bad` is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[str]] = []
        self.busy = threading.Lock()
        self.fingerprints = 0

    def fingerprint(self) -> str:
        self.fingerprints += 1
        return super().fingerprint()

    def encode_text(self, texts) -> torch.Tensor:
        assert self.busy.acquire(blocking=False), "two calls at once"
        time.sleep(0.02)
        self.calls.append(list(texts))
        self.busy.release()
        if "bad" in texts:
            raise ValueError("bad text")
        return torch.tensor([[float(text.count(letter)) for letter in "abcd"] for text in texts])


@pytest.fixture
def slow():
    return SlowModel()


@pytest.fixture
def batched(slow):
    made = Batched(slow)
    yield made
    made.close()


def in_threads(work, arguments) -> list:
    results: list = [None] * len(arguments)

    def run(place: int) -> None:
        try:
            results[place] = work(arguments[place])
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(arguments))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_it_is_a_model_and_says_what_the_model_says(batched, slow):
    assert isinstance(batched, EmbeddingModel)
    for name in ("dim", "sample_rate", "clip_seconds", "clip_samples", "space", "source"):
        assert getattr(batched, name) == getattr(slow, name)
    assert batched.fingerprint() == batched.fingerprint() == ToneModel().fingerprint()
    assert slow.fingerprints == 1


def test_many_threads_share_few_calls(batched, slow):
    texts = ["a" * (n % 10 + 1) + "b" * (n // 10) for n in range(50)]
    found = in_threads(lambda text: batched.encode_text([text])[0].numpy(), texts)
    for text, vector in zip(texts, found, strict=True):
        np.testing.assert_array_equal(vector, [text.count("a"), text.count("b"), 0, 0])
    assert len(slow.calls) <= 10  # the first takes one text or some, the next what has come meanwhile
    assert sum(map(len, slow.calls)) == 50


def test_a_text_is_encoded_once(batched, slow):
    in_threads(lambda text: batched.encode_text([text]), ["abc"] * 20)
    batched.encode_text(["abc", "abc"])
    assert sum(call.count("abc") for call in slow.calls) == 1
    assert batched.encode_text([]).shape == (0, 4)


def test_order_within_a_call(batched):
    assert batched.encode_text(["a", "b", "a", "dd"]).tolist() == [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 2],
    ]


def test_what_was_asked_longest_ago_is_forgotten(batched, slow, monkeypatch):
    monkeypatch.setattr(batching, "_REMEMBERED", 2)
    for text in ("a", "b", "a", "c", "a", "b"):
        batched.encode_text([text])
    assert [call for (call,) in slow.calls] == ["a", "b", "c", "b"]


def test_a_bad_text_fails_for_its_sender_alone(batched):
    texts = ["a", "bad", "b", "bad", "c"] * 4
    for text, result in zip(texts, in_threads(lambda text: batched.encode_text([text]), texts), strict=True):
        assert isinstance(result, ValueError) if text == "bad" else result.shape == (1, 4)
    assert batched.encode_text(["d"]).tolist() == [[0, 0, 0, 1]]  # and the thread goes on


def test_after_the_end(slow):
    batched = Batched(slow)
    batched.close()
    with pytest.raises(RuntimeError, match="closed"):
        batched.encode_text(["a"])


def test_sounds_are_encoded_one_call_at_a_time(batched, slow):
    inside, most = [0], [0]

    def encode(clips, *, bulk=False):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1
        return torch.zeros(len(clips), 4)

    slow.encode_clips = encode
    in_threads(batched.encode_clips, [[np.zeros(8000, np.float32)]] * 8)
    assert most == [1]

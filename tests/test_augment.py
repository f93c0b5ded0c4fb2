import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from antiphon.augment import gain, mix, spec_augment


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 999), st.integers(0, 20), st.integers(0, 8))
def test_stripes_are_no_wider_than_asked_and_nothing_else_changes(seed, time_width, mel_width):
    mel = torch.ones(4, 50, 16)
    out = spec_augment(mel, time_width=time_width, mel_width=mel_width, generator=seeded(seed))
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    frames_gone = (out == 0).all(dim=2).sum(dim=1)
    mels_gone = (out == 0).all(dim=1).sum(dim=1)
    assert frames_gone.max() <= 2 * (time_width + 1)
    assert mels_gone.max() <= 2 * (mel_width + 1)


def test_stripes_differ_between_clips_and_repeat_with_the_seed():
    mel = torch.ones(8, 100, 64)
    out = spec_augment(mel, time_width=20, mel_width=8, generator=seeded())
    assert len({row.numpy().tobytes() for row in out}) == 8
    assert torch.equal(out, spec_augment(mel, time_width=20, mel_width=8, generator=seeded()))
    assert torch.equal(spec_augment(mel, time_width=0, mel_width=0), mel)


def test_gain_stays_in_its_range():
    out = gain(torch.ones(1000, 1), decibels=6.0, generator=seeded())
    low, high = 10 ** (-6 / 20), 10 ** (6 / 20)
    assert low <= out.min() < 0.6
    assert 1.8 < out.max() <= high
    assert torch.equal(gain(torch.ones(3, 1), decibels=0.0), torch.ones(3, 1))


def test_mixing_keeps_power_and_the_own_sound_on_top():
    clips = torch.eye(64)  # sound i is a one at sample i: what is mixed in can be read off
    out = mix(clips, share=1.0, generator=seeded())
    torch.testing.assert_close(out.square().sum(dim=1), torch.ones(64))
    assert (out.diagonal() >= 0.5**0.5 - 1e-6).all()
    others = out - torch.diag(out.diagonal())
    assert ((others > 0).sum(dim=1) <= 1).all()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_only_a_share_is_mixed(share):
    clips = torch.eye(2000)
    mixed = (mix(clips, share=share, generator=seeded()) != clips).any(dim=1).float().mean().item()
    assert mixed == pytest.approx(share, abs=0.04)

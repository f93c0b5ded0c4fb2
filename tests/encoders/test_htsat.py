"""HTS-AT's own arithmetic: tables, stretching, checkpointing, settings. Parity with transformers: tests/checkpoints."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from antiphon import options
from antiphon.encoders.audio import htsat
from antiphon.errors import OptionError, WeightsError

SMALL = {"width": 8, "depths": [2, 2], "heads": [1, 2], "clip_seconds": 1, "spec_size": 64, "n_mels": 16, "window": 4}


def small(**values):
    torch.manual_seed(0)
    return options.build("audio_encoder", "htsat-tiny", {**SMALL, **values})


def wave(encoder, batch=3):
    return torch.randn(batch, encoder.clip_samples, generator=torch.Generator().manual_seed(1)) * 0.1


@pytest.mark.parametrize(("frames", "target"), [(1001, 1024), (965, 1024), (101, 256), (256, 256), (2, 7), (1, 4)])
def test_stretching_is_bicubic_with_aligned_corners(frames, target):
    mel = torch.randn(1, 1, frames, 5)
    index, weight = htsat._stretch_tables(frames, target)
    ours = (mel[0, 0][index] * weight[:, :, None]).sum(dim=1)
    theirs = interpolate(mel, (target, 5), mode="bicubic", align_corners=True)[0, 0]
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@given(windows=st.integers(1, 4), window=st.sampled_from([2, 4, 6]))
@settings(deadline=None, max_examples=20)
def test_window_order_holds_whole_windows(windows, window):
    side = windows * window
    order = htsat._window_order(side, window)
    assert sorted(order.tolist()) == list(range(side * side))
    first = order[: window * window]
    assert sorted(first.tolist()) == [row * side + column for row in range(window) for column in range(window)]


@given(windows=st.integers(2, 4), window=st.sampled_from([2, 4]))
@settings(deadline=None, max_examples=20)
def test_shifted_windows_are_those_of_a_rolled_square(windows, window):
    side, shift = windows * window, window // 2
    to_shifted, from_shifted, mask = htsat._shift_tables(side, window, shift)
    order = htsat._window_order(side, window)
    rolled = htsat._raster(side).roll((-shift, -shift), (0, 1))
    assert torch.equal(order[to_shifted], htsat._partition(rolled, window))
    assert torch.equal(to_shifted[from_shifted], torch.arange(side * side))
    # two tokens of a shifted window may see each other if the shift did not tear the square between them
    tokens = htsat._partition(rolled, window).view(-1, window * window)
    row, column = tokens // side, tokens % side
    near = (row[:, :, None] - row[:, None]).abs().lt(window) & (column[:, :, None] - column[:, None]).abs().lt(window)
    assert torch.equal(mask[:, 0] == 0, near)


def test_a_merge_takes_the_four_neighbours_of_each_token():
    side, window = 8, 4
    index = htsat._merge_table(side, window).view(-1, 4)
    here, there = htsat._window_order(side, window), htsat._window_order(side // 2, window)
    for place, four in enumerate(index):
        row, column = divmod(int(there[place]), side // 2)
        corner = 2 * row * side + 2 * column
        assert here[four].tolist() == [corner, corner + side, corner + 1, corner + side + 1]


def test_patches_are_the_pixels_of_the_folded_mel():
    encoder = small().eval()
    mel = torch.randn(2, encoder.frames, 16)
    image = encoder.images(mel)
    assert image.shape == (2, 1, 64, 64)
    convolved = encoder.patch_embed.proj(image).flatten(2).transpose(1, 2)[:, encoder.order]
    torch.testing.assert_close(encoder.patch_embed(encoder.patches(mel)), convolved, atol=1e-5, rtol=0)
    stretched = encoder.stretch(mel)  # piece k of time stands on band k: rows 16 k to 16 k + 15
    for piece, band in itertools.product(range(4), (0, 7, 15)):
        row = image[0, 0, 16 * piece + band]
        torch.testing.assert_close(row, stretched[0, 64 * piece : 64 * (piece + 1), band])


def test_few_clips_at_a_time_or_all_at_once_is_the_same():
    encoder = small().eval()
    clips = wave(encoder, batch=5)
    with torch.no_grad():
        inference = encoder(clips)
    torch.testing.assert_close(inference, encoder(clips).detach(), atol=1e-6, rtol=0)


def test_checkpointing_changes_no_gradient():
    plain, checked = small(drop_path=0.0).train(), small(drop_path=0.0, checkpointing=True).train()
    checked.load_state_dict(plain.state_dict())
    gradients = []
    for encoder in (plain, checked):
        torch.manual_seed(3)  # SpecAugment
        encoder(wave(encoder)).square().mean().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_stochastic_depth_leaves_steps_out_and_keeps_the_mean():
    block = small(drop_path=0.5).layers[-1].blocks[-1].train()
    assert block.drop_path == 0.5
    step = block._drop(torch.ones(4000, 1, 1))
    assert set(step.unique().tolist()) == {0.0, 2.0}
    assert abs(float(step.mean()) - 1) < 0.1
    assert torch.equal(block.eval()._drop(torch.ones(3, 1, 1)), torch.ones(3, 1, 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_mels": 24}, "must be a multiple"),
        ({"window": 5}, "whole windows of 5"),
        ({"clip_seconds": 60}, "shorten clip_seconds or lengthen hop"),
        ({"fusion": "aff_3d"}, "must be one of daf_1d"),
        ({"stride": 3}, "patches of 4 every 3|must be a multiple"),
    ],
)
def test_settings_that_do_not_go_together(values, message):
    with pytest.raises(OptionError, match=message):
        small(**values)


@pytest.mark.parametrize("name", ["htsat-tiny", "htsat-base", "htsat-large"])
def test_keys_and_shapes_tell_the_size(name):
    with torch.device("meta"):
        encoder = options.build("audio_encoder", name)
    found = htsat.describe(encoder.state_dict())
    assert found["name"] == name
    assert found["depths"] == list(options.values("audio_encoder", name)["depths"])
    assert (found["heads"], found["window"], found["patch"]) == ([4, 8, 16, 32], 8, 4)
    assert found["fusion"] is None


@pytest.mark.parametrize("kind", ["daf_1d", "aff_1d", "iaff_1d", "daf_2d", "aff_2d", "iaff_2d", "channel_map"])
def test_keys_tell_the_fusion(kind):
    assert htsat.describe(small(fusion=kind).state_dict())["fusion"] == kind


def test_other_keys_are_refused():
    with pytest.raises(WeightsError, match="not the keys of an HTS-AT"):
        htsat.describe({"conv1.weight": torch.zeros(3)})


def test_published_sizes():
    """Parameters without front end and class head: LAION's 31.33 M minus 1.08 M and 2.71 M, and so on."""
    counts = {}
    for name in ("htsat-tiny", "htsat-base"):
        with torch.device("meta"):
            counts[name] = sum(p.numel() for p in options.build("audio_encoder", name).parameters())
    head = {name: 527 * dim * 6 + 527 + 527 * 527 + 527 for name, dim in (("htsat-tiny", 768), ("htsat-base", 1024))}
    front_end = 2 * 513 * 1024 + 513 * 64
    assert round((counts["htsat-tiny"] + head["htsat-tiny"] + front_end) / 1e6, 2) == 31.33
    assert round((counts["htsat-base"] + head["htsat-base"] + front_end) / 1e6, 2) == 72.42


@pytest.mark.slow
def test_compiles_in_one_graph():
    """In a process of its own: shape checks cannot be traced."""
    code = (
        "import torch; from antiphon import options\n"
        f"e = options.build('audio_encoder', 'htsat-tiny', {SMALL!r}).eval()\n"
        "w = torch.randn(3, e.clip_samples) * 0.1\n"
        "with torch.no_grad():\n"
        "    c = torch.compile(e, fullgraph=True, backend='aot_eager')\n"
        "    print(float((c(w) - e(w)).abs().max()))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert run.returncode == 0, run.stderr[-2000:]
    assert float(run.stdout) < 1e-5

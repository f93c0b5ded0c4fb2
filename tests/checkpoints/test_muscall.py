"""MusCALL checkpoints against a model written from its equations, under its published key names."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from antiphon.checkpoints import muscall
from antiphon.checkpoints.contract import Raw
from antiphon.encoders import weights
from antiphon.encoders.audio.modified_resnet import tall_filters
from antiphon.encoders.contract import Tokens
from antiphon.errors import WeightsError
from antiphon.model import DualEncoder, build_parts

RATE, SECONDS, WIDTH, AUDIO_DIM, TEXT_DIM, DIM = 16000, 3, 8, 20, 128, 24
VOCAB, START, END = 60, 58, 59
SCALE = math.log(1 / 0.07)


class Bottleneck(nn.Module):
    def __init__(self, channels, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.stride = stride
        if stride > 1 or channels != 4 * planes:
            shortcut = {"0": nn.Conv2d(channels, 4 * planes, 1, bias=False), "1": nn.BatchNorm2d(4 * planes)}
            self.downsample = nn.Sequential(OrderedDict(shortcut))

    def forward(self, x):
        hidden = F.avg_pool2d(self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu(), self.stride)
        shortcut = self.downsample(F.avg_pool2d(x, self.stride)) if hasattr(self, "downsample") else x
        return (self.bn3(self.conv3(hidden)) + shortcut).relu()


class AttentionPool(nn.Module):
    def __init__(self, places, channels, dim):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(places, channels))
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(channels, channels) for _ in range(3))
        self.c_proj = nn.Linear(channels, dim)

    def forward(self, x):
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.positional_embedding[:, None]
        query, key, value = (
            proj(x).unflatten(-1, (8, -1)).permute(1, 2, 0, 3) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = (query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5).softmax(-1)
        return self.c_proj((scores @ value).permute(2, 0, 1, 3).flatten(2)[0])


class Backbone(nn.Module):
    def __init__(self, pooling):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, WIDTH // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH // 2)
        self.conv2, self.bn2 = nn.Conv2d(WIDTH // 2, WIDTH // 2, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH // 2)
        self.conv3, self.bn3 = nn.Conv2d(WIDTH // 2, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH)
        channels = WIDTH
        for stage, blocks in enumerate((2, 1, 1, 1)):
            planes = WIDTH * 2**stage
            parts = [Bottleneck(channels, planes, 1 if stage == 0 else 2)]
            parts += [Bottleneck(4 * planes, planes, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*parts))
            channels = 4 * planes
        if pooling == "attention":
            places = 128 // 32 * ((SECONDS * RATE // 512 + 1) // 32) + 1
            self.attnpool = AttentionPool(places, channels, AUDIO_DIM)
        else:
            self.final_linear = nn.Linear(channels, AUDIO_DIM)

    def forward(self, wave):
        window = torch.hann_window(1024)
        spectrum = torch.stft(wave, 1024, 512, window=window, return_complex=True) / window.square().sum().sqrt()
        mel = filters().T @ spectrum.abs().square()  # [batch, mels, frames]
        mel = 10 * mel.clamp_min(1e-10).log10()
        x = mel.maximum(mel.amax((1, 2), keepdim=True) - 100)[:, None]
        for number in (1, 2, 3):
            x = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)).relu()
        x = F.avg_pool2d(x, 2)
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
        return self.attnpool(x) if hasattr(self, "attnpool") else self.final_linear(x.mean((2, 3)))


class PreNorm(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(TEXT_DIM), fn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_qkv = nn.Linear(TEXT_DIM, 3 * TEXT_DIM, bias=False)
        self.out_projection = nn.Linear(TEXT_DIM, TEXT_DIM)

    def forward(self, x):
        query, key, value = (part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, -1))
        barred = torch.full((x.shape[1],) * 2, -math.inf).triu(1)
        weight = (query @ key.transpose(-1, -2) / 8 + barred).softmax(-1)
        return self.out_projection((weight @ value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Linear(TEXT_DIM, 4 * TEXT_DIM), nn.GELU(), nn.Dropout(0.2), nn.Linear(4 * TEXT_DIM, TEXT_DIM)]
        self.mlp = nn.Sequential(*layers)

    def forward(self, x):
        return self.mlp(x)


class OwnText(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embedding = nn.Embedding(VOCAB, TEXT_DIM)
        self.position_embedding = nn.Embedding(77, TEXT_DIM)
        self.transformer = nn.Module()
        layers = [nn.ModuleList([PreNorm(Attention()), PreNorm(FeedForward())]) for _ in range(2)]
        self.transformer.layers = nn.ModuleList(layers)
        self.transformer.norm_out = nn.LayerNorm(TEXT_DIM)
        self.ln_final = nn.LayerNorm(TEXT_DIM)  # never called

    def forward(self, ids):
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        for pair in self.transformer.layers:
            for step in pair:
                x = step.fn(step.norm(x)) + x
        return self.transformer.norm_out(x)[torch.arange(len(ids)), ids.argmax(-1)]


class ClipText(CLIPTextModel):
    def __init__(self):
        sizes = {"hidden_size": TEXT_DIM, "intermediate_size": 160, "num_attention_heads": 2, "num_hidden_layers": 2}
        super().__init__(CLIPTextConfig(vocab_size=VOCAB, bos_token_id=START, eos_token_id=END, **sizes))

    def forward(self, ids):
        return super().forward(input_ids=ids).pooler_output


class Reference(nn.Module):
    def __init__(self, *, pooling="attention", text=OwnText, scale=SCALE):
        super().__init__()
        torch.manual_seed(0)
        self.audio_backbone, self.textual_head = Backbone(pooling), text()
        self.audio_projection = nn.Linear(AUDIO_DIM, DIM, bias=False)
        self.text_projection = nn.Linear(TEXT_DIM, DIM, bias=False)
        if scale is not None:
            self.logit_scale = nn.Parameter(torch.tensor(scale))
        self.eval().requires_grad_(False)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
            if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(std=0.3)

    def state(self):
        """What the file holds: torchaudio's buffers too."""
        buffers = {"spectrogram.window": torch.hann_window(1024), "mel_scale.fb": filters()}
        state = {key: tensor.clone() for key, tensor in self.state_dict().items()}
        return {**state, **{f"audio_backbone.spec.{key}": tensor for key, tensor in buffers.items()}}


def filters():
    return tall_filters(sample_rate=RATE, n_fft=1024, n_mels=128, f_min=0, f_max=11025)


def raw(state):
    return Raw(state=state, source="best_model.pth.tar")


def load(converted):
    model = DualEncoder(**build_parts(converted.spec, assets=converted.assets))
    weights.load_strict(model, converted.state, source="best_model.pth.tar")
    return model


def waves(seconds=SECONDS):
    loudness = torch.tensor([[0.02], [0.7]])
    return torch.randn(2, seconds * RATE, generator=torch.Generator().manual_seed(1)) * loudness


def tokens():
    """Padded with 0, as the original's; nothing after the end token may count."""
    ids = torch.tensor([[START, 7, 8, 9, END], [START, 30, END, 0, 0]])
    return Tokens(ids=ids, mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))


def embeds_alike(reference, converted, *, seconds=SECONDS):
    model = load(converted)
    assert (model.sample_rate, model.clip_samples, model.space) == (RATE, seconds * RATE, "projection")
    audio = F.normalize(reference.audio_projection(reference.audio_backbone(waves(seconds))), dim=-1)
    text = F.normalize(reference.text_projection(reference.textual_head(tokens().ids)), dim=-1)
    torch.testing.assert_close(model.encode_clips(waves(seconds)), audio, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_tokens(tokens()), text, atol=1e-5, rtol=0)
    assert (audio[0] - audio[1]).abs().max() > 1e-2 < (text[0] - text[1]).abs().max()
    return model


def test_attention_pooling_and_its_own_text_transformer():
    reference = Reference()
    converted = muscall.convert(raw(reference.state()))
    embeds_alike(reference, converted)
    assert converted.scale == pytest.approx(1 / 0.07)
    assert converted.dropped.keys() >= {"textual_head.ln_final.weight", "audio_backbone.spec.mel_scale.fb"}


def test_average_pooling_hears_twenty_seconds():
    embeds_alike(reference := Reference(pooling="average"), muscall.convert(raw(reference.state())), seconds=20)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_clip_as_text_tower(prefix):
    """Saved by transformers 5, and 4, which had one name more and a table of positions."""
    reference = Reference(text=ClipText)
    state = {
        key.replace("textual_head.", f"textual_head.{prefix}"): tensor for key, tensor in reference.state().items()
    }
    state[f"textual_head.{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    converted = muscall.convert(raw(state))
    assert converted.spec["text_encoder"]["name"] == "clip"
    embeds_alike(reference, converted)


def test_self_supervised_part_is_left_out():
    reference = Reference()
    state = reference.state()
    again = {
        key.replace("audio_backbone.", "audio_ssl.simclr.encoder."): tensor
        for key, tensor in state.items()
        if key.startswith("audio_backbone.")
    }
    heads = {f"audio_ssl.simclr.projector.{layer}.weight": torch.zeros(4, AUDIO_DIM) for layer in (0, 2)}
    converted = muscall.convert(raw({**state, **again, **heads}))
    assert converted.dropped.keys() >= again.keys() | heads.keys()
    assert "audio_backbone once more" in converted.dropped["audio_ssl.simclr.encoder.conv1.weight"]
    embeds_alike(reference, converted)


def test_scale_is_clamped_or_unknown():
    assert muscall.convert(raw(Reference(scale=9.0).state())).scale == 100
    assert muscall.convert(raw(Reference(scale=None).state())).scale is None


def test_published_size():
    """The configuration's own sizes, from shapes alone."""
    state = Reference().state()
    embedding, positions = "textual_head.token_embedding.weight", "audio_backbone.attnpool.positional_embedding"
    state[embedding], state[positions] = torch.zeros(49408, 512), torch.zeros(4 * 19 + 1, 512)
    spec = muscall.convert(raw(state)).spec
    assert spec["audio_encoder"]["clip_seconds"] == 20
    assert (spec["text_encoder"]["width"], spec["text_encoder"]["heads"]) == (512, 8)


def test_faults_are_named():
    state = Reference().state()
    with pytest.raises(WeightsError, match=r"audio_backbone.layer1.surplus"):
        muscall.convert(raw({**state, "audio_backbone.layer1.surplus": torch.zeros(1)}))
    missing = {key: tensor for key, tensor in state.items() if key != "audio_backbone.layer2.0.bn3.bias"}
    with pytest.raises(WeightsError, match=r"missing: audio_encoder.layer2.0.bn3.bias"):
        load(muscall.convert(raw(missing)))
    with pytest.raises(WeightsError, match=r"misshapen: audio_projector.linear.weight"):
        load(muscall.convert(raw({**state, "audio_projection.weight": torch.zeros(DIM, 3)})))
    with pytest.raises(WeightsError, match=r"mel_scale.fb"):
        muscall.convert(raw({**state, "audio_backbone.spec.mel_scale.fb": filters() * 2}))
    bare = {key: tensor for key, tensor in state.items() if not key.startswith("textual_head.")}
    with pytest.raises(WeightsError, match="neither MusCALL's transformer nor CLIP's"):
        muscall.convert(raw({**bare, "textual_head.encoder.layers.0.mlp.fc1.weight": torch.zeros(3)}))


def test_recognises_its_own_only():
    state = Reference().state()
    assert muscall.recognises(raw(state))
    assert not muscall.recognises(raw({key: state[key] for key in state if key.startswith("audio")}))
    openai = ("visual.conv1.weight", "token_embedding.weight", "text_projection", "logit_scale")
    assert not muscall.recognises(raw(dict.fromkeys(openai, torch.zeros(1))))
    transformers = ("audio_projection.linear1.weight", "text_projection.linear1.weight")
    assert not muscall.recognises(raw(dict.fromkeys(transformers, torch.zeros(1))))

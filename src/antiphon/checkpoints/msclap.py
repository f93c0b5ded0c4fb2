"""msclap, Microsoft's CLAP, 2022 and 2023 (Elizalde et al. 2022, arXiv:2206.04769, and 2023, arXiv:2309.05767).

`CLAP_weights_2022.pth` and `CLAP_weights_2023.pth` of the hub's `microsoft/msclap`, state dict under `model`. Names and
settings are those of https://github.com/microsoft/CLAP (MIT): `msclap/CLAPWrapper.py`, `models/clap.py`,
`models/audio.py`, `models/htsat.py`, `models/config.py`, `configs/config_{2022,2023}.yml`.

| | audio | text | joint |
|---|---|---|---|
| 2022 | Cnn14, 44.1 kHz, 5 s, hop 320 | BERT-base uncased, first token | 1024 |
| 2023 | HTS-AT tiny, 44.1 kHz, 7 s, hop 320 | GPT-2, state of the last token of text + " <|endoftext|>" | 1024 |

What is unusual: HTS-AT of 2023 reads its settings from a module, not from the YAML: its mel filters are made for 32 kHz
(50 to 14000 Hz) and hear sound of 44.1 kHz, so what they take for 14 kHz is 19.3 kHz. Its weights expect that, and
`mel_rate` says so; the file's own filters are checked against it. Short sounds are tiled and cut. The YAML's
`text_len`, 100 and 77 tokens, only pads: the tokenizer is not told to cut, and a longer text goes through whole, as
here, up to the positions the text tower has.

Differences: embeddings are L2-normalised here (msclap normalises in `compute_similarity`); long sounds are windowed,
not cropped at random; stereo is down-mixed, not flattened to twice the length; GPT-2's last token is found by the mask,
not by counting ids that are not "!". No published file could be opened here: that they hold what this code builds is
unverified, but for GPT-2's mask buffers (microsoft/CLAP#27).

Attention heads leave no trace in tensors: one for 64 channels, as in every published size.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from antiphon.checkpoints.audioset import FrontEnd, Part, front_end, translate
from antiphon.checkpoints.contract import Converted, Raw, Spec, prefixed
from antiphon.checkpoints.transformers_clap import bert_like, scale_of, size_of
from antiphon.encoders import weights
from antiphon.encoders.audio import htsat, pann
from antiphon.encoders.text.tokenizers import has_files
from antiphon.errors import WeightsError

GPT2_KEYS: weights.Rules = (
    (r"(?:wte|wpe)\.weight", r"\g<0>"),
    (r"h\.\d+\.(?:ln_1|ln_2|attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.(?:weight|bias)", r"\g<0>"),
    (r"ln_f\.(?:weight|bias)", r"\g<0>"),
)
GPT2_DROPPED: weights.Rules = ((r"h\.\d+\.attn\.(?:bias|masked_bias)", "causal mask, computed"),)
BERT_KEYS: weights.Rules = (
    (r"embeddings\.(?:word|position|token_type)_embeddings\.weight", r"\g<0>"),
    (r"embeddings\.LayerNorm\.(?:weight|bias)", r"\g<0>"),
    (
        r"encoder\.layer\.\d+\.(?:attention\.self\.(?:query|key|value)|attention\.output\.(?:dense|LayerNorm)"
        r"|intermediate\.dense|output\.(?:dense|LayerNorm))\.(?:weight|bias)",
        r"\g<0>",
    ),
)
"""Transformers' names of BERT and RoBERTa."""
BERT_DROPPED: weights.Rules = (
    (r"embeddings\.(?:position_ids|token_type_ids)", "table of places, computed"),
    (r"pooler\.dense\.(?:weight|bias)", "the first token's state is taken, not the pooler's"),
)
SCALE = "logit_scale"
SUFFIX = " <|endoftext|>"

_CAPTIONING = "clap_project."
_AUDIO, _TEXT = "audio_encoder.base.", "caption_encoder.base."
_HTSAT = f"{_AUDIO}htsat."
_PROJECTORS = {"audio_encoder.projection.": "audio_projector.", "caption_encoder.projection.": "text_projector."}
_PROJECTION: weights.Rules = (
    (r"linear([12])\.weight", r"fc\1.weight"),
    (r"layer_norm\.(weight|bias)", r"norm.\1"),
)
_RATE = 44100  # Hz
_FRONT_END_2022 = FrontEnd(mel_rate=_RATE, n_fft=1024, hop=320, f_min=50, f_max=14000)
_FRONT_END_2023 = FrontEnd(mel_rate=32000, n_fft=1024, hop=320, f_min=50, f_max=14000)
_GPT2_NAMES = {768: "gpt2", 1024: "gpt2-medium", 1280: "gpt2-large", 1600: "gpt2-xl"}
_HEAD = 64  # channels of an attention head


def recognises(raw: Raw) -> bool:
    """Whether the keys are msclap's, of either year or of its captioning model (which `convert` refuses)."""
    return _captions(raw) or (
        "audio_encoder.projection.linear1.weight" in raw.state and any(key.startswith(_TEXT) for key in raw.state)
    )


def convert(raw: Raw) -> Converted:
    """Both towers and both heads. Raises `WeightsError` for what does not fit, and for captioning weights."""
    if _captions(raw):
        raise WeightsError(
            f"'{raw.source}' holds msclap's captioning model (clapcap), which writes texts but embeds none: "
            "take CLAP_weights_2023.pth, the model it was built on"
        )
    is_htsat, is_gpt2 = any(key.startswith(_HTSAT) for key in raw.state), f"{_TEXT}wte.weight" in raw.state
    text_keys, text_drop = (GPT2_KEYS, GPT2_DROPPED) if is_gpt2 else (BERT_KEYS, BERT_DROPPED)
    tower = Part(_HTSAT, htsat.KEYS, htsat.DROPPED, "audio_encoder.")
    if not is_htsat:
        tower = Part(_AUDIO, pann.KEYS, pann.DROPPED, "audio_encoder.")
    heads = [Part(theirs, _PROJECTION, (), ours) for theirs, ours in _PROJECTORS.items()]
    text = Part(_TEXT, text_keys, text_drop, "text_encoder.model.")
    renamed = translate(raw, [tower, text, *heads], drop=[(SCALE, "temperature, kept as the model's scale")])
    audio = _htsat(raw) if is_htsat else _cnn14(raw)
    spec: Spec = {
        "audio_encoder": audio,
        "text_encoder": _gpt2(raw) if is_gpt2 else _bert(raw),
        **{ours[:-1]: _projector(raw, theirs) for theirs, ours in _PROJECTORS.items()},
        "audio_predictor": None,
        "text_predictor": None,
    }
    return Converted(
        kind=f"msclap {'2023' if is_htsat else '2022'}, "
        f"{size_of(audio) if is_htsat else 'Cnn14'} and {'GPT-2' if is_gpt2 else 'BERT'}",
        spec=spec,
        state=renamed.state,
        dropped=renamed.dropped,
        scale=scale_of(raw.state, SCALE),
        assets=raw.folder if has_files(raw.folder) else None,
    )


def gpt2_architecture(state: Mapping[str, Tensor], *, source: str) -> dict[str, Any]:
    """What transformers' GPT2Config needs, told from shapes under its own names."""
    vocabulary, width = sized(state, "wte.weight", source=source)
    return {
        "model_type": "gpt2",
        "vocab_size": vocabulary,
        "n_positions": sized(state, "wpe.weight", source=source)[0],
        "n_embd": width,
        "n_layer": _layers(state, r"h\.(\d+)\..*", source=source),
        "n_head": max(1, width // _HEAD),
        "n_inner": sized(state, "h.0.mlp.c_fc.weight", source=source)[1],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    }


def gpt2_name(architecture: Mapping[str, Any]) -> str:
    """The hub's name of the GPT-2 of this width."""
    return _GPT2_NAMES.get(architecture["n_embd"], "gpt2")


def sized(state: Mapping[str, Tensor], key: str, *, source: str) -> tuple[int, ...]:
    """The shape of a tensor that has to be there. Raises `WeightsError` naming the key."""
    if key not in state:
        raise WeightsError(f"'{source}' lacks '{key}': copy the file again")
    return tuple(state[key].shape)


def _captions(raw: Raw) -> bool:
    return any(key.startswith(_CAPTIONING) for key in raw.state)


def _htsat(raw: Raw) -> dict[str, Any]:
    front = front_end(raw, prefix=_HTSAT, candidates=[_FRONT_END_2023])
    clip = {"sample_rate": _RATE, "mel_rate": front.mel_rate, "clip_seconds": 7, "padding": "repeat"}
    return {**htsat.describe(prefixed(raw.state, _HTSAT)), "spec_size": 256, **clip, **_bands(front)}


def _cnn14(raw: Raw) -> dict[str, Any]:
    front = front_end(raw, prefix=_AUDIO, candidates=[_FRONT_END_2022])
    found = pann.describe(prefixed(raw.state, _AUDIO))
    sizes = {key: found[key] for key in ("channels", "dim", "n_mels")}
    clip = {"sample_rate": _RATE, "clip_seconds": 5, "padding": "repeat"}
    masks = {"time_mask": 0, "mel_mask": 0}  # its Cnn14 has no SpecAugment
    return {"name": found["option"], **sizes, **clip, **_bands(front), **masks}


def _bands(front: FrontEnd) -> dict[str, Any]:
    bands = {"f_min": front.f_min, "f_max": front.f_max, "scale": front.scale}
    return {"n_fft": front.n_fft, "hop": front.hop, **bands}


def _gpt2(raw: Raw) -> dict[str, Any]:
    architecture = gpt2_architecture(prefixed(raw.state, _TEXT), source=raw.source)
    return {
        "name": "gpt2",
        "model": gpt2_name(architecture),
        "pooling": "last",
        "suffix": SUFFIX,
        "max_length": architecture["n_positions"],
        "architecture": architecture,
    }


def _bert(raw: Raw) -> dict[str, Any]:
    sizes = bert_like(prefixed(raw.state, _TEXT), source=raw.source)
    if sizes["type_vocab_size"] != 2:
        raise WeightsError(
            f"'{raw.source}' has a text tower with {sizes['type_vocab_size']} type of token: msclap's is BERT with 2, "
            "or GPT-2"
        )
    rest = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0}
    return {
        "name": "bert",
        "model": "bert-base-uncased",
        "pooling": "first",
        "max_length": sizes["max_position_embeddings"],
        "architecture": {"model_type": "bert", **sizes, **rest},
    }


def _projector(raw: Raw, prefix: str) -> dict[str, Any]:
    dim = sized(raw.state, f"{prefix}linear1.weight", source=raw.source)[0]
    return {"name": "residual", "dim": dim, "dropout": 0.5, "bias": False}


def _layers(state: Mapping[str, Tensor], pattern: str, *, source: str) -> int:
    found = {int(match[1]) for key in state if (match := re.fullmatch(pattern, key))}
    if not found:
        raise WeightsError(f"'{source}' has no layer of its text tower: copy the file again")
    return max(found) + 1

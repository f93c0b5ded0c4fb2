"""CLAP-MusicGen's audio encoder: MusicGen's state when a sound ends (github.com/yuhuacheng/clap_musicgen).

EnCodec turns the wave into four streams of codes, 50 a second (Défossez et al. 2022, arXiv:2210.13438); their
embeddings are summed and go through MusicGen's decoder (Copet et al. 2023, arXiv:2306.05284) without a text to
condition on; the last layer at the last position is the representation, 1024 wide with `facebook/musicgen-small`.
Frozen unless told otherwise. Both networks are transformers' own; `model` is a hub id or a folder of any mono
`MusicgenForConditionalGeneration`, of which only these two parts are read, not its T5. MusicGen's weights, and so
CLAP-MusicGen's, are CC-BY-NC 4.0.

What the published weights need, and what can be changed:

- **No time.** The original gives the decoder embeddings, and transformers then adds position 0's vector at every place:
  the order of codes is known from the causal mask alone. CLAP-MusicGen's heads were trained on that, so it is the
  default; `positions="time"` is how MusicGen itself was trained.
- **No delay.** MusicGen was trained with codebook k shifted by k steps behind a start token; the original feeds the
  codes as they are. `delay=True` shifts them as transformers does for a prompt: after the start token, the sound's
  first codebook is read to its end and the k-th lacks its last k codes.
- **No condition.** Without a text the cross-attention of each layer is skipped, so its tensors are left out: they could
  neither act nor learn.

Differs from the original: in training a frozen decoder stays in evaluation mode (the original's dropout of 0.1 goes on,
and it remembers one such draw per track); EnCodec runs in float32, autocast or not, and hears one clip at a time: codes
are decisions, and rounding that depends on the batch would flip some. Names are its state dict's under
`audio_encoder.`.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from antiphon.encoders.hub import quiet_loading
from antiphon.encoders.weights import Rules
from antiphon.errors import OptionError, WeightsError
from antiphon.windows import Padding

Pool = Literal["last", "mean"]
Positions = Literal["first", "time"]
_POOLS = ("last", "mean")
_POSITIONS = ("first", "time")
_ENCODEC, _DECODER = "audio_encoder.", "decoder.model.decoder."  # the two parts in a MusicGen's state dict
_HEAD_DIM = 64  # of MusicGen's small, medium and large

KEYS: Rules = [
    (r"(encodec\.encoder\..+)\.weight_g", r"\1.parametrizations.weight.original0"),  # torch's older weight norm
    (r"(encodec\.encoder\..+)\.weight_v", r"\1.parametrizations.weight.original1"),
    (r"(encodec\.(encoder|quantizer)\..+)", r"\1"),
    (r"(transformer\.embed_tokens\.\d+\.weight)", r"\1"),
    (r"(transformer\.layers\.\d+\.(self_attn|self_attn_layer_norm|fc1|fc2|final_layer_norm)\..+)", r"\1"),
    (r"(transformer\.layer_norm\.(weight|bias))", r"\1"),
]
"""Encoder-level keys of CLAP-MusicGen's checkpoint (without `audio_encoder.`); they are this module's."""

DROPPED: Rules = [
    (r"encodec\.decoder\..+", "makes sound out of codes"),
    (r"transformer\.layers\.\d+\.encoder_attn(_layer_norm)?\..+", "attends to a text, which there is none of"),
    (r"transformer\.embed_positions\.weights", "sines, computed from settings"),
]


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor values from encoder-level keys: `architecture`, with EnCodec as in all of mono MusicGen.

    Shapes don't hold the number of heads, nor EnCodec's strides: the first is 64 channels a head as in MusicGen's
    three sizes, the second are the 32 kHz EnCodec's. Raises `WeightsError` for a state dict of something else.
    """
    tables = sorted(key for key in state if re.fullmatch(r"transformer\.embed_tokens\.\d+\.weight", key))
    if not tables or "transformer.layers.0.fc1.weight" not in state:
        raise WeightsError(
            "these weights are no MusicGen decoder: no 'transformer.embed_tokens' or 'transformer.layers'"
        )
    rows, dim = state[tables[0]].shape
    decoder = {
        "vocab_size": rows - 1,  # and one for the start and the blanks
        "hidden_size": dim,
        "num_hidden_layers": len({key.split(".")[2] for key in state if key.startswith("transformer.layers.")}),
        "ffn_dim": state["transformer.layers.0.fc1.weight"].shape[0],
        "num_attention_heads": max(1, dim // _HEAD_DIM),
        "num_codebooks": len(tables),
        "pad_token_id": rows - 1,
        "bos_token_id": rows - 1,
    }
    encodec = {
        "sampling_rate": 32000,
        "upsampling_ratios": [8, 5, 4, 4],
        "num_filters": 64,
        "target_bandwidths": [2.2],
        "codebook_size": 2048,
        "use_causal_conv": False,
        "use_conv_shortcut": False,
        "normalize": False,
    }
    return {"architecture": {"audio_encoder": encodec, "decoder": decoder}}


def delayed(codes: Int[Tensor, "batch codebooks length"], *, blank: int) -> Int[Tensor, "batch codebooks positions"]:
    """A start token, then codebook k shifted by k; `blank` fills the places before. MusicGen's interleaving.

    Shape: `[batch, codebooks, length]` -> `[batch, codebooks, length + 1]`.
    """
    shifted = torch.full_like(codes, blank)
    for book in range(codes.shape[1]):
        shifted[:, book, book:] = codes[:, book, : codes.shape[2] - book]
    return torch.cat([torch.full_like(codes[:, :, :1], blank), shifted], dim=2)


class FirstPosition(nn.Module):
    """Position 0's vector for every place, in place of the decoder's own positions."""

    def __init__(self, positions: nn.Module) -> None:
        super().__init__()
        self.positions = positions

    def forward(
        self, codes: Int[Tensor, "batch codebooks length"], past: int = 0
    ) -> Float[Tensor, "one dim"]:  # broadcasts over places
        """One vector for all places."""
        return self.positions(codes[:, :, :1])


class MusicGen(nn.Module):
    """Wave `[batch samples]` to representation `[batch dim]`, `dim` the decoder's width.

    A clip may have any length: positions = ceil(samples / 640), 750 for 15 s at 32 kHz. A shorter sound is repeated to
    the last sample, as after zeros the last position would speak of silence; the original never pads, it leaves out
    what is shorter than a clip.

    `resolved` holds the constructor values that make the same architecture again without files or network.
    """

    padding: Padding = "repeat"

    def __init__(
        self,
        *,
        model: str | None = None,
        clip_seconds: float | int = 15.0,
        pool: Pool = "last",
        positions: Positions = "first",
        delay: bool = False,
        trainable: bool = False,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        """Read weights, or build random ones.

        Args:
            model: a hub id (`facebook/musicgen-small`) or a folder.
            clip_seconds: length of a clip.
            pool: the last position, or the mean of all.
            positions: position 0 everywhere as the original has it, or each place its own.
            delay: interleave the codebooks as MusicGen was trained.
            trainable: let the decoder learn; EnCodec never does.
            architecture: `{"audio_encoder": ..., "decoder": ...}`, values of transformers' `EncodecConfig` and
                `MusicgenDecoderConfig`. Then `model` is not read and weights are random, for a state dict to fill.
        """
        super().__init__()
        if pool not in _POOLS:
            raise OptionError(f"unknown pool '{pool}'; there are: {', '.join(_POOLS)}")
        if positions not in _POSITIONS:
            raise OptionError(f"unknown positions '{positions}'; there are: {', '.join(_POSITIONS)}")
        if architecture is not None:
            self.encodec, self.transformer = _build(architecture)
        elif model is not None:
            self.encodec, self.transformer = _pretrained(model)
        else:
            raise OptionError("a MusicGen encoder needs model=<hub id or folder>, for example facebook/musicgen-small")
        _check(self.encodec.config, self.transformer.config, source=model or "architecture")
        self.pool, self.delay, self.trainable = pool, delay, trainable
        self.dim: int = self.transformer.config.hidden_size
        self.sample_rate: int = self.encodec.config.sampling_rate
        self.clip_samples = round(clip_seconds * self.sample_rate)
        self.resolved: dict[str, Any] = {
            "model": model,
            "clip_seconds": clip_seconds,
            "pool": pool,
            "positions": positions,
            "delay": delay,
            "trainable": trainable,
            "architecture": {"audio_encoder": _plain(self.encodec.config), "decoder": _plain(self.transformer.config)},
        }
        _leave_out_what_is_not_used(self.encodec, self.transformer)
        if positions == "first":
            self.transformer.embed_positions = FirstPosition(self.transformer.embed_positions)
        self.encodec.requires_grad_(False)
        self.transformer.requires_grad_(trainable)
        self.train()

    def train(self, mode: bool = True) -> "MusicGen":
        """Set the decoder's mode if it may learn; what is frozen stays in evaluation mode."""
        super().train(mode)
        self.encodec.eval()
        self.transformer.train(mode and self.trainable)
        return self

    @torch.no_grad()
    def codes(self, wave: Float[Tensor, "batch samples"]) -> Int[Tensor, "batch codebooks length"]:
        """EnCodec's codes, 0 to `codebook_size - 1`."""
        with torch.autocast(wave.device.type, enabled=False):
            clips = wave.to(self.encodec.dtype)[:, None, None]  # [batch, 1, 1, samples]
            return torch.cat([self.encodec.encode(clip).audio_codes[0] for clip in clips])

    def forward(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch dim"]:
        """One vector per clip."""
        codes = self.codes(wave)
        if self.delay:
            codes = delayed(codes, blank=self.transformer.config.pad_token_id)
        states = self.transformer(input_ids=codes.flatten(0, 1), use_cache=False).last_hidden_state
        return states[:, -1] if self.pool == "last" else states.mean(dim=1)


def _pretrained(name: str) -> tuple[Any, Any]:
    """EnCodec and decoder of a MusicGen from a folder or the hub."""
    from transformers import AutoConfig, EncodecModel
    from transformers.models.musicgen.modeling_musicgen import MusicgenDecoder

    try:
        with quiet_loading():
            config = AutoConfig.from_pretrained(name)
            if config.model_type != "musicgen":
                raise WeightsError(f"'{name}' is a '{config.model_type}' model: a 'musicgen' one is wanted")
            return (
                _part(EncodecModel, name, config.audio_encoder, prefix=_ENCODEC),
                _part(MusicgenDecoder, name, config.decoder, prefix=_DECODER),
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        cause = " ".join(str(error).split())
        raise WeightsError(
            f"cannot read audio encoder '{name}': {cause[:300]}. Give a hub id such as facebook/musicgen-small, or a "
            "folder with its config.json and model.safetensors"
        ) from error


def _part(cls: Any, name: str, config: Any, *, prefix: str) -> Any:
    """One part of the composite model; transformers leaves the tensors of the others in the file."""
    part, report = cls.from_pretrained(
        name,
        config=config,
        key_mapping={"^" + re.escape(prefix): ""},
        output_loading_info=True,
        dtype=torch.float32,  # else the file's
    )
    if missing := sorted(report["missing_keys"]):
        listed = ", ".join(prefix + key for key in missing[:5])
        raise WeightsError(f"'{name}' lacks {len(missing)} tensors of its {cls.__name__}, such as {listed}")
    return part


def _build(architecture: Mapping[str, Any]) -> tuple[Any, Any]:
    """Both parts with random weights."""
    from transformers import EncodecConfig, EncodecModel, MusicgenDecoderConfig
    from transformers.models.musicgen.modeling_musicgen import MusicgenDecoder

    if set(architecture) != {"audio_encoder", "decoder"}:
        raise OptionError(f"architecture has {sorted(architecture)}: 'audio_encoder' and 'decoder' are wanted")
    with quiet_loading():
        encodec = EncodecModel(EncodecConfig(**architecture["audio_encoder"]))
        transformer = MusicgenDecoder(MusicgenDecoderConfig(**architecture["decoder"]))
    for layer in encodec.quantizer.layers:
        layer.codebook.embed.normal_()  # transformers leaves zeros, and then all codes are one
    return encodec, transformer


def _check(encodec: Any, decoder: Any, *, source: str) -> None:
    """Mono, one stream per embedding table, one scale for the whole clip."""
    if decoder.audio_channels != 1 or encodec.audio_channels != 1:
        raise WeightsError(f"'{source}' is a stereo MusicGen: only the mono ones are read")
    if encodec.num_quantizers != decoder.num_codebooks or encodec.codebook_size != decoder.vocab_size:
        raise WeightsError(
            f"'{source}': its EnCodec gives {encodec.num_quantizers} codebooks of {encodec.codebook_size} codes, its "
            f"decoder reads {decoder.num_codebooks} of {decoder.vocab_size}"
        )
    if encodec.chunk_length_s is not None or len(encodec.target_bandwidths) != 1:
        raise WeightsError(f"'{source}': its EnCodec cuts sounds into chunks or has several rates; MusicGen's does not")


def _leave_out_what_is_not_used(encodec: Any, transformer: Any) -> None:
    encodec.decoder = nn.Identity()
    for layer in transformer.layers:
        layer.encoder_attn = layer.encoder_attn_layer_norm = None


def _plain(config: Any) -> dict[str, Any]:
    """A configuration's own values, as JSON can hold them."""
    notes = ("transformers_version", "architectures", "dtype", "model_type", "_name_or_path")
    return {key: value for key, value in config.to_diff_dict().items() if key not in notes}

"""What is compared: one peer, one architecture, one file name (as published). Read by both sides; no dependencies."""

from typing import NamedTuple


class Case(NamedTuple):
    """`seconds`: of each sound. HTS-AT fused in 2-D gets the first two in a batch of their own, none of them long."""

    peer: str
    audio: str  # the peer's own name
    text: str | None
    file: str
    seconds: tuple[float, ...]
    fusion: str | None = None


_PLAIN = (10, 3.3, 0.4, 13.7)  # whole, repeated and padded, many times so, cut
_FUSED = (10, 3.3, 12.9, 4.6, 23.7, 61)


def _laion(audio: str, text: str, fusion: str | None = None) -> Case:
    return Case("laion", audio, text, "630k-audioset-best.pt", _FUSED if fusion else _PLAIN, fusion)


CASES = {
    "laion-tiny": _laion("HTSAT-tiny", "roberta"),
    "laion-tiny-aff_2d": _laion("HTSAT-tiny", "roberta", "aff_2d"),
    "laion-base": _laion("HTSAT-base", "bert"),
    "laion-tiny-bart": _laion("HTSAT-tiny", "bart"),
    "laion-tiny-iaff_2d": _laion("HTSAT-tiny", "bert", "iaff_2d"),
    "laion-tiny-daf_2d": _laion("HTSAT-tiny", "bart", "daf_2d"),
    "laion-tiny-aff_1d": _laion("HTSAT-tiny", "bert", "aff_1d"),
    "laion-tiny-iaff_1d": _laion("HTSAT-tiny", "bert", "iaff_1d"),
    "laion-tiny-daf_1d": _laion("HTSAT-tiny", "bert", "daf_1d"),
    "laion-tiny-channel_map": _laion("HTSAT-tiny", "bert", "channel_map"),
    "laion-pann14": _laion("PANN-14-tiny-transformer", "transformer"),
    "laion-pann14-fmax-18k": _laion("PANN-14-fmax-18k", "bert"),
    "laion-pann14-win-1536": _laion("PANN-14-win-1536", "bert"),
    "laion-pann14-aff_2d": _laion("PANN-14", "roberta", "aff_2d"),
    "laion-pann14-iaff_2d": _laion("PANN-14", "bert", "iaff_2d"),
    "laion-pann14-aff_1d": _laion("PANN-14", "bert", "aff_1d"),
    "laion-pann14-daf_1d": _laion("PANN-14", "bert", "daf_1d"),
    "laion-pann14-channel_map": _laion("PANN-14", "bert", "channel_map"),
    "msclap-2022": Case("msclap", "2022", "bert", "CLAP_weights_2022.pth", (5, 2.2, 0.3, 8.1)),
    "msclap-2023": Case("msclap", "2023", "gpt2", "CLAP_weights_2023.pth", (7, 2.2, 0.3, 9.4)),
    "panns-cnn14": Case("panns", "Cnn14", None, "Cnn14_mAP=0.431.pth", (10, 3.3, 12.2)),
    "audioset-htsat": Case("htsat", "tiny", None, "HTSAT_AudioSet_Saved_1.ckpt", (10, 3.3)),
}

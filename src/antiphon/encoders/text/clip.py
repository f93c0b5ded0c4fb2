"""CLIP's text transformer, from scratch: the text tower of LAION-CLAP (`tmodel=transformer`) and of MusCALL.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision". Byte-pair encoding with
49,408 tokens, learned positions, pre-norm blocks under a causal mask, a last norm, the state of the end token.

| | LAION-CLAP (`clap_module/model.py`) | MusCALL (`muscall/modules/`) |
|---|---|---|
| size | 12 layers of 512, 8 heads | 4 layers of 512, 8 heads |
| activation | GELU (`--force-quick-gelu`: QuickGELU) | GELU |
| attention's inner biases | yes | no |
| dropout in training | none | 0.2 on attention weights and between the two layers of an MLP |
| pools at | the highest id, that of the end token | the same |
| pads with | id 0 to 77 | id 0 to 77 |

No published weights of either text tower are known (unverified); the key tables serve what users trained. The map to
the joint space is the projector's (LAION: `text_projection.{0,2}`, MusCALL: `text_projection.weight`). MusCALL's
`textual_head.ln_final` is never called and is dropped.

Differs: texts are padded only to the longest of a batch (what comes after the end token never reaches it), and the end
token is the last real one by the mask, so that its own text in a caption moves nothing. Texts over 77 tokens are cut
and keep the end token last, as MusCALL's and OpenAI's are; LAION's own tokenizer was not at hand (unverified).
"""

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from antiphon.encoders.contract import Tokens
from antiphon.encoders.text.huggingface import last_real
from antiphon.encoders.text.tokenizers import PretrainedTokenizer
from antiphon.encoders.weights import Rules
from antiphon.errors import OptionError

Activation = Literal["gelu", "quick_gelu"]

KEYS: Rules = (
    (r"(token_embedding\.weight|positional_embedding|ln_final\.(?:weight|bias))", r"\1"),
    (r"(?:text_branch|transformer)\.(resblocks\..+)", r"transformer.\1"),
)
"""LAION-CLAP's and OpenAI's names. LAION's lie at the top of its state dict, the blocks under `text_branch.`."""

DROPPED: Rules = ((r"attn_mask", "the causal mask, computed from the length here"),)

MUSCALL_KEYS: Rules = (
    (r"token_embedding\.weight", r"token_embedding.weight"),
    (r"position_embedding\.weight", r"positional_embedding"),
    (r"transformer\.layers\.(\d+)\.0\.norm\.(weight|bias)", r"transformer.resblocks.\1.ln_1.\2"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_qkv\.weight", r"transformer.resblocks.\1.attn.in_proj_weight"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.out_projection\.(weight|bias)", r"transformer.resblocks.\1.attn.out_proj.\2"),
    (r"transformer\.layers\.(\d+)\.1\.norm\.(weight|bias)", r"transformer.resblocks.\1.ln_2.\2"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.mlp\.0\.(weight|bias)", r"transformer.resblocks.\1.mlp.c_fc.\2"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.mlp\.3\.(weight|bias)", r"transformer.resblocks.\1.mlp.c_proj.\2"),
    (r"transformer\.norm_out\.(weight|bias)", r"ln_final.\1"),
)
"""MusCALL's names, without its `textual_head.`; its `to_qkv` stacks query, key, value as CLIP's `in_proj` does."""

MUSCALL_DROPPED: Rules = ((r"ln_final\.(weight|bias)", "never called in the original, whose last norm is norm_out"),)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Element by element."""
        return x * torch.sigmoid(1.702 * x)


class CausalAttention(nn.Module):
    """Multi-head attention of each token to itself and those before it; parameters named as torch's own."""

    def __init__(self, width: int, *, heads: int, dropout: float | int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width)) if qkv_bias else None
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """The values' weighted mean, mixed over heads."""
        qkv = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [batch, heads, length, d]
        dropout = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # [batch, length, width]


class Block(nn.Module):
    """Attention, then an MLP of four times the width, each after a norm and beside a shortcut."""

    def __init__(self, width: int, *, heads: int, dropout: float | int, activation: Activation, qkv_bias: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalAttention(width, heads=heads, dropout=dropout, qkv_bias=qkv_bias)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=QuickGELU() if activation == "quick_gelu" else nn.GELU(),
                dropout=nn.Dropout(dropout),
                c_proj=nn.Linear(4 * width, width),
            )
        )

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """One residual step each."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class CLIPTransformer(nn.Module):
    """Texts to the normed last state of the end token `[batch width]`."""

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        vocab_size: int = 49408,
        max_length: int = 77,
        dropout: float | int = 0.0,
        activation: Activation = "gelu",
        qkv_bias: bool = True,
        model: str = "openai/clip-vit-base-patch32",
        assets: Path | None = None,
    ) -> None:
        """Random weights, spread as CLIP's.

        Args:
            width: of the states; a multiple of `heads`.
            layers: number of blocks.
            heads: of attention.
            vocab_size: tokens; CLIP's byte-pair encoding has 49,408.
            max_length: positions; longer texts are cut and keep their end token.
            dropout: share of attention weights and of hidden MLP values left out in training.
            activation: of the MLPs.
            qkv_bias: whether queries, keys and values have a bias.
            model: hub id or folder of the tokenizer, which is sought at the first text.
            assets: a folder that is asked first: the one that `save_assets` wrote.
        """
        super().__init__()
        if activation not in ("gelu", "quick_gelu"):
            raise OptionError(f"unknown activation '{activation}'; there are: gelu, quick_gelu")
        if width % heads:
            raise OptionError(f"width={width} with {heads} heads: the width must be a multiple of the heads")
        self.dim, self.max_length = width, max_length
        # what a tokenizer is measured by; transformers' own config would load transformers for sounds, too
        facts = SimpleNamespace(model_type="clip_text_model", vocab_size=vocab_size, pad_token_id=None)
        self.tokenizer = PretrainedTokenizer(model=model, assets=assets, config=facts)
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(max_length, width) * 0.01)
        blocks = [
            Block(width, heads=heads, dropout=dropout, activation=activation, qkv_bias=qkv_bias) for _ in range(layers)
        ]
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.ln_final = nn.LayerNorm(width)
        self._spread(width, layers)

    def fit_tokenizer(self, captions: Iterable[str]) -> None:
        """Nothing to learn: the vocabulary is CLIP's. `TextTransformer` learns its own from the captions."""

    def has_tokenizer(self) -> bool:
        """Whether the tokenizer's files are on this machine."""
        return self.tokenizer.is_here()

    def tokenize(self, texts: list[str]) -> Tokens:
        """Token ids between start and end token, lower-cased. Raises `WeightsError` if the tokenizer cannot be had."""
        return self.tokenizer.encode(texts, max_length=self.max_length)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch width"]:
        """One vector per text."""
        x = self.token_embedding(tokens.ids) + self.positional_embedding[: tokens.ids.shape[1]]
        for block in self.transformer["resblocks"]:  # type: ignore[attr-defined]
            x = block(x)
        return self.ln_final(last_real(x, mask=tokens.mask))

    def save_assets(self, folder: Path) -> None:
        """The tokenizer's files, if they are on this machine."""
        self.tokenizer.save(folder)

    @torch.no_grad()
    def _spread(self, width: int, layers: int) -> None:
        """CLIP's spread of random weights: what adds to the stream starts smaller the more layers there are."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        for name, weight in self.transformer.named_parameters():
            if name.endswith(("out_proj.weight", "c_proj.weight")):
                nn.init.normal_(weight, std=width**-0.5 * (2 * layers) ** -0.5)
            elif name.endswith("c_fc.weight"):
                nn.init.normal_(weight, std=(2 * width) ** -0.5)

"""Heads: projectors take a representation into the joint space; predictors are SLAP's second step from there."""

from jaxtyping import Float
from torch import Tensor, nn

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class LinearProjector(nn.Module):
    """One linear map, MusCALL's and CLIP's way (`bias=False` there)."""

    def __init__(self, *, in_dim: int, dim: int, bias: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(in_dim, dim, bias=bias)

    def forward(self, x: Float[Tensor, "batch in_dim"]) -> Float[Tensor, "batch dim"]:
        """Project."""
        return self.linear(x)


class MLPProjector(nn.Module):
    """SLAP's projector: Linear, BatchNorm, ReLU, Linear (Guinot et al. 2025, section 3).

    `output_norm` adds a BatchNorm without parameters at the end, as SimSiam does (Chen and He 2021): projections are
    then centred, so that a cosine speaks of what tells items apart and not of what all of them share. Without
    negatives nothing else removes that share.
    """

    def __init__(self, *, in_dim: int, dim: int, hidden: int, dropout: float = 0.0, output_norm: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, dim)
        )
        if output_norm:
            self.layers.append(nn.BatchNorm1d(dim, affine=False))

    def forward(self, x: Float[Tensor, "batch in_dim"]) -> Float[Tensor, "batch dim"]:
        """Project."""
        return self.layers(x)


class Predictor(nn.Module):
    """SLAP's predictor: Linear, BatchNorm (an option: paper yes, released config no), ReLU, Linear; keeps the width."""

    def __init__(self, *, dim: int, hidden: int, batch_norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        norm = nn.BatchNorm1d(hidden) if batch_norm else nn.Identity()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), norm, nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, dim)
        )

    def forward(self, projection: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Predict the other side's target from a projection."""
        return self.layers(projection)


class IdentityProjector(nn.Module):
    """The representation itself: a frozen encoder's space becomes the joint space (LiT's way, one tower locked)."""

    def __init__(self, *, in_dim: int) -> None:
        super().__init__()
        self.dim = in_dim

    def forward(self, x: Float[Tensor, "batch in_dim"]) -> Float[Tensor, "batch in_dim"]:
        """Pass on."""
        return x


class LAIONProjector(nn.Module):
    """LAION-CLAP's head: Linear, ReLU, Linear, all of one width (Wu et al. 2023; `audio_projection` in its files)."""

    def __init__(self, *, in_dim: int, dim: int, activation: str = "relu") -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation '{activation}': must be one of {', '.join(_ACTIVATIONS)}")
        self.dim = dim
        self.layers = nn.Sequential(nn.Linear(in_dim, dim), _ACTIVATIONS[activation](), nn.Linear(dim, dim))

    def forward(self, x: Float[Tensor, "batch in_dim"]) -> Float[Tensor, "batch dim"]:
        """Project."""
        return self.layers(x)


class ResidualProjector(nn.Module):
    """msclap's and Custom-CLAP's head: `h = W1 x`, `LayerNorm(h + Dropout(W2 GELU(h)))` (Elizalde et al. 2023).

    Custom-CLAP's two linear maps have biases, msclap's have none.
    """

    def __init__(self, *, in_dim: int, dim: int, dropout: float = 0.5, bias: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.fc1 = nn.Linear(in_dim, dim, bias=bias)
        self.fc2 = nn.Linear(dim, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "batch in_dim"]) -> Float[Tensor, "batch dim"]:
        """Project."""
        hidden = self.fc1(x)
        return self.norm(hidden + self.dropout(self.fc2(nn.functional.gelu(hidden))))


class LayerNormProjector(nn.Module):
    """CLAP-MusicGen's head: twice Linear, LayerNorm, ReLU, then Linear."""

    def __init__(self, *, in_dim: int, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
        )

    def forward(self, x: Float[Tensor, "batch in_dim"]) -> Float[Tensor, "batch dim"]:
        """Project."""
        return self.layers(x)

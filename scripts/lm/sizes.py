"""How large the model is; both versions are built from the same numbers."""

from __future__ import annotations

import dataclasses

VOCABULARY = 256  # one token a byte


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The model's dimensions.

    Attributes:
      layers: number of transformer blocks.
      width: features per token; a multiple of `heads`.
      heads: attention heads per block.
      context: bytes that the model sees at once.
      dropout: share of features dropped behind attention and MLP in training; 0 builds no dropout layers.
    """

    layers: int = 2
    width: int = 64
    heads: int = 4
    context: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads, self.context) < 1:
            raise ValueError(f"layers, width, heads and context must be at least 1: {self}")
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1): {self.dropout}")

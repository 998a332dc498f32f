# SPDX-License-Identifier: MIT
"""The network of NAME: any torch module. Its inputs and outputs are normalised by trimtab."""

import torch
from torch import nn


class Network(nn.Module):
    """Inputs of one shape come as channels (B, inputs, *shape); it returns (B, outputs, *shape), first index of Fortran last.

    `inputs` and `outputs` are the numbers of fields that the slot has, unless the TOML gives others.
    With inputs of several shapes it gets a dictionary, name -> (B, *shape), and returns one.
    """

    def __init__(self, inputs: int = 1, outputs: int = 1, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs))
        nn.init.zeros_(self.layers[-1].weight)  # begins as no correction at all
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Point by point; FILL: whatever your physics needs, a convolution for instance."""
        return self.layers(x.movedim(1, -1)).movedim(-1, 1)

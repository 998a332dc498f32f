# SPDX-License-Identifier: MIT
"""A linear law of temperature and its second differences: x is a ring, the rows beside a block come with its halo."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """(B, 1, rows + 2, x) -> (B, 1, rows, x)."""

    def __init__(self) -> None:
        super().__init__()
        self.law = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.zeros_(self.law.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Point by point, of t, t_xx and t_yy."""
        t = x[:, :, 1:-1]
        t_xx = t.roll(1, -1) - 2 * t + t.roll(-1, -1)
        t_yy = x[:, :, :-2] - 2 * t + x[:, :, 2:]
        return self.law(torch.cat([t, 10 * t_xx, 10 * t_yy], 1))

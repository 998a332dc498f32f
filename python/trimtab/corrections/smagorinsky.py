# SPDX-License-Identifier: MIT
"""Closures with a formula: what a learned correction has to beat. They fill the same slot as a network does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.core.errors import ConfigError
from trimtab.core.spec import SolverSpec, grid_length, is_vorticity


class Smagorinsky(nn.Module):
    """Eddy viscosity of Smagorinsky for the vorticity on the doubly periodic plane; nu_e itself where the slot takes a viscosity.

    M(q) = div(nu_e grad q), nu_e = (C Delta)^2 |S|, |S| = sqrt(2 S_ij S_ij) = sqrt(4 psi_xy^2 + (psi_xx - psi_yy)^2),
    lap psi = q, Delta the grid length; derivatives are spectral, products are taken on the grid. The eddy viscosity
    nu_e varies in space, the flux form keeps the mean of q, and no state gains enstrophy by it.

    Source: J. Smagorinsky, Mon. Weather Rev. 91, 99 (1963), doi:10.1175/1520-0493(1963)091<0099:GCEWTP>2.3.CO;2; as the
    baseline of learned closures of two-dimensional turbulence, Y. Guan et al., arXiv:2102.11400.

    Args:
        spec: solver with one (ny, nx) field, the vorticity q.
        constant: C, without unit, not negative.

    Raises:
        ConfigError: another kind of state or of coefficient, or a negative constant.
    """

    dtype = torch.float64

    def __init__(self, spec: SolverSpec, constant: float):
        super().__init__()
        if not is_vorticity(spec):
            raise ConfigError(f"The Smagorinsky closure needs a vorticity field q(y, x), and the solver {spec.solver} "
                              "has none: leave \"smagorinsky\" out of score.closures.")
        if not constant >= 0.0:
            raise ConfigError(f"The Smagorinsky constant must not be negative, but is {constant}.")
        if spec.coefficient is not None and spec.coefficient.name != "viscosity":
            raise ConfigError(f"The Smagorinsky closure is a tendency or a viscosity, and the slot of {spec.solver} takes "
                              f"{spec.coefficient.name}: leave \"smagorinsky\" out of score.closures.")
        self.answers_viscosity = spec.coefficient is not None
        self.constant = float(constant)
        self.shape = spec.grid
        (ny, nx), (length_y, length_x) = spec.grid, grid_length(spec)
        ky = torch.fft.fftfreq(ny, d=length_y / (2 * torch.pi * ny), dtype=torch.float64)[:, None]
        kx = torch.fft.rfftfreq(nx, d=length_x / (2 * torch.pi * nx), dtype=torch.float64)[None, :]
        k2 = kx**2 + ky**2
        inverse = torch.where(k2 > 0, 1 / k2.clamp(min=1e-300), torch.zeros_like(k2))
        # The odd derivative of the highest mode of an even grid has no real value there: it is dropped.
        if ny % 2 == 0:
            ky[ny // 2] = 0.0
        if nx % 2 == 0:
            kx[:, nx // 2] = 0.0
        derivatives = torch.stack(((1j * kx).expand_as(k2), (1j * ky).expand_as(k2),
                                   kx * ky * inverse + 0j, (kx**2 - ky**2) * inverse + 0j))
        self.register_buffer("_derivatives", derivatives, persistent=False)
        self._derivatives: Tensor
        self.mixing = (self.constant**2) * (length_x / nx) * (length_y / ny)

    def forward(self, u: Tensor) -> Tensor:
        """The tendency, in the unit of q per unit of time; or the eddy viscosity.

        Args:
            u: (B, N) vorticity, float64.

        Returns:
            (B, N), dtype of u.
        """
        q_hat = torch.fft.rfft2(u.view(-1, 1, *self.shape))
        q_x, q_y, psi_xy, psi_d = torch.fft.irfft2(self._derivatives * q_hat, s=self.shape).unbind(1)
        viscosity = self.mixing * torch.sqrt(4 * psi_xy**2 + psi_d**2)
        if self.answers_viscosity:
            return viscosity.reshape(u.shape).to(u.dtype)
        flux = torch.fft.rfft2(torch.stack((viscosity * q_x, viscosity * q_y), 1))
        return torch.fft.irfft2((self._derivatives[:2] * flux).sum(1), s=self.shape).reshape(u.shape).to(u.dtype)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"constant={self.constant}"



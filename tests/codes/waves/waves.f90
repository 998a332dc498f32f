! SPDX-License-Identifier: MIT
! Spectral Burgers equation on a ring: the state are coefficients, products and physics are computed on the grid.
! Adams-Bashforth, the last tendency is kept; diffusion implicit.
module waves
  implicit none
  integer, parameter :: dp = kind(1d0), m = 10, n = 32
  complex(dp) :: c(0:m), last(0:m)
  real(dp) :: u(n), ux(n), physics(n), dt = 0.01_dp, nu = 0.02_dp, drag = 0
  logical :: first = .true.
contains
  subroutine setup
    c = 0
    c(0) = 0.3_dp
    c(1) = (0.2_dp, -0.5_dp)
    c(3) = (-0.1_dp, 0.2_dp)
  end subroutine setup

  subroutine step
    complex(dp) :: tendency(0:m)
    integer :: k
    u = to_grid(c)
    ux = to_grid([(cmplx(0, k, dp) * c(k), k=0, m)])
    physics = -drag * abs(u) * u
    tendency = to_waves(physics - u * ux)
    if (first) last = tendency
    first = .false.
    c = (c + dt * (1.5_dp * tendency - 0.5_dp * last)) / [(1 + dt * nu * k**2, k=0, m)]
    last = tendency
  end subroutine step

  pure function to_grid(a) result(g)
    complex(dp), intent(in) :: a(0:m)
    real(dp) :: g(n)
    integer :: i, k
    do i = 1, n
      g(i) = real(a(0)) + 2 * sum([(real(a(k) * exp(cmplx(0, k * angle(i), dp))), k=1, m)])
    end do
  end function to_grid

  pure function to_waves(g) result(a)
    real(dp), intent(in) :: g(n)
    complex(dp) :: a(0:m)
    integer :: i, k
    do k = 0, m
      a(k) = sum([(g(i) * exp(cmplx(0, -k * angle(i), dp)), i=1, n)]) / n
    end do
  end function to_waves

  pure real(dp) function angle(i)
    integer, intent(in) :: i
    angle = 2 * acos(-1.0_dp) * i / n
  end function angle
end module waves

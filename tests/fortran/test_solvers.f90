! SPDX-License-Identifier: MIT
!> Tendencies of the small solvers where they are known: fixed points, symmetries, budgets.
program test_solvers
  use trimtab_kinds, only: rk
  use trimtab_status, only: status_t
  use trimtab_driver, only: hybrid_t
  use checks, only: check, finish, open_hybrid
  implicit none

  call fixed_points()
  call ring_energy()
  call two_scales()
  call oscillator_energy()
  call finish()

contains

  !> (+-c, +-c, rho - 1) with c = sqrt(beta (rho - 1)).
  subroutine fixed_points()
    real(rk) :: u(3, 3), dudt(3, 3), c
    c = sqrt(2.0_rk * 20.0_rk)
    u = reshape([c, c, 20.0_rk, -c, -c, 20.0_rk, 0.0_rk, 0.0_rk, 0.0_rk], [3, 3])
    dudt = tendency('lorenz63', '&lorenz63 sigma=7, rho=21, beta=2 /', u)
    call check(maxval(abs(dudt)) < 1.0e-12_rk, 'Lorenz 63 rests at its fixed points')
    u(:, 1) = [1.0_rk, 2.0_rk, 3.0_rk]
    dudt = tendency('lorenz63', '&lorenz63 sigma=10, rho=28, beta=0 /', u)
    call check(all(abs(dudt(:, 1) - [10.0_rk, 23.0_rk, 2.0_rk]) < 1.0e-12_rk), 'Lorenz 63 by hand, core without beta')
  end subroutine fixed_points

  !> The quadratic terms keep sum u**2, so d/dt sum u**2 / 2 = -sum u**2 + F sum u; a constant state moves by F - u.
  subroutine ring_energy()
    real(rk) :: u(7, 2), dudt(7, 2)
    u(:, 1) = [1.0_rk, -2.0_rk, 0.5_rk, 3.0_rk, -1.0_rk, 0.25_rk, 4.0_rk]
    u(:, 2) = 2.0_rk
    dudt = tendency('lorenz96', '&lorenz96 n=7, forcing=5 /', u)
    call check(abs(sum(u(:, 1) * dudt(:, 1)) - sum(-u(:, 1)**2 + 5 * u(:, 1))) < 1.0e-12_rk, 'Lorenz 96 keeps its energy budget')
    call check(maxval(abs(dudt(:, 2) - 3.0_rk)) < 1.0e-12_rk, 'Lorenz 96 at a constant state')
    call check(abs(dudt(1, 1) - ((-2.0_rk - 0.25_rk) * 4.0_rk - 1.0_rk + 5.0_rk)) < 1.0e-12_rk, 'Lorenz 96 by hand at the seam')
  end subroutine ring_energy

  !> Without coupling the slow ring is Lorenz 96; exchange keeps the sum of both energies.
  subroutine two_scales()
    real(rk) :: u(30, 1), dudt(30, 1), alone(5, 1)
    integer :: i
    u(:, 1) = [(sin(1.7_rk * i), i=1, 30)]
    alone = tendency('lorenz96', '&lorenz96 n=5, forcing=18 /', u(1:5, :))
    dudt = tendency('lorenz96_two_scale', '&lorenz96_two_scale n=5, fast=5, coupling=0 /', u)
    call check(maxval(abs(dudt(1:5, :) - alone)) < 1.0e-12_rk, 'two scales without coupling: the slow ring alone')
    dudt = tendency('lorenz96_two_scale', '&lorenz96_two_scale n=5, fast=5, c=3, b=4, coupling=2 /', u)
    call check(abs(sum(u * dudt) - (18 * sum(u(1:5, 1)) - sum(u(1:5, 1)**2) - 3 * sum(u(6:, 1)**2))) < 1.0e-11_rk, &
               'two scales keep their energy budget')
  end subroutine two_scales

  subroutine oscillator_energy()
    real(rk) :: u(2, 1), dudt(2, 1)
    u(:, 1) = [3.0_rk, -2.0_rk]
    dudt = tendency('oscillator', '&oscillator omega=1.5 /', u)
    call check(abs(u(2, 1) * dudt(2, 1) + 1.5_rk**2 * u(1, 1) * dudt(1, 1)) < 1.0e-12_rk, 'the oscillator keeps its energy')
  end subroutine oscillator_energy

  function tendency(name, group, u) result(dudt)
    character(*), intent(in) :: name, group
    real(rk), intent(in) :: u(:, :)
    real(rk) :: dudt(size(u, 1), size(u, 2))
    type(hybrid_t) :: hybrid
    type(status_t) :: status
    call open_hybrid(hybrid, "&solver name='"//name//"', dt=0.01 /", group)
    call hybrid%tendency(0.0_rk, u, dudt, status)
    call check(status%ok(), name//' gives a tendency')
    call hybrid%release()
  end function tendency
end program test_solvers

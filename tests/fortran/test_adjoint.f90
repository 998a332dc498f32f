! SPDX-License-Identifier: MIT
!> A solver without an adjoint refuses it; one with it returns the transpose; both without Python.
module bare_solver
  use trimtab_kinds, only: rk
  use trimtab_status, only: status_t
  use trimtab_solver, only: solver_t
  implicit none
  private
  public :: bare_t

  !> du/dt = -u, and nothing that it could leave out.
  type, extends(solver_t) :: bare_t
  contains
    procedure :: configure
    procedure :: describe
    procedure :: tendency
  end type bare_t

contains

  subroutine configure(self, lines, status)
    class(bare_t), intent(inout) :: self
    character(*), intent(in) :: lines(:)
    type(status_t), intent(inout) :: status
    self%n = 1
    self%m = 1
  end subroutine configure

  function describe(self) result(text)
    class(bare_t), intent(in) :: self
    character(:), allocatable :: text
    text = '{}'
  end function describe

  subroutine tendency(self, t, x, dxdt)
    class(bare_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: x(:, :)
    real(rk), intent(out), contiguous, target :: dxdt(:, :)
    dxdt = -x
  end subroutine tendency
end module bare_solver

program test_adjoint
  use trimtab_kinds, only: rk
  use trimtab_status, only: status_t, STATUS_UNSUPPORTED, STATUS_BAD_SHAPE, STATUS_NOT_FINITE
  use trimtab_driver, only: hybrid_t
  use bare_solver, only: bare_t
  use checks, only: check, finish, open_hybrid
  implicit none

  call check_refusal()
  call check_transpose()
  call check_shapes()
  call finish()

contains

  subroutine check_refusal()
    type(bare_t) :: bare
    type(status_t) :: status
    real(rk) :: u(1, 2), lambda(1, 2), answer(1, 2)
    u = 1
    lambda = 1
    answer = 7
    call bare%configure([''], status)
    call bare%tendency_adjoint(0.0_rk, u, lambda, answer, status)
    call check(status%code == STATUS_UNSUPPORTED .and. .not. bare%has_adjoint, 'a solver without an adjoint says so')
    call check(all(abs(answer - 7) < epsilon(1.0_rk)), 'and leaves the answer alone')
  end subroutine check_refusal

  !> <lambda, F(u + v) - F(u - v)> / 2 = <F'(u)^T lambda, v> for the quadratic F of Lorenz 63.
  subroutine check_transpose()
    type(hybrid_t) :: hybrid
    type(status_t) :: status
    real(rk), dimension(3, 2) :: u, v, lambda, up, down, answer
    call open_hybrid(hybrid, '&solver name=''lorenz63'', dt=0.01 /', '&lorenz63 /')
    u = reshape([1.0_rk, 2.0_rk, 20.0_rk, -3.0_rk, 0.5_rk, 11.0_rk], [3, 2])
    v = cshift(u, 1) / 3
    lambda = cos(u)
    call hybrid%tendency(0.0_rk, u + v, up, status)
    call hybrid%tendency(0.0_rk, u - v, down, status)
    call hybrid%tendency_adjoint(0.0_rk, u, lambda, answer, status)
    call check(status%ok(), 'Lorenz 63 has an adjoint')
    call check(abs(sum(lambda * (up - down)) / 2 - sum(answer * v)) < 1.0e-13_rk * norm2(lambda) * norm2(up - down), &
               'it is the transpose')
    call hybrid%release()
  end subroutine check_transpose

  subroutine check_shapes()
    type(hybrid_t) :: hybrid
    type(status_t) :: status
    real(rk) :: u(3, 2), lambda(3, 1), answer(3, 2)
    u = 1
    lambda = 1
    call open_hybrid(hybrid, '&solver name=''lorenz63'', dt=0.01 /', '&lorenz63 /')
    call hybrid%tendency_adjoint(0.0_rk, u, lambda, answer, status)
    call check(status%code == STATUS_BAD_SHAPE, 'fewer vectors than states are refused')
    call status%clear()
    call hybrid%project(u, lambda, status)
    call check(status%code == STATUS_BAD_SHAPE, 'and fewer answers than states')
    call status%clear()
    u(1, 1) = huge(u)
    call hybrid%tendency_adjoint(0.0_rk, u, u, answer, status)
    call check(status%code == STATUS_NOT_FINITE, 'and states beyond the bound')
    call hybrid%release()
  end subroutine check_shapes
end program test_adjoint

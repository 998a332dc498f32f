! SPDX-License-Identifier: MIT
!> The relaxation oscillator of van der Pol, stiff: jumps within 1 / stiffness between slow drifts of order one.
!!
!!   dx/dt = stiffness (x - x^3 / 3 - y),   dy/dt = restoring x
!!
!! in the coordinates of Lienard, time in units of the slow drift: x'' - mu (1 - x^2) x' + x = 0 with mu^2 = stiffness and mu
!! times slower a clock. The period tends to 3 - 2 ln 2 as stiffness grows.
!! Source: van der Pol, Phil. Mag. 2, 978 (1926), doi:10.1080/14786442608564127; as a test of stiff integrators Hairer, Wanner,
!! Solving Ordinary Differential Equations II (1996), IV.1 and VI.1.
module trimtab_vanderpol
  use trimtab_kinds, only: rk, ik
  use trimtab_status, only: status_t, STATUS_BAD_PARAMETER
  use trimtab_solver, only: solver_t
  use trimtab_text, only: json_real, json_field, json_axis, namelist_sentence, all_finite
  implicit none
  private
  public :: vanderpol_t

  !> State at the border = internal state = (x, y), without dimension.
  type, extends(solver_t) :: vanderpol_t
    real(rk) :: stiffness = 1000.0_rk   !< ratio of the two time scales
    real(rk) :: restoring = 1.0_rk      !< 1: oscillator; 0: its core without the slow equation, left to a correction
  contains
    procedure :: configure
    procedure :: describe
    procedure :: tendency
    procedure :: tendency_adjoint
  end type vanderpol_t

contains

  !> Read `&vanderpol stiffness, restoring /`.
  subroutine configure(self, lines, status)
    class(vanderpol_t), intent(inout) :: self
    character(*), intent(in) :: lines(:)
    type(status_t), intent(inout) :: status
    real(rk) :: stiffness, restoring
    character(256) :: message
    integer :: code
    namelist /vanderpol/ stiffness, restoring
    stiffness = self%stiffness
    restoring = self%restoring
    read (lines, nml=vanderpol, iostat=code, iomsg=message)
    if (code /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, namelist_sentence('vanderpol', 'stiffness and restoring', code, message))
      return
    end if
    if (.not. (all_finite([stiffness, restoring]) .and. stiffness > 0.0_rk)) then
      call status%raise(STATUS_BAD_PARAMETER, 'vanderpol: stiffness must be a finite number above 0, and restoring a finite number')
      return
    end if
    self%stiffness = stiffness
    self%restoring = restoring
    self%n = 2
    self%m = 2
    self%has_adjoint = .true.
  end subroutine configure

  !> See solver_t.
  function describe(self) result(text)
    class(vanderpol_t), intent(in) :: self
    character(:), allocatable :: text
    text = '{"fields": ['//json_field('u', 'fast and slow variable of the van der Pol oscillator', '1', ['component'], [2_ik], &
                                      json_axis('component', 1.0_rk, 1.0_rk))//'], "parameters": {"stiffness": '// &
           json_real(self%stiffness)//', "restoring": '//json_real(self%restoring)//'}}'
  end function describe

  !> See solver_t.
  subroutine tendency(self, t, x, dxdt)
    class(vanderpol_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: x(:, :)
    real(rk), intent(out), contiguous, target :: dxdt(:, :)
    call kernel(size(x, 2), self%stiffness, self%restoring, x, dxdt)
  end subroutine tendency

  pure subroutine kernel(members, stiffness, restoring, x, dxdt)
    integer, intent(in) :: members
    real(rk), intent(in) :: stiffness, restoring
    real(rk), intent(in) :: x(2, members)
    real(rk), intent(out) :: dxdt(2, members)
    integer :: i
    do i = 1, members
      dxdt(1, i) = stiffness * (x(1, i) - x(1, i)**3 / 3 - x(2, i))
      dxdt(2, i) = restoring * x(1, i)
    end do
  end subroutine kernel

  !> See solver_t.
  subroutine tendency_adjoint(self, t, u, lambda, answer, status)
    class(vanderpol_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: u(:, :), lambda(:, :)
    real(rk), intent(inout), contiguous, target :: answer(:, :)
    type(status_t), intent(inout) :: status
    answer(1, :) = self%stiffness * (1.0_rk - u(1, :)**2) * lambda(1, :) + self%restoring * lambda(2, :)
    answer(2, :) = -self%stiffness * lambda(1, :)
  end subroutine tendency_adjoint
end module trimtab_vanderpol

! SPDX-License-Identifier: MIT
!> The linear oscillator, du1/dt = u2, du2/dt = -restoring omega**2 u1: a closed form to test against.
module trimtab_oscillator
  use trimtab_kinds, only: rk, ik
  use trimtab_status, only: status_t, STATUS_BAD_PARAMETER
  use trimtab_solver, only: solver_t
  use trimtab_text, only: json_real, json_field, json_axis, namelist_sentence, all_finite
  implicit none
  private
  public :: oscillator_t

  !> State at the border = internal state = (position, velocity), without dimension.
  type, extends(solver_t) :: oscillator_t
    real(rk) :: omega = 1.0_rk       !< angular frequency
    real(rk) :: restoring = 1.0_rk   !< 1: oscillator; 0: its core without the second equation, left to a correction
  contains
    procedure :: configure
    procedure :: describe
    procedure :: tendency
    procedure :: tendency_adjoint
  end type oscillator_t

contains

  !> Read `&oscillator omega, restoring /`.
  subroutine configure(self, lines, status)
    class(oscillator_t), intent(inout) :: self
    character(*), intent(in) :: lines(:)
    type(status_t), intent(inout) :: status
    real(rk) :: omega, restoring
    character(256) :: message
    integer :: code
    namelist /oscillator/ omega, restoring
    omega = self%omega
    restoring = self%restoring
    read (lines, nml=oscillator, iostat=code, iomsg=message)
    if (code /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, namelist_sentence('oscillator', 'omega and restoring', code, message))
      return
    end if
    if (.not. all_finite([omega, restoring])) then
      call status%raise(STATUS_BAD_PARAMETER, 'oscillator: omega and restoring must be finite numbers')
      return
    end if
    self%omega = omega
    self%restoring = restoring
    self%n = 2
    self%m = 2
    self%has_adjoint = .true.
  end subroutine configure

  !> See solver_t.
  function describe(self) result(text)
    class(oscillator_t), intent(in) :: self
    character(:), allocatable :: text
    text = '{"fields": ['//json_field('u', 'position and velocity of the oscillator', '1', ['component'], [2_ik], &
                                      json_axis('component', 1.0_rk, 1.0_rk))//'], "parameters": {"omega": '// &
           json_real(self%omega)//', "restoring": '//json_real(self%restoring)//'}}'
  end function describe

  !> See solver_t.
  subroutine tendency(self, t, x, dxdt)
    class(oscillator_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: x(:, :)
    real(rk), intent(out), contiguous, target :: dxdt(:, :)
    call kernel(size(x, 2), self%restoring * self%omega**2, x, dxdt)
  end subroutine tendency

  pure subroutine kernel(members, stiffness, x, dxdt)
    integer, intent(in) :: members
    real(rk), intent(in) :: stiffness
    real(rk), intent(in) :: x(2, members)
    real(rk), intent(out) :: dxdt(2, members)
    integer :: i
    do i = 1, members
      dxdt(1, i) = x(2, i)
      dxdt(2, i) = -stiffness * x(1, i)
    end do
  end subroutine kernel

  !> See solver_t.
  subroutine tendency_adjoint(self, t, u, lambda, answer, status)
    class(oscillator_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: u(:, :), lambda(:, :)
    real(rk), intent(inout), contiguous, target :: answer(:, :)
    type(status_t), intent(inout) :: status
    answer(1, :) = -(self%restoring * self%omega**2) * lambda(2, :)
    answer(2, :) = lambda(1, :)
  end subroutine tendency_adjoint
end module trimtab_oscillator

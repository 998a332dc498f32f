! SPDX-License-Identifier: MIT
!> The integrators by name.
module trimtab_schemes
  use trimtab_kinds, only: rk, ik
  use trimtab_status, only: status_t, STATUS_BAD_PARAMETER
  use trimtab_integrators, only: stepper_t
  use trimtab_adaptive, only: dopri5_t
  use trimtab_implicit, only: imex_t
  implicit none
  private
  public :: create_stepper, not_given

  real(rk), parameter :: not_given = -huge(1.0_rk)   !< an rtol or atol that stands nowhere in the namelist

contains

  !> A stepper, ready for `reserve`. An empty name is 'rk4', or the explicit scheme of the order given.
  subroutine create_stepper(name, order, correction_at, rtol, atol, stepper, status)
    character(*), intent(in) :: name            !< 'euler', 'rk2', 'rk3', 'rk4', 'dopri5', 'ars222', 'ars443' or ''
    integer(ik), intent(in) :: order            !< the order it must have, or 0
    character(*), intent(in) :: correction_at   !< 'stage' or 'step'
    real(rk), intent(in) :: rtol, atol          !< of dopri5, or `not_given`
    class(stepper_t), allocatable, intent(out) :: stepper
    type(status_t), intent(inout) :: status     !< STATUS_BAD_PARAMETER
    type(dopri5_t), allocatable :: adaptive
    type(imex_t), allocatable :: imex

    if (name /= 'dopri5' .and. (given(rtol) .or. given(atol))) then
      call status%raise(STATUS_BAD_PARAMETER, 'rtol and atol are tolerances of integrator = ''dopri5''; the others have none')
    end if
    select case (name)
    case ('dopri5')
      allocate (adaptive)
      call adaptive%select_tolerances(merge(rtol, adaptive%rtol, given(rtol)), merge(atol, adaptive%atol, given(atol)), status)
      call move_alloc(adaptive, stepper)
    case ('ars222', 'ars443')
      allocate (imex)
      call imex%select_tableau(name)
      call move_alloc(imex, stepper)
    case default
      allocate (stepper)
      call stepper%select_scheme(name, order, correction_at, status)
      return
    end select
    call stepper%select_place(correction_at, status)
    if (order /= 0 .and. order /= stepper%order) then
      call status%raise(STATUS_BAD_PARAMETER, 'integrator '''//trim(name)//''' is not of the order given; leave one of the two out')
    end if
  end subroutine create_stepper

  !> True for a number that stood in the namelist, NaN included.
  pure logical function given(tolerance)
    real(rk), intent(in) :: tolerance
    given = .not. tolerance <= not_given
  end function given
end module trimtab_schemes

! SPDX-License-Identifier: MIT
!> What the unit programs share: counted checks, and small C functions that fill a slot.
module checks
  use, intrinsic :: iso_c_binding, only: c_ptr, c_int, c_null_ptr, c_loc, c_f_pointer
  use, intrinsic :: iso_fortran_env, only: error_unit
  use trimtab_kinds, only: rk, sk, ik, lk
  use trimtab_status, only: status_t
  use trimtab_driver, only: hybrid_t
  implicit none
  private
  public :: check, finish, open_hybrid, run
  public :: no_op, no_op_single, spring, refuses, stop_at_third, calls, polls

  integer :: failures = 0
  integer :: calls = 0                  !< how often a correction was called
  integer :: polls = 0                  !< how often `stop_at_third` was asked
  real(rk), allocatable, target :: answer(:, :)
  real(sk), allocatable, target :: answer_single(:, :)

contains

  !> Count and say a failure.
  subroutine check(holds, what)
    logical, intent(in) :: holds
    character(*), intent(in) :: what
    if (holds) return
    failures = failures + 1
    write (error_unit, '(a)') 'not true: '//what
  end subroutine check

  !> End the program with the verdict.
  subroutine finish()
    if (failures > 0) error stop 1
  end subroutine finish

  !> A hybrid from its two groups; the test ends when that fails.
  subroutine open_hybrid(hybrid, common, group)
    type(hybrid_t), intent(inout) :: hybrid
    character(*), intent(in) :: common, group
    type(status_t) :: status
    call hybrid%configure(common, group, status)
    if (status%ok()) return
    write (error_unit, '(a)') status%message
    error stop 1
  end subroutine open_hybrid

  !> Advance from u0 (n, members) and hand back the records (n, members, steps / stride + 1).
  subroutine run(hybrid, u0, steps, stride, window, failed_step, status)
    type(hybrid_t), intent(inout) :: hybrid
    real(rk), intent(in) :: u0(:, :)
    integer, intent(in) :: steps, stride
    real(rk), allocatable, intent(out) :: window(:, :, :)
    integer(lk), allocatable, intent(out) :: failed_step(:)
    type(status_t), intent(out) :: status
    allocate (window(size(u0, 1), size(u0, 2), steps / stride + 1), failed_step(size(u0, 2)))
    window(:, :, 1) = u0
    call hybrid%advance(int(steps, lk), int(stride, lk), 0.0_rk, window, failed_step, status)
  end subroutine run

  !> A correction that is zero.
  function no_op(context, state, n, members, weight) bind(c) result(tendency)
    type(c_ptr), value :: context, state
    integer(lk), value :: n, members
    real(rk), value :: weight
    type(c_ptr) :: tendency
    calls = calls + 1
    call hold(n, members)
    answer = 0.0_rk
    tendency = c_loc(answer(1, 1))
  end function no_op

  !> The same in single precision.
  function no_op_single(context, state, n, members, weight) bind(c) result(tendency)
    type(c_ptr), value :: context, state
    integer(lk), value :: n, members
    real(rk), value :: weight
    type(c_ptr) :: tendency
    calls = calls + 1
    if (allocated(answer_single)) deallocate (answer_single)
    allocate (answer_single(n, members), source=0.0_sk)
    tendency = c_loc(answer_single(1, 1))
  end function no_op_single

  !> The second equation of the oscillator, which its core leaves out: du2/dt = -u1.
  function spring(context, state, n, members, weight) bind(c) result(tendency)
    type(c_ptr), value :: context, state
    integer(lk), value :: n, members
    real(rk), value :: weight
    type(c_ptr) :: tendency
    real(rk), pointer :: u(:, :)
    calls = calls + 1
    call c_f_pointer(state, u, [n, members])
    call hold(n, members)
    answer(1, :) = 0.0_rk
    answer(2, :) = -u(1, :)
    tendency = c_loc(answer(1, 1))
  end function spring

  !> A correction that fails.
  function refuses(context, state, n, members, weight) bind(c) result(tendency)
    type(c_ptr), value :: context, state
    integer(lk), value :: n, members
    real(rk), value :: weight
    type(c_ptr) :: tendency
    tendency = c_null_ptr
  end function refuses

  !> A driver that asks to stop when polled for the third time.
  function stop_at_third() bind(c) result(stop_now)
    integer(c_int) :: stop_now
    polls = polls + 1
    stop_now = merge(1_c_int, 0_c_int, polls == 3)
  end function stop_at_third

  subroutine hold(n, members)
    integer(lk), intent(in) :: n, members
    if (allocated(answer)) deallocate (answer)
    allocate (answer(n, members))
  end subroutine hold
end module checks

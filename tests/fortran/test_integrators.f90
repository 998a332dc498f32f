! SPDX-License-Identifier: MIT
!> The measured order of each integrator is the one it claims, alone and with a correction.
program test_integrators
  use, intrinsic :: iso_c_binding, only: c_funloc, c_null_ptr
  use trimtab_kinds, only: rk, ik, lk
  use trimtab_status, only: status_t, STATUS_STEP_FAILED
  use trimtab_driver, only: hybrid_t
  use checks, only: check, finish, open_hybrid, run, spring, calls
  implicit none
  character(6), parameter :: names(6) = ['euler ', 'rk2   ', 'rk3   ', 'rk4   ', 'ars222', 'ars443']
  integer, parameter :: orders(6) = [1, 2, 3, 4, 2, 3]
  character(1) :: digit
  integer :: i, order

  do i = 1, size(names)
    order = orders(i)
    write (digit, '(i1)') order
    call check(abs(slope_lorenz(names(i)) - order) < 0.15_rk, trim(names(i))//' has order '//digit//' on Lorenz 63')
    call check(abs(slope_spring(names(i), 'stage') - order) < 0.15_rk, &
               trim(names(i))//' with a correction at each stage has order '//digit)
    call check(abs(slope_spring(names(i), 'step') - 1) < 0.15_rk, &
               trim(names(i))//' with a correction once a step has order 1')
  end do
  call check_calls()
  call check_adaptive()
  call finish()

contains

  !> Slope of log error against log dt, against a run of 64 times smaller steps.
  function slope_lorenz(name) result(slope)
    character(*), intent(in) :: name
    real(rk) :: slope, coarse(3), fine(3), truth(3)
    truth = lorenz_end('rk4', 1.0e-3_rk / 8, 2400)
    coarse = lorenz_end(name, 2.0e-3_rk, 150)
    fine = lorenz_end(name, 1.0e-3_rk, 300)
    slope = log(norm2(coarse - truth) / norm2(fine - truth)) / log(2.0_rk)
  end function slope_lorenz

  function lorenz_end(name, dt, steps) result(u)
    character(*), intent(in) :: name
    real(rk), intent(in) :: dt
    integer, intent(in) :: steps
    real(rk) :: u(3)
    u = last(common('lorenz63', name, dt, 'stage'), '&lorenz63 /', reshape([8.0_rk, 0.0_rk, 30.0_rk], [3, 1]), steps, .false.)
  end function lorenz_end

  !> The oscillator's core with its missing equation in the slot, against cos and sin.
  function slope_spring(name, place) result(slope)
    character(*), intent(in) :: name, place
    real(rk) :: slope, errors(2), u(2)
    real(rk), parameter :: t = 2.0_rk
    integer :: i, steps
    do i = 1, 2
      steps = 100 * 2**(i - 1)
      u = last(common('oscillator', name, t / steps, place), '&oscillator restoring=0 /', &
               reshape([1.0_rk, 0.0_rk], [2, 1]), steps, .true.)
      errors(i) = norm2(u - [cos(t), -sin(t)])
    end do
    slope = log(errors(1) / errors(2)) / log(2.0_rk)
  end function slope_spring

  !> A correction at each stage is called once a stage for all members; once a step, once.
  subroutine check_calls()
    real(rk) :: u(2), u0(2, 3)
    u0 = 1.0_rk
    calls = 0
    u = last(common('oscillator', 'rk3', 0.1_rk, 'stage'), '&oscillator /', u0, 7, .true.)
    call check(calls == 21, 'three stages, three calls a step')
    calls = 0
    u = last(common('oscillator', 'rk3', 0.1_rk, 'step'), '&oscillator /', u0, 7, .true.)
    call check(calls == 7, 'once a step, one call a step')
  end subroutine check_calls

  !> dopri5 keeps its tolerance over any dt, and says which steps it made; a step that cannot be made has its own status.
  subroutine check_adaptive()
    type(hybrid_t) :: hybrid
    type(status_t) :: status
    real(rk) :: u(2), window(2, 2, 2), sizes(8, 2)
    integer(lk) :: failed_step(2), counts(2)
    real(rk), parameter :: t = 2.0_rk
    u = last('&solver name=''oscillator'', dt=2, integrator=''dopri5'', rtol=1e-9, atol=1e-9 /', '&oscillator restoring=0 /', &
             reshape([1.0_rk, 0.0_rk], [2, 1]), 1, .true.)
    call check(norm2(u - [cos(t), -sin(t)]) < 1.0e-7_rk, 'dopri5 keeps its tolerance over a dt of 2')
    call open_hybrid(hybrid, '&solver name=''oscillator'', dt=2, integrator=''dopri5'', rtol=1e-9, atol=1e-9 /', '&oscillator /')
    window = 1
    call hybrid%substeps(window(:, :, 1), sizes, counts, status)
    call check(status%ok() .and. all(counts > 8), 'the number of steps is known also where there is no room for them')
    call hybrid%release()
    call open_hybrid(hybrid, '&solver name=''oscillator'', dt=2, integrator=''dopri5'', rtol=0, atol=1e-40 /', '&oscillator /')
    window(:, 2, 1) = 0
    call hybrid%advance(1_lk, 1_lk, 0.0_rk, window, failed_step, status)
    call check(status%code == STATUS_STEP_FAILED .and. all(failed_step == [1, 0]), 'a step that shrinks to nothing is a status')
    call check(all(abs(window(:, 2, 2)) < tiny(1.0_rk)), 'and the other member goes on')
    call hybrid%release()
  end subroutine check_adaptive

  function common(solver, integrator, dt, place) result(text)
    character(*), intent(in) :: solver, integrator, place
    real(rk), intent(in) :: dt
    character(160) :: text
    write (text, '(5a,es24.16,3a)') "&solver name='", solver, "', integrator='", trim(integrator), "', dt=", dt, &
      ", correction_at='", place, "' /"
  end function common

  function last(common_group, group, u0, steps, with_spring) result(u)
    character(*), intent(in) :: common_group, group
    real(rk), intent(in) :: u0(:, :)
    integer, intent(in) :: steps
    logical, intent(in) :: with_spring
    real(rk) :: u(size(u0, 1))
    type(hybrid_t) :: hybrid
    type(status_t) :: status
    real(rk), allocatable :: window(:, :, :)
    integer(lk), allocatable :: failed_step(:)
    call open_hybrid(hybrid, common_group, group)
    if (with_spring) call hybrid%slot%install(c_funloc(spring), c_null_ptr, 8_ik, status)
    call run(hybrid, u0, steps, steps, window, failed_step, status)
    call check(status%ok(), 'the run ends well')
    u = window(:, 1, 2)
    call hybrid%release()
  end function last
end program test_integrators

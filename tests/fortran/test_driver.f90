! SPDX-License-Identifier: MIT
!> Runs: cut anywhere, members that blow up, interruption, refusals.
program test_driver
  use, intrinsic :: iso_c_binding, only: c_funloc, c_null_funptr
  use, intrinsic :: ieee_arithmetic, only: ieee_is_nan, ieee_value, ieee_quiet_nan
  use trimtab_kinds, only: rk, ik, lk
  use trimtab_status, only: status_t, STATUS_BAD_PARAMETER, STATUS_UNKNOWN_SOLVER, STATUS_BAD_SHAPE, STATUS_BLOW_UP, &
                            STATUS_INTERRUPTED, STATUS_NOT_FINITE
  use trimtab_driver, only: hybrid_t
  use checks, only: check, finish, open_hybrid, run, stop_at_third, polls
  implicit none
  character(*), parameter :: common = "&solver name='lorenz63', dt=0.01 /"
  type(hybrid_t) :: hybrid
  type(status_t) :: status
  real(rk), allocatable :: window(:, :, :), reference(:, :, :)
  integer(lk), allocatable :: failed_step(:)
  real(rk) :: u0(3, 5)
  integer :: i

  do i = 1, 5
    u0(:, i) = [8.0_rk + 0.1_rk * i, 0.0_rk, 30.0_rk]
  end do
  call open_hybrid(hybrid, common, '&lorenz63 /')
  call run(hybrid, u0, 60, 3, reference, failed_step, status)
  call check_cut()
  call check_members()
  call check_blow_up()
  call check_interrupt()
  call check_refusals()
  call hybrid%release()
  call check_spectral()
  call check_groups()
  deallocate (window, reference, failed_step)   ! a main program's live on, and a leak checker says so
  call finish()

contains

  subroutine check_cut()
    call run(hybrid, reference(:, :, 8), 39, 3, window, failed_step, status)
    call check(all(same(window, reference(:, :, 8:))), 'a run cut at a record goes on with the same bits')
    call run(hybrid, u0, 0, 1, window, failed_step, status)
    call check(status%ok() .and. all(same(window, reference(:, :, 1:1))), 'no step leaves the first state')
  end subroutine check_cut

  subroutine check_members()
    call run(hybrid, u0(:, 4:4), 60, 3, window, failed_step, status)
    call check(all(same(window, reference(:, 4:4, :))), 'a member alone has the bits it has among others')
  end subroutine check_members

  subroutine check_blow_up()
    integer, parameter :: others(4) = [1, 2, 4, 5]
    real(rk) :: wild(3, 5)
    wild = u0
    wild(:, 3) = 1.0e30_rk
    call run(hybrid, wild, 60, 3, window, failed_step, status)
    call check(status%code == STATUS_BLOW_UP, 'a blow-up is reported')
    call check(failed_step(3) > 0 .and. all(failed_step(others) == 0), 'the failed member and only it is named')
    call check(all(same(window(:, others, :), reference(:, others, :))), 'the others keep their bits')
    call check(all(ieee_is_nan(window(:, 3, (failed_step(3) + 2) / 3 + 1:))), 'the failed member is NaN from its record on')
    wild = 1.0e30_rk
    window = 0.0_rk
    call run(hybrid, wild, 60, 3, window, failed_step, status)
    call check(all(failed_step > 0) .and. all(ieee_is_nan(window(:, :, 2:))), 'all failed: every later record is NaN')
    wild(1, 1) = ieee_value(1.0_rk, ieee_quiet_nan)
    call run(hybrid, wild, 60, 3, window, failed_step, status)
    call check(status%code == STATUS_NOT_FINITE, 'a NaN at the start is refused')
  end subroutine check_blow_up

  !> The same for a solver whose internal state is spectral.
  subroutine check_spectral()
    real(rk) :: q0(64, 3)
    integer :: j
    q0 = reshape([(4 * sin(0.7_rk * j), j=1, 192)], [64, 3])
    call open_hybrid(hybrid, "&solver name='qg', dt=0.01 /", '&qg n=8, viscosity=0.01 /')
    call run(hybrid, q0, 60, 3, reference, failed_step, status)
    call run(hybrid, reference(:, :, 8), 39, 3, window, failed_step, status)
    call check(all(same(window, reference(:, :, 8:))), 'a spectral run cut at a record goes on with the same bits')
    call run(hybrid, q0(:, 2:2), 60, 3, window, failed_step, status)
    call check(all(same(window, reference(:, 2:2, :))), 'a spectral member alone has the bits it has among others')
    q0(:, 2) = 1.0e30_rk * q0(:, 2)
    call run(hybrid, q0, 60, 3, window, failed_step, status)
    call check(status%code == STATUS_BLOW_UP .and. failed_step(2) > 0, 'a spectral blow-up is reported')
    call check(all(same(window(:, [1, 3], :), reference(:, [1, 3], :))), 'the other spectral members keep their bits')
    call hybrid%release()
  end subroutine check_spectral

  subroutine check_interrupt()
    call hybrid%watch(c_funloc(stop_at_third))
    call run(hybrid, u0, 60, 3, window, failed_step, status)
    call check(status%code == STATUS_INTERRUPTED .and. polls == 3, 'a run stops when asked to, before the third step')
    call hybrid%watch(c_null_funptr)
    call run(hybrid, u0, 60, 3, window, failed_step, status)
    call check(status%ok() .and. all(same(window, reference)), 'an interruption leaves no trace')
  end subroutine check_interrupt

  subroutine check_refusals()
    call run(hybrid, u0, 10, 3, window, failed_step, status)
    call check(status%code == STATUS_BAD_PARAMETER, 'steps that are no multiple of the stride are refused')
    call run(hybrid, u0(1:2, :), 6, 3, window, failed_step, status)
    call check(status%code == STATUS_BAD_SHAPE, 'states of another length are refused')
    call run(hybrid, u0(:, 1:0), 6, 3, window, failed_step, status)
    call check(status%code == STATUS_BAD_SHAPE, 'no member at all is refused')
    call status%clear()
    call hybrid%advance(9_lk, 3_lk, 0.0_rk, window, failed_step, status)
    call check(status%code == STATUS_BAD_SHAPE, 'a window of another length is refused')
  end subroutine check_refusals

  subroutine check_groups()
    call refuse("&solver name='lorenz64', dt=0.01 /", '&lorenz63 /', STATUS_UNKNOWN_SOLVER)
    call refuse("&solver name='lorenz63' /", '&lorenz63 /', STATUS_BAD_PARAMETER)
    call refuse("&solver name='lorenz63', dt=0.01, order=5 /", '&lorenz63 /', STATUS_BAD_PARAMETER)
    call refuse("&solver name='lorenz63', dt=0.01, order=2, integrator='rk4' /", '&lorenz63 /', STATUS_BAD_PARAMETER)
    call refuse("&solver name='lorenz63', dt=0.01, integrator='rk4_with_a_tail' /", '&lorenz63 /', STATUS_BAD_PARAMETER)
    call refuse("&solver name='lorenz63', dt=0.01, correction_at='end' /", '&lorenz63 /', STATUS_BAD_PARAMETER)
    call refuse(common, '&lorenz63 sigm=10 /', STATUS_BAD_PARAMETER)
    call refuse(common, '&lorenz63 sigma=NaN /', STATUS_BAD_PARAMETER)
    call refuse(common, '', STATUS_BAD_PARAMETER)
    call refuse(common, '&lorenz63', STATUS_BAD_PARAMETER)
    call refuse(common, '&lorenz96 /', STATUS_BAD_PARAMETER)
    call refuse("&solver name='lorenz96', dt=0.01 /", '&lorenz96 n=3 /', STATUS_BAD_PARAMETER)
    call refuse("&solver name='lorenz96_two_scale', dt=0.01 /", '&lorenz96_two_scale b=0 /', STATUS_BAD_PARAMETER)
  end subroutine check_groups

  subroutine refuse(common_group, group, code)
    character(*), intent(in) :: common_group, group
    integer(ik), intent(in) :: code
    type(hybrid_t) :: other
    type(status_t) :: answer
    call other%configure(common_group, group, answer)
    call check(answer%code == code, 'refused: '//common_group//' '//group)
    call other%release()
  end subroutine refuse

  elemental logical function same(a, b)
    real(rk), intent(in) :: a, b
    same = transfer(a, 0_lk) == transfer(b, 0_lk)
  end function same
end program test_driver

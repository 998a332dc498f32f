! SPDX-License-Identifier: MIT
!> An empty slot, a correction that is zero, and no slot at all give the same bits; a failing correction stops the run.
program test_slot
  use, intrinsic :: iso_c_binding, only: c_funloc, c_null_ptr
  use trimtab_kinds, only: rk, ik, lk
  use trimtab_status, only: status_t, STATUS_CORRECTION_FAILED, STATUS_BAD_PARAMETER
  use trimtab_driver, only: hybrid_t
  use checks, only: check, finish, open_hybrid, run, no_op, no_op_single, refuses
  implicit none
  type(hybrid_t) :: hybrid
  type(status_t) :: status
  real(rk), allocatable :: window(:, :, :), reference(:, :, :)
  integer(lk), allocatable :: failed_step(:)
  character(5), parameter :: places(2) = ['stage', 'step ']
  integer :: place

  do place = 1, 2
    call compare('lorenz96', '&lorenz96 n=64 /', trim(places(place)))
    call compare('qg', '&qg n=8, viscosity=0.01, forcing_amplitude=1, forcing_wavenumber=2 /', trim(places(place)))
    call compare('qg', "&qg n=8, viscosity=0.01, viscosity_pattern=0.02, slot='viscosity' /", trim(places(place)))
  end do
  deallocate (window, reference, failed_step)   ! a main program's live on, and a leak checker says so
  call finish()

contains

  subroutine compare(name, group, place)
    character(*), intent(in) :: name, group, place
    real(rk) :: u0(64, 3)
    integer :: i, j
    do i = 1, 3
      u0(:, i) = [(4 * sin(0.7_rk * i * j), j=1, 64)]
    end do
    call open_hybrid(hybrid, "&solver name='"//name//"', dt=0.01, correction_at='"//place//"' /", group)
    call run(hybrid, u0, 50, 5, reference, failed_step, status)
    call hybrid%slot%install(c_funloc(no_op), c_null_ptr, 8_ik, status)
    call run(hybrid, u0, 50, 5, window, failed_step, status)
    call check(same(window, reference), 'a zero correction in double precision changes no bit of '//name)
    call hybrid%slot%install(c_funloc(no_op_single), c_null_ptr, 4_ik, status)
    call run(hybrid, u0, 50, 5, window, failed_step, status)
    call check(same(window, reference), 'a zero correction in single precision changes no bit of '//name)
    call hybrid%slot%install(c_funloc(refuses), c_null_ptr, 8_ik, status)
    call run(hybrid, u0, 50, 5, window, failed_step, status)
    call check(status%code == STATUS_CORRECTION_FAILED, 'a correction that fails stops the run')
    call hybrid%slot%remove()
    call run(hybrid, u0, 50, 5, window, failed_step, status)
    call check(status%ok() .and. same(window, reference), 'an emptied slot changes no bit of '//name)
    call hybrid%slot%install(c_funloc(no_op), c_null_ptr, 2_ik, status)
    call check(status%code == STATUS_BAD_PARAMETER, 'half precision is refused')
    call hybrid%release()
  end subroutine compare

  pure logical function same(a, b)
    real(rk), intent(in) :: a(:, :, :), b(:, :, :)
    same = all(transfer(a, [0_lk]) == transfer(b, [0_lk]))
  end function same
end program test_slot

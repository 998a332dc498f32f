! SPDX-License-Identifier: MIT
!> Members that leave the finite numbers: found, written down, and kept where they harm nobody.
module trimtab_finite
  use, intrinsic :: ieee_arithmetic, only: ieee_value, ieee_quiet_nan
  use trimtab_kinds, only: rk, lk
  implicit none
  private
  public :: bound, wild, mark, freeze, blank

  !> Larger states than this have left physics for good, and their squares still are finite numbers.
  real(rk), parameter :: bound = 1.0e100_rk

contains

  !> How many numbers are NaN, infinite or beyond the bound; integer arithmetic only, so that it runs in vectors.
  pure integer function wild(total, x)
    integer, intent(in) :: total
    real(rk), intent(in) :: x(total)
    integer :: i
    wild = 0
    do i = 1, total
      wild = wild + merge(0, 1, abs(x(i)) <= bound)
    end do
  end function wild

  !> Write down at which step a member left the finite numbers.
  subroutine mark(x, step, failed_step, failures)
    real(rk), intent(in), contiguous :: x(:, :)
    integer(lk), intent(in) :: step
    integer(lk), intent(inout) :: failed_step(:)
    integer, intent(inout) :: failures
    integer :: i
    do i = 1, size(x, 2)
      if (wild(size(x, 1), x(:, i)) == 0) cycle
      failed_step(i) = step
      failures = failures + 1
    end do
  end subroutine mark

  !> Hold failed members at zero, where every solver is well behaved and no NaN can spread.
  subroutine freeze(x, failed_step)
    real(rk), intent(inout), contiguous :: x(:, :)
    integer(lk), intent(in) :: failed_step(:)
    integer :: i
    do i = 1, size(x, 2)
      if (failed_step(i) > 0) x(:, i) = 0.0_rk
    end do
  end subroutine freeze

  !> NaN in a record for failed members.
  subroutine blank(u, failed_step)
    real(rk), intent(inout), contiguous :: u(:, :)
    integer(lk), intent(in) :: failed_step(:)
    integer :: i
    do i = 1, size(u, 2)
      if (failed_step(i) > 0) u(:, i) = ieee_value(0.0_rk, ieee_quiet_nan)
    end do
  end subroutine blank
end module trimtab_finite

! SPDX-License-Identifier: MIT
!> One door for precision and for the integer kinds that cross the border to C and Python.
module trimtab_kinds
  use, intrinsic :: iso_c_binding, only: c_double, c_float, c_int, c_int64_t
  implicit none
  private
  public :: rk, sk, ik, lk, pi

  integer, parameter :: rk = c_double    !< reals of every solver state
  integer, parameter :: sk = c_float     !< reals of a single-precision network
  integer, parameter :: ik = c_int       !< counts and status codes
  integer, parameter :: lk = c_int64_t   !< handles and addresses
  real(rk), parameter :: pi = 3.141592653589793238462643383279502884_rk
end module trimtab_kinds

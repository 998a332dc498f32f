! SPDX-License-Identifier: MIT
!> Status codes of every procedure that can fail, and their sentences.
!! `python/trimtab/errors.py` raises one exception a code; a test holds the two lists against each other.
module trimtab_status
  use trimtab_kinds, only: ik
  implicit none
  private
  public :: status_t
  public :: STATUS_OK, STATUS_BAD_PARAMETER, STATUS_UNKNOWN_SOLVER, STATUS_BAD_HANDLE, STATUS_BAD_SHAPE
  public :: STATUS_BLOW_UP, STATUS_CORRECTION_FAILED, STATUS_INTERRUPTED, STATUS_NOT_FINITE, STATUS_UNSUPPORTED
  public :: STATUS_STEP_FAILED

  integer(ik), parameter :: STATUS_OK = 0                 !< it worked
  integer(ik), parameter :: STATUS_BAD_PARAMETER = 1      !< a parameter is unknown, malformed or out of range
  integer(ik), parameter :: STATUS_UNKNOWN_SOLVER = 2     !< no solver of that name
  integer(ik), parameter :: STATUS_BAD_HANDLE = 3         !< the solver was never opened, or is closed
  integer(ik), parameter :: STATUS_BAD_SHAPE = 4          !< an array does not fit the solver
  integer(ik), parameter :: STATUS_BLOW_UP = 5            !< the state left the finite numbers
  integer(ik), parameter :: STATUS_CORRECTION_FAILED = 6  !< the correction failed or never ran
  integer(ik), parameter :: STATUS_INTERRUPTED = 7        !< the driver asked to stop
  integer(ik), parameter :: STATUS_NOT_FINITE = 8         !< the initial state holds a NaN or an infinity
  integer(ik), parameter :: STATUS_UNSUPPORTED = 9        !< this solver does not offer the operation
  integer(ik), parameter :: STATUS_STEP_FAILED = 10       !< the integrator could not make a step: no length, no convergence

  !> A code and one sentence that names what, where and the remedy.
  type :: status_t
    integer(ik) :: code = STATUS_OK
    character(:), allocatable :: message
  contains
    procedure :: raise
    procedure :: ok
    procedure :: clear
  end type status_t

contains

  !> Set code and sentence; the first failure is kept, later ones do not overwrite it.
  pure subroutine raise(self, code, message)
    class(status_t), intent(inout) :: self
    integer(ik), intent(in) :: code       !< one of the STATUS_ codes
    character(*), intent(in) :: message   !< the sentence
    if (self%code /= STATUS_OK) return
    self%code = code
    self%message = message
  end subroutine raise

  !> True as long as nothing failed.
  pure logical function ok(self)
    class(status_t), intent(in) :: self
    ok = self%code == STATUS_OK
  end function ok

  !> Forget a failure.
  pure subroutine clear(self)
    class(status_t), intent(inout) :: self
    self%code = STATUS_OK
    self%message = ''
  end subroutine clear
end module trimtab_status

! SPDX-License-Identifier: MIT
!> The slot: the one place where something learned may enter a solver.
!!
!! The solver never knows what fills it. An empty slot costs one test and leaves a run bit-identical to one without a slot.
!! A filled slot hands the states of all members to one C function and adds what that function returns, or, where a solver asks
!! for a coefficient instead of a tendency, hands it to the solver.
module trimtab_correction
  use, intrinsic :: iso_c_binding, only: c_ptr, c_funptr, c_null_ptr, c_loc, c_f_pointer, c_f_procpointer, c_associated
  use trimtab_kinds, only: rk, sk, ik, lk
  use trimtab_status, only: status_t, STATUS_CORRECTION_FAILED, STATUS_BAD_PARAMETER
  implicit none
  private
  public :: correction_t, correction_function

  abstract interface
    !> What fills a slot: reads `members` states, returns the address of as many tendencies (or coefficients, of the length that
    !! the solver declares) in the slot's kind.
    !! The memory stays the callee's and must hold until its next call.
    !! A null address means that it failed; a callee that never ran cannot return anything else.
    function correction_function(context, state, n, members, weight) bind(c) result(tendency)
      import :: c_ptr, lk, rk
      implicit none
      type(c_ptr), value :: context        !< what `install` was given
      type(c_ptr), value :: state          !< states, (n, members) in Fortran order, the slot's kind; the callee may overwrite it
      integer(lk), value :: n              !< length of one state
      integer(lk), value :: members        !< number of states
      real(rk), value :: weight            !< time for which this tendency acts in the step (b_i dt at stage i; dt when held)
      type(c_ptr) :: tendency
    end function correction_function
  end interface

  !> A slot. Empty by default.
  type :: correction_t
    private
    procedure(correction_function), pointer, nopass :: function_ => null()
    type(c_ptr) :: context = c_null_ptr
    integer(ik) :: bytes = 8
    real(rk), pointer, contiguous :: state8(:, :) => null()
    real(sk), pointer, contiguous :: state4(:, :) => null()
  contains
    procedure :: install
    procedure :: remove
    procedure :: filled
    procedure :: apply
    procedure :: evaluate
  end type correction_t

contains

  !> Fill the slot with a C function.
  subroutine install(self, function_, context, bytes, status)
    class(correction_t), intent(inout) :: self
    type(c_funptr), intent(in) :: function_   !< a `correction_function`
    type(c_ptr), intent(in) :: context        !< handed back at every call
    integer(ik), intent(in) :: bytes          !< 4 or 8: kind of the states it reads and the tendencies it returns
    type(status_t), intent(inout) :: status   !< STATUS_BAD_PARAMETER when bytes is neither
    if (bytes /= 4 .and. bytes /= 8) then
      call status%raise(STATUS_BAD_PARAMETER, 'a correction works in 4 or 8 bytes a number: give it float32 or float64')
      return
    end if
    call c_f_procpointer(function_, self%function_)
    self%context = context
    self%bytes = bytes
  end subroutine install

  !> Empty the slot and free what it held.
  subroutine remove(self)
    class(correction_t), intent(inout) :: self
    self%function_ => null()
    self%context = c_null_ptr
    if (associated(self%state8)) deallocate (self%state8)
    if (associated(self%state4)) deallocate (self%state4)
  end subroutine remove

  !> True when something fills the slot.
  pure logical function filled(self)
    class(correction_t), intent(in) :: self
    filled = associated(self%function_)
  end function filled

  !> Add the correction's tendency to `dudt`; nothing happens when the slot is empty.
  subroutine apply(self, state, weight, dudt, status)
    class(correction_t), intent(inout) :: self
    real(rk), intent(in), contiguous :: state(:, :)      !< (n, members)
    real(rk), intent(in) :: weight                       !< see correction_function
    real(rk), intent(inout), contiguous :: dudt(:, :)    !< (n, members), added to
    type(status_t), intent(inout) :: status              !< STATUS_CORRECTION_FAILED when the callee says so or never ran
    type(c_ptr) :: answer
    real(rk), pointer, contiguous :: tendency8(:)
    real(sk), pointer, contiguous :: tendency4(:)

    if (.not. associated(self%function_)) return
    call ask(self, state, weight, answer, status)
    if (.not. status%ok()) return
    if (self%bytes == 8) then
      call c_f_pointer(answer, tendency8, [size(dudt)])
      call add8(size(dudt, kind=lk), tendency8, dudt)
    else
      call c_f_pointer(answer, tendency4, [size(dudt)])
      call add4(size(dudt, kind=lk), tendency4, dudt)
    end if
  end subroutine apply

  !> What the correction answers, as it is: a coefficient. The slot must be filled.
  subroutine evaluate(self, state, weight, values, status)
    class(correction_t), intent(inout) :: self
    real(rk), intent(in), contiguous :: state(:, :)      !< (n, members)
    real(rk), intent(in) :: weight                       !< see correction_function
    real(rk), intent(out), contiguous :: values(:, :)    !< (length declared by the solver, members)
    type(status_t), intent(inout) :: status              !< STATUS_CORRECTION_FAILED when the callee says so or never ran
    type(c_ptr) :: answer
    real(rk), pointer, contiguous :: values8(:, :)
    real(sk), pointer, contiguous :: values4(:, :)

    values = 0.0_rk
    call ask(self, state, weight, answer, status)
    if (.not. status%ok()) return
    if (self%bytes == 8) then
      call c_f_pointer(answer, values8, shape(values))
      values = values8
    else
      call c_f_pointer(answer, values4, shape(values))
      values = real(values4, rk)
    end if
  end subroutine evaluate

  !> Hand the states over in the slot's kind and take the address of the answer.
  subroutine ask(self, state, weight, answer, status)
    class(correction_t), intent(inout) :: self
    real(rk), intent(in), contiguous :: state(:, :)
    real(rk), intent(in) :: weight
    type(c_ptr), intent(out) :: answer
    type(status_t), intent(inout) :: status
    integer(lk) :: n, members

    n = size(state, 1, lk)
    members = size(state, 2, lk)
    if (self%bytes == 8) then
      call hold8(self%state8, n, members)
      call copy8(n * members, state, self%state8)
      answer = self%function_(self%context, c_loc(self%state8(1, 1)), n, members, weight)
    else
      call hold4(self%state4, n, members)
      call copy4(n * members, state, self%state4)
      answer = self%function_(self%context, c_loc(self%state4(1, 1)), n, members, weight)
    end if
    if (.not. c_associated(answer)) then
      call status%raise(STATUS_CORRECTION_FAILED, 'the correction failed or never ran; see the error that it raised')
    end if
  end subroutine ask

  !> Keep one buffer, so that its address is stable from call to call and the callee can reuse what it built on it.
  subroutine hold8(buffer, n, members)
    real(rk), pointer, contiguous, intent(inout) :: buffer(:, :)
    integer(lk), intent(in) :: n, members
    if (associated(buffer)) then
      if (size(buffer, 1, lk) == n .and. size(buffer, 2, lk) == members) return
      deallocate (buffer)
    end if
    allocate (buffer(n, members))
  end subroutine hold8

  !> The same in single precision.
  subroutine hold4(buffer, n, members)
    real(sk), pointer, contiguous, intent(inout) :: buffer(:, :)
    integer(lk), intent(in) :: n, members
    if (associated(buffer)) then
      if (size(buffer, 1, lk) == n .and. size(buffer, 2, lk) == members) return
      deallocate (buffer)
    end if
    allocate (buffer(n, members))
  end subroutine hold4
  ! One loop over all numbers: a state may be as short as three, too short for a loop of its own.

  pure subroutine copy8(length, from, to)
    integer(lk), intent(in) :: length
    real(rk), intent(in) :: from(length)
    real(rk), intent(inout) :: to(length)
    to = from
  end subroutine copy8

  pure subroutine copy4(length, from, to)
    integer(lk), intent(in) :: length
    real(rk), intent(in) :: from(length)
    real(sk), intent(inout) :: to(length)
    to = real(from, sk)
  end subroutine copy4

  pure subroutine add8(length, from, to)
    integer(lk), intent(in) :: length
    real(rk), intent(in) :: from(length)
    real(rk), intent(inout) :: to(length)
    to = to + from
  end subroutine add8

  pure subroutine add4(length, from, to)
    integer(lk), intent(in) :: length
    real(sk), intent(in) :: from(length)
    real(rk), intent(inout) :: to(length)
    to = to + real(from, rk)
  end subroutine add4
end module trimtab_correction

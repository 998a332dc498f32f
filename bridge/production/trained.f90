! SPDX-License-Identifier: MIT
!> A trained correction for a program that drives itself: a path -> a filled slot. See correction.h beside this file for the C side.
module trimtab_trained
  use, intrinsic :: iso_c_binding, only: c_char, c_int32_t, c_int64_t, c_null_char, c_null_ptr, c_ptr, c_funptr, c_associated, c_loc
  use trimtab_kinds, only: ik
  use trimtab_status, only: status_t, STATUS_CORRECTION_FAILED
  use trimtab_correction, only: correction_t
  implicit none
  private
  public :: trained_t

  integer, parameter :: message_length = 1024

  !> An open correction; empty by default.
  type :: trained_t
    private
    type(c_ptr) :: context = c_null_ptr
  contains
    procedure :: open => open_trained
    procedure :: why
    procedure :: close => close_trained
  end type trained_t

  interface
    !> See bridge/production/correction.h, as for the next two.
    function trimtab_open_correction(kind, path, slot, description, function_, context, bytes, message, length) bind(c) &
      result(failed)
      import :: c_int32_t, c_int64_t, c_ptr, c_funptr
      implicit none
      type(c_ptr), value :: kind, path, slot, description   !< texts ended by a null
      type(c_funptr), intent(out) :: function_
      type(c_ptr), intent(out) :: context
      integer(c_int64_t), intent(out) :: bytes
      type(c_ptr), value :: message
      integer(c_int64_t), value :: length
      integer(c_int32_t) :: failed
    end function trimtab_open_correction

    subroutine trimtab_correction_message(context, message, length) bind(c)
      import :: c_int64_t, c_ptr
      implicit none
      type(c_ptr), value :: context, message
      integer(c_int64_t), value :: length
    end subroutine trimtab_correction_message

    subroutine trimtab_close_correction(context) bind(c)
      import :: c_ptr
      implicit none
      type(c_ptr), value :: context
    end subroutine trimtab_close_correction
  end interface

contains

  !> Open a correction and fill a slot with it.
  subroutine open_trained(self, kind, path, description, slot, status)
    class(trained_t), intent(inout) :: self
    character(*), intent(in) :: kind          !< 'library', written by `trimtab export`, or 'checkpoint'; '' for whichever it is
    character(*), intent(in) :: path          !< of the folder or file
    character(*), intent(in) :: description   !< the solver's JSON
    type(correction_t), intent(inout) :: slot
    type(status_t), intent(inout) :: status   !< STATUS_CORRECTION_FAILED, with the sentence of who refused
    type(c_funptr) :: function_
    integer(c_int64_t) :: bytes
    character(kind=c_char), target :: message(message_length)
    character(len(kind) + 1, c_char), target :: c_kind
    character(len(path) + 1, c_char), target :: c_path
    character(len(description) + 1, c_char), target :: c_description
    character(1, c_char), target :: no_name
    no_name = c_null_char
    c_kind = kind//c_null_char
    c_path = path//c_null_char
    c_description = description//c_null_char
    if (trimtab_open_correction(c_loc(c_kind), c_loc(c_path), c_loc(no_name), c_loc(c_description), function_, self%context, &
                                bytes, c_loc(message), int(message_length, c_int64_t)) /= 0) then
      self%context = c_null_ptr
      call status%raise(STATUS_CORRECTION_FAILED, 'correction: '//to_text(message))
      return
    end if
    call slot%install(function_, self%context, int(bytes, ik), status)
  end subroutine open_trained

  !> Why the last call failed; '' when none did or nothing is open.
  function why(self) result(text)
    class(trained_t), intent(in) :: self
    character(:), allocatable :: text
    character(kind=c_char), target :: message(message_length)
    text = ''
    if (.not. c_associated(self%context)) return
    call trimtab_correction_message(self%context, c_loc(message), int(message_length, c_int64_t))
    text = to_text(message)
  end function why

  !> Let go of it; the slot it fills must be emptied first.
  subroutine close_trained(self)
    class(trained_t), intent(inout) :: self
    if (c_associated(self%context)) call trimtab_close_correction(self%context)
    self%context = c_null_ptr
  end subroutine close_trained

  !> What stands before the null that ends a C text.
  pure function to_text(message) result(text)
    character(kind=c_char), intent(in) :: message(message_length)
    character(:), allocatable :: text
    integer :: i
    text = ''
    do i = 1, message_length
      if (message(i) == c_null_char) exit
      text = text//message(i)
    end do
  end function to_text
end module trimtab_trained

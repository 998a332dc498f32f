! SPDX-License-Identifier: MIT
!> For a coupled code with its own main: the trained correction into a named slot, with one call before the time loop.
!! Compile it with aoti_runtime.c, aoti_export.c and open.c, or link libtrimtab_correction.so.
module trimtab_production
  use, intrinsic :: iso_c_binding, only: c_char, c_int32_t, c_int64_t, c_null_char, c_ptr, c_loc
  implicit none
  private
  public :: trimtab_load_correction, trimtab_check_correction

  interface
    !> See correction.h.
    function trimtab_fill_slot(slot, path, message, length) bind(c) result(failed)
      import :: c_int32_t, c_int64_t, c_ptr
      implicit none
      type(c_ptr), value :: slot, path, message
      integer(c_int64_t), value :: length
      integer(c_int32_t) :: failed
    end function trimtab_fill_slot

    !> See correction.h.
    function trimtab_check_slots(message, length) bind(c) result(failed)
      import :: c_int32_t, c_int64_t, c_ptr
      implicit none
      type(c_ptr), value :: message
      integer(c_int64_t), value :: length
      integer(c_int32_t) :: failed
    end function trimtab_check_slots
  end interface

contains

  !> Fill a slot with the correction of a run folder, a checkpoint file, or a folder that `trimtab export` wrote.
  subroutine trimtab_load_correction(slot, path, status, message)
    character(*), intent(in) :: slot       !< its name in the adapter
    character(*), intent(in) :: path       !< ' ' for what the environment variable TRIMTAB_CORRECTION names
    integer, intent(out) :: status         !< 0 when it worked; the slot stays empty otherwise
    character(:), allocatable, intent(out) :: message   !< one sentence when it did not
    character(kind=c_char), target :: text(1024)
    character(len(slot) + 1, c_char), target :: c_slot
    character(len(path) + 1, c_char), target :: c_path
    c_slot = trim(slot)//c_null_char
    c_path = trim(path)//c_null_char
    text = c_null_char
    status = trimtab_fill_slot(c_loc(c_slot), c_loc(c_path), c_loc(text), size(text, kind=c_int64_t))
    message = sentence_of(text)
  end subroutine trimtab_load_correction

  !> Whether a correction failed since it was loaded; the code has run without it from then on.
  subroutine trimtab_check_correction(status, message)
    integer, intent(out) :: status         !< 0 when none did
    character(:), allocatable, intent(out) :: message   !< one sentence when one did
    character(kind=c_char), target :: text(2048)
    text = c_null_char
    status = trimtab_check_slots(c_loc(text), size(text, kind=c_int64_t))
    message = sentence_of(text)
  end subroutine trimtab_check_correction

  pure function sentence_of(text) result(sentence)
    character(kind=c_char), intent(in) :: text(:)
    character(:), allocatable :: sentence
    integer :: i
    sentence = ''
    do i = 1, size(text)
      if (text(i) == c_null_char) exit
      sentence = sentence//text(i)
    end do
  end function sentence_of
end module trimtab_production

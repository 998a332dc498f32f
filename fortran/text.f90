! SPDX-License-Identifier: MIT
!> Numbers and lists as JSON text, and namelist text as lines.
module trimtab_text
  use trimtab_kinds, only: rk, ik, lk
  implicit none
  private
  public :: json_real, json_integer, json_string, json_field, json_axis, to_lines, count_lines, line_length
  public :: has_group, namelist_sentence, all_finite

  integer, parameter :: line_length = 512   !< longest line of a namelist text

  interface json_integer
    module procedure json_integer_ik
    module procedure json_integer_lk
  end interface json_integer

contains

  !> A real with all its digits, as JSON wants it: reading it back gives the same bits.
  pure function json_real(value) result(text)
    real(rk), intent(in) :: value
    character(:), allocatable :: text
    character(32) :: buffer
    write (buffer, '(es24.16e3)') value
    text = trim(adjustl(buffer))
  end function json_real

  !> An integer.
  pure function json_integer_ik(value) result(text)
    integer(ik), intent(in) :: value
    character(:), allocatable :: text
    text = json_integer_lk(int(value, lk))
  end function json_integer_ik

  !> A long integer.
  pure function json_integer_lk(value) result(text)
    integer(lk), intent(in) :: value
    character(:), allocatable :: text
    character(24) :: buffer
    write (buffer, '(i0)') value
    text = trim(buffer)
  end function json_integer_lk

  !> A string in quotes; for names and sentences without quotes, backslashes or control characters of their own.
  pure function json_string(value) result(text)
    character(*), intent(in) :: value
    character(:), allocatable :: text
    text = '"'//trim(value)//'"'
  end function json_string

  !> One field of the state: {"name", "long_name", "units", "dims", "shape", "coords"}.
  pure function json_field(name, long_name, units, dims, shape, coords) result(text)
    character(*), intent(in) :: name        !< short name, for files
    character(*), intent(in) :: long_name   !< for people
    character(*), intent(in) :: units       !< "1" when it has no dimension
    character(*), intent(in) :: dims(:)     !< names of the dimensions, slowest first, as numpy orders them
    integer(ik), intent(in) :: shape(:)     !< their lengths, in the same order
    character(*), intent(in) :: coords      !< members of the coordinates object: `json_axis`, joined by commas
    character(:), allocatable :: text
    character(:), allocatable :: names, lengths
    integer :: i
    names = ''
    lengths = ''
    do i = 1, size(dims)
      if (i > 1) then
        names = names//', '
        lengths = lengths//', '
      end if
      names = names//json_string(dims(i))
      lengths = lengths//json_integer(shape(i))
    end do
    text = '{"name": '//json_string(name)//', "long_name": '//json_string(long_name)//', "units": '//json_string(units)// &
           ', "dims": ['//names//'], "shape": ['//lengths//'], "coords": {'//coords//'}}'
  end function json_field

  !> One evenly spaced coordinate: "name": {"start", "step"}.
  pure function json_axis(name, start, step) result(text)
    character(*), intent(in) :: name
    real(rk), intent(in) :: start   !< coordinate of the first point
    real(rk), intent(in) :: step    !< distance between points
    character(:), allocatable :: text
    text = json_string(name)//': {"start": '//json_real(start)//', "step": '//json_real(step)//'}'
  end function json_axis

  !> Lines in a text, where a newline ends a line.
  pure integer function count_lines(text)
    character(*), intent(in) :: text
    integer :: i
    count_lines = 1
    do i = 1, len(text)
      if (text(i:i) == new_line('a')) count_lines = count_lines + 1
    end do
  end function count_lines

  !> A text as an internal file; `fits` turns false when a line is longer than `line_length`.
  pure subroutine to_lines(text, lines, fits)
    character(*), intent(in) :: text
    character(line_length), intent(out) :: lines(:)   !< (count_lines(text))
    logical, intent(out) :: fits
    integer :: i, first, line
    fits = .true.
    first = 1
    line = 1
    lines = ''
    do i = 1, len(text) + 1
      if (i <= len(text)) then
        if (text(i:i) /= new_line('a')) cycle
      end if
      if (i - first > line_length) fits = .false.
      lines(line) = text(first:i - 1)
      first = i + 1
      line = line + 1
    end do
  end subroutine to_lines

  !> True when a line begins with the namelist group of that name; a read from an internal file does not say when it is missing.
  pure logical function has_group(lines, name)
    character(*), intent(in) :: lines(:)
    character(*), intent(in) :: name   !< lower case
    character(:), allocatable :: line
    integer :: i, j, code
    has_group = .false.
    do i = 1, size(lines)
      line = trim(adjustl(lines(i)))//' '
      if (len(line) <= len(name) + 1) cycle
      do j = 1, len(line)
        code = iachar(line(j:j))
        if (code >= iachar('A') .and. code <= iachar('Z')) line(j:j) = achar(code + 32)
      end do
      if (line(:len(name) + 1) == '&'//name .and. scan(line(len(name) + 2:len(name) + 2), ' /,'//achar(9)) == 1) then
        has_group = .true.
        return
      end if
    end do
  end function has_group

  !> What to say when reading a namelist group failed.
  pure function namelist_sentence(group, keys, code, message) result(text)
    character(*), intent(in) :: group     !< name of the group
    character(*), intent(in) :: keys      !< what it takes, for people
    integer, intent(in) :: code           !< iostat of the read
    character(*), intent(in) :: message   !< iomsg of the read
    character(:), allocatable :: text
    if (code < 0) then
      text = 'no group &'//group//' ... / in the namelist text; it takes '//keys
    else
      text = group//' takes '//keys//': '//trim(message)
    end if
  end function namelist_sentence

  !> True when no value is a NaN or an infinity.
  pure logical function all_finite(values)
    real(rk), intent(in) :: values(:)
    all_finite = all(abs(values) <= huge(values))
  end function all_finite
end module trimtab_text

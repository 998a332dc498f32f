! SPDX-License-Identifier: MIT
!> The column's own main: one line more than it had, and what it prints is exact.
program column_main
  use column, only: set_up, step, temperature
  use trimtab_production, only: trimtab_load_correction, trimtab_check_correction
  implicit none
  character(1024) :: path
  character(:), allocatable :: message
  integer :: i, status
  call get_command_argument(1, path)
  call set_up()
  call trimtab_load_correction('column', path, status, message)
  if (status /= 0) then
    write (*, '(a)') message
    stop 3, quiet=.true.
  end if
  do i = 1, 20
    call step()
  end do
  call trimtab_check_correction(status, message)
  if (status /= 0) then
    write (*, '(a)') message
    stop 4, quiet=.true.
  end if
  write (*, '(8(1x, z8.8))') temperature
end program column_main

! SPDX-License-Identifier: MIT
subroutine trimtab_initialise() bind(c)
  use trimtab
  use single
  implicit none
  call trimtab_option(rate, 'rate')
  call trimtab_option(dt, 'step')
  call trimtab_option(turned, 'turned')
end subroutine trimtab_initialise

subroutine trimtab_describe() bind(c)
  use trimtab
  use single
  implicit none
  call trimtab_clock(dt, 's')
  call trimtab_field(x, 'x', 'm', 'x')
  call trimtab_hidden(time, 'time')
  if (turned .and. counter > 2) then
    call trimtab_field(member, 'member', 'm', 'time')
    call trimtab_hidden(u, 'u')
  else
    call trimtab_hidden(u, 'u')
    call trimtab_field(member, 'member', 'm', 'time')
  end if
  call trimtab_hidden(counter, 'counter')
  call trimtab_slot('single')
  call trimtab_input(x, 'x', 'm', 'x')
  call trimtab_output(x, 'x')
end subroutine trimtab_describe

subroutine trimtab_advance(n) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  use single, only: step
  implicit none
  integer(c_int64_t), value :: n
  integer(c_int64_t) :: i
  do i = 1, n
    call step
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance

subroutine single_correct(tendency)
  use trimtab
  use single, only: x
  implicit none
  real(4), intent(inout) :: tendency(4)
  if (.not. trimtab_filled('single')) return
  call trimtab_give(x, 'x')
  call trimtab_ask()
  call trimtab_add(tendency, 'x')
end subroutine single_correct

! SPDX-License-Identifier: MIT
! The adapter of the tracer code, whose program only calls setup and step of a module. The flag x_first was a SAVEd local
! variable of step: its declaration stands in the module now, so that it can be described.

!> Once: everything the main program does before its time loop.
subroutine trimtab_initialise() bind(c)
  use trimtab
  use tracer_grid, only: rate
  use tracer_step, only: setup
  implicit none
  call setup()                              ! it reads its namelist, and an option comes after it
  call trimtab_option(rate, 'rate')
end subroutine trimtab_initialise

!> The time step, the state, the slots.
subroutine trimtab_describe() bind(c)
  use trimtab
  use tracer_grid, only: dt, food, grazer, clock
  use tracer_step, only: x_first
  implicit none
  call trimtab_clock(dt, '1')
  call trimtab_field(food, 'food', '1', 'x y')
  call trimtab_field(grazer, 'grazer', '1', 'x y')
  call trimtab_hidden(x_first, 'x_first')
  call trimtab_hidden(clock, 'clock')       ! the winds swing with it
  call trimtab_slot('tracer')
  call trimtab_input(food, 'food', '1', 'x y')
  call trimtab_input(grazer, 'grazer', '1', 'x y')
  call trimtab_output(food, 'food')
  call trimtab_output(grazer, 'grazer')
end subroutine trimtab_describe

!> Steps of the time loop.
subroutine trimtab_advance(n) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  use tracer_step, only: step
  implicit none
  integer(c_int64_t), value :: n
  integer(c_int64_t) :: i
  do i = 1, n
    call step()
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance

!> Called where the sources are complete and not yet used.
subroutine tracer_correct()
  use trimtab
  use tracer_grid, only: food, grazer, dfood, dgrazer
  implicit none
  if (.not. trimtab_filled('tracer')) return
  call trimtab_give(food, 'food')
  call trimtab_give(grazer, 'grazer')
  call trimtab_ask()
  call trimtab_add(dfood, 'food')
  call trimtab_add(dgrazer, 'grazer')
end subroutine tracer_correct

!> The state, as it comes and goes.
subroutine trimtab_get_state(n, state) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t, c_double
  use trimtab
  implicit none
  integer(c_int64_t), value :: n
  real(c_double), intent(inout) :: state(n)
  call trimtab_from_fields(state)
end subroutine trimtab_get_state

subroutine trimtab_set_state(n, state) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t, c_double
  use trimtab
  implicit none
  integer(c_int64_t), value :: n
  real(c_double), intent(in) :: state(n)
  call trimtab_to_fields(state)
end subroutine trimtab_set_state

! SPDX-License-Identifier: MIT
!> A small code with its own main: temperature in a column, real32, diffusion by Euler steps; and its adapter.
module column
  implicit none
  integer, parameter :: n = 8
  real :: temperature(n) = 0.0
  real :: dt = 0.05
  real, allocatable :: drift(:)  ! of the adapter alone: the main program never allocates it
contains
  subroutine set_up()
    integer :: i
    temperature = [(sin(0.7 * i), i = 1, n)]
  end subroutine set_up

  subroutine step()
    real :: tendency(n)
    tendency(2:n - 1) = temperature(3:) - 2.0 * temperature(2:n - 1) + temperature(:n - 2)
    tendency([1, n]) = 0.0
    call column_correct(tendency)
    temperature = temperature + dt * tendency
  end subroutine step
end module column

subroutine trimtab_initialise() bind(c)
  use column, only: set_up, drift
  call set_up()
  allocate (drift(3))
  drift = 0.0
end subroutine trimtab_initialise

subroutine trimtab_describe() bind(c)
  use trimtab
  use column, only: temperature, dt, drift
  call trimtab_clock(dt, 's')
  call trimtab_hidden(drift(1:3), 'drift')
  call trimtab_field(temperature, 'temperature', 'K', 'z')
  call trimtab_slot('column')
  call trimtab_input(temperature, 'temperature', 'K', 'z')
  call trimtab_output(temperature, 'temperature')
end subroutine trimtab_describe

subroutine trimtab_advance(steps) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  use column, only: step
  integer(c_int64_t), value :: steps
  integer(c_int64_t) :: i
  do i = 1, steps
    call step()
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance

subroutine column_correct(tendency)
  use trimtab
  use column, only: temperature, n
  real, intent(inout) :: tendency(n)
  if (.not. trimtab_filled('column')) return
  call trimtab_give(temperature, 'temperature')
  call trimtab_ask()
  call trimtab_add(tendency, 'temperature')
end subroutine column_correct

subroutine trimtab_get_state(size_of_state, state) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t, c_double
  use trimtab
  integer(c_int64_t), value :: size_of_state
  real(c_double), intent(inout) :: state(size_of_state)
  call trimtab_from_fields(state)
end subroutine trimtab_get_state

subroutine trimtab_set_state(size_of_state, state) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t, c_double
  use trimtab
  integer(c_int64_t), value :: size_of_state
  real(c_double), intent(in) :: state(size_of_state)
  call trimtab_to_fields(state)
end subroutine trimtab_set_state

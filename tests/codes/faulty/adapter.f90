! SPDX-License-Identifier: MIT
! The adapter of faulty.f90; what its author left out goes by the same number.
subroutine trimtab_initialise() bind(c)
  use trimtab
  use faulty
  implicit none
  call trimtab_option(fault, 'fault')
  call trimtab_option(drag, 'drag')
  call trimtab_option(unit, 'unit')
  call setup
end subroutine trimtab_initialise

subroutine trimtab_describe() bind(c)
  use trimtab
  use faulty
  implicit none
  call trimtab_clock(dt, 's')
  if (fault == levels) then
    call trimtab_field(level(:, now), 'u', 'm/s', 'x')
  else
    call trimtab_field(u, 'u', 'm/s', 'x')
    call trimtab_field(v, 'v', 'm/s', 'x')
    call trimtab_hidden(pending, 'pending')
    call trimtab_hidden(given, 'given')
    if (fault == halo) call trimtab_hidden(margin(1:n), 'margin')
  end if
  if (fault /= seldom) call trimtab_hidden(counter, 'counter')
  if (fault == no_slot) return
  call trimtab_slot('faulty')
  if (fault == levels) then
    call trimtab_input(level(:, now), 'u', 'm/s', 'x')
    call trimtab_output(level(:, now), 'u')
  else
    call trimtab_input(u, 'u', 'm/s', 'x')
    call trimtab_output(u, 'u')
    if (fault == signed) call trimtab_output(v, 'v')
  end if
end subroutine trimtab_describe

subroutine trimtab_advance(n) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  use faulty, only: step
  implicit none
  integer(c_int64_t), value :: n
  integer(c_int64_t) :: i
  do i = 1, n
    call step
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance

subroutine faulty_correct
  use trimtab
  use faulty
  implicit none
  real(dp) :: push(n), share(n)
  if (.not. trimtab_filled('faulty')) return
  if (fault == levels) then
    call trimtab_give(level(:, 3 - now), 'u')
  else
    call trimtab_give(u, 'u')
  end if
  call trimtab_ask()
  push = 0
  call trimtab_add(push, 'u')
  select case (fault)
  case (uneven)
    push(1:n/3) = 2 * push(1:n/3)
  case (twice)
    push = 2 * push
  case (sets)
    du(3) = du(3) + 1e-3_dp * unit
  case (clamps)
    given = push
  case (signed)
    share = 0
    call trimtab_add(share, 'v')
    v = v + dt * share * mask          ! -0.0 + 0.0 is 0.0
  end select
  du = du + push
end subroutine faulty_correct

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

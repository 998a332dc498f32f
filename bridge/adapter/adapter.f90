! SPDX-License-Identifier: MIT
! The adapter of NAME: what trimtab needs of your code. Fill in what is marked FILL; README.md says how.
! Compile it with your code's own flags. Arrays may be of any kind and rank, and sections of arrays.

!> Once: everything your main program does before its time loop.
subroutine trimtab_initialise() bind(c)
  use trimtab
  ! FILL: use your_module, only: your_setup, viscosity
  implicit none
  ! FILL: call your_setup()
  ! FILL: comm = MPI_COMM_WORLD; call trimtab_communicator(comm)   ! only of an MPI code, in place of MPI_INIT; README.md says more
  ! FILL: call trimtab_option(viscosity, 'viscosity')      ! numbers and texts that the TOML may change; or none
  call trimtab_refuse('trimtab_initialise in the adapter is not filled in yet')   ! FILL: take this line out
end subroutine trimtab_initialise

!> The time step, the state, the slots: the arrays themselves with names, units and dimensions (as declared, first index first).
subroutine trimtab_describe() bind(c)
  use trimtab
  ! FILL: use your_module, only: dt, h, h_old, step_number
  implicit none
  ! FILL: call trimtab_clock(dt, 's')
  ! FILL: call trimtab_block('y', ny, before)             ! only of an MPI code: 'y' has ny points in all, so many before these
  ! FILL: call trimtab_field(h, 'h', 'm', 'x y')            ! every field that a loss or a figure looks at
  ! FILL: call trimtab_hidden(h_old, 'h_old')               ! all else that a restart needs: old time levels, flags, counters
  ! FILL: call trimtab_hidden(step_number, 'step_number')
  call trimtab_slot('NAME')
  ! FILL: call trimtab_input(h, 'h', 'm', 'x y')            ! what the network sees, in the shape it has where you call it
  ! FILL: call trimtab_output(h, 'h')                       ! the field whose tendency it returns, in that field's shape
end subroutine trimtab_describe

!> Steps of your time loop.
subroutine trimtab_advance(n) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  implicit none
  integer(c_int64_t), value :: n
  integer(c_int64_t) :: i
  do i = 1, n
    ! FILL: call your_step()
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance

!> Your code calls this where its tendency is complete, in the units it has there. With an empty slot nothing is touched.
subroutine NAME_correct(dhdt)
  use trimtab
  ! FILL: use your_module, only: h, nx, ny
  implicit none
  ! FILL: real, intent(inout) :: dhdt(nx, ny)               ! as in your code; or no argument and a module's array
  real, intent(inout) :: dhdt(*)                            ! FILL: take this line out
  if (.not. trimtab_filled('NAME')) return
  ! FILL: call trimtab_give(h, 'h')                         ! each input
  call trimtab_ask()
  ! FILL: call trimtab_add(dhdt, 'h')                       ! dhdt = dhdt + output; a third argument is a factor, as 2.0*dt
end subroutine NAME_correct

!> The state, as it comes and goes: nothing to fill in unless your state at the border is not an array of your code.
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
  ! What your code derives from the state and keeps, if anything, is computed anew here.
end subroutine trimtab_set_state

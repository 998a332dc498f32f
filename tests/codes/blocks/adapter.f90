! SPDX-License-Identifier: MIT
! The adapter of blocks, a code on several ranks: filled in from what `trimtab couple init` lays down.

!> Once: everything the main program does before its time loop. MPI is started already.
subroutine trimtab_initialise() bind(c)
  use mpi, only: MPI_COMM_WORLD
  use trimtab
  use blocks_state, only: comm, kappa
  use blocks_step, only: setup
  implicit none
  comm = MPI_COMM_WORLD
  call trimtab_communicator(comm)
  call setup()
  call trimtab_option(kappa, 'kappa')
end subroutine trimtab_initialise

!> The time step, the state, the slots; and which rows of how many are here.
subroutine trimtab_describe() bind(c)
  use trimtab
  use blocks_state, only: dt, t, rows, first, ny
  implicit none
  call trimtab_clock(dt, 's')
  call trimtab_block('y', ny, first)
  call trimtab_field(t(:, 1:rows), 't', 'K', 'x y')
  call trimtab_slot('blocks')
  call trimtab_input(t, 't', 'K', 'x y')            ! with its halo: one row more on each side than the field
  call trimtab_output(t(:, 1:rows), 't')
end subroutine trimtab_describe

!> Steps of the time loop.
subroutine trimtab_advance(n) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  use blocks_step, only: step
  implicit none
  integer(c_int64_t), value :: n
  integer(c_int64_t) :: i
  do i = 1, n
    call step()
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance

!> Called where the tendency is complete; c is the stage's temperature, its halo filled.
subroutine blocks_correct(c)
  use trimtab
  use blocks_state, only: dtdt, nx, rows
  implicit none
  real(8), intent(in) :: c(nx, 0:rows + 1)
  if (.not. trimtab_filled('blocks')) return
  call trimtab_give(c, 't')
  call trimtab_ask()
  call trimtab_add(dtdt, 't')
end subroutine blocks_correct

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

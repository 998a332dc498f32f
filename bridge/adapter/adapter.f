! SPDX-License-Identifier: MIT
! The adapter of NAME: what trimtab needs of your code. Fill in what
! is marked FILL; README.md says how. Compile it with your code's own
! flags. Arrays may be of any kind and rank, and sections of arrays.

! Once: everything your main program does before its time loop.
      subroutine trimtab_initialise() bind(c)
      use trimtab
! FILL: include 'your.common'
!       (an MPI code sets its communicator, in place of MPI_INIT)
! FILL: comm = MPI_COMM_WORLD
! FILL: call trimtab_communicator(comm)
! FILL: call yourinit
! FILL: call trimtab_option(visc, 'visc')
!       (what the TOML may change: numbers and texts; or none)
! FILL: take the next line out
      call trimtab_refuse('trimtab_initialise is not filled in yet')
      end

! The time step, the state, the slots: the arrays themselves, with
! names, units and dimensions (as declared, first index first).
      subroutine trimtab_describe() bind(c)
      use trimtab
! FILL: include 'your.common'
! FILL: call trimtab_clock(dt, 's')
!       (an MPI code: 'y' has ny points, so many before these)
! FILL: call trimtab_block('y', ny, before)
!       Every field that a loss or a figure looks at:
! FILL: call trimtab_field(h, 'h', 'm', 'x y')
!       All else that a restart needs: old levels, flags, counters:
! FILL: call trimtab_hidden(hold, 'hold')
      call trimtab_slot('NAME')
!       What the network sees, in the shape it has there:
! FILL: call trimtab_input(h, 'h', 'm', 'x y')
!       The field whose tendency it returns, in that field's shape:
! FILL: call trimtab_output(h, 'h')
      end

! Steps of your time loop.
      subroutine trimtab_advance(n) bind(c)
      use, intrinsic :: iso_c_binding, only: c_int64_t
      use trimtab
      integer(c_int64_t), value :: n
      integer(c_int64_t) :: i
      do i = 1, n
! FILL:   call yourstep
        if (.not. trimtab_go_on()) return
      end do
      end

! Your code calls this where its tendency is complete, in the units it
! has there. With an empty slot nothing is touched.
      subroutine NAME_correct
      use trimtab
! FILL: include 'your.common'
      if (.not. trimtab_filled('NAME')) return
!       Each input:
! FILL: call trimtab_give(h, 'h')
      call trimtab_ask()
!       dhdt = dhdt + output; a third argument is a factor, as 2*dt:
! FILL: call trimtab_add(dhdt, 'h')
      end

! The state, as it comes and goes: nothing to fill in unless your
! state at the border is not an array of your code.
      subroutine trimtab_get_state(n, state) bind(c)
      use, intrinsic :: iso_c_binding, only: c_int64_t, c_double
      use trimtab
      integer(c_int64_t), value :: n
      real(c_double), intent(inout) :: state(n)
      call trimtab_from_fields(state)
      end

      subroutine trimtab_set_state(n, state) bind(c)
      use, intrinsic :: iso_c_binding, only: c_int64_t, c_double
      use trimtab
      integer(c_int64_t), value :: n
      real(c_double), intent(in) :: state(n)
      call trimtab_to_fields(state)
!       What your code derives from the state and keeps, if anything,
!       is computed anew here.
      end

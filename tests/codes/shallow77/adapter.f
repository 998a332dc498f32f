! SPDX-License-Identifier: MIT
! The adapter of the shallow-water code: its PROGRAM calls SETUP and STEP,
! and so does this. Friction acts on the old level, so that the network
! sees the old level.

! Once: everything your main program does before its time loop.
      subroutine trimtab_initialise() bind(c)
      use trimtab
      COMMON /CNTL/ DT,DX,G,F0,RDRAG,WIND,CSMAG,ASSEL,NVIS,NSTEP,NOUT
      CALL SETUP
      call trimtab_option(rdrag, 'rdrag')
      end

! The time step, the state, the slots: the arrays themselves, with
! names, units and dimensions (as declared, first index first).
      subroutine trimtab_describe() bind(c)
      use trimtab
      PARAMETER (NX=24, NY=16)
      COMMON /FLOW/ U(NX,NY),V(NX,NY),H(NX,NY)
      COMMON /OLD/ UO(NX,NY),VO(NX,NY),HO(NX,NY)
      COMMON /EDDY/ A(NX,NY)
      COMMON /CNTL/ DT,DX,G,F0,RDRAG,WIND,CSMAG,ASSEL,NVIS,NSTEP,NOUT
      COMMON /TIMER/ KSTEP
      call trimtab_clock(dt, 's')
      call trimtab_field(u, 'u', 'm/s', 'x y')
      call trimtab_field(v, 'v', 'm/s', 'x y')
      call trimtab_field(h, 'h', 'm', 'x y')
      call trimtab_hidden(uo, 'u_old')
      call trimtab_hidden(vo, 'v_old')
      call trimtab_hidden(ho, 'h_old')
      call trimtab_hidden(a, 'eddy')
      call trimtab_hidden(kstep, 'kstep')
      call trimtab_slot('swe')
      call trimtab_input(uo, 'u', 'm/s', 'x y')
      call trimtab_input(vo, 'v', 'm/s', 'x y')
      call trimtab_output(u, 'u')
      call trimtab_output(v, 'v')
      end

! Steps of your time loop.
      subroutine trimtab_advance(n) bind(c)
      use, intrinsic :: iso_c_binding, only: c_int64_t
      use trimtab
      integer(c_int64_t), value :: n
      integer(c_int64_t) :: i
      do i = 1, n
        CALL STEP
        if (.not. trimtab_go_on()) return
      end do
      end

! Your code calls this where its tendency is complete, in the units it
! has there. With an empty slot nothing is touched.
      subroutine swe_correct
      use trimtab
      PARAMETER (NX=24, NY=16)
      COMMON /OLD/ UO(NX,NY),VO(NX,NY),HO(NX,NY)
      COMMON /TEND/ UT(NX,NY),VT(NX,NY),HT(NX,NY)
      if (.not. trimtab_filled('swe')) return
      call trimtab_give(uo, 'u')
      call trimtab_give(vo, 'v')
      call trimtab_ask()
      call trimtab_add(ut, 'u')
      call trimtab_add(vt, 'v')
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

! SPDX-License-Identifier: MIT
!> The solvers of this library by name: a new one needs its own file and one `case` here.
module trimtab_registry
  use trimtab_status, only: status_t, STATUS_UNKNOWN_SOLVER
  use trimtab_solver, only: solver_t
  use trimtab_lorenz, only: lorenz63_t, lorenz96_t, lorenz96_two_scale_t
  use trimtab_oscillator, only: oscillator_t
  use trimtab_vanderpol, only: vanderpol_t
  use trimtab_burgers, only: burgers_t
  use trimtab_quasigeostrophic, only: quasigeostrophic_t
  implicit none
  private
  public :: create_solver

contains

  !> An unconfigured solver; `solver` stays unallocated when nothing has that name.
  subroutine create_solver(name, solver, status)
    character(*), intent(in) :: name
    class(solver_t), allocatable, intent(out) :: solver
    type(status_t), intent(inout) :: status   !< STATUS_UNKNOWN_SOLVER
    select case (name)
    case ('lorenz63')
      allocate (lorenz63_t :: solver)
    case ('lorenz96')
      allocate (lorenz96_t :: solver)
    case ('lorenz96_two_scale')
      allocate (lorenz96_two_scale_t :: solver)
    case ('oscillator')
      allocate (oscillator_t :: solver)
    case ('vanderpol')
      allocate (vanderpol_t :: solver)
    case ('burgers')
      allocate (burgers_t :: solver)
    case ('qg')
      allocate (quasigeostrophic_t :: solver)
    case default
      call status%raise(STATUS_UNKNOWN_SOLVER, 'no solver is called '''//trim(name)// &
                        '''; there are lorenz63, lorenz96, lorenz96_two_scale, oscillator, vanderpol, burgers and qg')
    end select
  end subroutine create_solver
end module trimtab_registry

! SPDX-License-Identifier: MIT
!> What a solver is: a tendency on an internal state, and the way in and out of it.
!!
!! The state at the border, (n, members) float64, is what Python, files and the correction's window see. The internal state,
!! (m, members), is what the integrator advances: the same numbers for an ODE, spectral coefficients for QG.
!!
!! What fills the slot answers a tendency of the border state, M(u); or, where a solver says so (`coefficients`), a coefficient P
!! of its own tendency, du/dt = N(u, P). N must be linear in P here, and P is what is added to the value in the namelist, so that
!! an empty slot and P = 0 are the same: M(u) = N(u, P(u)) - N(u, 0), which `influence` adds.
module trimtab_solver
  use trimtab_kinds, only: rk, ik
  use trimtab_status, only: status_t, STATUS_UNSUPPORTED
  use trimtab_correction, only: correction_t
  implicit none
  private
  public :: solver_t

  !> A solver, configured and ready to advance states of any number of members.
  type, abstract :: solver_t
    integer(ik) :: n = 0   !< length of the state at the border
    integer(ik) :: m = 0   !< length of the internal state, in reals
    logical :: has_adjoint = .false.   !< true when `tendency_adjoint` answers
    logical :: modal = .false.         !< true when the internal state is one field's modes: an error's size is the whole field's
    integer(ik) :: coefficients = 0    !< length of the coefficient that the slot answers; 0 for a tendency of the state
    real(rk), allocatable :: held_coefficient(:, :)   !< (coefficients, members), the slot's last answer
  contains
    procedure(configure_i), deferred :: configure
    procedure(describe_i), deferred :: describe
    procedure(tendency_i), deferred :: tendency
    procedure :: enter
    procedure :: leave
    procedure :: correct
    procedure :: tendency_adjoint
    procedure :: ask_coefficient
    procedure :: influence
    procedure :: influence_adjoint
    procedure :: influence_state_adjoint
    procedure :: release
  end type solver_t

  abstract interface
    !> Read this solver's namelist group, check every value, allocate, set n and m.
    subroutine configure_i(self, lines, status)
      import :: solver_t, status_t
      implicit none
      class(solver_t), intent(inout) :: self
      character(*), intent(in) :: lines(:)      !< the namelist text, an internal file
      type(status_t), intent(inout) :: status   !< STATUS_BAD_PARAMETER with a sentence
    end subroutine configure_i

    !> JSON object {"fields": [...], "parameters": {...}}: names, units, dimensions and the values in force.
    function describe_i(self) result(text)
      import :: solver_t
      implicit none
      class(solver_t), intent(in) :: self
      character(:), allocatable :: text
    end function describe_i

    !> dx/dt of the physics for all members at once.
    subroutine tendency_i(self, t, x, dxdt)
      import :: solver_t, rk
      implicit none
      class(solver_t), intent(inout) :: self
      real(rk), intent(in) :: t                                   !< time
      real(rk), intent(in), contiguous, target :: x(:, :)         !< internal states (m, members)
      real(rk), intent(out), contiguous, target :: dxdt(:, :)     !< (m, members)
    end subroutine tendency_i
  end interface

contains

  !> From the border to the internal state; the identity unless a solver says otherwise.
  subroutine enter(self, u, x)
    class(solver_t), intent(inout) :: self
    real(rk), intent(in), contiguous, target :: u(:, :)    !< (n, members)
    real(rk), intent(out), contiguous, target :: x(:, :)   !< (m, members)
    x = u
  end subroutine enter

  !> From the internal state to the border; the identity unless a solver says otherwise.
  subroutine leave(self, x, u)
    class(solver_t), intent(inout) :: self
    real(rk), intent(in), contiguous, target :: x(:, :)    !< (m, members)
    real(rk), intent(out), contiguous, target :: u(:, :)   !< (n, members)
    u = x
  end subroutine leave

  !> Add the correction to a tendency: the one line where physics and network meet.
  subroutine correct(self, slot, x, weight, dxdt, status)
    class(solver_t), intent(inout) :: self
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in), contiguous, target :: x(:, :)         !< internal states (m, members)
    real(rk), intent(in) :: weight                              !< see correction_function
    real(rk), intent(inout), contiguous, target :: dxdt(:, :)   !< (m, members), added to
    type(status_t), intent(inout) :: status
    if (self%coefficients == 0) then
      call slot%apply(x, weight, dxdt, status)
    else
      call self%ask_coefficient(slot, x, weight, status)
      if (status%ok()) call self%influence(x, self%held_coefficient, dxdt)
    end if
  end subroutine correct

  !> The slot's coefficient at border states, into `held_coefficient`; the slot must be filled.
  subroutine ask_coefficient(self, slot, u, weight, status)
    class(solver_t), intent(inout) :: self
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in), contiguous, target :: u(:, :)         !< (n, members)
    real(rk), intent(in) :: weight                              !< see correction_function
    type(status_t), intent(inout) :: status
    if (allocated(self%held_coefficient)) then
      if (size(self%held_coefficient, 2) /= size(u, 2)) deallocate (self%held_coefficient)
    end if
    if (.not. allocated(self%held_coefficient)) allocate (self%held_coefficient(self%coefficients, size(u, 2)))
    call slot%evaluate(u, weight, self%held_coefficient, status)
  end subroutine ask_coefficient

  !> Add N(u, P) - N(u, 0) to a tendency: nothing unless a solver takes a coefficient.
  subroutine influence(self, x, coefficient, dxdt)
    class(solver_t), intent(inout) :: self
    real(rk), intent(in), contiguous, target :: x(:, :)             !< internal states (m, members)
    real(rk), intent(in), contiguous, target :: coefficient(:, :)   !< P (coefficients, members)
    real(rk), intent(inout), contiguous, target :: dxdt(:, :)       !< (m, members), added to
  end subroutine influence

  !> (dN/dP)^T lambda at the border, which does not depend on P; for solvers that take a coefficient.
  subroutine influence_adjoint(self, u, lambda, answer)
    class(solver_t), intent(inout) :: self
    real(rk), intent(in), contiguous, target :: u(:, :), lambda(:, :)   !< (n, members)
    real(rk), intent(inout), contiguous, target :: answer(:, :)         !< (coefficients, members)
    answer = 0.0_rk
  end subroutine influence_adjoint

  !> The transpose of the derivative of N(u, P) - N(u, 0) by u at fixed P, applied to lambda, at the border.
  subroutine influence_state_adjoint(self, u, coefficient, lambda, answer)
    class(solver_t), intent(inout) :: self
    real(rk), intent(in), contiguous, target :: u(:, :)             !< (n, members)
    real(rk), intent(in), contiguous, target :: coefficient(:, :)   !< P (coefficients, members)
    real(rk), intent(in), contiguous, target :: lambda(:, :)        !< (n, members)
    real(rk), intent(inout), contiguous, target :: answer(:, :)     !< (n, members)
    answer = 0.0_rk
  end subroutine influence_state_adjoint

  !> (dF/du)^T lambda of the physics at the border, where u -> F is enter, tendency, leave; in the Euclidean inner product of
  !! border states. Refused unless a solver says otherwise (and sets `has_adjoint` when configured).
  subroutine tendency_adjoint(self, t, u, lambda, answer, status)
    class(solver_t), intent(inout) :: self
    real(rk), intent(in) :: t                                   !< time
    real(rk), intent(in), contiguous, target :: u(:, :)         !< (n, members)
    real(rk), intent(in), contiguous, target :: lambda(:, :)    !< (n, members)
    real(rk), intent(inout), contiguous, target :: answer(:, :) !< (n, members)
    type(status_t), intent(inout) :: status                     !< STATUS_UNSUPPORTED
    call status%raise(STATUS_UNSUPPORTED, 'this solver offers no adjoint of its tendency: use a gradient that runs it forward')
  end subroutine tendency_adjoint

  !> Give back what is not an allocatable component (plans, C memory); nothing by default.
  subroutine release(self)
    class(solver_t), intent(inout) :: self
  end subroutine release
end module trimtab_solver

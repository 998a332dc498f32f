! SPDX-License-Identifier: MIT
!> Steps for stiff systems of few variables: physics implicit, correction explicit (IMEX Runge-Kutta).
!!
!!   y_0 = u,  y_i = u + dt sum_{j=1}^{i} a_ij F(y_j) + dt sum_{j=0}^{i-1} e_ij M(y_j),  u(t + dt) = y_s,   i = 1 ... s
!!
!! The diagonal of a is one number; its last row is the step itself (stiffly accurate), and the implicit part is L-stable: stiff
!! modes are damped within one step of any length. The correction is seen at y_0 ... y_{s-1}, once each, with weight e_sj dt. It
!! must not be stiff itself; its Jacobian is never asked for. `correction_at = 'step'` takes M(y_0) in place of every M(y_j).
!!
!! ars222: 2 implicit stages, 2 calls of the slot, order 2.   ars443: 4 and 4, order 3.
!! Source: Ascher, Ruuth, Spiteri, Appl. Numer. Math. 25, 151 (1997), doi:10.1016/S0168-9274(97)00056-1, sections 2.6 and 2.8.
!!
!! Each stage is solved by Newton's method, with the Jacobian of the physics taken anew at every iteration from the solver's
!! `tendency_adjoint` (one call a row, all members at once) and factorised densely: for up to 64 variables whose internal
!! state is the state at the border. Every member iterates for itself: same bits alone and in a batch.
module trimtab_implicit
  use, intrinsic :: ieee_arithmetic, only: ieee_value, ieee_quiet_nan
  use trimtab_kinds, only: rk, ik
  use trimtab_status, only: status_t, STATUS_UNSUPPORTED
  use trimtab_correction, only: correction_t
  use trimtab_solver, only: solver_t
  use trimtab_integrators, only: stepper_t
  use trimtab_text, only: json_integer
  implicit none
  private
  public :: imex_t

  integer, parameter :: largest = 64                  !< variables of a dense Jacobian
  integer, parameter :: most_stages = 4
  integer, parameter :: most_iterations = 25
  !> A correction of Newton this small against the state ends it: the next one would be its square.
  real(rk), parameter :: enough = 1.0e-9_rk

  !> The scheme; its base's k holds F(y_j), its held sums what is known of a stage.
  type, extends(stepper_t) :: imex_t
    real(rk) :: implicit(most_stages, most_stages) = 0.0_rk     !< a_ij
    real(rk) :: explicit(most_stages, 0:most_stages - 1) = 0.0_rk !< e_ij
    real(rk) :: nodes(most_stages) = 0.0_rk                     !< c_i
    real(rk), allocatable :: m(:, :, :)         !< M(y_j), (m, members, 0 ... s-1)
    real(rk), allocatable :: jacobian(:, :, :)  !< dF/du (row, column, member)
  contains
    procedure :: select_tableau
    procedure :: accepts
    procedure :: reserve
    procedure :: step
  end type imex_t

contains

  !> Fill the tableaux.
  subroutine select_tableau(self, name)
    class(imex_t), intent(inout) :: self
    character(*), intent(in) :: name   !< 'ars222' or 'ars443'
    real(rk), parameter :: gamma = 1.0_rk - sqrt(0.5_rk)
    real(rk), parameter :: delta = 1.0_rk - 0.5_rk / gamma
    self%name = name
    self%implicit = 0.0_rk
    self%explicit = 0.0_rk
    if (name == 'ars222') then
      self%order = 2
      self%stages = 2
      self%implicit(1, 1) = gamma
      self%implicit(2, 1:2) = [1.0_rk - gamma, gamma]
      self%explicit(1, 0) = gamma
      self%explicit(2, 0:1) = [delta, 1.0_rk - delta]
    else
      self%order = 3
      self%stages = 4
      self%implicit(1, 1) = 1.0_rk / 2
      self%implicit(2, 1:2) = [1.0_rk / 6, 1.0_rk / 2]
      self%implicit(3, 1:3) = [-1.0_rk / 2, 1.0_rk / 2, 1.0_rk / 2]
      self%implicit(4, 1:4) = [3.0_rk / 2, -3.0_rk / 2, 1.0_rk / 2, 1.0_rk / 2]
      self%explicit(1, 0) = 1.0_rk / 2
      self%explicit(2, 0:1) = [11.0_rk / 18, 1.0_rk / 18]
      self%explicit(3, 0:2) = [5.0_rk / 6, -5.0_rk / 6, 1.0_rk / 2]
      self%explicit(4, 0:3) = [1.0_rk / 4, 7.0_rk / 4, 3.0_rk / 4, -7.0_rk / 4]
    end if
    self%nodes = sum(self%implicit, dim=2)
  end subroutine select_tableau

  !> See stepper_t.
  subroutine accepts(self, solver, status)
    class(imex_t), intent(in) :: self
    class(solver_t), intent(in) :: solver
    type(status_t), intent(inout) :: status
    if (.not. status%ok()) return
    if (.not. solver%has_adjoint) then
      call status%raise(STATUS_UNSUPPORTED, trim(self%name)//' is implicit and needs the adjoint of the tendency, which this '// &
                        'solver has not: take an explicit integrator')
    else if (solver%n /= solver%m .or. solver%n > largest) then
      call status%raise(STATUS_UNSUPPORTED, trim(self%name)//' solves with dense Jacobians, for at most '// &
                        json_integer(int(largest, ik))//' variables, and this solver has '//json_integer(solver%n)// &
                        ': take an explicit integrator')
    end if
  end subroutine accepts

  !> See stepper_t.
  subroutine reserve(self, m, members)
    class(imex_t), intent(inout) :: self
    integer, intent(in) :: m, members
    call self%stepper_t%reserve(m, members)
    if (allocated(self%m)) then
      if (size(self%m, 1) == m .and. size(self%m, 2) == members) return
      deallocate (self%m, self%jacobian)
    end if
    allocate (self%m(m, members, 0:self%stages - 1), self%jacobian(m, m, members))
  end subroutine reserve

  !> See stepper_t; a member whose Newton iteration does not converge is NaN, and `reason` says so.
  subroutine step(self, solver, slot, t, dt, x, status)
    class(imex_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in) :: t, dt
    real(rk), intent(inout), contiguous :: x(:, :)
    type(status_t), intent(inout) :: status
    logical :: lost(size(x, 2))
    integer :: i, j, member

    lost = .false.
    self%y = x
    do i = 1, self%stages
      if (slot%filled()) then
        call see(self, solver, slot, dt, i - 1, status)
        if (.not. status%ok()) return
      end if
      self%held = x
      do j = 1, i - 1
        if (abs(self%implicit(i, j)) > 0.0_rk) self%held = self%held + (dt * self%implicit(i, j)) * self%k(:, :, j)
      end do
      do j = 0, i - 1
        if (slot%filled()) self%held = self%held + (dt * self%explicit(i, j)) * self%m(:, :, j)
      end do
      call solve(self, solver, t + self%nodes(i) * dt, dt * self%implicit(i, i), lost, status)
      if (.not. status%ok()) return
      do member = 1, size(x, 2)
        if (lost(member)) self%y(:, member) = x(:, member)   ! so that the slot sees nothing but finite numbers
      end do
      self%k(:, :, i) = (self%y - self%held) / (dt * self%implicit(i, i))
    end do
    x = self%y
    do member = 1, size(x, 2)
      if (lost(member)) x(:, member) = ieee_value(0.0_rk, ieee_quiet_nan)
    end do
    if (any(lost) .and. .not. allocated(self%reason)) then
      self%reason = 'Newton''s iteration in a stage of '//trim(self%name)//' did not converge: shorten dt, or check the correction'
    end if
  end subroutine step

  !> M(y_j), or M(y_0) again when the correction is held.
  subroutine see(self, solver, slot, dt, j, status)
    class(imex_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in) :: dt
    integer, intent(in) :: j
    type(status_t), intent(inout) :: status
    if (j > 0 .and. .not. self%each_stage) then
      self%m(:, :, j) = self%m(:, :, 0)
      return
    end if
    self%m(:, :, j) = 0.0_rk
    call solver%correct(slot, self%y, merge(self%explicit(self%stages, j) * dt, dt, self%each_stage), self%m(:, :, j), status)
  end subroutine see

  !> Newton's iteration for y - w F(y) = held, from the y that is there.
  subroutine solve(self, solver, t, w, lost, status)
    class(imex_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    real(rk), intent(in) :: t, w
    logical, intent(inout) :: lost(:)
    type(status_t), intent(inout) :: status
    real(rk) :: matrix(size(self%y, 1), size(self%y, 1)), change(size(self%y, 1))
    real(rk) :: slope(size(self%y, 1), size(self%y, 2))
    logical :: busy(size(lost)), singular
    integer :: iteration, member, row

    busy = .not. lost
    do iteration = 1, most_iterations
      call solver%tendency(t, self%y, slope)
      call differentiate(self, solver, t, status)
      if (.not. status%ok()) return
      do member = 1, size(lost)
        if (.not. busy(member)) cycle
        matrix = -w * self%jacobian(:, :, member)
        do row = 1, size(matrix, 1)
          matrix(row, row) = matrix(row, row) + 1.0_rk
        end do
        change = self%held(:, member) + w * slope(:, member) - self%y(:, member)
        call eliminate(size(change), matrix, change, singular)
        if (singular .or. .not. all(abs(change) <= huge(w))) then
          lost(member) = .true.
        else
          self%y(:, member) = self%y(:, member) + change
        end if
        busy(member) = .not. (lost(member) .or. maxval(abs(change)) <= &
                              enough * max(maxval(abs(self%y(:, member))), maxval(abs(self%held(:, member)))))
      end do
      if (.not. any(busy)) return
    end do
    lost = lost .or. busy
  end subroutine solve

  !> dF/du of every member: row j is (dF/du)^T e_j.
  subroutine differentiate(self, solver, t, status)
    class(imex_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    real(rk), intent(in) :: t
    type(status_t), intent(inout) :: status
    real(rk) :: unit(size(self%y, 1), size(self%y, 2)), row(size(self%y, 1), size(self%y, 2))
    integer :: j
    do j = 1, size(unit, 1)
      unit = 0.0_rk
      unit(j, :) = 1.0_rk
      call solver%tendency_adjoint(t, self%y, unit, row, status)
      self%jacobian(j, :, :) = row
    end do
  end subroutine differentiate

  !> Solve a small dense system in place, with partial pivoting.
  pure subroutine eliminate(n, a, b, singular)
    integer, intent(in) :: n
    real(rk), intent(inout) :: a(n, n)   !< lost
    real(rk), intent(inout) :: b(n)      !< right side, then solution
    logical, intent(out) :: singular
    real(rk) :: row(n), swap
    integer :: i, j, pivot
    singular = .false.
    do j = 1, n
      pivot = j - 1 + maxloc(abs(a(j:, j)), dim=1)
      singular = .not. abs(a(pivot, j)) > 0.0_rk
      if (singular) return
      row = a(j, :)
      a(j, :) = a(pivot, :)
      a(pivot, :) = row
      swap = b(j)
      b(j) = b(pivot)
      b(pivot) = swap
      do i = j + 1, n
        a(i, j) = a(i, j) / a(j, j)
        b(i) = b(i) - a(i, j) * b(j)
      end do
      do i = j + 1, n
        a(j + 1:, i) = a(j + 1:, i) - a(j + 1:, j) * a(j, i)
      end do
    end do
    do j = n, 1, -1
      b(j) = (b(j) - sum(a(j, j + 1:) * b(j + 1:))) / a(j, j)
    end do
  end subroutine eliminate
end module trimtab_implicit

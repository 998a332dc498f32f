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
!! state is the state at the border. Where it does not converge, as at the jumps of a relaxation oscillator, the step is halved,
!! and doubled again as soon as it fits into dt: dt is reached exactly. There is no control of the error beyond that.
!! Every member does so for itself, each dt anew: same bits alone, in a batch, and wherever a run is cut. The correction is seen
!! in every try, with weight 0 in those that are not the first of a dt.
module trimtab_implicit
  use, intrinsic :: ieee_arithmetic, only: ieee_value, ieee_quiet_nan
  use trimtab_kinds, only: rk, ik
  use trimtab_status, only: status_t, STATUS_UNSUPPORTED
  use trimtab_finite, only: bound
  use trimtab_correction, only: correction_t
  use trimtab_solver, only: solver_t
  use trimtab_integrators, only: stepper_t
  use trimtab_text, only: json_integer
  implicit none
  private
  public :: imex_t

  integer, parameter :: largest = 64                  !< variables of a dense Jacobian
  integer, parameter :: most_stages = 4
  integer, parameter :: most_iterations = 10
  integer, parameter :: whole = 2**20                 !< ticks of a dt: a step is halved 20 times at most
  !> A change by Newton's method this small against the state ends it: the next one would be its square.
  real(rk), parameter :: enough = 1.0e-9_rk

  !> Where one member is within its dt.
  type :: progress_t
    integer :: member = 0         !< its column in the caller's states
    integer :: done = 0           !< ticks
    integer :: ticks = whole      !< of the step to be tried
    logical :: lost = .false.     !< a stage of this try did not converge
  end type progress_t

  !> The scheme; its base's k holds F(y_j), its held sums what is known of a stage; members on their way stand in front.
  type, extends(stepper_t) :: imex_t
    real(rk) :: implicit(most_stages, most_stages) = 0.0_rk     !< a_ij
    real(rk) :: explicit(most_stages, 0:most_stages - 1) = 0.0_rk !< e_ij
    real(rk) :: nodes(most_stages) = 0.0_rk                     !< c_i
    real(rk), allocatable :: m(:, :, :)         !< M(y_j), (m, members, 0 ... s-1)
    real(rk), allocatable :: z(:, :)            !< states of the members on their way (m, members)
    real(rk), allocatable :: jacobian(:, :, :)  !< dF/du (row, column, member)
    type(progress_t), allocatable :: progress(:)  !< of the members on their way, in the order of z
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
      deallocate (self%m, self%z, self%jacobian, self%progress, self%sizes, self%counts)
    end if
    allocate (self%m(m, members, 0:self%stages - 1), self%z(m, members), self%jacobian(m, m, members), source=0.0_rk)
    allocate (self%progress(members), self%sizes(4, members), self%counts(members))
  end subroutine reserve

  !> See stepper_t; a member whose Newton iteration does not converge in the shortest step is NaN, and `reason` says so.
  subroutine step(self, solver, slot, t, dt, x, status)
    class(imex_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in) :: t, dt
    real(rk), intent(inout), contiguous :: x(:, :)
    type(status_t), intent(inout) :: status
    integer :: active, i
    logical :: first

    active = size(x, 2)
    do i = 1, active
      self%progress(i) = progress_t(member=i)
    end do
    self%counts = 0
    self%z = x
    first = .true.
    do while (active > 0)
      call try_steps(self, solver, slot, t, dt, active, first, status)
      if (.not. status%ok()) return
      first = .false.
      do i = active, 1, -1   ! from the end: who arrives makes room for the last
        call judge(self, dt, i)
        associate (one => self%progress(i))
          if (one%done == whole) then
            x(:, one%member) = self%z(:, i)
          else if (one%ticks == 0) then
            x(:, one%member) = ieee_value(0.0_rk, ieee_quiet_nan)
            if (.not. allocated(self%reason)) self%reason = 'Newton''s iteration in a stage of '//trim(self%name)// &
              ' did not converge, in a millionth of dt neither: shorten dt, or check the correction'
          else
            cycle
          end if
        end associate
        if (i < active) then
          self%progress(i) = self%progress(active)
          self%z(:, i) = self%z(:, active)
          self%m(:, i, 0) = self%m(:, active, 0)   ! for one that is held
        end if
        active = active - 1
      end do
    end do
  end subroutine step

  !> One try of every member on its way; y holds the new states of those that are not lost.
  subroutine try_steps(self, solver, slot, t, dt, active, first, status)
    class(imex_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in) :: t, dt
    integer, intent(in) :: active
    logical, intent(in) :: first          !< the first try of a dt
    type(status_t), intent(inout) :: status
    real(rk) :: h(active)
    integer :: i, j, member

    h = dt * (real(self%progress(:active)%ticks, rk) / whole)
    self%progress(:active)%lost = .false.
    self%y(:, :active) = self%z(:, :active)
    do i = 1, self%stages
      if (slot%filled()) then
        call see(self, solver, slot, dt, active, i - 1, first, status)
        if (.not. status%ok()) return
      end if
      do member = 1, active
        self%held(:, member) = self%z(:, member)
        do j = 1, i - 1
          if (abs(self%implicit(i, j)) > 0.0_rk) self%held(:, member) = self%held(:, member) &
                                                                        + (h(member) * self%implicit(i, j)) * self%k(:, member, j)
        end do
        if (.not. slot%filled()) cycle
        do j = 0, i - 1
          self%held(:, member) = self%held(:, member) + (h(member) * self%explicit(i, j)) * self%m(:, member, j)
        end do
      end do
      call solve(self, solver, t + self%nodes(i) * dt, h * self%implicit(i, i), active, status)
      if (.not. status%ok()) return
      do member = 1, active
        ! So that neither slot nor solver sees anything but finite numbers.
        if (self%progress(member)%lost) self%y(:, member) = self%z(:, member)
        self%k(:, member, i) = (self%y(:, member) - self%held(:, member)) / (h(member) * self%implicit(i, i))
      end do
    end do
  end subroutine try_steps

  !> Accept a try or halve the step; 0 ticks for a member that cannot go on.
  subroutine judge(self, dt, i)
    class(imex_t), intent(inout) :: self
    real(rk), intent(in) :: dt
    integer, intent(in) :: i
    associate (one => self%progress(i))
      if (one%lost) then
        one%ticks = one%ticks / 2
        return
      end if
      self%z(:, i) = self%y(:, i)
      one%done = one%done + one%ticks
      call self%write_down(one%member, dt * (real(one%ticks, rk) / whole))
      if (one%ticks < whole .and. modulo(one%done, 2 * one%ticks) == 0) one%ticks = 2 * one%ticks
    end associate
  end subroutine judge

  !> M(y_j); when the correction is held, what it was at the first stage of dt.
  subroutine see(self, solver, slot, dt, active, j, first, status)
    class(imex_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in) :: dt
    integer, intent(in) :: active, j
    logical, intent(in) :: first
    type(status_t), intent(inout) :: status
    if (.not. self%each_stage .and. .not. (first .and. j == 0)) then
      self%m(:, :active, j) = self%m(:, :active, 0)
      return
    end if
    self%m(:, :active, j) = 0.0_rk
    call solver%correct(slot, self%y(:, :active), &
                        merge(merge(self%explicit(self%stages, j) * dt, dt, self%each_stage), 0.0_rk, first), &
                        self%m(:, :active, j), status)
  end subroutine see

  !> Newton's iteration for y - w F(y) = held, from the y that is there.
  subroutine solve(self, solver, t, w, active, status)
    class(imex_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    real(rk), intent(in) :: t
    integer, intent(in) :: active
    real(rk), intent(in) :: w(active)
    type(status_t), intent(inout) :: status
    real(rk) :: matrix(size(self%y, 1), size(self%y, 1)), change(size(self%y, 1)), slope(size(self%y, 1), active)
    logical :: busy(active), singular
    integer :: iteration, member, row

    busy = .not. self%progress(:active)%lost
    do iteration = 1, most_iterations
      call solver%tendency(t, self%y(:, :active), slope)
      call differentiate(self, solver, t, active, status)
      if (.not. status%ok()) return
      do member = 1, active
        if (.not. busy(member)) cycle
        matrix = -w(member) * self%jacobian(:, :, member)
        do row = 1, size(matrix, 1)
          matrix(row, row) = matrix(row, row) + 1.0_rk
        end do
        change = self%held(:, member) + w(member) * slope(:, member) - self%y(:, member)
        call eliminate(size(change), matrix, change, singular)
        if (singular .or. .not. all(abs(change) <= bound)) then
          self%progress(member)%lost = .true.
          busy(member) = .false.
          cycle
        end if
        self%y(:, member) = self%y(:, member) + change
        busy(member) = maxval(abs(change)) > &
                       enough * max(maxval(abs(self%y(:, member))), maxval(abs(self%held(:, member))))
      end do
      if (.not. any(busy)) return
    end do
    self%progress(:active)%lost = self%progress(:active)%lost .or. busy
  end subroutine solve

  !> dF/du of every member: row j is (dF/du)^T e_j.
  subroutine differentiate(self, solver, t, active, status)
    class(imex_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    real(rk), intent(in) :: t
    integer, intent(in) :: active
    type(status_t), intent(inout) :: status
    real(rk) :: unit(size(self%y, 1), active), row(size(self%y, 1), active)
    integer :: j
    do j = 1, size(unit, 1)
      unit = 0.0_rk
      unit(j, :) = 1.0_rk
      call solver%tendency_adjoint(t, self%y(:, :active), unit, row, status)
      self%jacobian(j, :, :active) = row
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

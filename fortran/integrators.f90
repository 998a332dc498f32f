! SPDX-License-Identifier: MIT
!> Explicit Runge-Kutta steps from tableaux, and the one place in a step where the correction acts.
!! What steps otherwise (adaptive.f90, implicit.f90) extends `stepper_t`; schemes.f90 knows them all by name.
!!
!! y_i = x + dt sum_j a_ij k_j,  k_i = F(t + c_i dt, y_i) + M(y_i),  x(t + dt) = x + dt sum_i b_i k_i.
!! Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), section II.1.
module trimtab_integrators
  use trimtab_kinds, only: rk, ik, lk
  use trimtab_status, only: status_t, STATUS_BAD_PARAMETER
  use trimtab_correction, only: correction_t
  use trimtab_solver, only: solver_t
  implicit none
  private
  public :: stepper_t

  integer, parameter :: max_stages = 4

  !> One scheme and the memory of its stages. Nothing in it outlives a step: a run's bits do not depend on where it is cut.
  type :: stepper_t
    character(8) :: name = ''              !< 'euler', 'rk2', 'rk3' or 'rk4'; others in what extends this type
    integer(ik) :: order = 0               !< claimed order in dt, with and without a correction at each stage
    integer :: stages = 0
    logical :: each_stage = .true.         !< false: the correction is evaluated once, at the start, and held over the stages
    real(rk) :: a(max_stages, max_stages) = 0.0_rk
    real(rk) :: b(max_stages) = 0.0_rk
    real(rk) :: c(max_stages) = 0.0_rk
    real(rk), allocatable :: k(:, :, :)    !< tendencies (m, members, stages)
    real(rk), allocatable :: y(:, :)       !< state of a stage (m, members)
    real(rk), allocatable :: held(:, :)    !< correction held over the stages (m, members)
    real(rk), allocatable :: sizes(:, :)   !< steps that the last call was made of (at least the most, members)
    integer, allocatable :: counts(:)      !< their number (members)
    character(:), allocatable :: reason    !< why a step could not be made for some member, whose state then is NaN
  contains
    procedure :: select_scheme
    procedure :: select_place
    procedure :: accepts
    procedure :: details
    procedure :: reserve
    procedure :: step
    procedure :: substeps
    procedure :: write_down
  end type stepper_t

contains

  !> Fill the tableau. An empty name and order 0 mean 'rk4'; either alone is enough.
  subroutine select_scheme(self, name, order, correction_at, status)
    class(stepper_t), intent(inout) :: self
    character(*), intent(in) :: name            !< 'euler', 'rk2' (Heun), 'rk3' (Kutta), 'rk4' or ''
    integer(ik), intent(in) :: order            !< 1 to 4, or 0
    character(*), intent(in) :: correction_at   !< 'stage' or 'step'
    type(status_t), intent(inout) :: status     !< STATUS_BAD_PARAMETER
    character(8), parameter :: names(4) = ['euler   ', 'rk2     ', 'rk3     ', 'rk4     ']
    character(:), allocatable :: scheme

    if (order < 0 .or. order > 4) then
      call status%raise(STATUS_BAD_PARAMETER, 'order is 1, 2, 3 or 4')
      return
    end if
    scheme = trim(name)
    if (scheme == '') scheme = trim(names(merge(order, 4, order > 0)))
    self%a = 0.0_rk
    self%b = 0.0_rk
    self%c = 0.0_rk
    select case (scheme)
    case ('euler')
      self%order = 1
      self%b(1) = 1.0_rk
    case ('rk2')
      self%order = 2
      self%a(2, 1) = 1.0_rk
      self%b(1:2) = 0.5_rk
      self%c(2) = 1.0_rk
    case ('rk3')
      self%order = 3
      self%a(2, 1) = 0.5_rk
      self%a(3, 1:2) = [-1.0_rk, 2.0_rk]
      self%b(1:3) = [1.0_rk / 6.0_rk, 2.0_rk / 3.0_rk, 1.0_rk / 6.0_rk]
      self%c(2:3) = [0.5_rk, 1.0_rk]
    case ('rk4')
      self%order = 4
      self%a(2, 1) = 0.5_rk
      self%a(3, 2) = 0.5_rk
      self%a(4, 3) = 1.0_rk
      self%b = [1.0_rk / 6.0_rk, 1.0_rk / 3.0_rk, 1.0_rk / 3.0_rk, 1.0_rk / 6.0_rk]
      self%c(2:4) = [0.5_rk, 0.5_rk, 1.0_rk]
    case default
      call status%raise(STATUS_BAD_PARAMETER, 'no integrator is called '''//scheme// &
                        '''; there are euler, rk2, rk3, rk4, dopri5, ars222 and ars443')
      return
    end select
    self%name = scheme
    self%stages = self%order
    if (order > 0 .and. order /= self%order) then
      call status%raise(STATUS_BAD_PARAMETER, 'integrator '''//scheme//''' is not of the order given; leave one of the two out')
      return
    end if
    call self%select_place(correction_at, status)
  end subroutine select_scheme

  !> Where in a step the correction is evaluated.
  subroutine select_place(self, correction_at, status)
    class(stepper_t), intent(inout) :: self
    character(*), intent(in) :: correction_at   !< 'stage' or 'step'
    type(status_t), intent(inout) :: status     !< STATUS_BAD_PARAMETER
    select case (correction_at)
    case ('stage')
      self%each_stage = .true.
    case ('step')
      self%each_stage = .false.
    case default
      call status%raise(STATUS_BAD_PARAMETER, 'correction_at is ''stage'' or ''step'', not '''//trim(correction_at)//'''')
    end select
  end subroutine select_place

  !> Refuse a solver that this scheme cannot step; an explicit one takes any.
  subroutine accepts(self, solver, status)
    class(stepper_t), intent(in) :: self
    class(solver_t), intent(in) :: solver
    type(status_t), intent(inout) :: status   !< STATUS_UNSUPPORTED
  end subroutine accepts

  !> Members of the JSON description that only this scheme has, each after a comma.
  function details(self) result(text)
    class(stepper_t), intent(in) :: self
    character(:), allocatable :: text
    text = ''
  end function details

  !> Lengths of the steps that the last call of `step` was made of: one of length dt where nothing was written down.
  subroutine substeps(self, dt, sizes, counts)
    class(stepper_t), intent(in) :: self
    real(rk), intent(in) :: dt                           !< what `step` was given
    real(rk), intent(inout), contiguous :: sizes(:, :)   !< (most, members); zeros after the last
    integer(lk), intent(inout) :: counts(:)              !< (members) how many there are, also where `most` is too few
    integer :: i, kept
    sizes = 0.0_rk
    if (.not. allocated(self%sizes)) then
      if (size(sizes, 1) > 0) sizes(1, :) = dt
      counts = 1
      return
    end if
    do i = 1, size(counts)
      kept = min(self%counts(i), size(sizes, 1))
      sizes(:kept, i) = self%sizes(:kept, i)
      counts(i) = self%counts(i)
    end do
  end subroutine substeps

  !> Keep the length of an accepted step.
  subroutine write_down(self, member, h)
    class(stepper_t), intent(inout) :: self
    integer, intent(in) :: member
    real(rk), intent(in) :: h
    real(rk), allocatable :: longer(:, :)
    self%counts(member) = self%counts(member) + 1
    if (self%counts(member) > size(self%sizes, 1)) then
      allocate (longer(2 * size(self%sizes, 1), size(self%sizes, 2)), source=0.0_rk)
      longer(:size(self%sizes, 1), :) = self%sizes
      call move_alloc(longer, self%sizes)
    end if
    self%sizes(self%counts(member), member) = h
  end subroutine write_down

  !> Memory for `members` internal states of length m; nothing happens when it is there already.
  subroutine reserve(self, m, members)
    class(stepper_t), intent(inout) :: self
    integer, intent(in) :: m, members
    if (allocated(self%k)) then
      if (size(self%k, 1) == m .and. size(self%k, 2) == members) return
      deallocate (self%k, self%y, self%held)
    end if
    allocate (self%k(m, members, self%stages), self%y(m, members), self%held(m, members))
  end subroutine reserve

  !> Advance all members by one step; `reserve` comes first.
  subroutine step(self, solver, slot, t, dt, x, status)
    class(stepper_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in) :: t                              !< time at the start
    real(rk), intent(in) :: dt                             !< length of the step
    real(rk), intent(inout), contiguous :: x(:, :)         !< internal states (m, members); unchanged when the correction fails
    type(status_t), intent(inout) :: status
    integer :: i, j, total
    logical :: begun

    total = size(x)
    do i = 1, self%stages
      begun = .false.
      do j = 1, i - 1
        if (abs(self%a(i, j)) > 0.0_rk) then
          if (begun) then
            call add(total, dt * self%a(i, j), self%k(:, :, j), self%y)
          else
            call start(total, x, dt * self%a(i, j), self%k(:, :, j), self%y)
            begun = .true.
          end if
        end if
      end do
      if (begun) then
        call tendency(self, solver, slot, t, dt, i, self%y, status)
      else
        call tendency(self, solver, slot, t, dt, i, x, status)
      end if
      if (.not. status%ok()) return
    end do
    call finish(total, self%stages, dt, self%b, self%k, x)
  end subroutine step

  !> k_i: physics and correction at one stage.
  subroutine tendency(self, solver, slot, t, dt, i, y, status)
    class(stepper_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in) :: t, dt
    integer, intent(in) :: i
    real(rk), intent(in), contiguous :: y(:, :)
    type(status_t), intent(inout) :: status
    call solver%tendency(t + self%c(i) * dt, y, self%k(:, :, i))
    if (.not. slot%filled()) return
    if (self%each_stage) then
      call solver%correct(slot, y, self%b(i) * dt, self%k(:, :, i), status)
      return
    end if
    if (i == 1) then
      self%held = 0.0_rk
      call solver%correct(slot, y, dt, self%held, status)
    end if
    call add(size(y), 1.0_rk, self%held, self%k(:, :, i))
  end subroutine tendency

  !> y = x + w k.
  pure subroutine start(total, x, w, k, y)
    integer, intent(in) :: total
    real(rk), intent(in) :: x(total), w, k(total)
    real(rk), intent(out) :: y(total)
    y = x + w * k
  end subroutine start

  !> y = y + w k.
  pure subroutine add(total, w, k, y)
    integer, intent(in) :: total
    real(rk), intent(in) :: w, k(total)
    real(rk), intent(inout) :: y(total)
    y = y + w * k
  end subroutine add

  !> x = x + dt sum_i b_i k_i in one pass over the memory.
  pure subroutine finish(total, stages, dt, b, k, x)
    integer, intent(in) :: total, stages
    real(rk), intent(in) :: dt, b(max_stages), k(total, stages)
    real(rk), intent(inout) :: x(total)
    select case (stages)
    case (1)
      x = x + (dt * b(1)) * k(:, 1)
    case (2)
      x = x + dt * (b(1) * k(:, 1) + b(2) * k(:, 2))
    case (3)
      x = x + dt * (b(1) * k(:, 1) + b(2) * k(:, 2) + b(3) * k(:, 3))
    case default
      x = x + dt * (b(1) * k(:, 1) + b(2) * k(:, 2) + b(3) * k(:, 3) + b(4) * k(:, 4))
    end select
  end subroutine finish
end module trimtab_integrators

! SPDX-License-Identifier: MIT
!> Adaptive steps of Dormand and Prince, order 5 with an error estimate of order 4, inside a step of fixed length.
!!
!! The user's dt is the outer step; what happens within it depends on its first state alone. Every outer step begins anew, with
!! a step length guessed from the tendency and its change (Hairer, Norsett, Wanner, II.4) and no memory of the last one: that
!! costs two tendencies an outer step, and a run's bits do not depend on where it is cut. The last step lands on dt exactly.
!!
!! Each member has its own step lengths, error and controller, so that its bits are the same alone and in a batch. Members that
!! have arrived leave the batch: stages are computed, and the slot is called, for those still on their way.
!! A stage beyond the finite numbers is never shown to the slot: the step is tried again with a tenth of its length.
!!
!! The correction acts at every stage, those of rejected steps included, with weight 0 (its share of the outer step is not known
!! beforehand). Held over the step (`correction_at = 'step'`), it is evaluated once an outer step. The tendency must not depend
!! on time: members are at different times within dt, and the time handed to it is that of the outer step's start.
!!
!! Tableau: Dormand, Prince, J. Comput. Appl. Math. 6, 19 (1980), doi:10.1016/0771-050X(80)90013-3. Controller (PI, beta = 0.04,
!! safety 0.9, factors 1/5 to 10) and error norm: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), II.4
!! and the code DOPRI5.
module trimtab_adaptive
  use, intrinsic :: ieee_arithmetic, only: ieee_value, ieee_quiet_nan
  use trimtab_kinds, only: rk, ik
  use trimtab_status, only: status_t, STATUS_BAD_PARAMETER
  use trimtab_finite, only: bound
  use trimtab_correction, only: correction_t
  use trimtab_solver, only: solver_t
  use trimtab_integrators, only: stepper_t
  use trimtab_text, only: json_real, json_integer, all_finite
  implicit none
  private
  public :: dopri5_t

  integer, parameter :: stages = 7
  integer, parameter :: most_trials = 10000              !< of one member within one outer step
  real(rk), parameter :: shortest = 1.0e-13_rk           !< step over outer step at which a member is given up
  real(rk), parameter :: power = 0.17_rk                 !< 1/5 - 3/4 beta
  real(rk), parameter :: beta = 0.04_rk
  real(rk), parameter :: a(2:stages, stages - 1) = reshape([ &
    1.0_rk / 5, 3.0_rk / 40, 44.0_rk / 45, 19372.0_rk / 6561, 9017.0_rk / 3168, 35.0_rk / 384, &
    0.0_rk, 9.0_rk / 40, -56.0_rk / 15, -25360.0_rk / 2187, -355.0_rk / 33, 0.0_rk, &
    0.0_rk, 0.0_rk, 32.0_rk / 9, 64448.0_rk / 6561, 46732.0_rk / 5247, 500.0_rk / 1113, &
    0.0_rk, 0.0_rk, 0.0_rk, -212.0_rk / 729, 49.0_rk / 176, 125.0_rk / 192, &
    0.0_rk, 0.0_rk, 0.0_rk, 0.0_rk, -5103.0_rk / 18656, -2187.0_rk / 6784, &
    0.0_rk, 0.0_rk, 0.0_rk, 0.0_rk, 0.0_rk, 11.0_rk / 84], [stages - 1, stages - 1])
  !> Fifth order minus fourth order.
  real(rk), parameter :: e(stages) = [71.0_rk / 57600, 0.0_rk, -71.0_rk / 16695, 71.0_rk / 1920, -17253.0_rk / 339200, &
                                      22.0_rk / 525, -1.0_rk / 40]

  !> Where one member is within its outer step.
  type :: progress_t
    integer :: member = 0             !< its column in the caller's states
    integer :: trials = 0
    real(rk) :: time = 0.0_rk         !< since the outer step's start
    real(rk) :: h = 0.0_rk            !< step to be tried
    real(rk) :: last_error = 1.0e-4_rk !< of the last accepted step, for the controller
    logical :: last = .false.         !< the step to be tried ends at dt
    logical :: rejected = .false.     !< the last trial was
    logical :: wild = .false.         !< a stage of this trial left the finite numbers
  end type progress_t

  !> The scheme; its base's k and y hold the members that are on their way, in front.
  type, extends(stepper_t) :: dopri5_t
    real(rk) :: rtol = 1.0e-6_rk   !< tolerated error of a step over the size of the state
    real(rk) :: atol = 1.0e-9_rk   !< the same in the state's unit, added
    real(rk), allocatable :: z(:, :)              !< states of the members on their way (m, members)
    type(progress_t), allocatable :: progress(:)  !< of the members on their way, in the order of z
  contains
    procedure :: select_tolerances
    procedure :: details
    procedure :: reserve
    procedure :: step
  end type dopri5_t

contains

  !> Set name, order and tolerances.
  subroutine select_tolerances(self, rtol, atol, status)
    class(dopri5_t), intent(inout) :: self
    real(rk), intent(in) :: rtol                !< 0 or more, below 1
    real(rk), intent(in) :: atol                !< above 0: a state may be 0
    type(status_t), intent(inout) :: status     !< STATUS_BAD_PARAMETER
    if (.not. (all_finite([rtol, atol]) .and. rtol >= 0.0_rk .and. rtol < 1.0_rk .and. atol > 0.0_rk)) then
      call status%raise(STATUS_BAD_PARAMETER, 'dopri5 takes an rtol of 0 or more and below 1, and an atol above 0, not '// &
                        json_real(rtol)//' and '//json_real(atol))
      return
    end if
    self%name = 'dopri5'
    self%order = 5
    self%stages = stages
    self%rtol = rtol
    self%atol = atol
  end subroutine select_tolerances

  !> See stepper_t.
  function details(self) result(text)
    class(dopri5_t), intent(in) :: self
    character(:), allocatable :: text
    text = ', "rtol": '//json_real(self%rtol)//', "atol": '//json_real(self%atol)
  end function details

  !> See stepper_t.
  subroutine reserve(self, m, members)
    class(dopri5_t), intent(inout) :: self
    integer, intent(in) :: m, members
    call self%stepper_t%reserve(m, members)
    if (allocated(self%z)) then
      if (size(self%z, 1) == m .and. size(self%z, 2) == members) return
      deallocate (self%z, self%sizes, self%counts, self%progress)
    end if
    allocate (self%z(m, members), self%sizes(16, members), self%counts(members), self%progress(members))
  end subroutine reserve

  !> See stepper_t; a member whose step cannot be made is NaN, and `reason` says why.
  subroutine step(self, solver, slot, t, dt, x, status)
    class(dopri5_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in) :: t, dt
    real(rk), intent(inout), contiguous :: x(:, :)
    type(status_t), intent(inout) :: status
    integer :: active, i, members

    members = size(x, 2)
    active = members
    self%counts = 0
    do i = 1, members
      self%progress(i) = progress_t(member=i)
    end do
    self%z = x
    if (slot%filled() .and. .not. self%each_stage) then
      self%held = 0.0_rk
      call solver%correct(slot, self%z, dt, self%held, status)
      if (.not. status%ok()) return
    end if
    call tendency(self, solver, slot, t, active, self%z, 1, status)
    if (.not. status%ok()) return
    call guess_steps(self, solver, slot, t, dt, active, status)
    do while (active > 0 .and. status%ok())
      call try_steps(self, solver, slot, t, dt, active, status)
      if (.not. status%ok()) return
      do i = active, 1, -1   ! from the end: who arrives makes room for the last
        call judge(self, solver, dt, i)
        associate (one => self%progress(i))
          if (one%last .and. .not. one%rejected) then
            x(:, one%member) = self%z(:, i)
          else if (one%h < shortest * dt .or. one%trials >= most_trials) then
            call give_up(self, one, dt)
            x(:, one%member) = ieee_value(0.0_rk, ieee_quiet_nan)
          else
            cycle
          end if
        end associate
        call remove(self, i, active)
      end do
    end do
  end subroutine step

  !> k(:, :, stage) of the members on their way: physics and correction at y.
  subroutine tendency(self, solver, slot, t, active, y, stage, status)
    class(dopri5_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in) :: t
    integer, intent(in) :: active
    real(rk), intent(in), contiguous :: y(:, :)
    integer, intent(in) :: stage
    type(status_t), intent(inout) :: status
    call solver%tendency(t, y(:, :active), self%k(:, :active, stage))
    if (.not. slot%filled()) return
    if (self%each_stage) then
      call solver%correct(slot, y(:, :active), 0.0_rk, self%k(:, :active, stage), status)
    else
      self%k(:, :active, stage) = self%k(:, :active, stage) + self%held(:, :active)
    end if
  end subroutine tendency

  !> Length of the first step, from the state, its tendency k_1, and the tendency after a small step of explicit Euler.
  subroutine guess_steps(self, solver, slot, t, dt, active, status)
    class(dopri5_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in) :: t, dt
    integer, intent(in) :: active
    type(status_t), intent(inout) :: status
    real(rk) :: slope, bend, h
    integer :: i
    do i = 1, active
      h = norm(self, solver, self%z(:, i), self%z(:, i), self%z(:, i))
      slope = norm(self, solver, self%k(:, i, 1), self%z(:, i), self%z(:, i))
      h = merge(0.01_rk * h / max(slope, tiny(h)), 1.0e-3_rk * dt, h >= 1.0e-5_rk .and. slope >= 1.0e-5_rk)
      self%progress(i)%h = min(h, dt)
      self%y(:, i) = self%z(:, i) + self%progress(i)%h * self%k(:, i, 1)
      if (is_wild(self%y(:, i))) self%y(:, i) = self%z(:, i)
    end do
    call tendency(self, solver, slot, t, active, self%y, 2, status)
    if (.not. status%ok()) return
    do i = 1, active
      h = self%progress(i)%h
      slope = norm(self, solver, self%k(:, i, 1), self%z(:, i), self%z(:, i))
      bend = norm(self, solver, self%k(:, i, 2) - self%k(:, i, 1), self%z(:, i), self%z(:, i)) / h
      if (.not. bend <= huge(bend)) cycle
      bend = max(slope, bend)
      self%progress(i)%h = min(100 * h, merge((0.01_rk / max(bend, tiny(h)))**0.2_rk, dt, bend > 1.0e-15_rk), dt)
    end do
  end subroutine guess_steps

  !> Stages 2 to 7 of one trial of every member on its way; y holds the new states.
  subroutine try_steps(self, solver, slot, t, dt, active, status)
    class(dopri5_t), intent(inout) :: self
    class(solver_t), intent(inout) :: solver
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in) :: t, dt
    integer, intent(in) :: active
    type(status_t), intent(inout) :: status
    integer :: i, stage
    do i = 1, active
      associate (one => self%progress(i))
        one%trials = one%trials + 1
        one%wild = .false.
        one%last = 1.01_rk * one%h >= dt - one%time
        if (one%last) one%h = dt - one%time
      end associate
    end do
    do stage = 2, stages
      do i = 1, active
        call combine(size(self%z, 1), size(self%k, 2), self%k(:, :, :stage - 1), i, self%progress(i)%h * a(stage, :stage - 1), &
                     self%z(:, i), self%y(:, i))
        if (is_wild(self%y(:, i))) then
          self%progress(i)%wild = .true.
          self%y(:, i) = self%z(:, i)
        end if
      end do
      call tendency(self, solver, slot, t, active, self%y, stage, status)
      if (.not. status%ok()) return
    end do
  end subroutine try_steps

  !> Accept or reject a trial, and choose the next step's length.
  subroutine judge(self, solver, dt, i)
    class(dopri5_t), intent(inout) :: self
    class(solver_t), intent(in) :: solver
    real(rk), intent(in) :: dt
    integer, intent(in) :: i
    real(rk) :: error, factor, h
    real(rk) :: difference(size(self%z, 1)), nothing(size(self%z, 1))
    nothing = 0.0_rk
    associate (one => self%progress(i))
      h = one%h
      call combine(size(self%z, 1), size(self%k, 2), self%k, i, h * e, nothing, difference)
      error = norm(self, solver, difference, self%z(:, i), self%y(:, i))
      if (one%wild .or. .not. error <= huge(error)) then
        one%h = 0.1_rk * h
        one%rejected = .true.
        return
      end if
      factor = error**power
      if (error > 1.0_rk) then
        one%h = h / min(5.0_rk, factor / 0.9_rk)
        one%rejected = .true.
        return
      end if
      factor = max(0.1_rk, min(5.0_rk, factor / one%last_error**beta / 0.9_rk))
      one%h = merge(min(h, h / factor), h / factor, one%rejected)
      one%last_error = max(error, 1.0e-4_rk)
      one%rejected = .false.
      one%time = merge(dt, one%time + h, one%last)
      call self%write_down(one%member, h)
    end associate
    self%z(:, i) = self%y(:, i)
    self%k(:, i, 1) = self%k(:, i, stages)   ! the last stage is the next step's first
  end subroutine judge

  !> Say why a member cannot go on; the first of a run is kept.
  subroutine give_up(self, one, dt)
    class(dopri5_t), intent(inout) :: self
    type(progress_t), intent(in) :: one
    real(rk), intent(in) :: dt
    character(12) :: place
    if (allocated(self%reason)) return
    if (one%trials >= most_trials) then
      self%reason = 'dopri5 made '//json_integer(int(most_trials, ik))//' steps and did not reach the end of one dt: shorten '// &
                    'dt, raise rtol and atol, or take an implicit integrator if the solver is stiff'
      return
    end if
    write (place, '(f8.4)') one%time / dt
    self%reason = 'the step of dopri5 shrank to nothing at '//trim(adjustl(place))//' of one dt, the error stayed above '// &
                  'rtol and atol: raise them, or check the correction'
  end subroutine give_up

  !> Take a member out of those on their way; the last of them moves to its place.
  subroutine remove(self, i, active)
    class(dopri5_t), intent(inout) :: self
    integer, intent(in) :: i
    integer, intent(inout) :: active
    if (i < active) then
      self%progress(i) = self%progress(active)
      self%z(:, i) = self%z(:, active)
      self%k(:, i, 1) = self%k(:, active, 1)
      if (.not. self%each_stage) self%held(:, i) = self%held(:, active)
    end if
    active = active - 1
  end subroutine remove

  !> y = z + sum_j w_j k_j of member i, in the order of the stages.
  pure subroutine combine(m, members, k, i, w, z, y)
    integer, intent(in) :: m, members, i
    real(rk), intent(in) :: k(:, :, :), w(:), z(m)
    real(rk), intent(out) :: y(m)
    integer :: j
    y = z
    do j = 1, size(w)
      if (abs(w(j)) > 0.0_rk) y = y + w(j) * k(:, i, j)
    end do
  end subroutine combine

  !> Root mean square of v over atol + rtol max(|x|, |y|), component by component; of a field of modes over the whole's.
  pure real(rk) function norm(self, solver, v, x, y)
    class(dopri5_t), intent(in) :: self
    class(solver_t), intent(in) :: solver
    real(rk), intent(in) :: v(:), x(:), y(:)
    if (solver%modal) then
      norm = rms(v) / (self%atol + self%rtol * max(rms(x), rms(y)))
    else
      norm = rms(v / (self%atol + self%rtol * max(abs(x), abs(y))))
    end if
  end function norm

  pure real(rk) function rms(v)
    real(rk), intent(in) :: v(:)
    rms = sqrt(sum(v**2) / size(v))
  end function rms

  !> True when a number is NaN, infinite or beyond the bound.
  pure logical function is_wild(y)
    real(rk), intent(in) :: y(:)
    is_wild = .not. all(abs(y) <= bound)
  end function is_wild
end module trimtab_adaptive

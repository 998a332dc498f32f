! SPDX-License-Identifier: MIT
!> A hybrid: solver + stepper + slot, advanced and recorded. What `main.f90` and `bridge/python/solver_api.f90` both drive.
module trimtab_driver
  use, intrinsic :: iso_c_binding, only: c_int, c_funptr, c_f_procpointer, c_associated
  use, intrinsic :: ieee_arithmetic, only: ieee_value, ieee_quiet_nan
  use trimtab_kinds, only: rk, ik, lk
  use trimtab_status, only: status_t, STATUS_BAD_PARAMETER, STATUS_BAD_SHAPE, STATUS_BLOW_UP, STATUS_INTERRUPTED, &
                            STATUS_NOT_FINITE, STATUS_STEP_FAILED, STATUS_UNSUPPORTED
  use trimtab_text, only: json_real, json_integer, json_string, to_lines, count_lines, line_length, namelist_sentence, &
                          has_group, all_finite
  use trimtab_finite, only: wild, mark, freeze, blank
  use trimtab_correction, only: correction_t
  use trimtab_solver, only: solver_t
  use trimtab_integrators, only: stepper_t
  use trimtab_schemes, only: create_stepper, not_given
  use trimtab_registry, only: create_solver
  implicit none
  private
  public :: hybrid_t

  abstract interface
    !> Asked once a step; anything but zero stops the run.
    function poll_function() bind(c) result(stop_now)
      import :: c_int
      implicit none
      integer(c_int) :: stop_now
    end function poll_function
  end interface

  !> Everything one open solver is.
  type :: hybrid_t
    character(64) :: name = ''
    real(rk) :: dt = 0.0_rk                               !< time step
    type(correction_t) :: slot
    class(solver_t), allocatable :: solver
    class(stepper_t), allocatable :: stepper
    procedure(poll_function), pointer, nopass :: poll => null()
    real(rk), allocatable :: x(:, :)                      !< internal states (m, members)
  contains
    procedure :: configure
    procedure :: release
    procedure :: describe
    procedure :: watch
    procedure :: tendency
    procedure :: tendency_adjoint
    procedure :: influence
    procedure :: influence_adjoint
    procedure :: influence_state_adjoint
    procedure :: project
    procedure :: advance
    procedure :: substeps
  end type hybrid_t

contains

  !> Read `&solver name, dt, integrator, order, correction_at, rtol, atol /` and the group of the solver it names.
  subroutine configure(self, common, group, status)
    class(hybrid_t), intent(inout) :: self
    character(*), intent(in) :: common        !< namelist text with the group &solver
    character(*), intent(in) :: group         !< namelist text with the group named as the solver; may be the same text
    type(status_t), intent(inout) :: status   !< STATUS_BAD_PARAMETER, STATUS_UNKNOWN_SOLVER
    character(line_length) :: lines(count_lines(common)), group_lines(count_lines(group))
    character(64) :: name, integrator, correction_at
    character(256) :: message
    real(rk) :: dt, rtol, atol
    integer(ik) :: order
    integer :: code
    logical :: fits, group_fits
    namelist /solver/ name, dt, integrator, order, correction_at, rtol, atol

    call to_lines(common, lines, fits)
    call to_lines(group, group_lines, group_fits)
    if (.not. (fits .and. group_fits)) then
      call status%raise(STATUS_BAD_PARAMETER, 'a line of the namelist text is too long: break it')
      return
    end if
    if (.not. has_group(lines, 'solver')) then
      call status%raise(STATUS_BAD_PARAMETER, 'the namelist text has no group &solver ... /')
      return
    end if
    name = ''
    dt = 0.0_rk
    integrator = ''
    order = 0
    correction_at = 'stage'
    rtol = not_given
    atol = not_given
    read (lines, nml=solver, iostat=code, iomsg=message)
    if (code /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, &
                        namelist_sentence('solver', 'name, dt, integrator, order, correction_at, rtol and atol', code, message))
      return
    end if
    if (.not. (dt > 0.0_rk .and. all_finite([dt]))) then
      call status%raise(STATUS_BAD_PARAMETER, 'dt, the time step, must be a finite number above 0, not '//json_real(dt))
      return
    end if
    call create_stepper(trim(integrator), order, correction_at, rtol, atol, self%stepper, status)
    call create_solver(trim(name), self%solver, status)
    if (.not. status%ok()) return
    if (.not. has_group(group_lines, trim(name))) then
      call status%raise(STATUS_BAD_PARAMETER, 'the namelist text has no group &'//trim(name)//' ... /')
      return
    end if
    call self%solver%configure(group_lines, status)
    call self%stepper%accepts(self%solver, status)
    self%name = name
    self%dt = dt
  end subroutine configure

  !> Give back everything; the slot's function is not called again.
  subroutine release(self)
    class(hybrid_t), intent(inout) :: self
    call self%slot%remove()
    self%poll => null()
    if (allocated(self%solver)) then
      call self%solver%release()
      deallocate (self%solver)
    end if
    if (allocated(self%x)) deallocate (self%x)
  end subroutine release

  !> JSON: solver, dt, integrator, order, correction_at, n, adjoint, time_units, fields, parameters; of dopri5 rtol, atol.
  function describe(self) result(text)
    class(hybrid_t), intent(in) :: self
    character(:), allocatable :: text
    character(:), allocatable :: body, place, adjoint
    place = 'step'
    if (self%stepper%each_stage) place = 'stage'
    adjoint = 'false'
    if (self%solver%has_adjoint) adjoint = 'true'
    body = self%solver%describe()
    text = '{"solver": '//json_string(self%name)//', "dt": '//json_real(self%dt)//', "integrator": '// &
           json_string(self%stepper%name)//', "order": '//json_integer(self%stepper%order)//', "correction_at": '// &
           json_string(place)//', "n": '//json_integer(self%solver%n)//', "adjoint": '//adjoint// &
           self%stepper%details()//', "time_units": "1", '//body(2:)
  end function describe

  !> Ask a C function once a step whether to stop; a null address ends that.
  subroutine watch(self, function_)
    class(hybrid_t), intent(inout) :: self
    type(c_funptr), intent(in) :: function_   !< a `poll_function`
    self%poll => null()
    if (c_associated(function_)) call c_f_procpointer(function_, self%poll)
  end subroutine watch

  !> du/dt of the physics alone, at the border; `enter` and `leave` of a solver are linear, so a tendency passes as a state does.
  subroutine tendency(self, t, u, dudt, status)
    class(hybrid_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous :: u(:, :)        !< (n, members)
    real(rk), intent(inout), contiguous :: dudt(:, :)  !< (n, members)
    type(status_t), intent(inout) :: status            !< STATUS_BAD_SHAPE, STATUS_NOT_FINITE
    real(rk), allocatable :: x(:, :), dxdt(:, :)
    call check_states(self, u, status)
    if (any(shape(u) /= shape(dudt))) call status%raise(STATUS_BAD_SHAPE, 'the tendency must have the shape of the states')
    if (.not. status%ok()) return
    allocate (x(self%solver%m, size(u, 2)), dxdt(self%solver%m, size(u, 2)))
    call self%solver%enter(u, x)
    call self%solver%tendency(t, x, dxdt)
    call self%solver%leave(dxdt, dudt)
  end subroutine tendency

  !> (dF/du)^T lambda of the physics alone, at the border; see solver_t.
  subroutine tendency_adjoint(self, t, u, lambda, answer, status)
    class(hybrid_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous :: u(:, :)        !< (n, members)
    real(rk), intent(in), contiguous :: lambda(:, :)   !< (n, members); may hold NaN, which is handed on
    real(rk), intent(inout), contiguous :: answer(:, :) !< (n, members)
    type(status_t), intent(inout) :: status            !< STATUS_BAD_SHAPE, STATUS_NOT_FINITE, STATUS_UNSUPPORTED
    call check_states(self, u, status)
    if (any(shape(u) /= shape(lambda)) .or. any(shape(u) /= shape(answer))) then
      call status%raise(STATUS_BAD_SHAPE, 'the adjoint and its answer must have the shape of the states')
    end if
    if (.not. status%ok()) return
    call self%solver%tendency_adjoint(t, u, lambda, answer, status)
  end subroutine tendency_adjoint

  !> What a coefficient adds to the tendency, N(u, P) - N(u, 0), at the border; see solver_t.
  subroutine influence(self, u, coefficient, dudt, status)
    class(hybrid_t), intent(inout) :: self
    real(rk), intent(in), contiguous :: u(:, :)             !< (n, members)
    real(rk), intent(in), contiguous :: coefficient(:, :)   !< P (coefficients, members)
    real(rk), intent(inout), contiguous :: dudt(:, :)       !< (n, members)
    type(status_t), intent(inout) :: status                 !< STATUS_BAD_SHAPE, STATUS_NOT_FINITE, STATUS_UNSUPPORTED
    real(rk), allocatable :: x(:, :), dxdt(:, :)
    call check_influence(self, u, shape(coefficient), shape(dudt), status)
    if (.not. status%ok()) return
    allocate (x(self%solver%m, size(u, 2)))
    allocate (dxdt(self%solver%m, size(u, 2)), source=0.0_rk)
    call self%solver%enter(u, x)
    call self%solver%influence(x, coefficient, dxdt)
    call self%solver%leave(dxdt, dudt)
  end subroutine influence

  !> (dN/dP)^T lambda at the border; see solver_t.
  subroutine influence_adjoint(self, u, lambda, answer, status)
    class(hybrid_t), intent(inout) :: self
    real(rk), intent(in), contiguous :: u(:, :)             !< (n, members)
    real(rk), intent(in), contiguous :: lambda(:, :)        !< (n, members); may hold NaN, which is handed on
    real(rk), intent(inout), contiguous :: answer(:, :)     !< (coefficients, members)
    type(status_t), intent(inout) :: status                 !< STATUS_BAD_SHAPE, STATUS_NOT_FINITE, STATUS_UNSUPPORTED
    call check_influence(self, u, shape(answer), shape(lambda), status)
    if (status%ok()) call self%solver%influence_adjoint(u, lambda, answer)
  end subroutine influence_adjoint

  !> The derivative of N(u, P) - N(u, 0) by u, transposed and applied to lambda, at the border; see solver_t.
  subroutine influence_state_adjoint(self, u, coefficient, lambda, answer, status)
    class(hybrid_t), intent(inout) :: self
    real(rk), intent(in), contiguous :: u(:, :)             !< (n, members)
    real(rk), intent(in), contiguous :: coefficient(:, :)   !< P (coefficients, members)
    real(rk), intent(in), contiguous :: lambda(:, :)        !< (n, members); may hold NaN, which is handed on
    real(rk), intent(inout), contiguous :: answer(:, :)     !< (n, members)
    type(status_t), intent(inout) :: status                 !< STATUS_BAD_SHAPE, STATUS_NOT_FINITE, STATUS_UNSUPPORTED
    call check_influence(self, u, shape(coefficient), shape(lambda), status)
    if (any(shape(u) /= shape(answer))) call status%raise(STATUS_BAD_SHAPE, 'the answer must have the shape of the states')
    if (status%ok()) call self%solver%influence_state_adjoint(u, coefficient, lambda, answer)
  end subroutine influence_state_adjoint

  !> Refuse states, coefficients or vectors that do not fit each other, or a solver that takes no coefficient.
  subroutine check_influence(self, u, coefficient, vector, status)
    class(hybrid_t), intent(in) :: self
    real(rk), intent(in), contiguous :: u(:, :)
    integer, intent(in) :: coefficient(2), vector(2)   !< shapes
    type(status_t), intent(inout) :: status
    if (self%solver%coefficients == 0) then
      call status%raise(STATUS_UNSUPPORTED, 'this solver takes a tendency and no coefficient: set its key `slot`')
      return
    end if
    call check_states(self, u, status)
    if (any(shape(u) /= vector) .or. any(coefficient /= [int(self%solver%coefficients), size(u, 2)])) then
      call status%raise(STATUS_BAD_SHAPE, 'a coefficient must be ('//json_integer(self%solver%coefficients)// &
                        ', members), and a vector must have the shape of the states')
    end if
  end subroutine check_influence

  !> What the solver holds of a state or a tendency: the orthogonal projection u -> leave(enter(u)), the identity for an ODE.
  subroutine project(self, u, answer, status)
    class(hybrid_t), intent(inout) :: self
    real(rk), intent(in), contiguous :: u(:, :)        !< (n, members); may hold NaN, which is handed on
    real(rk), intent(inout), contiguous :: answer(:, :) !< (n, members)
    type(status_t), intent(inout) :: status            !< STATUS_BAD_SHAPE
    real(rk), allocatable :: x(:, :)
    if (size(u, 1) /= self%solver%n .or. any(shape(u) /= shape(answer))) then
      call status%raise(STATUS_BAD_SHAPE, 'a projection takes states of the solver, and returns as many')
      return
    end if
    allocate (x(self%solver%m, size(u, 2)))
    call self%solver%enter(u, x)
    call self%solver%leave(x, answer)
  end subroutine project

  !> Run `nsteps` steps and record every `stride`-th state, the first included.
  !! A recorded state is entered anew from its border values, so that a run's bits depend on the stride, never on where it is cut.
  !! A member that blows up is frozen at zero inside and NaN in the records; the others go on as if it were not there.
  subroutine advance(self, nsteps, stride, t0, window, failed_step, status)
    class(hybrid_t), intent(inout) :: self
    integer(lk), intent(in) :: nsteps
    integer(lk), intent(in) :: stride
    real(rk), intent(in) :: t0                                  !< time of the first state
    real(rk), intent(inout), contiguous :: window(:, :, :)      !< (n, members, nsteps / stride + 1); the first state is input
    integer(lk), intent(inout) :: failed_step(:)                !< (members) step of the blow-up, 0 for none
    type(status_t), intent(inout) :: status                     !< STATUS_BAD_PARAMETER, _BAD_SHAPE, _NOT_FINITE, _BLOW_UP (the
    !! window is complete, failed members NaN), _CORRECTION_FAILED, _INTERRUPTED
    !! _STEP_FAILED (as _BLOW_UP: the integrator could not make a member's step)
    integer(lk) :: record, substep, step, records
    integer :: members, failures

    call check_run(nsteps, stride, shape(window, lk), size(failed_step, kind=lk), status)
    if (.not. status%ok()) return
    call check_states(self, window(:, :, 1), status)
    if (.not. status%ok()) return
    members = size(window, 2)
    records = nsteps / stride
    if (allocated(self%x)) then
      if (size(self%x, 2) /= members) deallocate (self%x)
    end if
    if (.not. allocated(self%x)) allocate (self%x(self%solver%m, members))
    call self%stepper%reserve(self%solver%m, members)
    if (allocated(self%stepper%reason)) deallocate (self%stepper%reason)

    call self%solver%enter(window(:, :, 1), self%x)
    failed_step = 0
    failures = 0
    do record = 1, records
      do substep = 1, stride
        step = (record - 1) * stride + substep
        if (associated(self%poll)) then
          if (self%poll() /= 0) then
            call status%raise(STATUS_INTERRUPTED, 'interrupted before step '//json_integer(step))
            return
          end if
        end if
        call self%stepper%step(self%solver, self%slot, t0 + (step - 1) * self%dt, self%dt, self%x, status)
        if (.not. status%ok()) return
        if (wild(size(self%x), self%x) > 0) call mark(self%x, step, failed_step, failures)
        if (failures > 0) call freeze(self%x, failed_step)
        if (failures == members) exit
      end do
      if (failures == members) exit
      call self%solver%leave(self%x, window(:, :, record + 1))
      if (record < records) call self%solver%enter(window(:, :, record + 1), self%x)
      if (failures > 0) call blank(window(:, :, record + 1), failed_step)
    end do
    if (failures == 0) return
    if (failures == members) window(:, :, record + 1:) = ieee_value(0.0_rk, ieee_quiet_nan)
    step = minval(failed_step, mask=failed_step > 0)
    if (allocated(self%stepper%reason)) then
      call status%raise(STATUS_STEP_FAILED, 'step '//json_integer(step)//' of '//json_integer(nsteps)//' failed, for '// &
                        json_integer(int(failures, ik))//' of '//json_integer(int(members, ik))//' members: '// &
                        self%stepper%reason)
      return
    end if
    call status%raise(STATUS_BLOW_UP, json_integer(int(failures, ik))//' of '//json_integer(int(members, ik))// &
                      ' members blew up, the first at step '//json_integer(step)//' of '//json_integer(nsteps)// &
                      ': reduce dt or check the correction')
  end subroutine advance

  !> Lengths of the steps that one step dt from given states is made of: dt itself, but for an adaptive integrator.
  subroutine substeps(self, u, sizes, counts, status)
    class(hybrid_t), intent(inout) :: self
    real(rk), intent(in), contiguous :: u(:, :)           !< (n, members)
    real(rk), intent(inout), contiguous :: sizes(:, :)    !< (most, members); zeros after the last, and where a member fails
    integer(lk), intent(inout) :: counts(:)               !< (members) their numbers, also where `most` is too few
    type(status_t), intent(inout) :: status               !< STATUS_BAD_SHAPE, _NOT_FINITE, _CORRECTION_FAILED
    real(rk), allocatable :: x(:, :)
    integer :: i
    call check_states(self, u, status)
    if (size(sizes, 2) /= size(u, 2) .or. size(counts) /= size(u, 2)) then
      call status%raise(STATUS_BAD_SHAPE, 'step lengths and their numbers must have as many members as the states')
    end if
    if (.not. status%ok()) return
    allocate (x(self%solver%m, size(u, 2)))
    call self%stepper%reserve(self%solver%m, size(u, 2))
    call self%solver%enter(u, x)
    call self%stepper%step(self%solver, self%slot, 0.0_rk, self%dt, x, status)
    if (.not. status%ok()) return
    call self%stepper%substeps(self%dt, sizes, counts)
    do i = 1, size(counts)
      if (wild(size(x, 1), x(:, i)) > 0) sizes(:, i) = 0.0_rk
    end do
  end subroutine substeps

  !> Refuse a run whose arrays do not fit it.
  subroutine check_run(nsteps, stride, window, failed_step, status)
    integer(lk), intent(in) :: nsteps, stride
    integer(lk), intent(in) :: window(3)      !< shape of the window
    integer(lk), intent(in) :: failed_step    !< length of the list of failures
    type(status_t), intent(inout) :: status
    if (nsteps < 0 .or. stride < 1) then
      call status%raise(STATUS_BAD_PARAMETER, 'a run takes 0 or more steps and a stride of 1 or more, not '// &
                        json_integer(nsteps)//' and '//json_integer(stride))
    else if (modulo(nsteps, stride) /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, json_integer(nsteps)//' steps are not a multiple of the stride '// &
                        json_integer(stride))
    else if (window(3) /= nsteps / stride + 1) then
      call status%raise(STATUS_BAD_SHAPE, 'the window holds '//json_integer(window(3))//' states, the run makes '// &
                        json_integer(nsteps / stride + 1))
    else if (failed_step /= window(2)) then
      call status%raise(STATUS_BAD_SHAPE, 'the list of failures holds '//json_integer(failed_step)//' members, the window '// &
                        json_integer(window(2)))
    end if
  end subroutine check_run

  !> Refuse states of the wrong length, none at all, or not finite.
  subroutine check_states(self, u, status)
    class(hybrid_t), intent(in) :: self
    real(rk), intent(in), contiguous :: u(:, :)
    type(status_t), intent(inout) :: status
    if (size(u, 1) /= self%solver%n .or. size(u, 2) < 1) then
      call status%raise(STATUS_BAD_SHAPE, 'states must be ('//json_integer(self%solver%n)// &
                        ', members) with 1 member or more, not ('// &
                        json_integer(size(u, 1, lk))//', '//json_integer(size(u, 2, lk))//')')
    else if (wild(size(u), u) > 0) then
      call status%raise(STATUS_NOT_FINITE, 'the initial state holds a NaN, an infinity or a number beyond 1e100')
    end if
  end subroutine check_states
end module trimtab_driver

! SPDX-License-Identifier: MIT
!> The border with Python, and the only module f90wrap reads: plain arguments, opaque handles, a code instead of an exception.
!!
!! Every procedure sets `code` (trimtab_status); `solver_message` has the sentence of the last failure.
!! Arrays come as numpy arrays in Fortran order (the transpose of a C-contiguous array) and are used in place.
!! Addresses and handles are 8-byte integers. Not for several threads at once: the caller holds Python's lock.
module solver_api
  use, intrinsic :: iso_c_binding, only: c_ptr, c_funptr
  use trimtab_kinds, only: rk, ik, lk
  use trimtab_status, only: status_t, STATUS_BAD_HANDLE
  use trimtab_driver, only: hybrid_t
  implicit none
  private
  public :: solver_open, solver_close, solver_size, solver_describe, solver_set_correction, solver_set_interrupt
  public :: solver_python_function, solver_tendency, solver_tendency_adjoint, solver_project, solver_advance, solver_substeps
  public :: solver_message, solver_influence, solver_influence_adjoint, solver_influence_state_adjoint

  !> An open solver; handles count upwards and are never given twice, so that a stale one is always recognised.
  type :: entry_t
    integer(lk) :: handle = 0
    type(hybrid_t), pointer :: hybrid => null()
  end type entry_t

  integer, parameter :: message_length = 1024
  type(entry_t), allocatable :: entries(:)
  integer(lk) :: last_handle = 0
  character(message_length) :: last_message = ''

  interface
    !> See callback.c.
    function call_python_address() bind(c, name='trimtab_call_python_address') result(address)
      import :: lk
      implicit none
      integer(lk) :: address
    end function call_python_address
  end interface

contains

  !> Open a solver from the text of the group &solver and the text of the group named as the solver.
  subroutine solver_open(common, group, handle, code)
    character(*), intent(in) :: common
    character(*), intent(in) :: group
    integer(lk), intent(out) :: handle   !< 0 when it failed
    integer(ik), intent(out) :: code
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    handle = 0
    allocate (hybrid)
    call hybrid%configure(common, group, status)
    if (status%ok()) then
      last_handle = last_handle + 1
      handle = last_handle
      if (.not. allocated(entries)) allocate (entries(0))
      entries = [entries, entry_t(handle, hybrid)]
    else
      call hybrid%release()
      deallocate (hybrid)
    end if
    call report(status, code)
  end subroutine solver_open

  !> Close a solver and free all it holds.
  subroutine solver_close(handle, code)
    integer(lk), intent(in) :: handle
    integer(ik), intent(out) :: code
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    call find(handle, hybrid, status)
    if (status%ok()) then
      call hybrid%release()
      deallocate (hybrid)
      entries = pack(entries, entries%handle /= handle)
    end if
    call report(status, code)
  end subroutine solver_close

  !> Length of one state at the border.
  subroutine solver_size(handle, n, code)
    integer(lk), intent(in) :: handle
    integer(lk), intent(out) :: n
    integer(ik), intent(out) :: code
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    n = 0
    call find(handle, hybrid, status)
    if (status%ok()) n = hybrid%solver%n
    call report(status, code)
  end subroutine solver_size

  !> JSON: solver, dt, integrator, order, correction_at, n, adjoint, time_units, fields, parameters, and coefficient when the slot
  !! answers one.
  subroutine solver_describe(handle, text, length, code)
    integer(lk), intent(in) :: handle
    character(8192), intent(out) :: text
    integer(lk), intent(out) :: length   !< characters that count
    integer(ik), intent(out) :: code
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    text = ''
    call find(handle, hybrid, status)
    if (status%ok()) text = hybrid%describe()
    length = len_trim(text)
    call report(status, code)
  end subroutine solver_describe

  !> Fill the slot with the C function at an address (`correction_function` of correction.f90), or empty it with address 0.
  subroutine solver_set_correction(handle, function_address, context_address, bytes, code)
    integer(lk), intent(in) :: handle
    integer(lk), intent(in) :: function_address
    integer(lk), intent(in) :: context_address   !< handed back at every call
    integer(ik), intent(in) :: bytes             !< 4 or 8: kind of the states it reads and the tendencies it returns
    integer(ik), intent(out) :: code
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    type(c_funptr) :: function_
    type(c_ptr) :: context
    call find(handle, hybrid, status)
    if (status%ok()) then
      if (function_address == 0) then
        call hybrid%slot%remove()
      else
        function_ = transfer(function_address, function_)
        context = transfer(context_address, context)
        call hybrid%slot%install(function_, context, bytes, status)
      end if
    end if
    call report(status, code)
  end subroutine solver_set_correction

  !> Address of the function that fills a slot with a Python callable; the context it needs is the callable's own address, `id`.
  !! The callable gets (address of the states, n, members, weight) and returns the address of the tendencies; an exception in it
  !! is raised where `solver_advance` was called. Whoever fills the slot keeps the callable alive.
  subroutine solver_python_function(address)
    integer(lk), intent(out) :: address
    address = call_python_address()
  end subroutine solver_python_function

  !> Call the C function `int f(void)` at an address before each step; anything but 0 stops the run. Address 0 ends that.
  subroutine solver_set_interrupt(handle, function_address, code)
    integer(lk), intent(in) :: handle
    integer(lk), intent(in) :: function_address
    integer(ik), intent(out) :: code
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    type(c_funptr) :: function_
    call find(handle, hybrid, status)
    if (status%ok()) then
      function_ = transfer(function_address, function_)
      call hybrid%watch(function_)
    end if
    call report(status, code)
  end subroutine solver_set_interrupt

  !> du/dt of the physics alone.
  subroutine solver_tendency(handle, u, dudt, code)
    integer(lk), intent(in) :: handle
    real(rk), intent(inout), contiguous :: u(:, :)      !< (n, members); read, never written (inout: f2py then refuses to copy)
    real(rk), intent(inout), contiguous :: dudt(:, :)   !< (n, members)
    integer(ik), intent(out) :: code
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    call find(handle, hybrid, status)
    if (status%ok()) call hybrid%tendency(0.0_rk, u, dudt, status)
    call report(status, code)
  end subroutine solver_tendency

  !> (dF/du)^T lambda of the physics alone, in the Euclidean inner product of border states.
  subroutine solver_tendency_adjoint(handle, u, lambda, answer, code)
    integer(lk), intent(in) :: handle
    real(rk), intent(inout), contiguous :: u(:, :)        !< (n, members); read, never written, as in solver_tendency
    real(rk), intent(inout), contiguous :: lambda(:, :)   !< (n, members); read, never written
    real(rk), intent(inout), contiguous :: answer(:, :)   !< (n, members)
    integer(ik), intent(out) :: code                      !< STATUS_UNSUPPORTED: the solver has none ("adjoint" of its JSON)
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    call find(handle, hybrid, status)
    if (status%ok()) call hybrid%tendency_adjoint(0.0_rk, u, lambda, answer, status)
    call report(status, code)
  end subroutine solver_tendency_adjoint

  !> What a coefficient adds to the tendency, N(u, P) - N(u, 0).
  subroutine solver_influence(handle, u, coefficient, dudt, code)
    integer(lk), intent(in) :: handle
    real(rk), intent(inout), contiguous :: u(:, :)             !< (n, members); read, never written
    real(rk), intent(inout), contiguous :: coefficient(:, :)   !< P (coefficients, members); read, never written
    real(rk), intent(inout), contiguous :: dudt(:, :)          !< (n, members)
    integer(ik), intent(out) :: code                           !< STATUS_UNSUPPORTED: the slot answers no coefficient
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    call find(handle, hybrid, status)
    if (status%ok()) call hybrid%influence(u, coefficient, dudt, status)
    call report(status, code)
  end subroutine solver_influence

  !> (dN/dP)^T lambda.
  subroutine solver_influence_adjoint(handle, u, lambda, answer, code)
    integer(lk), intent(in) :: handle
    real(rk), intent(inout), contiguous :: u(:, :)             !< (n, members); read, never written
    real(rk), intent(inout), contiguous :: lambda(:, :)        !< (n, members); read, never written
    real(rk), intent(inout), contiguous :: answer(:, :)        !< (coefficients, members)
    integer(ik), intent(out) :: code                           !< STATUS_UNSUPPORTED: the slot answers no coefficient
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    call find(handle, hybrid, status)
    if (status%ok()) call hybrid%influence_adjoint(u, lambda, answer, status)
    call report(status, code)
  end subroutine solver_influence_adjoint

  !> The derivative of N(u, P) - N(u, 0) by u at fixed P, transposed and applied to lambda.
  subroutine solver_influence_state_adjoint(handle, u, coefficient, lambda, answer, code)
    integer(lk), intent(in) :: handle
    real(rk), intent(inout), contiguous :: u(:, :)             !< (n, members); read, never written
    real(rk), intent(inout), contiguous :: coefficient(:, :)   !< P (coefficients, members); read, never written
    real(rk), intent(inout), contiguous :: lambda(:, :)        !< (n, members); read, never written
    real(rk), intent(inout), contiguous :: answer(:, :)        !< (n, members)
    integer(ik), intent(out) :: code                           !< STATUS_UNSUPPORTED: the slot answers no coefficient
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    call find(handle, hybrid, status)
    if (status%ok()) call hybrid%influence_state_adjoint(u, coefficient, lambda, answer, status)
    call report(status, code)
  end subroutine solver_influence_state_adjoint

  !> What the solver holds of a state or a tendency: an orthogonal projection, the identity for an ODE.
  subroutine solver_project(handle, u, answer, code)
    integer(lk), intent(in) :: handle
    real(rk), intent(inout), contiguous :: u(:, :)        !< (n, members); read, never written
    real(rk), intent(inout), contiguous :: answer(:, :)   !< (n, members)
    integer(ik), intent(out) :: code
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    call find(handle, hybrid, status)
    if (status%ok()) call hybrid%project(u, answer, status)
    call report(status, code)
  end subroutine solver_project

  !> Run `nsteps` steps from window(:, :, 1), recording every `stride`-th state in place.
  subroutine solver_advance(handle, nsteps, stride, t0, window, failed_step, code)
    integer(lk), intent(in) :: handle
    integer(lk), intent(in) :: nsteps
    integer(lk), intent(in) :: stride
    real(rk), intent(in) :: t0                         !< time of the first state
    real(rk), intent(inout), contiguous :: window(:, :, :)         !< (n, members, nsteps / stride + 1)
    integer(lk), intent(inout), contiguous :: failed_step(:)       !< (members) step of the blow-up, 0 for none
    integer(ik), intent(out) :: code                   !< STATUS_BLOW_UP: the window is complete, failed members are NaN
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    call find(handle, hybrid, status)
    if (status%ok()) call hybrid%advance(nsteps, stride, t0, window, failed_step, status)
    call report(status, code)
  end subroutine solver_advance

  !> Lengths of the steps that one step dt is made of: dt itself, but for an adaptive integrator.
  subroutine solver_substeps(handle, u, sizes, counts, code)
    integer(lk), intent(in) :: handle
    real(rk), intent(inout), contiguous :: u(:, :)         !< (n, members); read, never written
    real(rk), intent(inout), contiguous :: sizes(:, :)     !< (most, members); zeros after the last
    integer(lk), intent(inout), contiguous :: counts(:)    !< (members) their numbers, also where `most` is too few
    integer(ik), intent(out) :: code
    type(status_t) :: status
    type(hybrid_t), pointer :: hybrid
    call find(handle, hybrid, status)
    if (status%ok()) call hybrid%substeps(u, sizes, counts, status)
    call report(status, code)
  end subroutine solver_substeps

  !> The sentence of the last failure.
  subroutine solver_message(text, length)
    character(1024), intent(out) :: text
    integer(lk), intent(out) :: length   !< characters that count
    text = last_message
    length = len_trim(text)
  end subroutine solver_message

  !> The solver behind a handle.
  subroutine find(handle, hybrid, status)
    integer(lk), intent(in) :: handle
    type(hybrid_t), pointer, intent(out) :: hybrid
    type(status_t), intent(inout) :: status   !< STATUS_BAD_HANDLE
    integer :: i
    hybrid => null()
    if (allocated(entries)) then
      do i = 1, size(entries)
        if (entries(i)%handle == handle) then
          hybrid => entries(i)%hybrid
          return
        end if
      end do
    end if
    call status%raise(STATUS_BAD_HANDLE, 'this solver is closed, or was never opened')
  end subroutine find

  !> Code to the caller, sentence kept.
  subroutine report(status, code)
    type(status_t), intent(in) :: status
    integer(ik), intent(out) :: code
    code = status%code
    if (.not. status%ok()) last_message = status%message
  end subroutine report
end module solver_api

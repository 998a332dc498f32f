! SPDX-License-Identifier: MIT
!> Barotropic (quasi-geostrophic) vorticity on the doubly periodic plane [0, 2 pi]^2:
!!
!!   dq/dt = -J(psi, q) - beta v - drag q + viscosity lap q - hyperviscosity (-lap)^(hyperviscosity_order / 2) q
!!           + div(nu grad q) + F,
!!   lap psi = q,  u = -dpsi/dy,  v = dpsi/dx,  F = forcing_amplitude (cos(k x) + cos(k y)),  k = forcing_wavenumber.
!!
!! nu = viscosity_pattern (1 + cos(k x) cos(k y)), k = pattern_wavenumber, a viscosity that varies in space (0: none); with
!! slot = 'viscosity' what fills the slot answers a field that is added to it, see quasigeostrophic_viscosity.f90.
!!
!! Everything is without dimension. State at the border: q on the n x n grid, x fastest. Internal state: the modes of q with
!! |kx|, |ky| <= waves and kx >= 0, as (real, imaginary) x lane x ky x block of `half` wavenumbers kx; lanes past the last kx
!! hold zeros. The Nyquist modes are not part of it: a derivative has no value there. The mean of q is kept, it moves nothing.
!!
!! The velocity w = u + i v travels as one complex field. From J = (d2/dx2 - d2/dy2)(u v) + d2/dxdy (v2 - u2) (Basdevant,
!! J. Comput. Phys. 50, 209 (1983), doi:10.1016/0021-9991(83)90064-5) and w2 = u2 - v2 + 2 i u v follows, with Z the transform
!! of w2 and c = 2 kx ky + i (kx2 - ky2), that J(k) = (c Z(k) + conj(c Z(-k))) / 4: two complex transforms a tendency.
module trimtab_quasigeostrophic
  use trimtab_kinds, only: rk, ik, pi
  use trimtab_status, only: status_t, STATUS_BAD_PARAMETER
  use trimtab_correction, only: correction_t
  use trimtab_solver, only: solver_t
  use trimtab_fft, only: plane_t, workspace_t, lanes, half, open_plane, close_plane, columns_to_slab, slab_to_columns, &
                         rows_to_grid, grid_to_rows, modes_to_field, field_to_modes
  use trimtab_text, only: json_real, json_integer, json_string, json_field, json_axis, namelist_sentence, all_finite
  implicit none
  private
  public :: quasigeostrophic_t, velocity   ! velocity for the submodule: gfortran keeps what is private out of its reach

  !> What the namelist group &qg takes.
  type :: parameters_t
    integer(ik) :: n = 64                        !< grid points a direction, even
    real(rk) :: viscosity = 0.0_rk
    real(rk) :: hyperviscosity = 0.0_rk
    integer(ik) :: hyperviscosity_order = 4      !< even; 4: -hyperviscosity lap lap q
    real(rk) :: drag = 0.0_rk
    real(rk) :: beta = 0.0_rk                    !< gradient of planetary vorticity
    real(rk) :: forcing_amplitude = 0.0_rk
    integer(ik) :: forcing_wavenumber = 4
    character(8) :: dealiasing = '3/2'           !< '3/2': finer grid for products; '2/3': fewer modes; 'none'
    real(rk) :: viscosity_pattern = 0.0_rk       !< mean of the viscosity that varies in space
    integer(ik) :: pattern_wavenumber = 1
    character(16) :: slot = 'tendency'           !< 'tendency' or 'viscosity': what fills the slot answers
  end type parameters_t

  !> The solver `qg`.
  type, extends(solver_t) :: quasigeostrophic_t
    private
    type(parameters_t) :: parameters
    type(plane_t), pointer :: plane => null()
    type(workspace_t) :: work
    real(rk), allocatable :: inverse(:, :, :)      ! 1 / k2, zero for the mean; (half, -waves:waves, blocks)
    real(rk), allocatable :: linear(:, :, :, :)    ! complex rate of the linear terms; (2, half, -waves:waves, blocks)
    real(rk), allocatable :: modes(:)              ! modes of what the slot answered
    real(rk), allocatable :: pattern(:)            ! the viscosity that varies in space, (n); left out: none
    real(rk), pointer, contiguous :: seen(:, :) => null(), answer(:, :) => null()   ! (n, members): what the slot reads, adds to
  contains
    procedure :: configure
    procedure :: describe
    procedure :: tendency
    procedure :: tendency_adjoint
    procedure :: enter
    procedure :: leave
    procedure :: correct
    procedure :: influence
    procedure :: influence_adjoint
    procedure :: influence_state_adjoint
    procedure :: release
  end type quasigeostrophic_t

  interface
    !> See solver_t and quasigeostrophic_adjoint.f90.
    module subroutine tendency_adjoint(self, t, u, lambda, answer, status)
      implicit none
      class(quasigeostrophic_t), intent(inout) :: self
      real(rk), intent(in) :: t
      real(rk), intent(in), contiguous, target :: u(:, :), lambda(:, :)
      real(rk), intent(inout), contiguous, target :: answer(:, :)
      type(status_t), intent(inout) :: status
    end subroutine tendency_adjoint

    !> The namelist group &qg, see quasigeostrophic_parameters.f90.
    module subroutine read_parameters(lines, parameters, status)
      implicit none
      character(*), intent(in) :: lines(:)
      type(parameters_t), intent(out) :: parameters
      type(status_t), intent(inout) :: status
    end subroutine read_parameters

    !> The viscosity that varies in space on the grid, x fastest.
    pure module function pattern_of(p) result(nu)
      implicit none
      type(parameters_t), intent(in) :: p
      real(rk) :: nu(p%n**2)
    end function pattern_of

    !> JSON, see solver_t.
    module function describe(self) result(text)
      implicit none
      class(quasigeostrophic_t), intent(in) :: self
      character(:), allocatable :: text
    end function describe

    !> Refuse values that make no solver.
    module subroutine check_parameters(p, waves, status)
      implicit none
      type(parameters_t), intent(in) :: p
      integer(ik), intent(in) :: waves
      type(status_t), intent(inout) :: status
    end subroutine check_parameters

    !> Add div(nu grad q) in modes, see quasigeostrophic_viscosity.f90.
    module subroutine diffuse(self, nu, q, dqdt)
      implicit none
      class(quasigeostrophic_t), intent(inout) :: self
      real(rk), intent(in) :: nu(:)        !< (n) on the grid
      real(rk), intent(in) :: q(:)         !< (m)
      real(rk), intent(inout) :: dqdt(:)   !< (m), added to
    end subroutine diffuse

    !> See solver_t and quasigeostrophic_viscosity.f90.
    module subroutine influence(self, x, coefficient, dxdt)
      implicit none
      class(quasigeostrophic_t), intent(inout) :: self
      real(rk), intent(in), contiguous, target :: x(:, :), coefficient(:, :)
      real(rk), intent(inout), contiguous, target :: dxdt(:, :)
    end subroutine influence

    !> See solver_t and quasigeostrophic_viscosity.f90.
    module subroutine influence_adjoint(self, u, lambda, answer)
      implicit none
      class(quasigeostrophic_t), intent(inout) :: self
      real(rk), intent(in), contiguous, target :: u(:, :), lambda(:, :)
      real(rk), intent(inout), contiguous, target :: answer(:, :)
    end subroutine influence_adjoint

    !> See solver_t and quasigeostrophic_viscosity.f90.
    module subroutine influence_state_adjoint(self, u, coefficient, lambda, answer)
      implicit none
      class(quasigeostrophic_t), intent(inout) :: self
      real(rk), intent(in), contiguous, target :: u(:, :), coefficient(:, :), lambda(:, :)
      real(rk), intent(inout), contiguous, target :: answer(:, :)
    end subroutine influence_state_adjoint
  end interface

contains

  !> Read `&qg n, viscosity, ... /`, see parameters_t; sets the defaults of what it leaves out.
  subroutine configure(self, lines, status)
    class(quasigeostrophic_t), intent(inout) :: self
    character(*), intent(in) :: lines(:)
    type(status_t), intent(inout) :: status
    type(parameters_t) :: parameters
    integer(ik) :: waves
    logical :: enough

    call read_parameters(lines, parameters, status)
    if (.not. status%ok()) return
    waves = largest_wavenumber(parameters)
    call check_parameters(parameters, waves, status)
    if (.not. status%ok()) return
    call self%release()
    self%parameters = parameters
    if (parameters%dealiasing == '3/2') then
      call open_plane(self%plane, self%work, parameters%n, waves, parameters%n / 2, 3_ik, enough)
    else
      call open_plane(self%plane, self%work, parameters%n, waves, parameters%n, 1_ik, enough)
    end if
    if (.not. enough) then
      call status%raise(STATUS_BAD_PARAMETER, 'qg: there is not enough memory for n = '//json_integer(parameters%n))
      return
    end if
    call set_coefficients(self)
    self%has_adjoint = .true.
    self%modal = .true.
    self%n = parameters%n**2
    self%m = size(self%linear)
    allocate (self%modes(self%m))
    self%coefficients = merge(self%n, 0_ik, parameters%slot == 'viscosity')
    if (parameters%viscosity_pattern > 0) self%pattern = pattern_of(parameters)
  end subroutine configure

  !> The largest wavenumber that the state holds: below Nyquist, or below n / 3.
  pure integer(ik) function largest_wavenumber(parameters)
    type(parameters_t), intent(in) :: parameters
    if (parameters%dealiasing == '2/3') then
      largest_wavenumber = (parameters%n - 1) / 3
    else
      largest_wavenumber = parameters%n / 2 - 1
    end if
  end function largest_wavenumber

  !> Tabulate what multiplies each mode.
  subroutine set_coefficients(self)
    class(quasigeostrophic_t), intent(inout) :: self
    real(rk) :: square
    integer(ik) :: kx, ky, lane, block, waves

    waves = self%plane%waves
    allocate (self%inverse(half, -waves:waves, self%plane%blocks), source=0.0_rk)
    allocate (self%linear(2, half, -waves:waves, self%plane%blocks), source=0.0_rk)
    associate (p => self%parameters)
      do ky = -waves, waves
        do kx = 0, waves
          block = kx / half + 1
          lane = mod(kx, half) + 1
          square = real(kx, rk)**2 + real(ky, rk)**2
          if (square > 0) self%inverse(lane, ky, block) = 1 / square
          ! -beta v with v = i kx psi = -i kx q / k2
          self%linear(1, lane, ky, block) = -p%drag - p%viscosity * square - p%hyperviscosity * square**(p%hyperviscosity_order / 2)
          self%linear(2, lane, ky, block) = p%beta * kx * self%inverse(lane, ky, block)
        end do
      end do
    end associate
  end subroutine set_coefficients

  !> See solver_t.
  subroutine tendency(self, t, x, dxdt)
    class(quasigeostrophic_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: x(:, :)
    real(rk), intent(out), contiguous, target :: dxdt(:, :)
    integer :: member
    do member = 1, size(x, 2)
      call vorticity_tendency(self%plane, self%work, self%parameters, self%inverse, self%linear, x(:, member), dxdt(:, member))
      if (allocated(self%pattern)) call diffuse(self, self%pattern, x(:, member), dxdt(:, member))
    end do
  end subroutine tendency

  !> dq/dt of one member.
  subroutine vorticity_tendency(plane, work, parameters, inverse, linear, q, dqdt)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(in) :: work
    type(parameters_t), intent(in) :: parameters
    real(rk), intent(in) :: inverse(half, -plane%waves:plane%waves, plane%blocks)
    real(rk), intent(in) :: linear(2, half, -plane%waves:plane%waves, plane%blocks)
    real(rk), intent(in) :: q(2, half, -plane%waves:plane%waves, plane%blocks)
    real(rk), intent(out) :: dqdt(2, half, -plane%waves:plane%waves, plane%blocks)
    integer(ik) :: block, shift, row

    do block = 1, plane%blocks
      call velocity(plane%waves, block, inverse(:, :, block), q(:, :, :, block), work%strip%r)
      call columns_to_slab(plane, work, block, work%slab)
    end do
    do shift = 0, plane%shifts - 1
      do row = shift * plane%rows + 1, shift * plane%rows + plane%points, lanes
        call rows_to_grid(plane, work, work%slab, row, work%values)
        call square(size(work%values%c), work%values%c)
        call grid_to_rows(plane, work, work%values, row, work%slab)
      end do
    end do
    do block = 1, plane%blocks
      call slab_to_columns(plane, work, work%slab, block)
      call add_up(plane, block, work%strip%r, linear(:, :, :, block), q(:, :, :, block), dqdt(:, :, :, block))
    end do
    call force(plane, parameters, dqdt)
  end subroutine vorticity_tendency

  !> Modes of w = u + i v for kx and, half a strip further, for -kx: w(k) = (kx + i ky) q(k) / k2 and q(-k) = conj(q(k)).
  pure subroutine velocity(waves, block, inverse, q, w)
    integer(ik), intent(in) :: waves, block
    real(rk), intent(in) :: inverse(half, -waves:waves)
    real(rk), intent(in) :: q(2, half, -waves:waves)
    real(rk), intent(out) :: w(2, lanes, -waves:waves)
    real(rk) :: x, y, kx(half)
    integer(ik) :: ky, l

    kx = [(real(half * (block - 1) + l, rk), l=0, half - 1)]
    do ky = -waves, waves
      do l = 1, half
        x = kx(l) * inverse(l, ky)
        y = ky * inverse(l, ky)
        w(1, l, ky) = x * q(1, l, ky) - y * q(2, l, ky)
        w(2, l, ky) = x * q(2, l, ky) + y * q(1, l, ky)
        w(1, l + half, -ky) = -(x * q(1, l, ky) + y * q(2, l, ky))
        w(2, l + half, -ky) = x * q(2, l, ky) - y * q(1, l, ky)
      end do
    end do
  end subroutine velocity

  !> w2 in place: u2 - v2 + 2 i u v.
  pure subroutine square(length, w)
    integer, intent(in) :: length
    complex(rk), intent(inout) :: w(length)
    w = w * w
  end subroutine square

  !> dq/dt = linear q - J, from the modes of w2 for kx and, half a strip further, for -kx.
  pure subroutine add_up(plane, block, z, linear, q, dqdt)
    type(plane_t), intent(in) :: plane
    integer(ik), intent(in) :: block
    real(rk), intent(in) :: z(2, lanes, -plane%waves:plane%waves)
    real(rk), intent(in) :: linear(2, half, -plane%waves:plane%waves)
    real(rk), intent(in) :: q(2, half, -plane%waves:plane%waves)
    real(rk), intent(out) :: dqdt(2, half, -plane%waves:plane%waves)
    real(rk) :: scale, cr, ci, kx(half), kx2(half)
    integer(ik) :: ky, l

    scale = -0.25_rk / (real(plane%shifts * plane%points, rk)**2)
    kx = [(real(half * (block - 1) + l, rk), l=0, half - 1)]
    kx2 = scale * kx**2
    do ky = -plane%waves, plane%waves
      do l = 1, half
        cr = (2 * scale * ky) * kx(l)
        ci = kx2(l) - scale * real(ky, rk)**2
        dqdt(1, l, ky) = (linear(1, l, ky) * q(1, l, ky) - linear(2, l, ky) * q(2, l, ky)) &
                         + (cr * (z(1, l, ky) + z(1, l + half, -ky)) - ci * (z(2, l, ky) + z(2, l + half, -ky)))
        dqdt(2, l, ky) = (linear(1, l, ky) * q(2, l, ky) + linear(2, l, ky) * q(1, l, ky)) &
                         + (cr * (z(2, l, ky) - z(2, l + half, -ky)) + ci * (z(1, l, ky) - z(1, l + half, -ky)))
      end do
    end do
  end subroutine add_up

  !> Add the steady forcing: half its amplitude in each of the modes (k, 0), (0, k), (0, -k).
  pure subroutine force(plane, parameters, dqdt)
    type(plane_t), intent(in) :: plane
    type(parameters_t), intent(in) :: parameters
    real(rk), intent(inout) :: dqdt(2, half, -plane%waves:plane%waves, plane%blocks)
    integer(ik) :: k, lane, block

    if (.not. abs(parameters%forcing_amplitude) > 0) return
    k = parameters%forcing_wavenumber
    block = k / half + 1
    lane = mod(k, half) + 1
    dqdt(1, lane, 0, block) = dqdt(1, lane, 0, block) + parameters%forcing_amplitude / 2
    dqdt(1, 1, k, 1) = dqdt(1, 1, k, 1) + parameters%forcing_amplitude / 2
    dqdt(1, 1, -k, 1) = dqdt(1, 1, -k, 1) + parameters%forcing_amplitude / 2
  end subroutine force

  !> Grid values to modes, see solver_t.
  subroutine enter(self, u, x)
    class(quasigeostrophic_t), intent(inout) :: self
    real(rk), intent(in), contiguous, target :: u(:, :)
    real(rk), intent(out), contiguous, target :: x(:, :)
    integer :: member
    do member = 1, size(u, 2)
      call field_to_modes(self%plane, self%work, u(:, member), x(:, member))
    end do
  end subroutine enter

  !> Modes to grid values, see solver_t.
  subroutine leave(self, x, u)
    class(quasigeostrophic_t), intent(inout) :: self
    real(rk), intent(in), contiguous, target :: x(:, :)
    real(rk), intent(out), contiguous, target :: u(:, :)
    integer :: member
    do member = 1, size(x, 2)
      call modes_to_field(self%plane, self%work, x(:, member), u(:, member))
    end do
  end subroutine leave

  !> Let the slot see grid values and add the modes of its answer that the state holds, see solver_t.
  subroutine correct(self, slot, x, weight, dxdt, status)
    class(quasigeostrophic_t), intent(inout) :: self
    type(correction_t), intent(inout) :: slot
    real(rk), intent(in), contiguous, target :: x(:, :)
    real(rk), intent(in) :: weight
    real(rk), intent(inout), contiguous, target :: dxdt(:, :)
    type(status_t), intent(inout) :: status
    integer :: member

    if (.not. slot%filled()) return
    call hold(self%seen, int(self%n), size(x, 2))
    call self%leave(x, self%seen)
    if (self%coefficients > 0) then
      call self%ask_coefficient(slot, self%seen, weight, status)
      if (status%ok()) call self%influence(x, self%held_coefficient, dxdt)
      return
    end if
    call hold(self%answer, int(self%n), size(x, 2))
    self%answer = 0.0_rk
    call slot%apply(self%seen, weight, self%answer, status)
    if (.not. status%ok()) return
    do member = 1, size(x, 2)
      call field_to_modes(self%plane, self%work, self%answer(:, member), self%modes)
      dxdt(:, member) = dxdt(:, member) + self%modes
    end do
  end subroutine correct

  !> Keep a buffer as long as its shape fits.
  subroutine hold(buffer, n, members)
    real(rk), pointer, contiguous, intent(inout) :: buffer(:, :)
    integer, intent(in) :: n, members
    if (associated(buffer)) then
      if (size(buffer, 1) == n .and. size(buffer, 2) == members) return
      deallocate (buffer)
    end if
    allocate (buffer(n, members))
  end subroutine hold

  !> Give back plans and buffers; may be called twice.
  subroutine release(self)
    class(quasigeostrophic_t), intent(inout) :: self
    call close_plane(self%plane, self%work)
    if (allocated(self%inverse)) deallocate (self%inverse, self%linear, self%modes)
    if (allocated(self%pattern)) deallocate (self%pattern)
    if (associated(self%seen)) deallocate (self%seen)
    if (associated(self%answer)) deallocate (self%answer)
  end subroutine release
end module trimtab_quasigeostrophic

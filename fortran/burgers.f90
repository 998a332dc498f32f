! SPDX-License-Identifier: MIT
!> The equation of Burgers on a ring, by finite volumes that capture shocks:
!!
!!   du/dt + d(u^2 / 2)/dx = viscosity d2u/dx2 - drag u + forcing_amplitude sin(2 pi forcing_wavenumber x / length)
!!
!! Everything is without dimension. State at the border = internal state = averages over n cells of length dx = length / n, the
!! first centred at dx / 2. Second order in smooth flow, first at extrema and shocks. A slope in every cell, from the differences
!! a, b to its left and right (MUSCL), gives the states at its two edges; between cells acts a flux of the two states there:
!!
!!   limiter  minmod: the smaller of a and b, 0 where their signs differ;   vanleer: 2 a b / (a + b), 0 likewise;
!!            none: (a + b) / 2, which overshoots at shocks and is a smooth function
!!   flux     godunov: of the exact solution of the Riemann problem, max(max(l, 0)^2, min(r, 0)^2) / 2;
!!            rusanov: (l^2 + r^2) / 4 - max(|l|, |r|) (r - l) / 2
!!
!! With viscosity 0, no drag and no forcing the total is conserved to round-off, and with minmod or vanleer the total variation
!! does not grow (explicit Euler, dt max|u| <= dx / 2, and every integrator that is a convex sum of such steps, rk2 among ours).
!! Viscosity: central differences, dt <= dx^2 / (2 viscosity) for explicit steps.
!!
!! The adjoint is the derivative of these formulas almost everywhere. At a kink it takes one side: of two equal differences a; of
!! two equal Godunov squares the left one; where a difference is 0 the slope counts as flat; of equal speeds |l| = |r| the left
!! one, and |0|' = 1. Through a shock it is the derivative of the numbers computed, for which the shock's position enters through
!! the states within it.
!!
!! Sources: van Leer, J. Comput. Phys. 32, 101 (1979), doi:10.1016/0021-9991(79)90145-1 (MUSCL); 14, 361 (1974),
!! doi:10.1016/0021-9991(74)90019-9 (limiter); LeVeque, Finite Volume Methods for Hyperbolic Problems (2002), 6.9, 11.13, 12.5.
module trimtab_burgers
  use trimtab_kinds, only: rk, ik, pi
  use trimtab_status, only: status_t, STATUS_BAD_PARAMETER
  use trimtab_solver, only: solver_t
  use trimtab_text, only: json_real, json_integer, json_string, json_field, json_axis, namelist_sentence, all_finite
  implicit none
  private
  public :: burgers_t

  !> What the namelist group &burgers takes.
  type :: parameters_t
    integer(ik) :: n = 128                     !< cells, 4 or more
    real(rk) :: length = 2.0_rk * pi           !< of the ring
    real(rk) :: viscosity = 0.0_rk
    real(rk) :: drag = 0.0_rk
    real(rk) :: forcing_amplitude = 0.0_rk
    integer(ik) :: forcing_wavenumber = 1      !< waves on the ring
    character(8) :: limiter = 'minmod'         !< 'minmod', 'vanleer' or 'none'
    character(8) :: flux = 'godunov'           !< 'godunov' or 'rusanov'
  end type parameters_t

  !> The solver `burgers`.
  type, extends(solver_t) :: burgers_t
    private
    type(parameters_t) :: parameters
    real(rk), allocatable :: forcing(:)        ! averages over the cells
  contains
    procedure :: configure
    procedure :: describe
    procedure :: tendency
    procedure :: tendency_adjoint
  end type burgers_t

contains

  !> Read `&burgers n, length, viscosity, ... /`, see parameters_t.
  subroutine configure(self, lines, status)
    class(burgers_t), intent(inout) :: self
    character(*), intent(in) :: lines(:)
    type(status_t), intent(inout) :: status
    type(parameters_t) :: p
    real(rk) :: half
    integer :: i
    call read_parameters(lines, p, status)
    if (.not. status%ok()) return
    call check_parameters(p, status)
    if (.not. status%ok()) return
    self%parameters = p
    self%n = p%n
    self%m = p%n
    self%has_adjoint = .true.
    half = pi * p%forcing_wavenumber / p%n
    if (allocated(self%forcing)) deallocate (self%forcing)
    allocate (self%forcing(p%n))
    do i = 1, p%n
      self%forcing(i) = p%forcing_amplitude * sin(half * (2 * i - 1)) * sin(half) / half
    end do
  end subroutine configure

  !> The namelist group &burgers.
  subroutine read_parameters(lines, p, status)
    character(*), intent(in) :: lines(:)
    type(parameters_t), intent(out) :: p
    type(status_t), intent(inout) :: status
    integer(ik) :: n, forcing_wavenumber
    real(rk) :: length, viscosity, drag, forcing_amplitude
    character(8) :: limiter, flux
    character(256) :: message
    integer :: code
    namelist /burgers/ n, length, viscosity, drag, forcing_amplitude, forcing_wavenumber, limiter, flux
    n = p%n
    length = p%length
    viscosity = p%viscosity
    drag = p%drag
    forcing_amplitude = p%forcing_amplitude
    forcing_wavenumber = p%forcing_wavenumber
    limiter = p%limiter
    flux = p%flux
    read (lines, nml=burgers, iostat=code, iomsg=message)
    if (code /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, namelist_sentence('burgers', 'n, length, viscosity, drag, forcing_amplitude, '// &
                                                                'forcing_wavenumber, limiter and flux', code, message))
      return
    end if
    p = parameters_t(n, length, viscosity, drag, forcing_amplitude, forcing_wavenumber, limiter, flux)
  end subroutine read_parameters

  !> Refuse values out of range.
  subroutine check_parameters(p, status)
    type(parameters_t), intent(in) :: p
    type(status_t), intent(inout) :: status
    if (p%n < 4) then
      call status%raise(STATUS_BAD_PARAMETER, 'burgers: n = '//json_integer(p%n)//' is too small, its stencil needs 4 cells')
    end if
    if (.not. (all_finite([p%length, p%viscosity, p%drag, p%forcing_amplitude]) .and. p%length > 0.0_rk .and. &
               p%viscosity >= 0.0_rk)) then
      call status%raise(STATUS_BAD_PARAMETER, 'burgers: length must be above 0, viscosity 0 or more, drag and '// &
                        'forcing_amplitude finite numbers')
    end if
    if (p%forcing_wavenumber < 1) call status%raise(STATUS_BAD_PARAMETER, 'burgers: forcing_wavenumber must be 1 or more')
    if (all(p%limiter /= ['minmod  ', 'vanleer ', 'none    '])) then
      call status%raise(STATUS_BAD_PARAMETER, 'burgers: limiter is ''minmod'', ''vanleer'' or ''none'', not '''// &
                        trim(p%limiter)//'''')
    end if
    if (all(p%flux /= ['godunov ', 'rusanov '])) then
      call status%raise(STATUS_BAD_PARAMETER, 'burgers: flux is ''godunov'' or ''rusanov'', not '''//trim(p%flux)//'''')
    end if
  end subroutine check_parameters

  !> See solver_t.
  function describe(self) result(text)
    class(burgers_t), intent(in) :: self
    character(:), allocatable :: text
    associate (p => self%parameters)
      text = '{"fields": ['//json_field('u', 'velocity, averages over cells', '1', ['x'], [p%n], &
                                        json_axis('x', 0.5_rk * p%length / p%n, p%length / p%n))//'], "parameters": {"n": '// &
             json_integer(p%n)//', "length": '//json_real(p%length)//', "viscosity": '//json_real(p%viscosity)// &
             ', "drag": '//json_real(p%drag)//', "forcing_amplitude": '//json_real(p%forcing_amplitude)// &
             ', "forcing_wavenumber": '//json_integer(p%forcing_wavenumber)//', "limiter": '//json_string(p%limiter)// &
             ', "flux": '//json_string(p%flux)//'}}'
    end associate
  end function describe

  !> See solver_t.
  subroutine tendency(self, t, x, dxdt)
    class(burgers_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: x(:, :)
    real(rk), intent(out), contiguous, target :: dxdt(:, :)
    integer :: i
    do i = 1, size(x, 2)
      call kernel(self%n, self%parameters, self%forcing, x(:, i), dxdt(:, i))
    end do
  end subroutine tendency

  !> du/dt of one member.
  pure subroutine kernel(n, p, forcing, u, du)
    integer(ik), intent(in) :: n
    type(parameters_t), intent(in) :: p
    real(rk), intent(in) :: forcing(n), u(n)
    real(rk), intent(out) :: du(n)
    real(rk) :: w(-1:n + 2), slope(0:n + 1), flux(0:n)
    real(rk) :: per_cell, diffusion
    integer :: i
    per_cell = n / p%length
    diffusion = p%viscosity * per_cell**2
    call close_ring(n, u, w)
    call slopes(n, p%limiter, w, slope)
    call fluxes(n, p%flux, w(0:n) + 0.5_rk * slope(0:n), w(1:n + 1) - 0.5_rk * slope(1:n + 1), flux)
    do i = 1, n
      du(i) = per_cell * (flux(i - 1) - flux(i)) + diffusion * ((w(i + 1) - w(i)) - (w(i) - w(i - 1))) - p%drag * w(i) + forcing(i)
    end do
  end subroutine kernel

  !> The cells with two more at either end.
  pure subroutine close_ring(n, u, w)
    integer(ik), intent(in) :: n
    real(rk), intent(in) :: u(n)
    real(rk), intent(out) :: w(-1:n + 2)
    w(1:n) = u
    w(-1:0) = u(n - 1:n)
    w(n + 1:n + 2) = u(1:2)
  end subroutine close_ring

  !> Limited difference across each cell, edge to edge.
  pure subroutine slopes(n, limiter, w, slope)
    integer(ik), intent(in) :: n
    character(8), intent(in) :: limiter
    real(rk), intent(in) :: w(-1:n + 2)
    real(rk), intent(out) :: slope(0:n + 1)
    real(rk) :: a, b
    integer :: i
    select case (limiter)
    case ('minmod')
      do i = 0, n + 1
        a = w(i) - w(i - 1)
        b = w(i + 1) - w(i)
        slope(i) = merge(merge(a, b, abs(a) <= abs(b)), 0.0_rk, a * b > 0.0_rk)
      end do
    case ('vanleer')
      do i = 0, n + 1
        a = w(i) - w(i - 1)
        b = w(i + 1) - w(i)
        slope(i) = 0.0_rk
        if (a * b > 0.0_rk) slope(i) = 2.0_rk * a * b / (a + b)
      end do
    case default
      do i = 0, n + 1
        slope(i) = 0.5_rk * ((w(i) - w(i - 1)) + (w(i + 1) - w(i)))
      end do
    end select
  end subroutine slopes

  !> Flux through each edge from the states on its left and right.
  pure subroutine fluxes(n, kind, left, right, flux)
    integer(ik), intent(in) :: n
    character(8), intent(in) :: kind
    real(rk), intent(in) :: left(0:n), right(0:n)
    real(rk), intent(out) :: flux(0:n)
    if (kind == 'godunov') then
      flux = 0.5_rk * max(max(left, 0.0_rk)**2, min(right, 0.0_rk)**2)
    else
      flux = 0.25_rk * (left**2 + right**2) - 0.5_rk * max(abs(left), abs(right)) * (right - left)
    end if
  end subroutine fluxes

  !> See solver_t.
  subroutine tendency_adjoint(self, t, u, lambda, answer, status)
    class(burgers_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: u(:, :), lambda(:, :)
    real(rk), intent(inout), contiguous, target :: answer(:, :)
    type(status_t), intent(inout) :: status
    integer :: i
    do i = 1, size(u, 2)
      call kernel_adjoint(self%n, self%parameters, u(:, i), lambda(:, i), answer(:, i))
    end do
  end subroutine tendency_adjoint

  !> The transpose of kernel's derivative: from cells to edges, from edges to slopes, from slopes to cells.
  pure subroutine kernel_adjoint(n, p, u, lambda, answer)
    integer(ik), intent(in) :: n
    type(parameters_t), intent(in) :: p
    real(rk), intent(in) :: u(n), lambda(n)
    real(rk), intent(out) :: answer(n)
    real(rk) :: w(-1:n + 2), slope(0:n + 1), v(-1:n + 2)
    real(rk) :: at_left(0:n), at_right(0:n)      ! derivatives by the states on either side of an edge
    real(rk) :: by_left(0:n + 1), by_right(0:n + 1) ! of a slope by the differences a and b
    real(rk) :: by_slope(0:n + 1)
    real(rk) :: per_cell, diffusion
    integer :: i
    per_cell = n / p%length
    diffusion = p%viscosity * per_cell**2
    call close_ring(n, u, w)
    call close_ring(n, lambda, v)
    call slopes(n, p%limiter, w, slope)
    call flux_derivatives(n, p%flux, w(0:n) + 0.5_rk * slope(0:n), w(1:n + 1) - 0.5_rk * slope(1:n + 1), at_left, at_right)
    call slope_derivatives(n, p%limiter, w, by_left, by_right)
    at_left = per_cell * (v(1:n + 1) - v(0:n)) * at_left
    at_right = per_cell * (v(1:n + 1) - v(0:n)) * at_right
    by_slope(1:n) = 0.5_rk * (at_left(1:n) - at_right(0:n - 1))
    by_slope(0) = by_slope(n)
    by_slope(n + 1) = by_slope(1)
    do i = 1, n
      answer(i) = at_left(i) + at_right(i - 1) + by_slope(i) * (by_left(i) - by_right(i)) - by_slope(i + 1) * by_left(i + 1) &
                  + by_slope(i - 1) * by_right(i - 1) + diffusion * ((v(i + 1) - v(i)) - (v(i) - v(i - 1))) - p%drag * v(i)
    end do
  end subroutine kernel_adjoint

  !> Derivatives of each slope by the differences on its left and right.
  pure subroutine slope_derivatives(n, limiter, w, by_left, by_right)
    integer(ik), intent(in) :: n
    character(8), intent(in) :: limiter
    real(rk), intent(in) :: w(-1:n + 2)
    real(rk), intent(out) :: by_left(0:n + 1), by_right(0:n + 1)
    real(rk) :: a, b
    integer :: i
    by_left = 0.0_rk
    by_right = 0.0_rk
    do i = 0, n + 1
      a = w(i) - w(i - 1)
      b = w(i + 1) - w(i)
      select case (limiter)
      case ('minmod')
        if (.not. a * b > 0.0_rk) cycle
        if (abs(a) <= abs(b)) then
          by_left(i) = 1.0_rk
        else
          by_right(i) = 1.0_rk
        end if
      case ('vanleer')
        if (.not. a * b > 0.0_rk) cycle
        by_left(i) = 2.0_rk * (b / (a + b))**2
        by_right(i) = 2.0_rk * (a / (a + b))**2
      case default
        by_left(i) = 0.5_rk
        by_right(i) = 0.5_rk
      end select
    end do
  end subroutine slope_derivatives

  !> Derivatives of each flux by the states on its left and right.
  pure subroutine flux_derivatives(n, kind, left, right, by_left, by_right)
    integer(ik), intent(in) :: n
    character(8), intent(in) :: kind
    real(rk), intent(in) :: left(0:n), right(0:n)
    real(rk), intent(out) :: by_left(0:n), by_right(0:n)
    real(rk) :: speed
    integer :: i
    if (kind == 'godunov') then
      by_left = max(left, 0.0_rk)
      by_right = min(right, 0.0_rk)
      where (by_left**2 >= by_right**2)
        by_right = 0.0_rk
      else where
        by_left = 0.0_rk
      end where
      return
    end if
    do i = 0, n
      speed = max(abs(left(i)), abs(right(i)))
      by_left(i) = 0.5_rk * (left(i) + speed)
      by_right(i) = 0.5_rk * (right(i) - speed)
      if (abs(left(i)) >= abs(right(i))) then
        by_left(i) = by_left(i) - 0.5_rk * sign(1.0_rk, left(i)) * (right(i) - left(i))
      else
        by_right(i) = by_right(i) - 0.5_rk * sign(1.0_rk, right(i)) * (right(i) - left(i))
      end if
    end do
  end subroutine flux_derivatives
end module trimtab_burgers

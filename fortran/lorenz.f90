! SPDX-License-Identifier: MIT
!> The systems of Edward Lorenz: convection (1963), the ring of 1996, and the ring with fast variables beneath it.
!!
!! State at the border = internal state; every quantity has no dimension. Constants are copied to kernels with explicit shapes:
!! the arrays of `solver_t` are targets, and the compiler would otherwise assume that they overlap.
module trimtab_lorenz
  use trimtab_kinds, only: rk, ik, lk
  use trimtab_status, only: status_t, STATUS_BAD_PARAMETER
  use trimtab_solver, only: solver_t
  use trimtab_text, only: json_real, json_integer, json_field, json_axis, namelist_sentence, all_finite
  implicit none
  private
  public :: lorenz63_t, lorenz96_t, lorenz96_two_scale_t

  integer(ik), parameter :: most_points = 10000000   !< of a ring: a typing error must not take all the memory there is

  !> Three modes of convection. Lorenz, J. Atmos. Sci. 20, 130 (1963), doi:10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2, eqs 25-27.
  type, extends(solver_t) :: lorenz63_t
    real(rk) :: sigma = 10.0_rk               !< Prandtl number
    real(rk) :: rho = 28.0_rk                 !< Rayleigh number over its critical value
    real(rk) :: beta = 8.0_rk / 3.0_rk        !< damping of the third component; 0 gives the core without it
  contains
    procedure :: configure => lorenz63_configure
    procedure :: describe => lorenz63_describe
    procedure :: tendency => lorenz63_tendency
    procedure :: tendency_adjoint => lorenz63_tendency_adjoint
    procedure :: influence => lorenz63_influence
    procedure :: influence_adjoint => lorenz63_influence_adjoint
    procedure :: influence_state_adjoint => lorenz63_influence_state_adjoint
  end type lorenz63_t

  !> Waves on a ring of n points. Lorenz, Predictability: a problem partly solved, ECMWF seminar (1996), eq. 1.
  type, extends(solver_t) :: lorenz96_t
    real(rk) :: forcing = 8.0_rk              !< F
  contains
    procedure :: configure => lorenz96_configure
    procedure :: describe => lorenz96_describe
    procedure :: tendency => lorenz96_tendency
    procedure :: tendency_adjoint => lorenz96_tendency_adjoint
  end type lorenz96_t

  !> The ring X(k), and under each point a segment of a ring of fast variables Y(j, k): the same seminar, eqs 2 and 3.
  !! State: X, then Y with j fastest.
  type, extends(solver_t) :: lorenz96_two_scale_t
    integer(ik) :: slow = 8                   !< K, points of the slow ring (namelist key `n`)
    integer(ik) :: fast = 20                  !< J, fast variables under each
    real(rk) :: forcing = 18.0_rk             !< F
    real(rk) :: coupling = 1.0_rk             !< h
    real(rk) :: b = 10.0_rk                   !< ratio of amplitudes
    real(rk) :: c = 10.0_rk                   !< ratio of speeds
  contains
    procedure :: configure => two_scale_configure
    procedure :: describe => two_scale_describe
    procedure :: tendency => two_scale_tendency
    procedure :: tendency_adjoint => two_scale_tendency_adjoint
  end type lorenz96_two_scale_t

contains

  !> Read `&lorenz63 sigma, rho, beta, slot /`; slot = 'tendency', or 'beta': what fills it answers an addition to beta.
  subroutine lorenz63_configure(self, lines, status)
    class(lorenz63_t), intent(inout) :: self
    character(*), intent(in) :: lines(:)
    type(status_t), intent(inout) :: status
    real(rk) :: sigma, rho, beta
    character(16) :: slot
    character(256) :: message
    integer :: code
    namelist /lorenz63/ sigma, rho, beta, slot
    sigma = self%sigma
    rho = self%rho
    beta = self%beta
    slot = 'tendency'
    read (lines, nml=lorenz63, iostat=code, iomsg=message)
    if (code /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, namelist_sentence('lorenz63', 'sigma, rho, beta and slot', code, message))
      return
    end if
    if (.not. all_finite([sigma, rho, beta])) then
      call status%raise(STATUS_BAD_PARAMETER, 'lorenz63: sigma, rho and beta must be finite numbers')
      return
    end if
    if (slot /= 'tendency' .and. slot /= 'beta') then
      call status%raise(STATUS_BAD_PARAMETER, 'lorenz63: slot is ''tendency'' or ''beta'', not '''//trim(slot)//'''')
      return
    end if
    self%coefficients = merge(1_ik, 0_ik, slot == 'beta')
    self%sigma = sigma
    self%rho = rho
    self%beta = beta
    self%n = 3
    self%m = 3
    self%has_adjoint = .true.
  end subroutine lorenz63_configure

  !> See solver_t.
  function lorenz63_describe(self) result(text)
    class(lorenz63_t), intent(in) :: self
    character(:), allocatable :: text
    character(:), allocatable :: slot
    slot = '"parameters": {"slot": "tendency"'
    if (self%coefficients > 0) then
      slot = '"coefficient": '//json_field('beta', 'addition to beta', '1', ['coefficient'], [1_ik], '')// &
             ', "parameters": {"slot": "beta"'
    end if
    text = '{"fields": ['//json_field('u', 'state of the Lorenz 63 system', '1', ['component'], [3_ik], &
                                      json_axis('component', 1.0_rk, 1.0_rk))//'], '//slot//', "sigma": '// &
           json_real(self%sigma)//', "rho": '//json_real(self%rho)//', "beta": '//json_real(self%beta)//'}}'
  end function lorenz63_describe

  !> See solver_t.
  subroutine lorenz63_tendency(self, t, x, dxdt)
    class(lorenz63_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: x(:, :)
    real(rk), intent(out), contiguous, target :: dxdt(:, :)
    call lorenz63_kernel(size(x, 2), self%sigma, self%rho, self%beta, x, dxdt)
  end subroutine lorenz63_tendency

  pure subroutine lorenz63_kernel(members, sigma, rho, beta, x, dxdt)
    integer, intent(in) :: members
    real(rk), intent(in) :: sigma, rho, beta
    real(rk), intent(in) :: x(3, members)
    real(rk), intent(out) :: dxdt(3, members)
    integer :: i
    do i = 1, members
      dxdt(1, i) = sigma * (x(2, i) - x(1, i))
      dxdt(2, i) = x(1, i) * (rho - x(3, i)) - x(2, i)
      dxdt(3, i) = x(1, i) * x(2, i) - beta * x(3, i)
    end do
  end subroutine lorenz63_kernel

  !> See solver_t.
  subroutine lorenz63_tendency_adjoint(self, t, u, lambda, answer, status)
    class(lorenz63_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: u(:, :), lambda(:, :)
    real(rk), intent(inout), contiguous, target :: answer(:, :)
    type(status_t), intent(inout) :: status
    call lorenz63_adjoint(size(u, 2), self%sigma, self%rho, self%beta, u, lambda, answer)
  end subroutine lorenz63_tendency_adjoint

  pure subroutine lorenz63_adjoint(members, sigma, rho, beta, x, lambda, answer)
    integer, intent(in) :: members
    real(rk), intent(in) :: sigma, rho, beta
    real(rk), intent(in) :: x(3, members), lambda(3, members)
    real(rk), intent(out) :: answer(3, members)
    integer :: i
    do i = 1, members
      answer(1, i) = -sigma * lambda(1, i) + (rho - x(3, i)) * lambda(2, i) + x(2, i) * lambda(3, i)
      answer(2, i) = sigma * lambda(1, i) - lambda(2, i) + x(1, i) * lambda(3, i)
      answer(3, i) = -x(1, i) * lambda(2, i) - beta * lambda(3, i)
    end do
  end subroutine lorenz63_adjoint

  !> -P u_3 in the third equation, see solver_t.
  subroutine lorenz63_influence(self, x, coefficient, dxdt)
    class(lorenz63_t), intent(inout) :: self
    real(rk), intent(in), contiguous, target :: x(:, :), coefficient(:, :)
    real(rk), intent(inout), contiguous, target :: dxdt(:, :)
    dxdt(3, :) = dxdt(3, :) - coefficient(1, :) * x(3, :)
  end subroutine lorenz63_influence

  !> See solver_t.
  subroutine lorenz63_influence_adjoint(self, u, lambda, answer)
    class(lorenz63_t), intent(inout) :: self
    real(rk), intent(in), contiguous, target :: u(:, :), lambda(:, :)
    real(rk), intent(inout), contiguous, target :: answer(:, :)
    answer(1, :) = -u(3, :) * lambda(3, :)
  end subroutine lorenz63_influence_adjoint

  !> See solver_t.
  subroutine lorenz63_influence_state_adjoint(self, u, coefficient, lambda, answer)
    class(lorenz63_t), intent(inout) :: self
    real(rk), intent(in), contiguous, target :: u(:, :), coefficient(:, :), lambda(:, :)
    real(rk), intent(inout), contiguous, target :: answer(:, :)
    answer = 0.0_rk
    answer(3, :) = -coefficient(1, :) * lambda(3, :)
  end subroutine lorenz63_influence_state_adjoint

  !> Read `&lorenz96 n, forcing /`.
  subroutine lorenz96_configure(self, lines, status)
    class(lorenz96_t), intent(inout) :: self
    character(*), intent(in) :: lines(:)
    type(status_t), intent(inout) :: status
    integer(ik) :: n
    real(rk) :: forcing
    character(256) :: message
    integer :: code
    namelist /lorenz96/ n, forcing
    n = 40
    forcing = self%forcing
    read (lines, nml=lorenz96, iostat=code, iomsg=message)
    if (code /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, namelist_sentence('lorenz96', 'n and forcing', code, message))
      return
    end if
    if (n < 4) then
      call status%raise(STATUS_BAD_PARAMETER, 'lorenz96: n = '//json_integer(n)//' is too small, its stencil needs 4 points')
      return
    end if
    if (n > most_points) then
      call status%raise(STATUS_BAD_PARAMETER, 'lorenz96: n = '//json_integer(n)//' is too large, give at most '// &
                        json_integer(most_points))
      return
    end if
    if (.not. all_finite([forcing])) then
      call status%raise(STATUS_BAD_PARAMETER, 'lorenz96: forcing must be a finite number')
      return
    end if
    self%forcing = forcing
    self%n = n
    self%m = n
    self%has_adjoint = .true.
  end subroutine lorenz96_configure

  !> See solver_t.
  function lorenz96_describe(self) result(text)
    class(lorenz96_t), intent(in) :: self
    character(:), allocatable :: text
    text = '{"fields": ['//json_field('x', 'state of the Lorenz 96 ring', '1', ['k'], [self%n], &
                                      json_axis('k', 1.0_rk, 1.0_rk))//'], "parameters": {"n": '// &
           json_integer(self%n)//', "forcing": '//json_real(self%forcing)//'}}'
  end function lorenz96_describe

  !> See solver_t.
  subroutine lorenz96_tendency(self, t, x, dxdt)
    class(lorenz96_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: x(:, :)
    real(rk), intent(out), contiguous, target :: dxdt(:, :)
    integer :: i
    do i = 1, size(x, 2)
      call ring(self%n, self%forcing, x(:, i), dxdt(:, i))
    end do
  end subroutine lorenz96_tendency

  !> du(i) = (u(i+1) - u(i-2)) u(i-1) - u(i) + forcing on a ring.
  pure subroutine ring(n, forcing, u, du)
    integer(ik), intent(in) :: n
    real(rk), intent(in) :: forcing, u(n)
    real(rk), intent(out) :: du(n)
    integer :: i
    du(1) = (u(2) - u(n - 1)) * u(n) - u(1) + forcing
    du(2) = (u(3) - u(n)) * u(1) - u(2) + forcing
    do i = 3, n - 1
      du(i) = (u(i + 1) - u(i - 2)) * u(i - 1) - u(i) + forcing
    end do
    du(n) = (u(1) - u(n - 2)) * u(n - 1) - u(n) + forcing
  end subroutine ring

  !> See solver_t.
  subroutine lorenz96_tendency_adjoint(self, t, u, lambda, answer, status)
    class(lorenz96_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: u(:, :), lambda(:, :)
    real(rk), intent(inout), contiguous, target :: answer(:, :)
    type(status_t), intent(inout) :: status
    integer :: i
    do i = 1, size(u, 2)
      answer(:, i) = ring_adjoint(u(:, i), lambda(:, i))
    end do
  end subroutine lorenz96_tendency_adjoint

  !> The transpose of ring's derivative; cshift(u, s) holds u(i + s).
  pure function ring_adjoint(u, lambda) result(answer)
    real(rk), intent(in) :: u(:), lambda(:)
    real(rk) :: answer(size(u))
    answer = cshift(lambda, -1) * cshift(u, -2) - cshift(lambda, 2) * cshift(u, 1) &
             + cshift(lambda, 1) * (cshift(u, 2) - cshift(u, -1)) - lambda
  end function ring_adjoint

  !> Read `&lorenz96_two_scale n, fast, forcing, coupling, b, c /`.
  subroutine two_scale_configure(self, lines, status)
    class(lorenz96_two_scale_t), intent(inout) :: self
    character(*), intent(in) :: lines(:)
    type(status_t), intent(inout) :: status
    integer(ik) :: n, fast
    real(rk) :: forcing, coupling, b, c
    character(256) :: message
    integer :: code
    namelist /lorenz96_two_scale/ n, fast, forcing, coupling, b, c
    n = self%slow
    fast = self%fast
    forcing = self%forcing
    coupling = self%coupling
    b = self%b
    c = self%c
    read (lines, nml=lorenz96_two_scale, iostat=code, iomsg=message)
    if (code /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, &
                        namelist_sentence('lorenz96_two_scale', 'n, fast, forcing, coupling, b and c', code, message))
      return
    end if
    if (n > most_points .or. int(max(n, 0), lk) * max(fast, 0) > most_points) then
      call status%raise(STATUS_BAD_PARAMETER, 'lorenz96_two_scale: n times fast is too large, give at most '// &
                        json_integer(most_points))
      return
    end if
    if (n < 4 .or. fast < 1) then
      call status%raise(STATUS_BAD_PARAMETER, 'lorenz96_two_scale: n must be 4 or more and fast 1 or more, not '// &
                        json_integer(n)//' and '//json_integer(fast))
      return
    end if
    if (.not. (all_finite([forcing, coupling, b, c]) .and. abs(b) > 0.0_rk)) then
      call status%raise(STATUS_BAD_PARAMETER, &
                        'lorenz96_two_scale: forcing, coupling, b and c must be finite numbers, and b, a ratio, not 0')
      return
    end if
    self%slow = n
    self%fast = fast
    self%forcing = forcing
    self%coupling = coupling
    self%b = b
    self%c = c
    self%n = n * (1 + fast)
    self%m = self%n
    self%has_adjoint = .true.
  end subroutine two_scale_configure

  !> See solver_t.
  function two_scale_describe(self) result(text)
    class(lorenz96_two_scale_t), intent(in) :: self
    character(:), allocatable :: text
    text = '{"fields": ['//json_field('x', 'slow ring of the two-scale Lorenz 96 system', '1', ['k'], [self%slow], &
                                      json_axis('k', 1.0_rk, 1.0_rk))//', '// &
           json_field('y', 'fast variables of the two-scale Lorenz 96 system', '1', ['k', 'j'], [self%slow, self%fast], &
                      json_axis('k', 1.0_rk, 1.0_rk)//', '//json_axis('j', 1.0_rk, 1.0_rk))//'], "parameters": {"n": '// &
           json_integer(self%slow)//', "fast": '//json_integer(self%fast)//', "forcing": '//json_real(self%forcing)// &
           ', "coupling": '//json_real(self%coupling)//', "b": '//json_real(self%b)//', "c": '//json_real(self%c)//'}}'
  end function two_scale_describe

  !> See solver_t.
  subroutine two_scale_tendency(self, t, x, dxdt)
    class(lorenz96_two_scale_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: x(:, :)
    real(rk), intent(out), contiguous, target :: dxdt(:, :)
    integer :: i
    do i = 1, size(x, 2)
      call two_scale_kernel(self%slow, self%fast, self%forcing, self%coupling * self%c / self%b, self%b, self%c, &
                            x(:, i), dxdt(:, i))
    end do
  end subroutine two_scale_tendency

  !> dX(k)/dt = (X(k+1) - X(k-2)) X(k-1) - X(k) + F - (h c / b) sum_j Y(j, k)
  !! dY(l)/dt = c b (Y(l-1) - Y(l+2)) Y(l+1) - c Y(l) + (h c / b) X(k), with l = j + J (k - 1) on one ring.
  pure subroutine two_scale_kernel(slow, fast, forcing, exchange, b, c, u, du)
    integer(ik), intent(in) :: slow, fast
    real(rk), intent(in) :: forcing, exchange, b, c
    real(rk), intent(in) :: u(slow * (1 + fast))
    real(rk), intent(out) :: du(slow * (1 + fast))
    integer :: j, k, l, last
    call ring(slow, forcing, u, du)
    last = slow * fast
    associate (y => u(slow + 1:), dy => du(slow + 1:))
      do l = 2, last - 2
        dy(l) = c * b * (y(l - 1) - y(l + 2)) * y(l + 1) - c * y(l)
      end do
      dy(1) = c * b * (y(last) - y(3)) * y(2) - c * y(1)
      dy(last - 1) = c * b * (y(last - 2) - y(1)) * y(last) - c * y(last - 1)
      dy(last) = c * b * (y(last - 1) - y(2)) * y(1) - c * y(last)
      do k = 1, slow
        do j = 1, fast
          l = j + fast * (k - 1)
          du(k) = du(k) - exchange * y(l)
          dy(l) = dy(l) + exchange * u(k)
        end do
      end do
    end associate
  end subroutine two_scale_kernel

  !> See solver_t.
  subroutine two_scale_tendency_adjoint(self, t, u, lambda, answer, status)
    class(lorenz96_two_scale_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: u(:, :), lambda(:, :)
    real(rk), intent(inout), contiguous, target :: answer(:, :)
    type(status_t), intent(inout) :: status
    real(rk) :: exchange
    integer :: i, k, first
    exchange = self%coupling * self%c / self%b
    do i = 1, size(u, 2)
      associate (x => u(:self%slow, i), y => u(self%slow + 1:, i), p => lambda(:self%slow, i), q => lambda(self%slow + 1:, i))
        answer(:self%slow, i) = ring_adjoint(x, p)
        answer(self%slow + 1:, i) = (self%c * self%b) * (cshift(q, 1) * cshift(y, 2) - cshift(q, -2) * cshift(y, -1) &
                                                         + cshift(q, -1) * (cshift(y, -2) - cshift(y, 1))) - self%c * q
        do k = 1, self%slow
          first = self%fast * (k - 1) + 1
          answer(k, i) = answer(k, i) + exchange * sum(q(first:first + self%fast - 1))
          answer(self%slow + first:self%slow + first + self%fast - 1, i) = &
            answer(self%slow + first:self%slow + first + self%fast - 1, i) - exchange * p(k)
        end do
      end associate
    end do
  end subroutine two_scale_tendency_adjoint
end module trimtab_lorenz

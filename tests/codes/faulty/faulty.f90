! SPDX-License-Identifier: MIT
! A small sound code, upwind on a ring, that makes one of the mistakes of large ones when it is asked for: for the doctor's tests.
module faulty
  implicit none
  integer, parameter :: dp = kind(1d0), n = 24
  ! The mistakes, by number of the option `fault`.
  integer, parameter :: none = 0, cut = 1, uneven = 2, unread = 3, twice = 4, levels = 5, signed = 6, sets = 7, forgets = 8
  integer, parameter :: seldom = 9, draws = 10, stops = 11, spectral = 12, leaks = 13, opens = 14, talks = 15, stages = 16
  integer, parameter :: late = 17, unseeded = 18, starts_badly = 19, halo = 20, clamps = 21, no_slot = 22, ends = 23, turns = 24
  integer, parameter :: limits = 25, uncalled = 26, ragged = 27, misspelt = 28
  integer :: i
  real(dp), parameter :: dx = 0.25_dp, mask(n) = [0, 0, 0, 0, (1, i=5, n)], sides(n) = [(1, i=1, n/2), (-1, i=1, n/2)]
  real(dp) :: u(n), v(n), du(n), dv(n), dt = 0.01_dp, drag = 0, unit = 1
  real(dp) :: given(n), pending(n), margin(0:n+1), held, level(n, 2), old(n)
  real(dp) :: work_a, work_b, work_c, work_d, work_e, work_f, work_g, work_h, work_i, work_j
  real(dp), pointer :: lost(:)
  integer :: fault = none, counter, now = 1
contains
  subroutine setup
    integer :: length
    character(len=32) :: lines(1) = '&physics drga = 0.2 /'
    namelist /physics/ drag
    if (fault == misspelt) read (lines, nml=physics)
    u = [(1 + 0.5_dp * sin(6.28_dp * i / n) + 0.1_dp * mod(7 * i, 5), i=1, n)]
    v = [(-0.0_dp, i=1, 4), (0.3_dp, i=5, n)]
    du = 0; dv = 0; given = 0; pending = 0; margin = 0; held = 0; counter = 0; old = 0.3_dp
    u = unit * u; v = unit * v; old = unit * old
    level(:, 1) = u
    level(:, 2) = -unit
    if (fault == starts_badly) u(7) = sqrt(-abs(u(7)))
    call random_seed(size=length)
    if (fault /= unseeded) call random_seed(put=[(5 + i, i=1, length)])
    if (fault == unseeded) call random_number(u)
  end subroutine setup

  subroutine step
    select case (fault)
    case (levels)
      call circular
    case (stages)
      call two_stages
    case default
      call one_stage
    end select
    counter = counter + 1
    if (fault == ragged) dt = merge(0.015_dp, 0.01_dp, mod(counter, 2) == 1)
    if (fault == ends .and. counter > 300) stop 'FAULTY: its last step'
    if (fault == stops .or. fault == spectral) then
      if (maxval(abs(u)) > 1e3_dp * unit) stop 'FAULTY: the flow is too fast'
    end if
  end subroutine step

  subroutine one_stage
    real(dp) :: r
    du = -(u - cshift(u, -1)) / dx + 0.2_dp * unit
    if (fault /= late) du = du - drag * u
    dv = 0.2_dp * mask * (u - v)
    where (mask < 1) dv = -0.0_dp
    work_a = u(1); work_b = u(2); work_c = u(3); work_d = u(4); work_e = u(5); work_f = u(6)
    work_g = u(7); work_h = u(8); work_i = u(9); work_j = u(10)
    select case (fault)
    case (forgets)
      du = du + 0.5_dp * old
    case (seldom)
      if (mod(counter, 1900) == 1800) held = sum(u)
      du = du - 0.01_dp * held
    case (draws)
      call random_number(r)
      du = du + unit * r
    case (leaks)
      allocate (lost(20000))  ! far more than what a process may have free
      lost = u(1)
    case (opens)
      if (counter == 3) open (41, file='faulty.out')
    case (talks)
      write (*, '(a)') repeat('so it goes. ', 100)
    case (halo)
      margin(1:n) = u
      du = du + 0.1_dp * (margin(0) - margin(n + 1))
      margin(0) = u(n)
      margin(n + 1) = u(1)
    case (turns)                       ! by a radian a step, in one stage
      du = (cos(1.0_dp) * u - sin(1.0_dp) * sides * cshift(u, n / 2) - u) / dt
    case (clamps)
      du = du - given
      given = 0
    end select
    if (fault /= unread .and. fault /= uncalled) call faulty_correct
    if (fault == spectral) du = du - sum(du) / n
    if (fault == limits) du = max(-unit, min(unit, du))
    old = du / 3
    u = u + dt * (du + pending)        ! what acts through the old value alone comes a step late
    if (fault == late) pending = -drag * u
    v = v + dt * dv
    if (fault == unread) call faulty_correct
    if (fault == cut) u(9:) = 0
  end subroutine one_stage

  subroutine circular                  ! a circular time index, whose first step sets absolute levels
    integer :: before
    if (counter == 0) now = 1
    before = now
    now = 3 - now
    du = -(level(:, before) - cshift(level(:, before), -1)) / dx
    call faulty_correct
    level(:, now) = level(:, before) + dt * du
  end subroutine circular

  subroutine two_stages                ! a rotation by half a radian, the slot called in both stages
    real(dp) :: first(n), middle(n)
    first = u
    du = -50 * sides * cshift(u, n / 2)
    call faulty_correct
    middle = first + dt / 2 * du
    u = first + dt * du
    du = -50 * sides * cshift(u, n / 2)
    call faulty_correct
    u = middle + dt / 2 * du
  end subroutine two_stages
end module faulty

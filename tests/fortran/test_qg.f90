! SPDX-License-Identifier: MIT
!> A correction for test_qg; an internal procedure of a program cannot be handed to C.
module damping
  use, intrinsic :: iso_c_binding, only: c_ptr, c_loc, c_f_pointer
  use trimtab_kinds, only: rk, lk
  implicit none
  private
  public :: damp

  real(rk), allocatable, target :: answer(:, :)

contains

  !> -q / 2 and a Nyquist wave.
  function damp(context, state, n, members, weight) bind(c) result(tendency)
    type(c_ptr), value :: context, state
    integer(lk), value :: n, members
    real(rk), value :: weight
    type(c_ptr) :: tendency
    real(rk), pointer :: u(:, :)
    call c_f_pointer(state, u, [n, members])
    if (allocated(answer)) deallocate (answer)
    allocate (answer(n, members))
    answer = -0.5_rk * u
    answer(::2, :) = answer(::2, :) + 1
    answer(2::2, :) = answer(2::2, :) - 1
    tendency = c_loc(answer(1, 1))
  end function damp
end module damping

!> The barotropic vorticity solver where the answer is known: closed forms, budgets, what it keeps and what it drops.
program test_qg
  use, intrinsic :: iso_c_binding, only: c_null_ptr, c_funloc
  use trimtab_kinds, only: rk, ik, lk, pi
  use trimtab_status, only: status_t, STATUS_BAD_PARAMETER
  use trimtab_driver, only: hybrid_t
  use trimtab_quasigeostrophic, only: quasigeostrophic_t
  use checks, only: check, finish, open_hybrid, run, no_op, refuses
  use damping, only: damp
  implicit none

  character(4), parameter :: rules(3) = ['3/2 ', '2/3 ', 'none']
  integer, parameter :: sizes(5) = [4, 6, 18, 36, 64]

  call round_trip()
  call jacobian_by_hand()
  call plane_wave()
  call budgets()
  call forcing()
  call decay()
  call rossby_wave()
  call members_and_solvers()
  call correction()
  call refusals()
  call finish()

contains

  !> Grid -> modes -> grid keeps what the modes hold, modes -> grid -> modes everything.
  subroutine round_trip()
    type(quasigeostrophic_t) :: solver
    real(rk), allocatable :: u(:, :), again(:, :), x(:, :), x_again(:, :)
    integer :: i, rule
    do rule = 1, 3
      do i = 1, size(sizes)
        call open_solver(solver, sizes(i), "dealiasing='"//trim(rules(rule))//"'")
        allocate (u(solver%n, 2), again(solver%n, 2), x(solver%m, 2), x_again(solver%m, 2))
        call random_number(u)
        call solver%enter(u, x)
        call solver%leave(x, u)
        call solver%enter(u, x_again)
        call solver%leave(x_again, again)
        call check(maxval(abs(x_again - x)) < 1.0e-15_rk, 'modes survive the grid, '//rules(rule))
        call check(maxval(abs(again - u)) < 1.0e-14_rk, 'the grid survives the modes, '//rules(rule))
        u(:, 1:1) = wave(sizes(i), 1, -1, 0.3_rk) + 0.7_rk   ! the mean is a mode too
        u(:, 2) = 2 * u(:, 1)
        call solver%enter(u, x)
        call solver%leave(x, again)
        call check(maxval(abs(again - u)) < 1.0e-14_rk, 'a wave and the mean survive, '//rules(rule))
        u(::2, :) = 1.0_rk
        u(2::2, :) = -1.0_rk
        call solver%enter(u, x)
        call check(maxval(abs(x)) < 1.0e-15_rk, 'the Nyquist modes are dropped, '//rules(rule))
        deallocate (u, again, x, x_again)
        call solver%release()
      end do
    end do
  end subroutine round_trip

  !> q = cos x + cos 2y: psi = -cos x - cos(2y) / 4, J(psi, q) = -(3/2) sin x sin 2y.
  subroutine jacobian_by_hand()
    integer, parameter :: n = 18
    real(rk) :: q(n * n, 1), expected(n * n, 1)
    integer :: rule
    q = wave(n, 1, 0, 0.0_rk) + wave(n, 0, 2, 0.0_rk)
    expected = 0.75_rk * (wave(n, 1, -2, 0.0_rk) - wave(n, 1, 2, 0.0_rk))   ! (3/2) sin x sin 2y
    do rule = 1, 3
      call check(maxval(abs(tendency(n, "dealiasing='"//trim(rules(rule))//"'", q) - expected)) < 1.0e-14_rk, &
                 'the Jacobian by hand, '//rules(rule))
    end do
  end subroutine jacobian_by_hand

  !> psi is a multiple of q: nothing moves, whatever the wave, up to the largest wavenumbers.
  subroutine plane_wave()
    integer, parameter :: n = 36
    integer, parameter :: kx(5) = [1, 0, 3, 17, 11], ky(5) = [0, 2, -4, 17, -8]
    real(rk) :: q(n * n, 1)
    integer :: i
    do i = 1, 5
      q = 3 * wave(n, kx(i), ky(i), 0.4_rk)
      call check(maxval(abs(tendency(n, '', q))) < 1.0e-13_rk, 'the Jacobian vanishes on a plane wave, 3/2')
      q = 3 * wave(n, mod(kx(i), 12), mod(ky(i), 12), 0.4_rk)
      call check(maxval(abs(tendency(n, "dealiasing='2/3'", q))) < 1.0e-13_rk, 'the Jacobian vanishes on a plane wave, 2/3')
    end do
  end subroutine plane_wave

  !> Without forcing and dissipation, sum psi dq/dt (energy) and sum q dq/dt (enstrophy) are zero, with modes up to the largest.
  subroutine budgets()
    real(rk), allocatable :: q(:, :), psi(:, :), dqdt(:, :)
    real(rk) :: a(2)
    integer :: i, n, waves, kx, ky, rule
    do rule = 1, 2
      do i = 2, size(sizes)
        n = sizes(i)
        waves = merge(n / 2 - 1, (n - 1) / 3, rule == 1)
        allocate (q(n * n, 1), psi(n * n, 1))
        q = 0.0_rk
        psi = 0.0_rk
        do kx = 0, waves
          do ky = -waves, waves
            if (kx == 0 .and. ky <= 0) cycle
            call random_number(a)
            q = q + a(1) * wave(n, kx, ky, 6 * a(2))
            psi = psi - a(1) / (kx**2 + ky**2) * wave(n, kx, ky, 6 * a(2))
          end do
        end do
        dqdt = tendency(n, "beta=1.5, dealiasing='"//trim(rules(rule))//"'", q)
        call check(abs(sum(psi * dqdt)) < 1.0e-14_rk * sum(abs(psi * dqdt)), 'the tendency keeps energy, '//rules(rule))
        call check(abs(sum(q * dqdt)) < 1.0e-14_rk * sum(abs(q * dqdt)), 'the tendency keeps enstrophy, '//rules(rule))
        call check(abs(sum(dqdt)) < 1.0e-14_rk * sum(abs(dqdt)), 'the tendency keeps the mean, '//rules(rule))
        deallocate (q, psi)
      end do
    end do
  end subroutine budgets

  !> From rest only the forcing acts.
  subroutine forcing()
    integer, parameter :: n = 18
    real(rk) :: q(n * n, 1)
    q = 0.0_rk
    call check(maxval(abs(tendency(n, 'forcing_amplitude=4, forcing_wavenumber=5', q) &
                          - 4 * (wave(n, 5, 0, 0.0_rk) + wave(n, 0, 5, 0.0_rk)))) < 1.0e-14_rk, 'the forcing')
  end subroutine forcing

  !> Taylor-Green vortices decay as exp(-(nu k2 + drag + eta k2**3) t); the error of rk4 is of order 4.
  subroutine decay()
    integer, parameter :: n = 18
    type(hybrid_t) :: hybrid
    type(status_t) :: status
    real(rk), allocatable :: window(:, :, :)
    integer(lk), allocatable :: failed_step(:)
    real(rk) :: q(n * n, 1)
    q = wave(n, 2, 3, 0.0_rk) + wave(n, 2, -3, 0.0_rk)
    call open_hybrid(hybrid, "&solver name='qg', integrator='rk4', dt=0.002 /", &
                     '&qg n=18, viscosity=0.01, drag=0.1, hyperviscosity=1e-4, hyperviscosity_order=6 /')
    call run(hybrid, q, 500, 500, window, failed_step, status)
    call check(status%ok(), 'Taylor-Green vortices run')
    call check(maxval(abs(window(:, :, 2) - exp(-(0.13_rk + 0.1_rk + 1.0e-4_rk * 13**3)) * q)) < 1.0e-12_rk, &
               'Taylor-Green vortices decay')
    call hybrid%release()
  end subroutine decay

  !> A wave on a beta plane moves with omega = -beta kx / k2.
  subroutine rossby_wave()
    integer, parameter :: n = 18
    real(rk), parameter :: omega = -2.0_rk * 3 / 25
    type(hybrid_t) :: hybrid
    type(status_t) :: status
    real(rk), allocatable :: window(:, :, :)
    integer(lk), allocatable :: failed_step(:)
    real(rk) :: q(n * n, 1)
    q = 5 * wave(n, 3, 4, 0.0_rk)
    call open_hybrid(hybrid, "&solver name='qg', integrator='rk4', dt=0.01 /", '&qg n=18, beta=2 /')
    call run(hybrid, q, 300, 300, window, failed_step, status)
    call check(maxval(abs(window(:, :, 2) - 5 * wave(n, 3, 4, -omega * 3))) < 1.0e-11_rk, 'a Rossby wave keeps its dispersion')
    call hybrid%release()
  end subroutine rossby_wave

  !> Bits depend neither on the other members nor on other solvers, in whatever order they open and close.
  subroutine members_and_solvers()
    type(quasigeostrophic_t) :: one, same, other
    real(rk) :: u(36 * 36, 3)
    real(rk), allocatable :: x(:, :), together(:, :), alone(:, :), last(:, :)
    integer :: j
    call random_number(u)
    call open_solver(one, 36, 'viscosity=1e-3')
    allocate (x(one%m, 3), together(one%m, 3), alone(one%m, 3), last(one%m, 3))
    call one%enter(u, x)
    call one%tendency(0.0_rk, x, together)
    call open_solver(other, 36, "dealiasing='2/3'")
    call open_solver(same, 36, 'viscosity=1e-3')
    call one%release()
    do j = 1, 3
      call same%tendency(0.0_rk, x(:, j:j), alone(:, j:j))
    end do
    call check(all(together == alone), 'members do not see each other')
    call other%release()
    call open_solver(one, 36, 'viscosity=1e-3')
    call same%release()
    call same%release()
    call one%tendency(0.0_rk, x, last)
    call one%release()
    call check(all(together == last), 'solvers do not see each other')
  end subroutine members_and_solvers

  !> The slot sees the grid; what it answers is added, without the modes that the state does not hold.
  subroutine correction()
    integer, parameter :: n = 18
    type(hybrid_t) :: hybrid
    type(status_t) :: status
    real(rk) :: u(n * n, 2)
    real(rk), allocatable :: x(:, :), dxdt(:, :), before(:, :), dudt(:, :)
    call random_number(u)
    call open_hybrid(hybrid, "&solver name='qg', integrator='rk4', dt=0.01 /", '&qg n=18, drag=0.1 /')
    allocate (x(hybrid%solver%m, 2), dxdt(hybrid%solver%m, 2), dudt(n * n, 2))
    call hybrid%solver%enter(u, x)
    call hybrid%solver%tendency(0.0_rk, x, dxdt)
    before = dxdt
    call hybrid%slot%install(c_funloc(no_op), c_null_ptr, 8_ik, status)
    call hybrid%solver%correct(hybrid%slot, x, 1.0_rk, dxdt, status)
    call check(all(dxdt == before), 'a correction that is zero changes no bit')
    call hybrid%slot%install(c_funloc(damp), c_null_ptr, 8_ik, status)
    call hybrid%solver%correct(hybrid%slot, x, 1.0_rk, dxdt, status)
    call check(maxval(abs(dxdt - before + 0.5_rk * x)) < 1.0e-15_rk, 'the slot sees q and adds -q / 2')
    dxdt = before
    call hybrid%slot%install(c_funloc(refuses), c_null_ptr, 8_ik, status)
    call hybrid%solver%correct(hybrid%slot, x, 1.0_rk, dxdt, status)
    call check(.not. status%ok() .and. all(dxdt == before), 'a correction that fails is said and adds nothing')
    call hybrid%release()
  end subroutine correction

  !> Each bad value is refused with a sentence that names it.
  subroutine refusals()
    call expect('&qg n=65 /', 'n must be')
    call expect('&qg n=2 /', 'n must be')
    call expect('&qg n=-64 /', 'n must be')
    call expect('&qg viscosity=-1e-3 /', 'negative')
    call expect('&qg drag=-1 /', 'negative')
    call expect('&qg beta=NaN /', 'finite')
    call expect('&qg hyperviscosity_order=3 /', 'hyperviscosity_order')
    call expect("&qg dealiasing='4/3' /", 'dealiasing')
    call expect('&qg n=18, forcing_amplitude=1, forcing_wavenumber=9 /', 'from 1 to 8')
    call expect("&qg n=18, dealiasing='2/3', forcing_amplitude=1, forcing_wavenumber=6 /", 'from 1 to 5')
    call expect('&qg viskosity=1 /', 'viskosity')
    call expect('&qg n=many /', 'qg takes')
  end subroutine refusals

  subroutine expect(group, words)
    character(*), intent(in) :: group, words
    type(quasigeostrophic_t) :: solver
    type(status_t) :: status
    call solver%configure([group], status)
    call check(status%code == STATUS_BAD_PARAMETER, 'refused: '//group)
    if (.not. status%ok()) call check(index(status%message, words) > 0, 'said "'//words//'": '//status%message)
    call solver%release()
  end subroutine expect

  subroutine open_solver(solver, n, parameters)
    type(quasigeostrophic_t), intent(inout) :: solver
    integer, intent(in) :: n
    character(*), intent(in) :: parameters
    type(status_t) :: status
    character(256) :: group(1)
    write (group(1), '(a, i0, a)') '&qg '//parameters//' n=', n, ' /'
    call solver%configure(group, status)
    call check(status%ok(), 'opens: '//trim(group(1)))
  end subroutine open_solver

  !> Tendency at the border, physics alone.
  function tendency(n, parameters, q) result(dqdt)
    integer, intent(in) :: n
    character(*), intent(in) :: parameters
    real(rk), intent(in) :: q(:, :)
    real(rk) :: dqdt(size(q, 1), size(q, 2))
    type(quasigeostrophic_t) :: solver
    real(rk), allocatable :: x(:, :), dxdt(:, :)
    call open_solver(solver, n, parameters)
    allocate (x(solver%m, size(q, 2)), dxdt(solver%m, size(q, 2)))
    call solver%enter(q, x)
    call solver%tendency(0.0_rk, x, dxdt)
    call solver%leave(dxdt, dqdt)
    call solver%release()
  end function tendency

  !> cos(kx x + ky y + phase) on the n x n grid, x fastest.
  function wave(n, kx, ky, phase) result(field)
    integer, intent(in) :: n, kx, ky
    real(rk), intent(in) :: phase
    real(rk) :: field(n * n, 1)
    integer :: i, j
    do j = 0, n - 1
      do i = 0, n - 1
        field(1 + i + n * j, 1) = cos(2 * pi * modulo(kx * i + ky * j, n) / n + phase)
      end do
    end do
  end function wave
end program test_qg

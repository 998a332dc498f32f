! SPDX-License-Identifier: MIT
! Finite volumes in split sweeps, x first in one step and y first in the next; upwind with van Leer's slopes.
module tracer_step
  use tracer_grid
  implicit none
contains

  subroutine setup()
    integer :: unit, i, j, length
    integer, allocatable :: seeds(:)
    real(8) :: x, y, r
    namelist /tracer/ nx, ny, dt, diffusion, rate, supply, noise, nsteps, every, seed
    open (newunit=unit, file='tracer.nml', status='old', action='read')
    read (unit, nml=tracer)
    close (unit)
    allocate (food(nx, ny), grazer(nx, ny), u(nx, ny), v(nx, ny), dfood(nx, ny), dgrazer(nx, ny))
    call random_seed(size=length)
    allocate (seeds(length), source=seed)
    call random_seed(put=seeds)
    do j = 1, ny
      do i = 1, nx
        x = 2 * pi * i / nx
        y = 2 * pi * j / ny
        call random_number(r)
        food(i, j) = 1 + 0.5d0 * sin(x) * cos(y) + noise * r
        call random_number(r)
        grazer(i, j) = 0.6d0 + 0.3d0 * cos(x + y) + noise * r
      end do
    end do
    open (newunit=unit, file='tracer.log', status='replace')
    write (unit, *) 'tracer code, grid', nx, ny
    close (unit)
  end subroutine setup

  subroutine step()
    logical, save :: x_first = .true.
    call winds()
    call sources()
    if (x_first) then
      call sweep_x(food)
      call sweep_x(grazer)
      call sweep_y(food)
      call sweep_y(grazer)
    else
      call sweep_y(food)
      call sweep_y(grazer)
      call sweep_x(food)
      call sweep_x(grazer)
    end if
    x_first = .not. x_first
    food = food + dt * dfood
    grazer = grazer + dt * dgrazer
    clock = clock + dt
    if (any(food /= food) .or. maxval(abs(food)) > 1d3) error stop 'tracer: food out of range'
    if (abs(modulo(clock + dt / 2, every * dt)) < dt) call record()
  end subroutine step

  ! A cellular flow whose phase swings in time.
  subroutine winds()
    integer :: i, j
    real(8) :: x, y, phase
    phase = 0.5d0 * sin(0.7d0 * clock)
    do j = 1, ny
      do i = 1, nx
        x = 2 * pi * (i + 0.5d0) / nx
        y = 2 * pi * (j + 0.5d0) / ny
        u(i, j) = sin(y) + 0.5d0 * cos(2 * y + phase)
        v(i, j) = 0.7d0 * sin(x + phase)
      end do
    end do
  end subroutine winds

  ! Supply of food, growth and loss of grazers, and grazing, which is the term one may want to learn.
  subroutine sources()
    dfood = supply * (1.2d0 - food) - rate * food * grazer
    dgrazer = 0.6d0 * rate * food * grazer - 0.15d0 * (grazer - 0.2d0)
  end subroutine sources

  subroutine sweep_x(c)
    real(8), intent(inout) :: c(:, :)
    real(8) :: flux(0:nx)
    integer :: j
    do j = 1, ny
      call fluxes(nx, c(:, j), u(:, j), 2 * pi / nx, flux)
      c(:, j) = c(:, j) - dt / (2 * pi / nx) * (flux(1:nx) - flux(0:nx - 1))
    end do
  end subroutine sweep_x

  subroutine sweep_y(c)
    real(8), intent(inout) :: c(:, :)
    real(8) :: flux(0:ny)
    integer :: i
    do i = 1, nx
      call fluxes(ny, c(i, :), v(i, :), 2 * pi / ny, flux)
      c(i, :) = c(i, :) - dt / (2 * pi / ny) * (flux(1:ny) - flux(0:ny - 1))
    end do
  end subroutine sweep_y

  subroutine fluxes(n, c, speed, dx, flux)
    integer, intent(in) :: n
    real(8), intent(in) :: c(n), speed(n), dx
    real(8), intent(out) :: flux(0:n)
    real(8) :: slope(n), left, right
    integer :: i, next
    do i = 1, n
      left = c(i) - c(modulo(i - 2, n) + 1)
      right = c(modulo(i, n) + 1) - c(i)
      slope(i) = 0d0
      if (left * right > 0d0) slope(i) = 2 * left * right / (left + right)
    end do
    do i = 1, n
      next = modulo(i, n) + 1
      if (speed(i) > 0d0) then
        flux(i) = speed(i) * (c(i) + 0.5d0 * (1 - speed(i) * dt / dx) * slope(i))
      else
        flux(i) = speed(i) * (c(next) - 0.5d0 * (1 + speed(i) * dt / dx) * slope(next))
      end if
      flux(i) = flux(i) - diffusion * (c(next) - c(i)) / dx
    end do
    flux(0) = flux(n)
  end subroutine fluxes

  subroutine record()
    integer :: unit
    open (newunit=unit, file='tracer.log', status='old', position='append')
    write (unit, '(a, f9.3, 2(a, es14.6))') ' t =', clock, '  food', sum(food) / (nx * ny), '  grazers', sum(grazer) / (nx * ny)
    close (unit)
  end subroutine record
end module tracer_step

! SPDX-License-Identifier: MIT
! Heat in a channel flow on blocks of an MPI domain: strips in y, one row of halo on each side, Heun's two-stage step.
! dT/dt = -u(y) dT/dx - v(x) dT/dy + kappa lap T - cooling (T - 1) |T - 1| + heating, doubly periodic.
! `unit` times everything of T: the same in another unit.
module blocks_state
  use mpi
  implicit none
  integer, parameter :: nx = 32, ny = 25
  integer :: comm = MPI_COMM_NULL, rank = 0, ranks = 1, rows = 0, first = 0
  real(8) :: dt = 0.02d0, kappa = 5d-3, cooling = 0d0, unit = 1d0
  integer :: nsteps = 200
  real(8), allocatable :: t(:, :), t1(:, :), dtdt(:, :)   ! (nx, 0:rows+1) with halos; tendency (nx, rows)
  real(8), parameter :: pi = 3.14159265358979324d0
end module blocks_state

module blocks_step
  use mpi
  use blocks_state
  implicit none
contains

  subroutine setup()
    integer :: file, i, j, code
    real(8) :: x, y
    namelist /blocks/ dt, kappa, cooling, nsteps, unit
    comm = MPI_COMM_WORLD
    call MPI_Comm_rank(comm, rank, code)
    call MPI_Comm_size(comm, ranks, code)
    open (newunit=file, file='blocks.nml', status='old', action='read')
    read (file, nml=blocks)
    close (file)
    rows = ny / ranks + merge(1, 0, rank < modulo(ny, ranks))
    first = rank * (ny / ranks) + min(rank, modulo(ny, ranks))
    allocate (t(nx, 0:rows + 1), t1(nx, 0:rows + 1), dtdt(nx, rows))
    do j = 1, rows
      do i = 1, nx
        x = 2 * pi * (i - 1) / nx
        y = 2 * pi * (first + j - 1) / ny
        t(i, j) = unit * (1 + sin(x) * cos(2 * y) + 0.5d0 * cos(3 * x + y))
      end do
    end do
  end subroutine setup

  subroutine step()
    call halo(t)
    call tendency(t)
    t1(:, 1:rows) = t(:, 1:rows) + dt * dtdt
    t(:, 1:rows) = t(:, 1:rows) + 0.5d0 * dt * dtdt
    call halo(t1)
    call tendency(t1)
    t(:, 1:rows) = t(:, 1:rows) + 0.5d0 * dt * dtdt
    call check()
  end subroutine step

  subroutine tendency(c)
    real(8), intent(in) :: c(nx, 0:rows + 1)
    integer :: i, j, ip, im
    real(8) :: dx, dy, x, y
    dx = 2 * pi / nx
    dy = 2 * pi / ny
    do j = 1, rows
      y = 2 * pi * (first + j - 1) / ny
      do i = 1, nx
        x = 2 * pi * (i - 1) / nx
        ip = modulo(i, nx) + 1
        im = modulo(i - 2, nx) + 1
        dtdt(i, j) = -sin(y) * (c(ip, j) - c(im, j)) / (2 * dx) - 0.5d0 * cos(x) * (c(i, j + 1) - c(i, j - 1)) / (2 * dy) &
                     + kappa * ((c(ip, j) - 2 * c(i, j) + c(im, j)) / dx**2 + (c(i, j + 1) - 2 * c(i, j) + c(i, j - 1)) / dy**2) &
                     - cooling * (c(i, j) - unit) * abs(c(i, j) - unit) / unit + unit * 0.3d0 * sin(x + y)
      end do
    end do
  end subroutine tendency

  subroutine halo(c)
    real(8), intent(inout) :: c(nx, 0:rows + 1)
    integer :: up, down, code
    up = modulo(rank + 1, ranks)
    down = modulo(rank - 1, ranks)
    call MPI_Sendrecv(c(1, rows), nx, MPI_DOUBLE_PRECISION, up, 1, c(1, 0), nx, MPI_DOUBLE_PRECISION, down, 1, &
                      comm, MPI_STATUS_IGNORE, code)
    call MPI_Sendrecv(c(1, 1), nx, MPI_DOUBLE_PRECISION, down, 2, c(1, rows + 1), nx, MPI_DOUBLE_PRECISION, up, 2, &
                      comm, MPI_STATUS_IGNORE, code)
  end subroutine halo

  ! As such codes do it: a blow-up ends the job.
  subroutine check()
    real(8) :: largest
    integer :: code
    largest = maxval(abs(t(:, 1:rows)))
    call MPI_Allreduce(MPI_IN_PLACE, largest, 1, MPI_DOUBLE_PRECISION, MPI_MAX, comm, code)
    if (largest < 1d3 * unit) return
    if (rank == 0) print *, 'blocks: too hot, T =', largest
    call MPI_Abort(comm, 7, code)
  end subroutine check
end module blocks_step

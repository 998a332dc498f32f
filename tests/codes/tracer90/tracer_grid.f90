! SPDX-License-Identifier: MIT
! What all parts of the tracer code share: sizes, constants, fields.
module tracer_grid
  implicit none
  integer :: nx = 32, ny = 24
  real(8) :: dt = 0.02d0, diffusion = 1d-3, rate = 0d0, supply = 0.2d0, noise = 0.05d0
  integer :: nsteps = 400, every = 50, seed = 7
  real(8), allocatable :: food(:, :), grazer(:, :)      ! the two tracers
  real(8), allocatable :: u(:, :), v(:, :)              ! velocities at the faces
  real(8), allocatable :: dfood(:, :), dgrazer(:, :)    ! sources of the present step
  real(8) :: clock = 0d0
  real(8), parameter :: pi = 3.14159265358979324d0
end module tracer_grid

! SPDX-License-Identifier: MIT
! Two tracers in a swinging cellular flow: food, and grazers that eat it. Reads tracer.nml, writes tracer.log.
program tracer
  use tracer_grid, only: nsteps
  use tracer_step, only: setup, step
  implicit none
  integer :: n
  call setup()
  do n = 1, nsteps
    call step()
  end do
end program tracer

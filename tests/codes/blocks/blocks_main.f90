! SPDX-License-Identifier: MIT
program blocks
  use mpi
  use blocks_state, only: nsteps, nx, ny, rows, t, rank
  use blocks_step, only: setup, step
  implicit none
  integer :: n, code, unit
  real(8) :: part, total
  character(20) :: name
  call MPI_Init(code)
  call setup()
  do n = 1, nsteps
    call step()
  end do
  part = sum(t(:, 1:rows)**2)
  call MPI_Reduce(part, total, 1, MPI_DOUBLE_PRECISION, MPI_SUM, 0, MPI_COMM_WORLD, code)
  if (rank == 0) print '(a, f12.8)', ' mean square temperature', total / (nx * ny)
  write (name, '(a, i3.3)') 'blocks.', rank
  open (newunit=unit, file=name, access='stream', form='unformatted', status='replace')
  write (unit) t(:, 1:rows)
  close (unit)
  call MPI_Finalize(code)
end program blocks

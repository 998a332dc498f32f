! SPDX-License-Identifier: MIT
!> Seconds that FFTW takes for the four real two-dimensional transforms of one tendency: two to the grid, two back.
!! Usage: bare_fft N ROUNDS. Plans as the solver's (FFTW_ESTIMATE), double precision, one thread; prints one time a round.
program bare_fft
  use, intrinsic :: iso_c_binding, only: c_ptr, c_int, c_int32_t, c_int64_t, c_size_t, c_intptr_t, c_double, c_float, &
                                         c_double_complex, c_float_complex, c_char, c_funptr, c_f_pointer
  implicit none
  include 'fftw3.f03'
  integer :: n, rounds, round, repeats, i
  integer(c_int64_t) :: start, finish, rate
  type(c_ptr) :: to_grid, to_modes, grid_memory, modes_memory
  real(c_double), pointer :: grid(:, :)
  complex(c_double_complex), pointer :: modes(:, :)
  character(32) :: argument

  call get_command_argument(1, argument)
  read (argument, *) n
  call get_command_argument(2, argument)
  read (argument, *) rounds
  grid_memory = fftw_alloc_real(int(n, c_size_t) * n)
  modes_memory = fftw_alloc_complex(int(n / 2 + 1, c_size_t) * n)
  call c_f_pointer(grid_memory, grid, [n, n])
  call c_f_pointer(modes_memory, modes, [n / 2 + 1, n])
  to_modes = fftw_plan_dft_r2c_2d(int(n, c_int), int(n, c_int), grid, modes, FFTW_ESTIMATE)
  to_grid = fftw_plan_dft_c2r_2d(int(n, c_int), int(n, c_int), modes, grid, FFTW_ESTIMATE)
  call random_number(grid)
  repeats = max(4, 4000000 / n**2)
  do round = 0, rounds
    call system_clock(start, rate)
    do i = 1, 2 * repeats
      call fftw_execute_dft_r2c(to_modes, grid, modes)
      call fftw_execute_dft_c2r(to_grid, modes, grid)
      grid = grid / real(n, c_double)**2
    end do
    call system_clock(finish)
    if (round > 0) print '(es14.7)', real(finish - start, c_double) / real(rate, c_double) / repeats
  end do
end program bare_fft

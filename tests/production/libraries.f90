! SPDX-License-Identifier: MIT
!> What a climate code links besides trimtab, each used with an answer that is known: netCDF, HDF5, FFTW, MPI and OpenMP.
module libraries
  use, intrinsic :: iso_c_binding, only: c_char, c_double, c_loc, c_null_char, c_ptr
  use mpi, only: mpi_allreduce, mpi_comm_rank, mpi_comm_size, mpi_comm_world, mpi_finalize, mpi_in_place, mpi_init, &
    mpi_integer, mpi_sum
  use netcdf, only: nf90_clobber, nf90_close, nf90_create, nf90_def_dim, nf90_def_var, nf90_double, nf90_enddef, nf90_get_var, &
    nf90_inq_libvers, nf90_netcdf4, nf90_noerr, nf90_nowrite, nf90_open, nf90_put_var
  use omp_lib, only: omp_get_thread_num
  implicit none
  private
  public :: start_libraries, use_libraries, end_libraries

  interface
    !> Writes a number with HDF5 and reads it again (libraries.c).
    function hdf5_returns(file, number) bind(c) result(answer)
      import :: c_double, c_ptr
      implicit none
      type(c_ptr), value :: file
      real(c_double), value :: number
      real(c_double) :: answer
    end function hdf5_returns

    !> Largest difference of a transform of alternating numbers, with FFTW, from what it is (libraries.c).
    function fftw_differs() bind(c) result(difference)
      import :: c_double
      implicit none
      real(c_double) :: difference
    end function fftw_differs
  end interface

  integer :: rank = 0

contains

  subroutine start_libraries()
    integer :: status
    call mpi_init(status)
    call mpi_comm_rank(mpi_comm_world, rank, status)
  end subroutine start_libraries

  subroutine end_libraries()
    integer :: status
    call mpi_finalize(status)
  end subroutine end_libraries

  !> Stops when one of them answers wrongly.
  subroutine use_libraries(moment)
    character(*), intent(in) :: moment   !< names the files, and the place of a failure
    character(16) :: name
    character(20, c_char), target :: hdf5_file
    write (name, '(a, i0)') moment, rank
    if (.not. netcdf_works(trim(name)//'.nc')) error stop 'netCDF '//moment
    hdf5_file = trim(name)//'.h5'//c_null_char
    if (hdf5_returns(c_loc(hdf5_file), 4.25_c_double) /= 4.25_c_double) error stop 'HDF5 '//moment
    if (fftw_differs() > 1e-12_c_double) error stop 'FFTW '//moment
    if (.not. mpi_works()) error stop 'MPI '//moment
    if (.not. openmp_works()) error stop 'OpenMP '//moment
  end subroutine use_libraries

  function netcdf_works(file) result(works)
    character(*), intent(in) :: file
    logical :: works
    integer :: status(9), handle, dimension_id, variable
    real(c_double) :: written(3), found(3)
    written = [1.0_c_double, 2.5_c_double, -3.0_c_double]
    found = 0
    status(1) = nf90_create(file, ior(nf90_netcdf4, nf90_clobber), handle)
    status(2) = nf90_def_dim(handle, 'x', 3, dimension_id)
    status(3) = nf90_def_var(handle, 'v', nf90_double, [dimension_id], variable)
    status(4) = nf90_enddef(handle)
    status(5) = nf90_put_var(handle, variable, written)
    status(6) = nf90_close(handle)
    status(7) = nf90_open(file, nf90_nowrite, handle)
    status(8) = nf90_get_var(handle, variable, found)
    status(9) = nf90_close(handle)
    works = all(status == nf90_noerr) .and. all(found == written) .and. len_trim(nf90_inq_libvers()) > 0
  end function netcdf_works

  function mpi_works() result(works)
    logical :: works
    integer :: total, ranks, status
    call mpi_comm_size(mpi_comm_world, ranks, status)
    total = rank + 1
    call mpi_allreduce(mpi_in_place, total, 1, mpi_integer, mpi_sum, mpi_comm_world, status)
    works = total == ranks * (ranks + 1) / 2
  end function mpi_works

  function openmp_works() result(works)
    logical :: works
    integer :: total, i
    total = 0
    !$omp parallel num_threads(2) reduction(+: total)
    total = total + 10**omp_get_thread_num()
    !$omp do
    do i = 1, 100
      total = total + 100
    end do
    !$omp end do
    !$omp end parallel
    works = total == 10011
  end function openmp_works
end module libraries

!> The column's main in such a program: the libraries are used before the correction is loaded and after it was called.
program libraries_main
  use column, only: set_up, step, temperature
  use libraries, only: start_libraries, use_libraries, end_libraries
  use trimtab_production, only: trimtab_load_correction, trimtab_check_correction
  implicit none
  character(1024) :: path
  character(:), allocatable :: message
  integer :: i, status
  call get_command_argument(1, path)
  call start_libraries()
  call use_libraries('before')
  call set_up()
  call trimtab_load_correction('column', path, status, message)
  if (status /= 0) error stop message
  do i = 1, 20
    call step()
    if (i == 10) call use_libraries('between')
  end do
  call trimtab_check_correction(status, message)
  if (status /= 0) error stop message
  call use_libraries('after')
  write (*, '(8(1x, z8.8))') temperature
  call end_libraries()
end program libraries_main

! SPDX-License-Identifier: MIT
!> A solver that drives itself: namelist -> solver -> (trained correction) -> advance -> file.
!!
!!     trimtab_run FILE.nml
!!
!! The file holds three groups: `&solver` (driver.f90), the group named as the solver (its own file), and
!! `&run steps, stride, start, start_file, output /`: number of steps, steps between two records, the n numbers of the first
!! state or a file written by this program (its last record is where the run begins), and the file to write.
!! A fourth, `&correction library or checkpoint /`, fills the slot: with a folder that `trimtab export` wrote, which runs without
!! Python; or with a run folder or a checkpoint file, which runs in a Python inside this process. With neither, the path is what
!! TRIMTAB_CORRECTION names. Without the group the solver runs alone.
!!
!! Output, stream of little-endian numbers on common machines: the 8 characters TRIMTAB1; int64 n, members, records;
!! float64 time of the first record, time between records; float64 states (n, members, records), n fastest. In Python:
!!     n, members, records = numpy.fromfile(name, "i8", 3, offset=8)
!!     states = numpy.fromfile(name, "f8", offset=48).reshape(records, members, n)
program trimtab_main
  use, intrinsic :: iso_fortran_env, only: error_unit, output_unit
  use trimtab_kinds, only: rk, lk
  use trimtab_status, only: status_t, STATUS_BAD_PARAMETER, STATUS_CORRECTION_FAILED
  use trimtab_text, only: to_lines, count_lines, line_length, namelist_sentence, has_group, json_real
  use trimtab_driver, only: hybrid_t
  use trimtab_trained, only: trained_t
  implicit none
  character(8), parameter :: magic = 'TRIMTAB1'
  integer, parameter :: place_of_records = 25   !< byte of the number of records in the header

  type(hybrid_t) :: hybrid
  type(trained_t) :: trained
  type(status_t) :: status
  integer(lk) :: steps, stride
  character(1024) :: output
  character(:), allocatable :: text
  real(rk), allocatable :: window(:, :, :)
  integer(lk), allocatable :: failed_step(:)
  real(rk) :: t0
  integer(lk) :: record
  integer :: unit

  record = 0
  call read_text(text)
  call hybrid%configure(text, text, status)
  call stop_if_failed()
  call read_run()
  call stop_if_failed()
  call read_correction()
  call stop_if_failed()

  allocate (failed_step(size(window, 2)))
  open (newunit=unit, file=trim(output), access='stream', form='unformatted', status='replace', action='write')
  write (unit) magic, shape(window(:, :, 1), lk), 1_lk, t0, stride * hybrid%dt, window(:, :, 1)
  do record = 1, steps / stride
    call hybrid%advance(stride, stride, t0 + (record - 1) * stride * hybrid%dt, window, failed_step, status)
    call stop_if_failed()
    write (unit) window(:, :, 2)
    window(:, :, 1) = window(:, :, 2)
  end do
  write (unit, pos=place_of_records) steps / stride + 1
  close (unit)
  write (output_unit, '(a)') hybrid%describe()
  call hybrid%release()
  call trained%close()
  deallocate (text, window, failed_step)   ! a main program's live on, and a leak checker says so

contains

  !> The file named on the command line.
  subroutine read_text(text)
    character(:), allocatable, intent(out) :: text
    character(1024) :: name
    character(256) :: message
    integer :: source, length, code
    if (command_argument_count() /= 1) then
      write (error_unit, '(a)') 'usage: trimtab_run FILE.nml'
      stop 2, quiet=.true.
    end if
    call get_command_argument(1, name)
    open (newunit=source, file=trim(name), access='stream', form='unformatted', status='old', action='read', &
          iostat=code, iomsg=message)
    if (code /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, trim(message))
      call stop_if_failed()
    end if
    inquire (unit=source, size=length)
    allocate (character(length) :: text)
    read (source) text
    close (source)
  end subroutine read_text

  !> The group &run and the first state.
  subroutine read_run()
    character(line_length) :: lines(count_lines(text))
    character(1024) :: start_file
    character(256) :: message
    real(rk), allocatable :: start(:)
    integer :: code
    logical :: fits
    namelist /run/ steps, stride, start, start_file, output
    allocate (start(hybrid%solver%n), source=huge(1.0_rk))
    steps = 0
    stride = 1
    start_file = ''
    output = 'trajectory.bin'
    t0 = 0.0_rk
    call to_lines(text, lines, fits)
    read (lines, nml=run, iostat=code, iomsg=message)
    if (.not. has_group(lines, 'run')) then
      call status%raise(STATUS_BAD_PARAMETER, 'the namelist text has no group &run ... /')
    else if (code /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, &
                        namelist_sentence('run', 'steps, stride, start, start_file and output', code, message))
    else if (steps < 0 .or. stride < 1) then
      call status%raise(STATUS_BAD_PARAMETER, 'run: steps must be 0 or more and stride 1 or more')
    else if (modulo(steps, max(stride, 1_lk)) /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, 'run: steps must be a multiple of stride')
    else if (start_file /= '') then
      call read_start(trim(start_file))
    else if (any(start >= huge(start))) then
      call status%raise(STATUS_BAD_PARAMETER, 'run: give the first state, start = its n numbers, or a start_file')
    else
      allocate (window(hybrid%solver%n, 1, 2))
      window(:, 1, 1) = start
    end if
  end subroutine read_run

  !> The last record of a file that this program wrote.
  subroutine read_start(name)
    character(*), intent(in) :: name
    character(len(magic)) :: found
    character(256) :: message
    integer(lk) :: n, members, records, bytes
    real(rk) :: first, between
    integer :: source, code
    open (newunit=source, file=name, access='stream', form='unformatted', status='old', action='read', &
          iostat=code, iomsg=message)
    if (code == 0) read (source, iostat=code, iomsg=message) found, n, members, records, first, between
    if (code /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, 'run: '//name//' cannot be read: '//trim(message))
      return
    end if
    if (found /= magic .or. n /= hybrid%solver%n) then
      call status%raise(STATUS_BAD_PARAMETER, 'run: '//name//' is not a trajectory of this solver')
      return
    end if
    inquire (unit=source, size=bytes)
    if (members < 1 .or. records < 1 .or. (bytes - 48) / 8 / n / max(members, 1_lk) < records) then
      call status%raise(STATUS_BAD_PARAMETER, 'run: '//name//' is cut short or damaged')
      return
    end if
    allocate (window(n, members, 2))
    read (source, pos=49 + 8 * n * members * (records - 1), iostat=code, iomsg=message) window(:, :, 1)
    if (code /= 0) call status%raise(STATUS_BAD_PARAMETER, 'run: '//name//' is cut short: '//trim(message))
    close (source)
    t0 = first + (records - 1) * between
  end subroutine read_start

  !> The group &correction, when there is one, fills the slot.
  subroutine read_correction()
    character(line_length) :: lines(count_lines(text))
    character(1024) :: library, checkpoint
    character(256) :: message
    integer :: code
    logical :: fits
    namelist /correction/ library, checkpoint
    library = ''
    checkpoint = ''
    call to_lines(text, lines, fits)
    if (.not. has_group(lines, 'correction')) return
    read (lines, nml=correction, iostat=code, iomsg=message)
    if (code /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, namelist_sentence('correction', 'library and checkpoint', code, message))
    else if (library /= '' .and. checkpoint /= '') then
      call status%raise(STATUS_BAD_PARAMETER, 'correction: give library or checkpoint, not both')
    else if (library /= '') then
      call trained%open('library', trim(library), hybrid%describe(), hybrid%slot, status)
    else if (checkpoint /= '') then
      call trained%open('checkpoint', trim(checkpoint), hybrid%describe(), hybrid%slot, status)
    else
      call trained%open('', '', hybrid%describe(), hybrid%slot, status)
    end if
  end subroutine read_correction

  !> The only place in the Fortran part that ends the process.
  subroutine stop_if_failed()
    if (status%ok()) return
    write (error_unit, '(a)') 'trimtab_run: '//status%message
    if (status%code == STATUS_CORRECTION_FAILED .and. trained%why() /= '') write (error_unit, '(a)') trained%why()
    if (record > 0) write (error_unit, '(a)') 'that was after t = '//json_real(t0 + (record - 1) * stride * hybrid%dt)
    stop 1, quiet=.true.
  end subroutine stop_if_failed
end program trimtab_main

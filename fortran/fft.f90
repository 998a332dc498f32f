! SPDX-License-Identifier: MIT
!> Fourier transforms on the doubly periodic plane, by FFTW.
!!
!! A real field keeps the modes |kx|, |ky| <= waves; kx >= 0 is stored, the rest is conjugate. Products are formed on a grid of
!! shifts x points values a direction. With shifts = 3 that grid is read as three coarse grids, 0, +1 and -1 fine cells apart:
!! modes reach a shifted grid when they are multiplied by their phases and folded onto `points` = waves + 1 values. That is the
!! 3/2 rule without the zeros that padding would transform, in the lengths that FFTW does best. With shifts = 1 it is padding.
!!
!! Two real fields a, b travel as one complex field a + i b. Columns (y) are transformed first, then rows (x); a slab (y,
!! column) holds the plane half-way. Both work on `lanes` columns or rows side by side, so that every loop and every FFTW call
!! runs over neighbours in memory, nothing is transposed, and a product is formed while its rows are in cache.
!!
!! Plans use FFTW_ESTIMATE: every process then chooses the same algorithm, and a run's bits do not depend on the process, as
!! they would with FFTW_MEASURE, which chooses by timing (and gains at most 8 % here). They are made once a size and process,
!! shared, and freed with their last user. FFTW's planner is not thread-safe: open and close planes from one thread at a time.
!!
!! Sources: Frigo and Johnson, Proc. IEEE 93, 216 (2005), doi:10.1109/JPROC.2004.840301; shifted grids: Patterson and Orszag,
!! Phys. Fluids 14, 2538 (1971), doi:10.1063/1.1693365.
module trimtab_fft
  use, intrinsic :: iso_c_binding, only: c_ptr, c_funptr, c_null_ptr, c_loc, c_f_pointer, c_associated, c_int, c_int32_t, &
                                         c_intptr_t, c_size_t, c_char, c_double, c_float, c_double_complex, c_float_complex
  use trimtab_kinds, only: rk, ik, pi
  implicit none
  private
  public :: plane_t, workspace_t, buffer_t, lanes, half
  public :: open_plane, close_plane, allocate_buffer, free_buffer
  public :: columns_to_slab, slab_to_columns, rows_to_grid, grid_to_rows, modes_to_field, field_to_modes

  include 'fftw3.f03'

  integer(ik), parameter :: lanes = 8          !< columns or rows that are transformed side by side
  integer(ik), parameter :: half = lanes / 2   !< wavenumbers kx in a block of columns, each with a column for kx and one for -kx

  !> One size of plane: tables and plans, shared by its users.
  type :: plane_t
    integer(ik) :: n = 0         !< values a direction on the grid of the border, even
    integer(ik) :: waves = 0     !< largest wavenumber kept
    integer(ik) :: points = 0    !< length of a transform
    integer(ik) :: shifts = 0    !< 1 or 3
    integer(ik) :: blocks = 0    !< blocks of columns; block b holds kx = half (b - 1) ... half b - 1
    integer(ik) :: rows = 0      !< rows of one shift in a slab, a multiple of `lanes`; those past `points` hold zeros
    integer(ik) :: height = 0    !< leading dimension of a slab
    real(rk), allocatable :: cosine(:), sine(:)          !< (0:waves): phase of a shift by one fine cell
    integer(ik), allocatable :: right(:), left(:)        !< (0:waves): column of kx and of -kx in a slab
    integer(ik), allocatable :: up(:), down(:)           !< (0:waves): place of ky and of -ky in a strip
    type(c_ptr), private :: columns_out = c_null_ptr, columns_in = c_null_ptr
    type(c_ptr), private :: rows_out = c_null_ptr, rows_in = c_null_ptr
    type(c_ptr), private :: field_out = c_null_ptr, field_in = c_null_ptr
    integer(ik), private :: users = 0
    type(plane_t), pointer, private :: next => null()
  end type plane_t

  !> Memory of FFTW's, seen as complex and as real numbers (first index: real, imaginary).
  type :: buffer_t
    type(c_ptr), private :: memory = c_null_ptr
    complex(rk), pointer, contiguous :: c(:, :) => null()
    real(rk), pointer, contiguous :: r(:, :, :) => null()
  end type buffer_t

  !> What one solver needs to transform one plane at a time; never shared.
  type :: workspace_t
    type(buffer_t) :: slab       !< (height, lanes blocks)
    type(buffer_t) :: strip      !< (lanes, -waves:waves): modes along y of a block of columns
    type(buffer_t) :: folded     !< (lanes, points shifts): modes on their way into or out of a transform
    type(buffer_t) :: values     !< (points, lanes shifts): grid values of a block of rows
    type(buffer_t) :: spectrum   !< (0:n/2, n): modes of a real field on the grid of the border
    type(buffer_t) :: field      !< n x n reals, in pairs
  end type workspace_t

  type(plane_t), pointer :: planes => null()   ! the planes in use, a list

contains

  !> Find or make the plane of this size, and a workspace for it.
  subroutine open_plane(plane, work, n, waves, points, shifts, enough)
    type(plane_t), pointer, intent(out) :: plane          !< null when memory ran out
    type(workspace_t), intent(out) :: work                !< all zero
    integer(ik), intent(in) :: n, waves, points, shifts   !< see plane_t; points = waves + 1 when shifts = 3
    logical, intent(out) :: enough                        !< false when memory ran out
    integer(ik) :: height

    plane => planes
    do while (associated(plane))
      if (plane%n == n .and. plane%waves == waves .and. plane%points == points .and. plane%shifts == shifts) exit
      plane => plane%next
    end do
    ! One cache line past a multiple of two: neighbours in a row of the slab then spread over the sets of the cache.
    height = shifts * lanes * ((points + lanes - 1) / lanes) + 4
    call allocate_buffer(work%slab, height, lanes * (waves / half + 1))
    call allocate_buffer(work%strip, lanes, 2 * waves + 1)
    call allocate_buffer(work%folded, lanes, points * shifts)
    call allocate_buffer(work%values, points, lanes * shifts)
    call allocate_buffer(work%spectrum, n / 2 + 1, n)
    call allocate_buffer(work%field, n / 2, n)
    enough = associated(work%slab%c) .and. associated(work%strip%c) .and. associated(work%folded%c) .and. &
             associated(work%values%c) .and. associated(work%spectrum%c) .and. associated(work%field%c)
    if (.not. enough) then
      plane => null()
      call close_plane(plane, work)
      return
    end if
    if (.not. associated(plane)) then
      allocate (plane)
      plane%n = n
      plane%waves = waves
      plane%points = points
      plane%shifts = shifts
      plane%blocks = waves / half + 1
      plane%rows = lanes * ((points + lanes - 1) / lanes)
      plane%height = height
      call make_tables(plane)
      call make_plans(plane, work)
      plane%next => planes
      planes => plane
    end if
    plane%users = plane%users + 1
  end subroutine open_plane

  !> Give both back, those that are there; the last user of a plane frees its plans.
  subroutine close_plane(plane, work)
    type(plane_t), pointer, intent(inout) :: plane
    type(workspace_t), intent(inout) :: work
    type(plane_t), pointer :: before

    call free_buffer(work%slab)
    call free_buffer(work%strip)
    call free_buffer(work%folded)
    call free_buffer(work%values)
    call free_buffer(work%spectrum)
    call free_buffer(work%field)
    if (.not. associated(plane)) return
    plane%users = plane%users - 1
    if (plane%users == 0) then
      if (associated(planes, plane)) then
        planes => plane%next
      else
        before => planes
        do while (.not. associated(before%next, plane))
          before => before%next
        end do
        before%next => plane%next
      end if
      call fftw_destroy_plan(plane%columns_out)
      call fftw_destroy_plan(plane%columns_in)
      call fftw_destroy_plan(plane%rows_out)
      call fftw_destroy_plan(plane%rows_in)
      call fftw_destroy_plan(plane%field_out)
      call fftw_destroy_plan(plane%field_in)
      deallocate (plane)
    end if
    plane => null()
  end subroutine close_plane

  !> Phases, and where each mode lies.
  subroutine make_tables(plane)
    type(plane_t), intent(inout) :: plane
    integer(ik) :: k

    allocate (plane%cosine(0:plane%waves), plane%sine(0:plane%waves))
    allocate (plane%right(0:plane%waves), plane%left(0:plane%waves), plane%up(0:plane%waves), plane%down(0:plane%waves))
    do k = 0, plane%waves
      plane%cosine(k) = cos(2 * pi * k / (plane%shifts * plane%points))
      plane%sine(k) = sin(2 * pi * k / (plane%shifts * plane%points))
      plane%right(k) = lanes * (k / half) + mod(k, half) + 1
      plane%left(k) = plane%right(k) + half
      plane%up(k) = plane%waves + 1 + k
      plane%down(k) = plane%waves + 1 - k
    end do
  end subroutine make_tables

  !> Plan every transform. Folded modes lie with the lanes side by side, values with the points of a lane side by side: FFTW is
  !! fastest from the one to the other.
  subroutine make_plans(plane, work)
    type(plane_t), intent(inout) :: plane
    type(workspace_t), intent(in) :: work
    type(fftw_iodim) :: along(1), across(2)

    along(1) = fftw_iodim(plane%points, lanes, 1)
    across = [fftw_iodim(plane%shifts, lanes * plane%points, plane%rows), fftw_iodim(lanes, 1, plane%height)]
    plane%columns_out = fftw_plan_guru_dft(1, along, 2, across, work%folded%c, work%slab%c, FFTW_BACKWARD, FFTW_ESTIMATE)
    plane%columns_in = fftw_plan_guru_dft(1, turned(along), 2, turned(across), work%slab%c, work%folded%c, FFTW_FORWARD, &
                                          FFTW_ESTIMATE)
    across = [fftw_iodim(plane%shifts, lanes * plane%points, lanes * plane%points), fftw_iodim(lanes, 1, plane%points)]
    plane%rows_out = fftw_plan_guru_dft(1, along, 2, across, work%folded%c, work%values%c, FFTW_BACKWARD, FFTW_ESTIMATE)
    plane%rows_in = fftw_plan_guru_dft(1, turned(along), 2, turned(across), work%values%c, work%folded%c, FFTW_FORWARD, &
                                       FFTW_ESTIMATE)
    plane%field_out = fftw_plan_dft_c2r_2d(plane%n, plane%n, work%spectrum%c, work%field%r, FFTW_ESTIMATE)
    plane%field_in = fftw_plan_dft_r2c_2d(plane%n, plane%n, work%field%r, work%spectrum%c, FFTW_ESTIMATE)
  end subroutine make_plans

  !> The same strides the other way.
  elemental type(fftw_iodim) function turned(dimension)
    type(fftw_iodim), intent(in) :: dimension
    turned = fftw_iodim(dimension%n, dimension%os, dimension%is)
  end function turned

  !> Allocate rows x columns complex zeros, on a cache line; the pointers stay null when memory ran out.
  subroutine allocate_buffer(buffer, rows, columns)
    type(buffer_t), intent(out) :: buffer
    integer(ik), intent(in) :: rows, columns
    integer(c_intptr_t), parameter :: line = 64
    real(rk), pointer, contiguous :: raw(:)
    integer(c_size_t) :: length, first

    length = 2_c_size_t * rows * columns + line / 8
    buffer%memory = fftw_alloc_real(length)
    if (.not. c_associated(buffer%memory)) return
    call c_f_pointer(buffer%memory, raw, [length])
    raw = 0.0_rk
    first = 1 + modulo(-transfer(buffer%memory, line), line) / 8
    call c_f_pointer(c_loc(raw(first)), buffer%c, [rows, columns])
    call c_f_pointer(c_loc(raw(first)), buffer%r, [2_ik, rows, columns])
  end subroutine allocate_buffer

  !> Free a buffer, if it holds anything.
  subroutine free_buffer(buffer)
    type(buffer_t), intent(inout) :: buffer
    if (c_associated(buffer%memory)) call fftw_free(buffer%memory)
    buffer = buffer_t()
  end subroutine free_buffer

  !> Modes of a block of columns, in work%strip, to values along y, in the slab.
  subroutine columns_to_slab(plane, work, block, slab)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(in) :: work
    integer(ik), intent(in) :: block        !< 1 ... plane%blocks
    type(buffer_t), intent(in) :: slab      !< see workspace_t
    call fold(plane, shape(work%strip%c), work%strip%r, 0_ik, plane%up, plane%down, work%folded%r)
    call fftw_execute_dft(plane%columns_out, work%folded%c, slab%c(:, lanes * (block - 1) + 1:))
  end subroutine columns_to_slab

  !> The transpose of columns_to_slab: values along y to modes in work%strip, not normalised.
  subroutine slab_to_columns(plane, work, slab, block)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(in) :: work
    type(buffer_t), intent(in) :: slab
    integer(ik), intent(in) :: block        !< 1 ... plane%blocks
    call fftw_execute_dft(plane%columns_in, slab%c(:, lanes * (block - 1) + 1:), work%folded%c)
    call unfold(plane, work%folded%r, shape(work%strip%c), work%strip%r, 0_ik, plane%up, plane%down)
  end subroutine slab_to_columns

  !> A block of rows of the slab to grid values.
  subroutine rows_to_grid(plane, work, slab, row, values)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(in) :: work
    type(buffer_t), intent(in) :: slab
    integer(ik), intent(in) :: row          !< first row of the block
    type(buffer_t), intent(in) :: values    !< see workspace_t
    call fold(plane, shape(slab%c), slab%r, row - 1, plane%right, plane%left, work%folded%r)
    call fftw_execute_dft(plane%rows_out, work%folded%c, values%c)
  end subroutine rows_to_grid

  !> The transpose of rows_to_grid: grid values, which may be overwritten, to a block of rows of the slab, not normalised.
  subroutine grid_to_rows(plane, work, values, row, slab)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(in) :: work
    type(buffer_t), intent(in) :: values
    integer(ik), intent(in) :: row          !< first row of the block
    type(buffer_t), intent(in) :: slab
    call fftw_execute_dft(plane%rows_in, values%c, work%folded%c)
    call unfold(plane, work%folded%r, shape(slab%c), slab%r, row - 1, plane%right, plane%left)
  end subroutine grid_to_rows

  !> Multiply the modes of `lanes` rows by their phases and fold them onto each shifted grid.
  pure subroutine fold(plane, extent, modes, skip, plus, minus, folded)
    type(plane_t), intent(in) :: plane
    integer, intent(in) :: extent(2)
    real(rk), intent(in) :: modes(2, extent(1), extent(2))   !< read in rows skip + 1 ... skip + lanes
    integer(ik), intent(in) :: skip
    integer(ik), intent(in) :: plus(0:plane%waves)           !< column of mode k
    integer(ik), intent(in) :: minus(0:plane%waves)          !< column of mode -k
    real(rk), intent(out) :: folded(2, lanes, 0:plane%points - 1, plane%shifts)
    real(rk) :: cp, sp, cm, sm, ar, ai, br, bi
    integer(ik) :: k, l, p, m

    if (plane%shifts == 1) then
      folded(:, :, 0, 1) = modes(:, skip + 1:skip + lanes, plus(0))
      folded(:, :, plane%waves + 1:plane%points - plane%waves - 1, 1) = 0.0_rk
      do k = 1, plane%waves
        folded(:, :, k, 1) = modes(:, skip + 1:skip + lanes, plus(k))
        folded(:, :, plane%points - k, 1) = modes(:, skip + 1:skip + lanes, minus(k))
      end do
      return
    end if
    do k = 1, 3
      folded(:, :, 0, k) = modes(:, skip + 1:skip + lanes, plus(0))
    end do
    do k = 1, plane%waves   ! modes k and k - points fold onto one value
      p = plus(k)
      m = minus(plane%points - k)
      cp = plane%cosine(k)
      sp = plane%sine(k)
      cm = plane%cosine(plane%points - k)
      sm = plane%sine(plane%points - k)
      do l = 1, lanes
        ar = modes(1, skip + l, p)
        ai = modes(2, skip + l, p)
        br = modes(1, skip + l, m)
        bi = modes(2, skip + l, m)
        folded(1, l, k, 1) = ar + br
        folded(2, l, k, 1) = ai + bi
        folded(1, l, k, 2) = (cp * ar + cm * br) - (sp * ai - sm * bi)
        folded(2, l, k, 2) = (cp * ai + cm * bi) + (sp * ar - sm * br)
        folded(1, l, k, 3) = (cp * ar + cm * br) + (sp * ai - sm * bi)
        folded(2, l, k, 3) = (cp * ai + cm * bi) - (sp * ar - sm * br)
      end do
    end do
  end subroutine fold

  !> The transpose of fold: take the phases off and add up the shifted grids.
  pure subroutine unfold(plane, folded, extent, modes, skip, plus, minus)
    type(plane_t), intent(in) :: plane
    real(rk), intent(in) :: folded(2, lanes, 0:plane%points - 1, plane%shifts)
    integer, intent(in) :: extent(2)
    real(rk), intent(inout) :: modes(2, extent(1), extent(2))   !< written in rows skip + 1 ... skip + lanes
    integer(ik), intent(in) :: skip
    integer(ik), intent(in) :: plus(0:plane%waves)              !< column of mode k
    integer(ik), intent(in) :: minus(0:plane%waves)             !< column of mode -k
    real(rk) :: cp, sp, cm, sm, ar, ai, dr, di
    integer(ik) :: k, l, p, m

    do l = 1, lanes
      modes(1, skip + l, plus(0)) = sum(folded(1, l, 0, :))
      modes(2, skip + l, plus(0)) = sum(folded(2, l, 0, :))
    end do
    modes(:, skip + 1:skip + lanes, minus(0)) = modes(:, skip + 1:skip + lanes, plus(0))
    if (plane%shifts == 1) then
      do k = 1, plane%waves
        modes(:, skip + 1:skip + lanes, plus(k)) = folded(:, :, k, 1)
        modes(:, skip + 1:skip + lanes, minus(k)) = folded(:, :, plane%points - k, 1)
      end do
      return
    end if
    do k = 1, plane%waves
      p = plus(k)
      m = minus(plane%points - k)
      cp = plane%cosine(k)
      sp = plane%sine(k)
      cm = plane%cosine(plane%points - k)
      sm = plane%sine(plane%points - k)
      do l = 1, lanes
        ar = folded(1, l, k, 2) + folded(1, l, k, 3)
        ai = folded(2, l, k, 2) + folded(2, l, k, 3)
        dr = folded(1, l, k, 2) - folded(1, l, k, 3)
        di = folded(2, l, k, 2) - folded(2, l, k, 3)
        modes(1, skip + l, p) = folded(1, l, k, 1) + (cp * ar + sp * di)
        modes(2, skip + l, p) = folded(2, l, k, 1) + (cp * ai - sp * dr)
        modes(1, skip + l, m) = folded(1, l, k, 1) + (cm * ar - sm * di)
        modes(2, skip + l, m) = folded(2, l, k, 1) + (cm * ai + sm * dr)
      end do
    end do
  end subroutine unfold

  !> Modes of a real field to its n x n values.
  subroutine modes_to_field(plane, work, modes, field)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(in) :: work
    real(rk), intent(in) :: modes(2, half, -plane%waves:plane%waves, plane%blocks)   !< kx = half (block - 1) + lane - 1; ky
    real(rk), intent(out) :: field(2, plane%n / 2, plane%n)                          !< x fastest, in pairs
    integer(ik) :: kx, ky, place

    work%spectrum%r = 0.0_rk
    do ky = -plane%waves, plane%waves
      place = modulo(ky, plane%n) + 1
      do kx = 0, plane%waves
        work%spectrum%r(:, kx + 1, place) = modes(:, mod(kx, half) + 1, ky, kx / half + 1)
      end do
    end do
    call fftw_execute_dft_c2r(plane%field_out, work%spectrum%c, work%field%r)
    field = work%field%r
  end subroutine modes_to_field

  !> Values of a real field to its modes; what lies beyond `waves` is dropped.
  subroutine field_to_modes(plane, work, field, modes)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(in) :: work
    real(rk), intent(in) :: field(2, plane%n / 2, plane%n)
    real(rk), intent(out) :: modes(2, half, -plane%waves:plane%waves, plane%blocks)
    real(rk) :: scale
    integer(ik) :: kx, ky, place

    work%field%r = field
    call fftw_execute_dft_r2c(plane%field_in, work%field%r, work%spectrum%c)
    scale = 1.0_rk / (real(plane%n, rk) * plane%n)
    modes = 0.0_rk
    do ky = -plane%waves, plane%waves
      place = modulo(ky, plane%n) + 1
      do kx = 0, plane%waves
        modes(:, mod(kx, half) + 1, ky, kx / half + 1) = scale * work%spectrum%r(:, kx + 1, place)
      end do
    end do
    ! Modes (0, ky) and (0, -ky) are both stored: keep them conjugate to the last bit, as the tendency does.
    modes(2, 1, 0, 1) = 0.0_rk
    do ky = 1, plane%waves
      modes(1, 1, -ky, 1) = modes(1, 1, ky, 1)
      modes(2, 1, -ky, 1) = -modes(2, 1, ky, 1)
    end do
  end subroutine field_to_modes
end module trimtab_fft

! SPDX-License-Identifier: MIT
!> Fourier transforms on the doubly periodic plane, by FFTW.
!!
!! A real field on the plane keeps the modes |kx|, |ky| <= waves. Products are formed on a finer grid of
!! `shifts` x `points` values a direction, so that they do not alias. That grid is read as `shifts` coarse grids, each shifted
!! by one fine cell: a mode reaches a shifted grid when it is multiplied by its phase and folded onto `points` values, which
!! skips the zeros that padding would transform and leaves FFTW the lengths that it does best. With shifts = 1 it is plain padding.
!!
!! Two real fields a, b travel as one complex field a + i b: one complex transform does both.
!!
!! A transform goes columns (y) first, then rows (x), through a `slab` (y, column) that holds the plane half-way. Both directions
!! work on `lanes` columns or rows side by side, so that every loop and every FFTW call runs with stride one across the lanes
!! and nothing is ever transposed. Rows are done in blocks that stay in cache: to the grid, the product, and back.
!!
!! Plans use FFTW_ESTIMATE: it chooses the same algorithm in every process, so that a run's bits do not depend on the process
!! (FFTW_MEASURE chooses by timing). They are made once a size and process, shared, and freed with their last user.
!! FFTW's planner is not thread-safe: open and close planes from one thread at a time.
!!
!! Sources: Frigo and Johnson, Proc. IEEE 93, 216 (2005), doi:10.1109/JPROC.2004.840301; Patterson and Orszag, Phys. Fluids 14,
!! 2538 (1971), doi:10.1063/1.1693365 (shifted grids).
module trimtab_fft
  use, intrinsic :: iso_c_binding
  use trimtab_kinds, only: rk, ik, circle => pi
  implicit none
  private
  public :: plane_t, workspace_t, lanes, half
  public :: open_plane, close_plane, allocate_workspace, free_workspace
  public :: columns_to_slab, slab_to_columns, rows_to_grid, grid_to_rows, modes_to_field, field_to_modes

  include 'fftw3.f03'

  integer, parameter :: lanes = 8          !< columns or rows that are transformed side by side
  integer, parameter :: half = lanes/2     !< wavenumbers kx in a block of columns: each has a column for kx and one for -kx

  !> One size of plane: its plans and tables. Shared; read-only for its users.
  type :: plane_t
    integer(ik) :: n = 0            !< values a direction on the grid of the border
    integer(ik) :: waves = 0        !< largest wavenumber kept
    integer(ik) :: points = 0       !< length of a transform
    integer(ik) :: shifts = 0       !< 1, or 3 for a fine grid of 3 x points values
    integer(ik) :: blocks = 0       !< blocks of columns; block b holds kx = half*(b - 1) ... half*b - 1
    integer(ik) :: rows = 0         !< rows of one shift in a slab, a multiple of `lanes`
    integer(ik) :: height = 0       !< leading dimension of a slab
    real(rk), allocatable :: cosine(:), sine(:)              !< (0:waves): phase of a shift by one fine cell
    integer(ik), allocatable :: plus(:), minus(:)            !< (0:waves): column of kx and -kx in a slab
    integer(ik), allocatable :: up(:), down(:)               !< (0:waves): place of ky and -ky in a strip
    type(c_ptr) :: columns_out = c_null_ptr, columns_in = c_null_ptr
    type(c_ptr) :: rows_out = c_null_ptr, rows_in = c_null_ptr
    type(c_ptr) :: field_out = c_null_ptr, field_in = c_null_ptr
    integer(ik) :: users = 0
    type(plane_t), pointer :: next => null()
  end type plane_t

  !> A buffer of FFTW's, seen as complex and as real numbers (first index: real, imaginary).
  type :: buffer_t
    type(c_ptr) :: memory = c_null_ptr
    complex(rk), pointer, contiguous :: c(:, :) => null()
    real(rk), pointer, contiguous :: r(:, :, :) => null()
  end type buffer_t

  !> What one solver needs to transform one plane at a time.
  type :: workspace_t
    type(buffer_t) :: slab       !< (height, lanes*blocks)
    type(buffer_t) :: modes      !< (lanes, shifts*points): folded modes of a block
    type(buffer_t) :: values     !< (lanes, shifts*points): grid values of a block
    type(buffer_t) :: strip      !< (lanes, -waves:waves): modes along y of a block of columns
    type(buffer_t) :: spectrum   !< (0:n/2, n): modes of a real field on the border grid
    type(buffer_t) :: field      !< n x n reals, seen in its pairs
  end type workspace_t

  type(plane_t), pointer :: planes => null()   ! the planes in use, a list

contains

  !> Find or make the plane of this size, and count one user more.
  subroutine open_plane(plane, n, waves, points, shifts)
    type(plane_t), pointer, intent(out) :: plane
    integer(ik), intent(in) :: n, waves, points, shifts   !< see plane_t

    plane => planes
    do while (associated(plane))
      if (plane%n == n .and. plane%waves == waves .and. plane%points == points .and. plane%shifts == shifts) exit
      plane => plane%next
    end do
    if (.not. associated(plane)) then
      allocate (plane)
      call lay_out(plane, n, waves, points, shifts)
      call make_plans(plane)
      plane%next => planes
      planes => plane
    end if
    plane%users = plane%users + 1
  end subroutine open_plane

  !> Count one user less; the last one frees the plans.
  subroutine close_plane(plane)
    type(plane_t), pointer, intent(inout) :: plane
    type(plane_t), pointer :: before

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

  !> Sizes and tables of a plane.
  subroutine lay_out(plane, n, waves, points, shifts)
    type(plane_t), intent(inout) :: plane
    integer(ik), intent(in) :: n, waves, points, shifts
    integer(ik) :: k

    plane%n = n
    plane%waves = waves
    plane%points = points
    plane%shifts = shifts
    plane%blocks = waves/half + 1
    plane%rows = lanes*((points + lanes - 1)/lanes)
    ! One cache line more than a multiple of two: columns far apart do not fall on the same cache set.
    plane%height = shifts*plane%rows + 4
    allocate (plane%cosine(0:waves), plane%sine(0:waves))
    allocate (plane%plus(0:waves), plane%minus(0:waves), plane%up(0:waves), plane%down(0:waves))
    do k = 0, waves
      plane%cosine(k) = cos(2 * circle * k / (shifts * points))
      plane%sine(k) = sin(2 * circle * k / (shifts * points))
      plane%plus(k) = lanes*(k/half) + mod(k, half) + 1
      plane%minus(k) = plane%plus(k) + half
      plane%up(k) = waves + 1 + k
      plane%down(k) = waves + 1 - k
    end do
  end subroutine lay_out

  !> Plan every transform of a plane on scratch memory.
  subroutine make_plans(plane)
    type(plane_t), intent(inout) :: plane
    type(workspace_t) :: work
    type(fftw_iodim) :: along(1), across(2)
    integer(c_int) :: points, shifts, height, rows

    points = plane%points
    shifts = plane%shifts
    height = plane%height
    rows = plane%rows
    call allocate_workspace(plane, work)
    ! Modes lie with the lanes side by side, values with the points of a lane side by side: FFTW does best from one to the other.
    along(1) = fftw_iodim(points, lanes, 1)
    across = [fftw_iodim(shifts, lanes * points, rows), fftw_iodim(lanes, 1, height)]
    plane%columns_out = fftw_plan_guru_dft(1, along, 2, across, work%modes%c, work%slab%c, FFTW_BACKWARD, FFTW_ESTIMATE)
    plane%columns_in = fftw_plan_guru_dft(1, turned(along), 2, turned(across), work%slab%c, work%modes%c, FFTW_FORWARD, &
                                          FFTW_ESTIMATE)
    across = [fftw_iodim(shifts, lanes * points, lanes * points), fftw_iodim(lanes, 1, points)]
    plane%rows_out = fftw_plan_guru_dft(1, along, 2, across, work%modes%c, work%values%c, FFTW_BACKWARD, FFTW_ESTIMATE)
    plane%rows_in = fftw_plan_guru_dft(1, turned(along), 2, turned(across), work%values%c, work%modes%c, FFTW_FORWARD, &
                                       FFTW_ESTIMATE)
    plane%field_out = fftw_plan_dft_c2r_2d(plane%n, plane%n, work%spectrum%c, work%field%r, FFTW_ESTIMATE)
    plane%field_in = fftw_plan_dft_r2c_2d(plane%n, plane%n, work%field%r, work%spectrum%c, FFTW_ESTIMATE)
    call free_workspace(work)
  end subroutine make_plans

  !> The same strides the other way.
  elemental type(fftw_iodim) function turned(stride)
    type(fftw_iodim), intent(in) :: stride
    turned = fftw_iodim(stride%n, stride%os, stride%is)
  end function turned

  !> Allocate what transforms of this plane write to, all zero.
  subroutine allocate_workspace(plane, work)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(inout) :: work
    call allocate_buffer(work%slab, plane%height, lanes*plane%blocks)
    call allocate_buffer(work%modes, lanes, plane%shifts*plane%points)
    call allocate_buffer(work%values, lanes, plane%shifts*plane%points)
    call allocate_buffer(work%strip, lanes, 2*plane%waves + 1)
    call allocate_buffer(work%spectrum, plane%n/2 + 1, plane%n)
    call allocate_buffer(work%field, plane%n/2, plane%n)
  end subroutine allocate_workspace

  !> Free a workspace.
  subroutine free_workspace(work)
    type(workspace_t), intent(inout) :: work
    call free_buffer(work%slab)
    call free_buffer(work%modes)
    call free_buffer(work%values)
    call free_buffer(work%strip)
    call free_buffer(work%spectrum)
    call free_buffer(work%field)
  end subroutine free_workspace

  !> Allocate rows x columns complex zeros, on a cache line.
  subroutine allocate_buffer(buffer, rows, columns)
    type(buffer_t), intent(inout) :: buffer
    integer(ik), intent(in) :: rows, columns
    integer, parameter :: line = 64
    real(rk), pointer, contiguous :: raw(:)
    integer(c_size_t) :: length
    integer(c_intptr_t) :: first

    length = 2_c_size_t*rows*columns + line/8
    buffer%memory = fftw_alloc_real(length)
    call c_f_pointer(buffer%memory, raw, [length])
    first = 1 + modulo(-transfer(buffer%memory, 0_c_intptr_t), int(line, c_intptr_t))/8
    raw = 0
    call c_f_pointer(c_loc(raw(first)), buffer%c, [rows, columns])
    call c_f_pointer(c_loc(raw(first)), buffer%r, [2_ik, rows, columns])
  end subroutine allocate_buffer

  !> Free a buffer.
  subroutine free_buffer(buffer)
    type(buffer_t), intent(inout) :: buffer
    if (c_associated(buffer%memory)) call fftw_free(buffer%memory)
    buffer = buffer_t()
  end subroutine free_buffer

  !> Modes of a block of columns, in the strip, to values along y, in the slab.
  subroutine columns_to_slab(plane, work, block)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(inout) :: work
    integer(ik), intent(in) :: block     !< 1 ... blocks
    call spread(plane, work%strip%r, int(lanes, ik), 0_ik, plane%up, plane%down, work%modes%r)
    call fftw_execute_dft(plane%columns_out, work%modes%c, work%slab%c(:, lanes*(block - 1) + 1:))
  end subroutine columns_to_slab

  !> Values along y of a block of columns, in the slab, to modes in the strip; not normalised.
  subroutine slab_to_columns(plane, work, block)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(inout) :: work
    integer(ik), intent(in) :: block     !< 1 ... blocks
    call fftw_execute_dft(plane%columns_in, work%slab%c(:, lanes*(block - 1) + 1:), work%modes%c)
    call gather(plane, work%modes%r, int(lanes, ik), 0_ik, plane%up, plane%down, work%strip%r)
  end subroutine slab_to_columns

  !> A block of rows of the slab to grid values.
  subroutine rows_to_grid(plane, work, row)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(inout) :: work
    integer(ik), intent(in) :: row       !< first row of the block
    call spread(plane, work%slab%r, plane%height, row - 1, plane%plus, plane%minus, work%modes%r)
    call fftw_execute_dft(plane%rows_out, work%modes%c, work%values%c)
  end subroutine rows_to_grid

  !> Grid values to a block of rows of the slab; not normalised.
  subroutine grid_to_rows(plane, work, row)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(inout) :: work
    integer(ik), intent(in) :: row       !< first row of the block
    call fftw_execute_dft(plane%rows_in, work%values%c, work%modes%c)
    call gather(plane, work%modes%r, plane%height, row - 1, plane%plus, plane%minus, work%slab%r)
  end subroutine grid_to_rows

  !> Multiply modes by their phases and fold them onto each shifted grid, for all lanes.
  subroutine spread(plane, modes, stride, row, plus, minus, folded)
    type(plane_t), intent(in) :: plane
    integer(ik), intent(in) :: stride, row                           !< distance between columns of `modes`, rows to skip
    real(rk), intent(in) :: modes(2, stride, *)                      !< modes in rows row + 1 ... row + lanes
    integer(ik), intent(in) :: plus(0:plane%waves)                   !< column of mode k
    integer(ik), intent(in) :: minus(0:plane%waves)                  !< column of mode -k
    real(rk), intent(out) :: folded(2, lanes, 0:plane%points - 1, plane%shifts)
    real(rk) :: cp, sp, cm, sm, pr, pi, mr, mi
    integer(ik) :: k, l, p, m

    if (plane%shifts == 1) then
      do k = 0, plane%waves
        folded(:, :, k, 1) = modes(:, row + 1:row + lanes, plus(k))
      end do
      folded(:, :, plane%waves + 1:plane%points - plane%waves - 1, 1) = 0.0_rk
      do k = 1, plane%waves
        folded(:, :, plane%points - k, 1) = modes(:, row + 1:row + lanes, minus(k))
      end do
      return
    end if
    folded(:, :, 0, 1) = modes(:, row + 1:row + lanes, plus(0))
    folded(:, :, 0, 2) = modes(:, row + 1:row + lanes, plus(0))
    folded(:, :, 0, 3) = modes(:, row + 1:row + lanes, plus(0))
    do k = 1, plane%waves   ! modes k and k - points = -(waves + 1 - k) fold onto one value
      p = plus(k)
      m = minus(plane%waves + 1 - k)
      cp = plane%cosine(k)
      sp = plane%sine(k)
      cm = plane%cosine(plane%waves + 1 - k)
      sm = plane%sine(plane%waves + 1 - k)
      do l = 1, lanes
        pr = modes(1, row + l, p)
        pi = modes(2, row + l, p)
        mr = modes(1, row + l, m)
        mi = modes(2, row + l, m)
        folded(1, l, k, 1) = pr + mr
        folded(2, l, k, 1) = pi + mi
        folded(1, l, k, 2) = (cp * pr + cm * mr) - (sp * pi - sm * mi)
        folded(2, l, k, 2) = (cp * pi + cm * mi) + (sp * pr - sm * mr)
        folded(1, l, k, 3) = (cp * pr + cm * mr) + (sp * pi - sm * mi)
        folded(2, l, k, 3) = (cp * pi + cm * mi) - (sp * pr - sm * mr)
      end do
    end do
  end subroutine spread

  !> The transpose of `spread`: take the phases off and add up the shifted grids, for all lanes.
  subroutine gather(plane, folded, stride, row, plus, minus, modes)
    type(plane_t), intent(in) :: plane
    real(rk), intent(in) :: folded(2, lanes, 0:plane%points - 1, plane%shifts)
    integer(ik), intent(in) :: stride, row                           !< distance between columns of `modes`, rows to skip
    integer(ik), intent(in) :: plus(0:plane%waves)                   !< column of mode k
    integer(ik), intent(in) :: minus(0:plane%waves)                  !< column of mode -k
    real(rk), intent(inout) :: modes(2, stride, *)                   !< modes in rows row + 1 ... row + lanes
    real(rk) :: cp, sp, cm, sm, ar, ai, dr, di
    integer(ik) :: k, l, p, m

    if (plane%shifts == 1) then
      do k = 0, plane%waves
        modes(:, row + 1:row + lanes, plus(k)) = folded(:, :, k, 1)
      end do
      do k = 1, plane%waves
        modes(:, row + 1:row + lanes, minus(k)) = folded(:, :, plane%points - k, 1)
      end do
      modes(:, row + 1:row + lanes, minus(0)) = folded(:, :, 0, 1)
      return
    end if
    modes(:, row + 1:row + lanes, plus(0)) = folded(:, :, 0, 1) + folded(:, :, 0, 2) + folded(:, :, 0, 3)
    modes(:, row + 1:row + lanes, minus(0)) = modes(:, row + 1:row + lanes, plus(0))
    do k = 1, plane%waves
      p = plus(k)
      m = minus(plane%waves + 1 - k)
      cp = plane%cosine(k)
      sp = plane%sine(k)
      cm = plane%cosine(plane%waves + 1 - k)
      sm = plane%sine(plane%waves + 1 - k)
      do l = 1, lanes
        ar = folded(1, l, k, 2) + folded(1, l, k, 3)
        ai = folded(2, l, k, 2) + folded(2, l, k, 3)
        dr = folded(1, l, k, 2) - folded(1, l, k, 3)
        di = folded(2, l, k, 2) - folded(2, l, k, 3)
        modes(1, row + l, p) = folded(1, l, k, 1) + (cp * ar + sp * di)
        modes(2, row + l, p) = folded(2, l, k, 1) + (cp * ai - sp * dr)
        modes(1, row + l, m) = folded(1, l, k, 1) + (cm * ar - sm * di)
        modes(2, row + l, m) = folded(2, l, k, 1) + (cm * ai + sm * dr)
      end do
    end do
  end subroutine gather

  !> Modes of a real field to its n x n values.
  subroutine modes_to_field(plane, work, modes, field)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(inout) :: work
    real(rk), intent(in) :: modes(2, half, -plane%waves:plane%waves, plane%blocks)   !< kx = half*(block - 1) + lane - 1, ky
    real(rk), intent(out) :: field(2, plane%n / 2, plane%n)                          !< values in pairs, x fastest
    integer(ik) :: kx, ky, block, lane

    work%spectrum%r = 0.0_rk
    do ky = -plane%waves, plane%waves
      do kx = 0, plane%waves
        block = kx / half + 1
        lane = mod(kx, half) + 1
        work%spectrum%r(:, kx + 1, modulo(ky, plane%n) + 1) = modes(:, lane, ky, block)
      end do
    end do
    call fftw_execute_dft_c2r(plane%field_out, work%spectrum%c, work%field%r)
    field = work%field%r
  end subroutine modes_to_field

  !> Values of a real field to its modes; what lies beyond `waves` is dropped.
  subroutine field_to_modes(plane, work, field, modes)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(inout) :: work
    real(rk), intent(in) :: field(2, plane%n / 2, plane%n)                            !< values in pairs, x fastest
    real(rk), intent(out) :: modes(2, half, -plane%waves:plane%waves, plane%blocks)   !< see modes_to_field
    real(rk) :: scale
    integer(ik) :: kx, ky, block, lane

    work%field%r = field
    call fftw_execute_dft_r2c(plane%field_in, work%field%r, work%spectrum%c)
    scale = 1.0_rk / (real(plane%n, rk) * plane%n)
    modes = 0.0_rk
    do ky = -plane%waves, plane%waves
      do kx = 0, plane%waves
        block = kx / half + 1
        lane = mod(kx, half) + 1
        modes(:, lane, ky, block) = scale * work%spectrum%r(:, kx + 1, modulo(ky, plane%n) + 1)
      end do
    end do
    ! The field is real: hold that to the last bit where both halves of a pair are stored.
    modes(2, 1, 0, 1) = 0.0_rk
    do ky = 1, plane%waves
      modes(1, 1, -ky, 1) = modes(1, 1, ky, 1)
      modes(2, 1, -ky, 1) = -modes(2, 1, ky, 1)
    end do
  end subroutine field_to_modes
end module trimtab_fft

! SPDX-License-Identifier: MIT
!> The adjoint of the vorticity tendency, by hand and to round-off: the transpose of the code, aliases included.
!!
!! `enter` and `leave` are each other's transposes up to n2, so the transpose at the border is enter, the adjoint in modes,
!! leave. In modes, with c and w as in trimtab_quasigeostrophic, d = (kx + i ky) / k2 (w = d q) and p the modes of lambda:
!!
!!   -dJ = -(c dZ(k) + conj(c dZ(-k))) / 4,  dZ the transform of 2 w dw;   a the grid values of conj(c) p, all signs of k;
!!   B the transform of conj(w) a;   answer(k) = conj(linear) p - (conj(d) B(k) - d conj(B(-k))) / 2,
!!
!! because p is Hermitian and c even. Three complex transforms, against two of the tendency.
submodule(trimtab_quasigeostrophic) trimtab_quasigeostrophic_adjoint
  use trimtab_fft, only: buffer_t, allocate_buffer, free_buffer
  implicit none

contains

  !> See solver_t; STATUS_BAD_PARAMETER when memory runs out.
  module subroutine tendency_adjoint(self, t, u, lambda, answer, status)
    class(quasigeostrophic_t), intent(inout) :: self
    real(rk), intent(in) :: t
    real(rk), intent(in), contiguous, target :: u(:, :), lambda(:, :)
    real(rk), intent(inout), contiguous, target :: answer(:, :)
    type(status_t), intent(inout) :: status
    type(buffer_t) :: slab, values
    real(rk), allocatable :: q(:), p(:), r(:)
    integer :: member

    call allocate_buffer(slab, self%plane%height, lanes * self%plane%blocks)
    call allocate_buffer(values, self%plane%points, lanes * self%plane%shifts)
    if (associated(slab%c) .and. associated(values%c)) then
      allocate (q(self%m), p(self%m), r(self%m))
      do member = 1, size(u, 2)
        call field_to_modes(self%plane, self%work, u(:, member), q)
        call field_to_modes(self%plane, self%work, lambda(:, member), p)
        call vorticity_adjoint(self%plane, self%work, slab, values, self%inverse, self%linear, q, p, r)
        if (allocated(self%pattern)) call diffuse(self, self%pattern, p, r)   ! its own transpose
        call modes_to_field(self%plane, self%work, r, answer(:, member))
      end do
    else
      call status%raise(STATUS_BAD_PARAMETER, 'qg: there is not enough memory for the adjoint')
    end if
    call free_buffer(slab)
    call free_buffer(values)
  end subroutine tendency_adjoint

  !> One member, in modes.
  subroutine vorticity_adjoint(plane, work, slab, values, inverse, linear, q, p, answer)
    type(plane_t), intent(in) :: plane
    type(workspace_t), intent(in) :: work
    type(buffer_t), intent(in) :: slab, values     !< a and B, as work%slab and work%values hold w
    real(rk), intent(in) :: inverse(half, -plane%waves:plane%waves, plane%blocks)
    real(rk), intent(in) :: linear(2, half, -plane%waves:plane%waves, plane%blocks)
    real(rk), intent(in) :: q(2, half, -plane%waves:plane%waves, plane%blocks)
    real(rk), intent(in) :: p(2, half, -plane%waves:plane%waves, plane%blocks)
    real(rk), intent(out) :: answer(2, half, -plane%waves:plane%waves, plane%blocks)
    integer(ik) :: block, shift, row

    do block = 1, plane%blocks
      call velocity(plane%waves, block, inverse(:, :, block), q(:, :, :, block), work%strip%r)
      call columns_to_slab(plane, work, block, work%slab)
      call weigh(plane%waves, block, p(:, :, :, block), work%strip%r)
      call columns_to_slab(plane, work, block, slab)
    end do
    do shift = 0, plane%shifts - 1
      do row = shift * plane%rows + 1, shift * plane%rows + plane%points, lanes
        call rows_to_grid(plane, work, work%slab, row, work%values)
        call rows_to_grid(plane, work, slab, row, values)
        values%c = conjg(work%values%c) * values%c
        call grid_to_rows(plane, work, values, row, slab)
      end do
    end do
    do block = 1, plane%blocks
      call slab_to_columns(plane, work, slab, block)
      call gather(plane, block, work%strip%r, inverse(:, :, block), linear(:, :, :, block), p(:, :, :, block), &
                  answer(:, :, :, block))
    end do
    ! Modes (0, ky) and (0, -ky) are both stored: conjugate to the last bit, as everywhere.
    answer(2, 1, 0, 1) = 0.0_rk
    do row = 1, plane%waves
      answer(1, 1, -row, 1) = answer(1, 1, row, 1)
      answer(2, 1, -row, 1) = -answer(2, 1, row, 1)
    end do
  end subroutine vorticity_adjoint

  !> Modes of a: conj(c) p for k and, half a strip further, conj(c) conj(p) for -k.
  pure subroutine weigh(waves, block, p, a)
    integer(ik), intent(in) :: waves, block
    real(rk), intent(in) :: p(2, half, -waves:waves)
    real(rk), intent(out) :: a(2, lanes, -waves:waves)
    real(rk) :: cr, ci, kx
    integer(ik) :: ky, l

    do ky = -waves, waves
      do l = 1, half
        kx = real(half * (block - 1) + l - 1, rk)
        cr = 2 * kx * ky
        ci = kx**2 - real(ky, rk)**2
        a(1, l, ky) = cr * p(1, l, ky) + ci * p(2, l, ky)
        a(2, l, ky) = cr * p(2, l, ky) - ci * p(1, l, ky)
        a(1, l + half, -ky) = cr * p(1, l, ky) - ci * p(2, l, ky)
        a(2, l + half, -ky) = -cr * p(2, l, ky) - ci * p(1, l, ky)
      end do
    end do
  end subroutine weigh

  !> conj(linear) p - (conj(d) B(k) - d conj(B(-k))) / 2, from B for kx and, half a strip further, for -kx.
  pure subroutine gather(plane, block, b, inverse, linear, p, answer)
    type(plane_t), intent(in) :: plane
    integer(ik), intent(in) :: block
    real(rk), intent(in) :: b(2, lanes, -plane%waves:plane%waves)
    real(rk), intent(in) :: inverse(half, -plane%waves:plane%waves)
    real(rk), intent(in) :: linear(2, half, -plane%waves:plane%waves)
    real(rk), intent(in) :: p(2, half, -plane%waves:plane%waves)
    real(rk), intent(out) :: answer(2, half, -plane%waves:plane%waves)
    real(rk) :: scale, dr, di
    integer(ik) :: ky, l

    scale = -0.5_rk / (real(plane%shifts * plane%points, rk)**2)
    do ky = -plane%waves, plane%waves
      do l = 1, half
        dr = scale * (half * (block - 1) + l - 1) * inverse(l, ky)
        di = scale * ky * inverse(l, ky)
        answer(1, l, ky) = (linear(1, l, ky) * p(1, l, ky) + linear(2, l, ky) * p(2, l, ky)) &
                           + (dr * (b(1, l, ky) - b(1, l + half, -ky)) + di * (b(2, l, ky) - b(2, l + half, -ky)))
        answer(2, l, ky) = (linear(1, l, ky) * p(2, l, ky) - linear(2, l, ky) * p(1, l, ky)) &
                           + (dr * (b(2, l, ky) + b(2, l + half, -ky)) - di * (b(1, l, ky) + b(1, l + half, -ky)))
      end do
    end do
  end subroutine gather
end submodule trimtab_quasigeostrophic_adjoint

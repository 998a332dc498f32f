! SPDX-License-Identifier: MIT
!> A viscosity that varies in space, and as the coefficient that the slot answers: D(nu) q = div(nu grad q).
!!
!! With G the gradient of the modes that the state holds, taken to the grid, and the inner product of grid values,
!!
!!   D(nu) = -G^T diag(nu) G:   q . D(nu) q = -sum nu |grad q|^2,
!!
!! so that no state gains enstrophy where nu >= 0, whatever the truncation; D(nu) is its own transpose; and
!! (dD(nu) q / dnu)^T lambda = -grad q . grad lambda, point by point. Products are formed on the grid of the border.
submodule(trimtab_quasigeostrophic) trimtab_quasigeostrophic_viscosity
  implicit none

contains

  !> Add div(nu grad q), in modes; four transforms.
  module subroutine diffuse(self, nu, q, dqdt)
    class(quasigeostrophic_t), intent(inout) :: self
    real(rk), intent(in) :: nu(:)
    real(rk), intent(in) :: q(:)
    real(rk), intent(inout) :: dqdt(:)
    real(rk) :: field(self%n), flux(self%m), slope(self%m)
    integer :: direction
    do direction = 1, 2
      call derivative(self%plane, direction, q, slope)
      call modes_to_field(self%plane, self%work, slope, field)
      field = nu * field
      call field_to_modes(self%plane, self%work, field, flux)
      call derivative(self%plane, direction, flux, slope)
      dqdt = dqdt + slope
    end do
  end subroutine diffuse

  !> See solver_t.
  module subroutine influence(self, x, coefficient, dxdt)
    class(quasigeostrophic_t), intent(inout) :: self
    real(rk), intent(in), contiguous, target :: x(:, :), coefficient(:, :)
    real(rk), intent(inout), contiguous, target :: dxdt(:, :)
    integer :: member
    do member = 1, size(x, 2)
      call diffuse(self, coefficient(:, member), x(:, member), dxdt(:, member))
    end do
  end subroutine influence

  !> See solver_t.
  module subroutine influence_adjoint(self, u, lambda, answer)
    class(quasigeostrophic_t), intent(inout) :: self
    real(rk), intent(in), contiguous, target :: u(:, :), lambda(:, :)
    real(rk), intent(inout), contiguous, target :: answer(:, :)
    real(rk) :: q(self%m), p(self%m), slope(self%m), field(self%n), other(self%n)
    integer :: member, direction
    answer = 0.0_rk
    do member = 1, size(u, 2)
      call field_to_modes(self%plane, self%work, u(:, member), q)
      call field_to_modes(self%plane, self%work, lambda(:, member), p)
      do direction = 1, 2
        call derivative(self%plane, direction, q, slope)
        call modes_to_field(self%plane, self%work, slope, field)
        call derivative(self%plane, direction, p, slope)
        call modes_to_field(self%plane, self%work, slope, other)
        answer(:, member) = answer(:, member) - field * other
      end do
    end do
  end subroutine influence_adjoint

  !> See solver_t.
  module subroutine influence_state_adjoint(self, u, coefficient, lambda, answer)
    class(quasigeostrophic_t), intent(inout) :: self
    real(rk), intent(in), contiguous, target :: u(:, :), coefficient(:, :), lambda(:, :)
    real(rk), intent(inout), contiguous, target :: answer(:, :)
    real(rk) :: p(self%m), r(self%m)
    integer :: member
    do member = 1, size(u, 2)
      call field_to_modes(self%plane, self%work, lambda(:, member), p)
      r = 0.0_rk
      call diffuse(self, coefficient(:, member), p, r)
      call modes_to_field(self%plane, self%work, r, answer(:, member))
    end do
  end subroutine influence_state_adjoint

  !> i kx q or i ky q.
  pure subroutine derivative(plane, direction, q, slope)
    type(plane_t), intent(in) :: plane
    integer, intent(in) :: direction   !< 1: x, 2: y
    real(rk), intent(in) :: q(2, half, -plane%waves:plane%waves, plane%blocks)
    real(rk), intent(out) :: slope(2, half, -plane%waves:plane%waves, plane%blocks)
    integer(ik) :: block, ky, lane
    real(rk) :: k
    do block = 1, plane%blocks
      do ky = -plane%waves, plane%waves
        do lane = 1, half
          k = merge(half * (block - 1) + lane - 1, ky, direction == 1)
          slope(1, lane, ky, block) = -k * q(2, lane, ky, block)
          slope(2, lane, ky, block) = k * q(1, lane, ky, block)
        end do
      end do
    end do
  end subroutine derivative
end submodule trimtab_quasigeostrophic_viscosity

! SPDX-License-Identifier: MIT
module single
  ! A real*4 code whose fields are called as a user likes: like a dimension, and like a coordinate of a file.
  implicit none
  real(4) :: dt = 0.02, x(4) = [1.0, 2.0, 3.0, 4.0], member(4) = [10.0, 20.0, 30.0, 40.0], u(4) = 7.0, time = 0.0, rate = 0.5
  integer :: counter = 0
  logical :: turned = .false.
contains
  subroutine step
    real(4) :: tendency(4)
    tendency = -rate*x
    call single_correct(tendency)
    x = x + dt*tendency
    member = member*(1.0 - 0.1*dt)
    time = time + dt
    counter = counter + 1
  end subroutine step
end module single

program spin
  ! Advection, diffusion and decay of a tracer on a ring in three sweeps that change their order every step.
  ! Built with -fdefault-real-8. Reads spin.nml in the current folder, appends to spin.log there.
  implicit none
  integer :: n = 48, steps = 200, it
  real :: dt = 0.01, speed = 1.0, kappa = 1e-3, decay = 0.0, dx
  real, allocatable :: c(:), flux(:), dcdt(:)
  logical :: backwards = .false.
  namelist /control/ n, steps, dt, speed, kappa, decay
  open (11, file='spin.nml', status='old')
  read (11, control)
  close (11)
  allocate (c(0:n + 1), flux(0:n), dcdt(n))
  dx = 1.0/n
  do it = 1, n
    c(it) = 1.0 + 0.5*sin(2.0*acos(-1.0)*it*dx) + 0.2*cos(6.0*acos(-1.0)*it*dx)
  end do
  do it = 1, steps
    if (backwards) then
      call sweep(1)
      call sweep(0)
    else
      call sweep(0)
      call sweep(1)
    end if
    backwards = .not. backwards
    if (mod(it, 100) == 0) call report
  end do
contains
  subroutine sweep(kind)
    integer, intent(in) :: kind
    c(0) = c(n)
    c(n + 1) = c(1)
    if (kind == 0) then
      flux = speed*(c(0:n) - 0.5*(c(0:n) - c(1:n + 1))*(1.0 - speed*dt/dx))
    else
      flux = -kappa*(c(1:n + 1) - c(0:n))/dx
    end if
    dcdt = -(flux(1:n) - flux(0:n - 1))/dx
    if (kind == 1) dcdt = dcdt - decay*c(1:n)**2
    c(1:n) = c(1:n) + dt*dcdt
    if (any(c(1:n) /= c(1:n))) stop 'spin: NaN'
  end subroutine sweep
  subroutine report
    open (12, file='spin.log', position='append')
    write (12, *) it, sum(c(1:n))*dx
    close (12)
  end subroutine report
end program spin

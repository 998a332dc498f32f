! SPDX-License-Identifier: MIT
!> What `&qg` takes: read, checked and told.
submodule(trimtab_quasigeostrophic) trimtab_quasigeostrophic_parameters
  implicit none

contains

  !> The namelist group &qg.
  module subroutine read_parameters(lines, parameters, status)
    character(*), intent(in) :: lines(:)
    type(parameters_t), intent(out) :: parameters
    type(status_t), intent(inout) :: status
    integer(ik) :: n, hyperviscosity_order, forcing_wavenumber
    real(rk) :: viscosity, hyperviscosity, drag, beta, forcing_amplitude
    character(8) :: dealiasing
    real(rk) :: viscosity_pattern
    integer(ik) :: pattern_wavenumber
    character(16) :: slot
    character(256) :: message
    integer :: code
    namelist /qg/ n, viscosity, hyperviscosity, hyperviscosity_order, drag, beta, forcing_amplitude, forcing_wavenumber, &
      dealiasing, viscosity_pattern, pattern_wavenumber, slot

    n = parameters%n
    viscosity = parameters%viscosity
    hyperviscosity = parameters%hyperviscosity
    hyperviscosity_order = parameters%hyperviscosity_order
    drag = parameters%drag
    beta = parameters%beta
    forcing_amplitude = parameters%forcing_amplitude
    forcing_wavenumber = parameters%forcing_wavenumber
    dealiasing = parameters%dealiasing
    viscosity_pattern = parameters%viscosity_pattern
    pattern_wavenumber = parameters%pattern_wavenumber
    slot = parameters%slot
    read (lines, nml=qg, iostat=code, iomsg=message)
    if (code /= 0) then
      call status%raise(STATUS_BAD_PARAMETER, namelist_sentence('qg', 'n, viscosity, hyperviscosity, hyperviscosity_order, '// &
                        'drag, beta, forcing_amplitude, forcing_wavenumber, dealiasing, viscosity_pattern, '// &
                        'pattern_wavenumber and slot', code, message))
    end if
    parameters = parameters_t(n, viscosity, hyperviscosity, hyperviscosity_order, drag, beta, forcing_amplitude, &
                              forcing_wavenumber, dealiasing, viscosity_pattern, pattern_wavenumber, slot)
  end subroutine read_parameters

  !> Refuse values that make no solver.
  module subroutine check_parameters(p, waves, status)
    type(parameters_t), intent(in) :: p
    integer(ik), intent(in) :: waves
    type(status_t), intent(inout) :: status

    if (p%n < 4 .or. p%n > 16384 .or. mod(p%n, 2_ik) /= 0) then
      call refuse('n must be an even number of grid points from 4 to 16384, not '//json_integer(p%n))
    end if
    if (.not. all_finite([p%viscosity, p%hyperviscosity, p%drag, p%beta, p%forcing_amplitude, p%viscosity_pattern])) then
      call refuse('viscosity, hyperviscosity, drag, beta, forcing_amplitude and viscosity_pattern must be finite numbers')
    end if
    if (min(p%viscosity, p%hyperviscosity, p%drag, p%viscosity_pattern) < 0) then
      call refuse('viscosity, hyperviscosity, drag and viscosity_pattern take energy out and must not be negative')
    end if
    if (p%hyperviscosity_order < 2 .or. p%hyperviscosity_order > 16 .or. mod(p%hyperviscosity_order, 2_ik) /= 0) then
      call refuse('hyperviscosity_order must be even and from 2 to 16, not '//json_integer(p%hyperviscosity_order))
    end if
    if (all(p%dealiasing /= ['3/2 ', '2/3 ', 'none'])) then
      call refuse('dealiasing is ''3/2'', ''2/3'' or ''none'', not '''//trim(p%dealiasing)//'''')
    end if
    if (abs(p%forcing_amplitude) > 0 .and. (p%forcing_wavenumber < 1 .or. p%forcing_wavenumber > waves)) then
      call refuse('forcing_wavenumber must be from 1 to '//json_integer(waves)//', the largest that n and dealiasing keep, not '// &
                  json_integer(p%forcing_wavenumber))
    end if

    if (p%viscosity_pattern > 0 .and. (p%pattern_wavenumber < 1 .or. p%pattern_wavenumber > p%n / 2 - 1)) then
      call refuse('pattern_wavenumber must be from 1 to '//json_integer(p%n / 2 - 1)//', not '//json_integer(p%pattern_wavenumber))
    end if
    if (p%slot /= 'tendency' .and. p%slot /= 'viscosity') then
      call refuse('slot is ''tendency'' or ''viscosity'', not '''//trim(p%slot)//'''')
    end if

  contains

    subroutine refuse(sentence)
      character(*), intent(in) :: sentence
      call status%raise(STATUS_BAD_PARAMETER, 'qg: '//sentence)
    end subroutine refuse
  end subroutine check_parameters

  !> JSON, see solver_t.
  module function describe(self) result(text)
    class(quasigeostrophic_t), intent(in) :: self
    character(:), allocatable :: text
    character(:), allocatable :: axes
    real(rk) :: step
    associate (p => self%parameters)
      step = 2 * pi / p%n
      axes = json_axis('y', 0.0_rk, step)//', '//json_axis('x', 0.0_rk, step)
      text = '{"fields": ['//json_field('q', 'relative vorticity', '1', ['y', 'x'], [p%n, p%n], axes)//'], '
      if (self%coefficients > 0) then
        text = text//'"coefficient": '// &
               json_field('viscosity', 'addition to the viscosity', '1', ['y', 'x'], [p%n, p%n], axes)//', '
      end if
      text = text//'"parameters": {"n": '//json_integer(p%n)//', "length": '//json_real(2 * pi)// &
             ', "viscosity": '//json_real(p%viscosity)//', "hyperviscosity": '//json_real(p%hyperviscosity)// &
             ', "hyperviscosity_order": '//json_integer(p%hyperviscosity_order)//', "drag": '//json_real(p%drag)// &
             ', "beta": '//json_real(p%beta)//', "forcing_amplitude": '//json_real(p%forcing_amplitude)// &
             ', "forcing_wavenumber": '//json_integer(p%forcing_wavenumber)// &
             ', "dealiasing": '//json_string(p%dealiasing)//', "viscosity_pattern": '//json_real(p%viscosity_pattern)// &
             ', "pattern_wavenumber": '//json_integer(p%pattern_wavenumber)//', "slot": '//json_string(p%slot)//'}}'
    end associate
  end function describe

  !> The viscosity that varies in space on the grid, x fastest.
  pure module function pattern_of(p) result(nu)
    type(parameters_t), intent(in) :: p
    real(rk) :: nu(p%n**2), wave(p%n)
    integer(ik) :: i, row
    wave = [(cos(2 * pi * p%pattern_wavenumber * i / p%n), i=0, p%n - 1)]
    do row = 1, p%n
      nu((row - 1) * p%n + 1:row * p%n) = p%viscosity_pattern * (1 + wave(row) * wave)
    end do
  end function pattern_of
end submodule trimtab_quasigeostrophic_parameters

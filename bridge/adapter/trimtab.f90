! SPDX-License-Identifier: MIT
!> What an adapter calls. Every array and number may be of any kind, rank and section: the compiler hands its description
!! on, so that nothing is declared twice. The procedures themselves are in trimtab_slot.c.
module trimtab
  use, intrinsic :: iso_c_binding, only: c_bool
  implicit none
  public
  private :: c_bool

  interface
    ! ---- in trimtab_describe

    !> The time step and the unit of time.
    subroutine trimtab_clock(dt, units) bind(c, name='trimtab_f_clock')
      implicit none
      type(*), dimension(..), intent(in) :: dt, units
    end subroutine trimtab_clock

    !> A field of the state: the array itself (or a section of it), its name, its unit, and the names of its dimensions in
    !! the order of the declaration, blanks between, as 'x y'.
    subroutine trimtab_field(array, name, units, dims) bind(c, name='trimtab_f_field')
      implicit none
      type(*), dimension(..), intent(inout) :: array
      type(*), dimension(..), intent(in) :: name, units, dims
    end subroutine trimtab_field

    !> State that a restart needs and nobody looks at: previous time levels, flags, counters, diagnostics kept from step to step.
    !! An array of a code on several ranks names its dimensions, as a field does.
    subroutine trimtab_hidden(array, name, dims) bind(c, name='trimtab_f_hidden')
      implicit none
      type(*), dimension(..), intent(inout) :: array
      type(*), dimension(..), intent(in) :: name
      type(*), dimension(..), intent(in), optional :: dims
    end subroutine trimtab_hidden

    !> Of a code on several ranks: a dimension that is divided, its points in all, and how many of them lie before this rank's.
    subroutine trimtab_block(dim, whole, before) bind(c, name='trimtab_f_block')
      implicit none
      type(*), dimension(..), intent(in) :: dim, whole, before
    end subroutine trimtab_block

    !> A slot; the inputs and outputs below it are its own.
    subroutine trimtab_slot(name) bind(c, name='trimtab_f_slot')
      implicit none
      type(*), dimension(..), intent(in) :: name
    end subroutine trimtab_slot

    !> An input of the network: any array of its shape, name, unit, names of its dimensions.
    subroutine trimtab_input(array, name, units, dims) bind(c, name='trimtab_f_input')
      implicit none
      type(*), dimension(..), intent(in) :: array, name, units, dims
    end subroutine trimtab_input

    !> An output of the network: any array of its shape, and the name of the field whose tendency it is, in that field's
    !! unit per unit of time.
    subroutine trimtab_output(array, name) bind(c, name='trimtab_f_output')
      implicit none
      type(*), dimension(..), intent(in) :: array, name
    end subroutine trimtab_output

    ! ---- in trimtab_initialise

    !> The communicator of the ranks that share the domain, into the integer that holds yours; it stays as it is when nobody
    !! gives one, so set it to MPI_COMM_WORLD before. MPI is started already.
    subroutine trimtab_communicator(communicator) bind(c, name='trimtab_f_communicator')
      implicit none
      type(*), dimension(..), intent(inout) :: communicator
    end subroutine trimtab_communicator

    !> A variable that the TOML may set: `name = ...` in [solver] takes the place of its value; otherwise it stays as it is.
    subroutine trimtab_option(variable, name) bind(c, name='trimtab_f_option')
      implicit none
      type(*), dimension(..), intent(inout) :: variable
      type(*), dimension(..), intent(in) :: name
    end subroutine trimtab_option

    !> Refuse with a sentence, instead of STOP.
    subroutine trimtab_refuse(sentence) bind(c, name='trimtab_f_refuse')
      implicit none
      type(*), dimension(..), intent(in) :: sentence
    end subroutine trimtab_refuse

    ! ---- in trimtab_get_state, trimtab_set_state and trimtab_advance

    !> state = the fields, in the order of trimtab_describe.
    subroutine trimtab_from_fields(state) bind(c, name='trimtab_f_from_fields')
      implicit none
      type(*), dimension(..), intent(inout) :: state
    end subroutine trimtab_from_fields

    !> The fields = state.
    subroutine trimtab_to_fields(state) bind(c, name='trimtab_f_to_fields')
      implicit none
      type(*), dimension(..), intent(in) :: state
    end subroutine trimtab_to_fields

    !> False when a rollout has to end: the network failed, or somebody pressed Ctrl-C.
    function trimtab_go_on() bind(c, name='trimtab_f_go_on') result(yes)
      import :: c_bool
      implicit none
      logical(c_bool) :: yes
    end function trimtab_go_on

    ! ---- where his code calls the correction

    !> Whether something fills a slot; what follows is about that slot.
    function trimtab_filled(slot) bind(c, name='trimtab_f_filled') result(yes)
      import :: c_bool
      implicit none
      type(*), dimension(..), intent(in) :: slot
      logical(c_bool) :: yes
    end function trimtab_filled

    !> Give the slot one of its inputs.
    subroutine trimtab_give(array, name) bind(c, name='trimtab_f_give')
      implicit none
      type(*), dimension(..), intent(in) :: array, name
    end subroutine trimtab_give

    !> Call the network on the inputs given.
    subroutine trimtab_ask() bind(c, name='trimtab_f_ask')
      implicit none
    end subroutine trimtab_ask

    !> array = array + factor * output of that name; without a factor, array = array + output.
    subroutine trimtab_add(array, name, factor) bind(c, name='trimtab_f_add')
      implicit none
      type(*), dimension(..), intent(inout) :: array
      type(*), dimension(..), intent(in) :: name
      type(*), dimension(..), intent(in), optional :: factor
    end subroutine trimtab_add
  end interface
end module trimtab

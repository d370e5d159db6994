! Reads the files named on the command line with the Fortran runtime's own namelist READ and prints what it got, in the
! form of namelist_dump: `= file`, then for each group either its values, `? group` where the runtime refused it, or
! nothing where it met the end of the file first (`- group`). Elements that were not given are not printed.
program namelist_oracle
  use iso_fortran_env, only: int64, real64
  implicit none
  integer(int64), parameter :: no_number = -777777
  real(real64), parameter :: no_real = -777777.125_real64
  character(len=*), parameter :: no_word = '<not given>'
  integer(int64) :: i, j, k(6)
  real(real64) :: x, y(5), e1
  logical :: b, c(4), first, given
  character(len=40) :: s, t(3)
  namelist /numbers/ i, j, k
  namelist /reals/ x, y, e1
  namelist /flags/ b, c, first
  namelist /words/ s, t
  character(len=512) :: path
  integer :: unit, status, n, m

  do n = 1, command_argument_count()
    call get_command_argument(n, path)
    print '(2a)', '= ', trim(path)
    open (newunit=unit, file=trim(path), status='old', action='read')

    i = no_number; j = no_number; k = no_number
    read (unit, nml=numbers, iostat=status)
    if (accepted('numbers')) then
      call print_integer('numbers i 1', i)
      call print_integer('numbers j 1', j)
      do m = 1, size(k)
        call print_integer('numbers k ' // digit(m), k(m))
      end do
    end if

    x = no_real; y = no_real; e1 = no_real
    rewind (unit)
    read (unit, nml=reals, iostat=status)
    if (accepted('reals')) then
      call print_real('reals x 1', x)
      call print_real('reals e1 1', e1)
      do m = 1, size(y)
        call print_real('reals y ' // digit(m), y(m))
      end do
    end if

    ! A logical has no third value to stand for "not given": only what differs between two readings is.
    b = .true.; c = .true.; first = .true.
    call read_flags()
    if (accepted('flags')) call print_flags(.false.)
    b = .false.; c = .false.; first = .false.
    call read_flags()
    given = accepted('')
    if (given) call print_flags(.true.)

    s = no_word; t = no_word
    rewind (unit)
    read (unit, nml=words, iostat=status)
    if (accepted('words')) then
      call print_word('words s 1', s)
      do m = 1, size(t)
        call print_word('words t ' // digit(m), t(m))
      end do
    end if
    close (unit)
  end do

contains

  logical function accepted(group)
    character(len=*), intent(in) :: group
    accepted = status == 0
    if (group /= '' .and. status < 0) print '(2a)', '- ', group
    if (group /= '' .and. status > 0) print '(2a)', '? ', group
  end function

  character function digit(number)
    integer, intent(in) :: number
    write (digit, '(i1)') number
  end function

  subroutine read_flags()
    rewind (unit)
    read (unit, nml=flags, iostat=status)
  end subroutine

  subroutine print_flags(is_set)
    logical, intent(in) :: is_set
    integer :: element
    call print_flag('flags b 1', b, is_set)
    call print_flag('flags first 1', first, is_set)
    do element = 1, size(c)
      call print_flag('flags c ' // digit(element), c(element), is_set)
    end do
  end subroutine

  ! After a first reading into .true. what is .false. was given, and the other way round.
  subroutine print_flag(name, value, is_set)
    character(len=*), intent(in) :: name
    logical, intent(in) :: value, is_set
    if (value .and. is_set) print '(2a)', name, ' logical t'
    if (.not. value .and. .not. is_set) print '(2a)', name, ' logical f'
  end subroutine

  subroutine print_integer(name, value)
    character(len=*), intent(in) :: name
    integer(int64), intent(in) :: value
    if (value /= no_number) print '(2a, i0)', name, ' int ', value
  end subroutine

  subroutine print_real(name, value)
    character(len=*), intent(in) :: name
    real(real64), intent(in) :: value
    if (value /= no_real) print '(2a, z16.16)', name, ' real ', transfer(value, 0_int64)
  end subroutine

  subroutine print_word(name, value)
    character(len=*), intent(in) :: name, value
    character(len=2*len(value)) :: hex
    integer :: position
    if (value == no_word) return
    do position = 1, len(value)
      write (hex(2*position - 1:2*position), '(z2.2)') ichar(value(position:position))
    end do
    print '(3a)', name, ' string x', hex
  end subroutine
end program

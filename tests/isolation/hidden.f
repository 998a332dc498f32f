C SPDX-License-Identifier: MIT
C A small old code that remembers more than its state, in every way that
C old codes do, and that ends in every way that they end. A filtered
C leapfrog of three numbers: dU/dt = A x U + forcing.
      MODULE HEAP
      DOUBLE PRECISION, ALLOCATABLE :: TRACE(:)
      END MODULE HEAP

      BLOCK DATA
      COMMON /FLOW/ U(3), UOLD(3), KSTEP
      DOUBLE PRECISION U, UOLD
      DATA U /3*0D0/, UOLD /3*0D0/, KSTEP /0/
      END

C KIND says where the hidden state is.
      SUBROUTINE LOPEN(KIND) BIND(C, NAME='lopen')
      USE HEAP
      USE, INTRINSIC :: ISO_C_BINDING, ONLY: C_INT
      INTEGER(C_INT), VALUE :: KIND
      COMMON /CASE/ KINDS
      INTEGER SEED(64)
      KINDS = KIND
      IF (KIND .EQ. 2 .OR. KIND .EQ. 8) THEN
        ALLOCATE (TRACE(3))
        TRACE = 0D0
      END IF
      SEED = 7
      IF (KIND .EQ. 4 .OR. KIND .EQ. 8) CALL RANDOM_SEED(PUT=SEED)
      IF (KIND .EQ. 5 .OR. KIND .EQ. 8) OPEN (31, FILE='forcing.txt',
     1   STATUS='OLD', ACTION='READ')
      IF (KIND .EQ. 6 .OR. KIND .EQ. 8) THEN
        OPEN (32, STATUS='SCRATCH', FORM='UNFORMATTED')
        WRITE (32) 0D0
        REWIND 32
      END IF
      IF (KIND .EQ. 7) READ *, U1
      IF (KIND .EQ. 7) PRINT *, 'namelist says', U1
      END

      SUBROUTINE LCLOSE() BIND(C, NAME='lclose')
      CLOSE (31)
      CLOSE (32)
      END

      SUBROUTINE LSET(X) BIND(C, NAME='lset')
      DOUBLE PRECISION X(3)
      COMMON /FLOW/ U(3), UOLD(3), KSTEP
      DOUBLE PRECISION U, UOLD
      U = X
      END

      SUBROUTINE LGET(X) BIND(C, NAME='lget')
      DOUBLE PRECISION X(3)
      COMMON /FLOW/ U(3), UOLD(3), KSTEP
      DOUBLE PRECISION U, UOLD
      X = U
      END

      SUBROUTINE LSTEP(DT, F) BIND(C, NAME='lstep')
      USE HEAP
      USE, INTRINSIC :: ISO_C_BINDING, ONLY: C_DOUBLE
      REAL(C_DOUBLE), VALUE :: DT
      DOUBLE PRECISION F(3), T(3), UNEW(3), X, Y
      COMMON /FLOW/ U(3), UOLD(3), KSTEP
      COMMON /CASE/ KIND
      DOUBLE PRECISION U, UOLD
      LOGICAL FIRST
      SAVE FIRST
      DATA FIRST /.TRUE./
      IF (U(1) .GT. 90D0) CALL LEND(NINT(U(1)) - 90)
      T(1) = U(2) + F(1)
      T(2) = -U(1) + F(2)
      T(3) = -0.1D0*U(3) + F(3)
      IF (KIND .EQ. 1) THEN
        IF (FIRST) UOLD = U
        FIRST = .FALSE.
        UNEW = UOLD + 2D0*DT*T
        UOLD = U + 0.05D0*(UNEW - 2D0*U + UOLD)
        U = UNEW
        KSTEP = KSTEP + 1
        RETURN
      END IF
      IF (KIND .EQ. 3) THEN
        IF (.NOT. ALLOCATED(TRACE)) THEN
          ALLOCATE (TRACE(3))
          TRACE = 0D0
        END IF
      END IF
      IF (KIND .EQ. 2 .OR. KIND .EQ. 3 .OR. KIND .EQ. 8) THEN
        TRACE = 0.9D0*TRACE + U
        T = T - 0.01D0*TRACE
      END IF
      X = 0D0
      Y = 0D0
      IF (KIND .EQ. 4 .OR. KIND .EQ. 8) CALL RANDOM_NUMBER(X)
      IF (KIND .EQ. 5 .OR. KIND .EQ. 8) READ (31, *) Y
      X = X + Y
      IF (KIND .EQ. 6 .OR. KIND .EQ. 8) THEN
        REWIND 32
        READ (32) Y
        REWIND 32
        WRITE (32) Y + 1D0
        X = X + Y
      END IF
      T(3) = T(3) + X
      U = U + DT*T
      END

C KEND says how.
      SUBROUTINE LEND(KEND)
      USE, INTRINSIC :: IEEE_ARITHMETIC
      DOUBLE PRECISION X, ZERO
      POINTER (ADDRESS, X)
      ZERO = 0D0
      PRINT *, 'wind above limit'
      IF (KEND .EQ. 1) STOP
      IF (KEND .EQ. 2) STOP 3
      IF (KEND .EQ. 3) ERROR STOP 'CFL violated'
      IF (KEND .EQ. 4) CALL ABORT
      IF (KEND .EQ. 5) THEN
        ADDRESS = 8
        X = 1D0
      END IF
      IF (KEND .EQ. 6) THEN
        CALL IEEE_SET_HALTING_MODE(IEEE_DIVIDE_BY_ZERO, .TRUE.)
        X0 = REAL(1D0/ZERO)
        PRINT *, X0
      END IF
      IF (KEND .EQ. 7) CALL EXIT(0)
      IF (KEND .EQ. 8) THEN
   10   CALL SLEEP(1)
        GO TO 10
      END IF
      IF (KEND .EQ. 9) OPEN (33, FILE='missing/folder', STATUS='OLD')
      STOP 9
      END

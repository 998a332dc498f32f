      PROGRAM LAKE
C     Waves in a channel closed at both ends: leapfrog on a staggered
C     grid with an Asselin filter, bottom friction FRIC, real*4.
C     Reads its namelist from standard input, prints a line now and then.
      COMMON /STATE/ U(0:64,2), H(64,2), DU(0:64), NOLD, NNEW, NSTEP
      COMMON /PARAM/ DT, DX, GRAV, DEPTH, FRIC, ASSEL
      NAMELIST /LAKEIN/ DT, FRIC, NSTOP
      FRIC = 0.
      READ (*, LAKEIN)
      CALL SETUP
      DO 10 N = 1, NSTOP
        CALL STEP
        IF (MOD(N,100).EQ.0) WRITE (*,*) 'STEP', N, ' LEVEL', H(1,NNEW)
10    CONTINUE
      END

      SUBROUTINE SETUP
      COMMON /STATE/ U(0:64,2), H(64,2), DU(0:64), NOLD, NNEW, NSTEP
      COMMON /PARAM/ DT, DX, GRAV, DEPTH, FRIC, ASSEL
      DX = 1000.
      GRAV = 9.81
      DEPTH = 20.
      ASSEL = 0.05
      DO 10 I = 1, 64
        H(I,1) = 0.5*COS(3.141593*(I-0.5)/64.)
        H(I,2) = H(I,1)
10    CONTINUE
      NOLD = 1
      NNEW = 2
      NSTEP = 0
      END

      SUBROUTINE STEP
      COMMON /STATE/ U(0:64,2), H(64,2), DU(0:64), NOLD, NNEW, NSTEP
      COMMON /PARAM/ DT, DX, GRAV, DEPTH, FRIC, ASSEL
      DIMENSION DH(64)
      DO 10 I = 1, 63
        DU(I) = -GRAV*(H(I+1,NNEW) - H(I,NNEW))/DX - FRIC*U(I,NOLD)
10    CONTINUE
      DO 20 I = 1, 64
        DH(I) = -DEPTH*(U(I,NNEW) - U(I-1,NNEW))/DX
20    CONTINUE
C     New = old + 2 dt tendency, into the old level; the filter mends
C     the middle one.
      DO 30 I = 1, 64
        HN = H(I,NOLD) + 2.*DT*DH(I)
        H(I,NNEW) = H(I,NNEW) + ASSEL*(H(I,NOLD) - 2.*H(I,NNEW) + HN)
        H(I,NOLD) = HN
        IF (ABS(HN).GT.100.) STOP 'LAKE: TOO HIGH'
        IF (I.EQ.64) GOTO 30
        UN = U(I,NOLD) + 2.*DT*DU(I)
        U(I,NNEW) = U(I,NNEW) + ASSEL*(U(I,NOLD) - 2.*U(I,NNEW) + UN)
        U(I,NOLD) = UN
30    CONTINUE
      N = NOLD
      NOLD = NNEW
      NNEW = N
      NSTEP = NSTEP + 1
      END

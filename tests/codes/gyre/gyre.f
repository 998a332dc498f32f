      PROGRAM GYRE
C     Barotropic vorticity on a beta plane in a box, all of it in the
C     main program: Arakawa-like Jacobian, leapfrog with a restart by an
C     Euler step every 20th step, SOR for the stream function from the
C     last one. real*4, implicit types. Namelist on standard input.
      PARAMETER (NX=24, NY=20)
      DIMENSION Z(NX,NY), ZO(NX,NY), P(NX,NY), DZ(NX,NY)
      NAMELIST /PAR/ DT, BETA, WIND, DRAG, VISC, NT
      DT = 0.02
      BETA = 5.
      WIND = 3.
      DRAG = 0.
      VISC = 0.02
      NT = 500
      READ (*,PAR)
      DX = 1./(NX-1)
      PI = 4.*ATAN(1.)
      OPEN (10, FILE='gyre.out')
      DO 5 J = 1, NY
      DO 5 I = 1, NX
        Z(I,J) = 2.*SIN(2.*PI*(I-1)/(NX-1))*SIN(PI*(J-1)/(NY-1))
        ZO(I,J) = Z(I,J)
        P(I,J) = 0.
5     CONTINUE
      IT = 0
      DO 100 K = 1, NT
C       Stream function.
        DO 20 ITER = 1, 30
        DO 20 J = 2, NY-1
        DO 20 I = 2, NX-1
          R = P(I+1,J)+P(I-1,J)+P(I,J+1)+P(I,J-1)-4.*P(I,J)
     &        - DX*DX*Z(I,J)
          P(I,J) = P(I,J) + 0.4*R
20      CONTINUE
        DO 30 J = 2, NY-1
        DO 30 I = 2, NX-1
          PX = (P(I+1,J)-P(I-1,J))/(2.*DX)
          PY = (P(I,J+1)-P(I,J-1))/(2.*DX)
          ZX = (Z(I+1,J)-Z(I-1,J))/(2.*DX)
          ZY = (Z(I,J+1)-Z(I,J-1))/(2.*DX)
          DZ(I,J) = PY*ZX - PX*ZY - BETA*PX
     &      - WIND*SIN(PI*(J-1)/(NY-1)) - DRAG*ZO(I,J)
     &      + VISC*(ZO(I+1,J)+ZO(I-1,J)+ZO(I,J+1)+ZO(I,J-1)
     &      - 4.*ZO(I,J))/(DX*DX)*0.02
30      CONTINUE
        IF (MOD(IT,20).EQ.0) THEN
          DO 40 J = 2, NY-1
          DO 40 I = 2, NX-1
            ZO(I,J) = Z(I,J)
            Z(I,J) = Z(I,J) + DT*DZ(I,J)
40        CONTINUE
        ELSE
          DO 50 J = 2, NY-1
          DO 50 I = 2, NX-1
            S = ZO(I,J) + 2.*DT*DZ(I,J)
            ZO(I,J) = Z(I,J)
            Z(I,J) = S
            IF (ABS(S).GT.1.E4) STOP 'GYRE: VORTICITY OUT OF RANGE'
50        CONTINUE
        ENDIF
        IT = IT + 1
        IF (MOD(IT,50).EQ.0) WRITE (10,*) IT, P(NX/2,NY/2)
100   CONTINUE
      END

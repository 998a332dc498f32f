C SPDX-License-Identifier: MIT
C     SHALLOW WATER ON A DOUBLY PERIODIC PLANE, LEAPFROG WITH ASSELIN
C     FILTER, SINGLE PRECISION.  AS LEGACY CODES ARE: COMMON BLOCKS,
C     IMPLICIT TYPES, A MAIN PROGRAM, A NAMELIST ON STANDARD INPUT, AN
C     EDDY VISCOSITY THAT IS RENEWED EVERY NVIS STEPS ONLY (A HIDDEN
C     STATE), AND STOP WHEN IT BLOWS UP.
C
C     RUN:  gfortran -o shallow shallow.f && ./shallow < shallow.nml
C
      PROGRAM SHALOW
      PARAMETER (NX=24, NY=16)
      COMMON /FLOW/ U(NX,NY),V(NX,NY),H(NX,NY)
      COMMON /OLD/ UO(NX,NY),VO(NX,NY),HO(NX,NY)
      COMMON /CNTL/ DT,DX,G,F0,RDRAG,WIND,CSMAG,ASSEL,NVIS,NSTEP,NOUT
      COMMON /TIMER/ KSTEP
      CALL SETUP
      DO 10 N = 1, NSTEP
        CALL STEP
        IF (MOD(N,NOUT).EQ.0) CALL DIAG
   10 CONTINUE
      STOP
      END
C
C     PARAMETERS AND FIRST STATE
      SUBROUTINE SETUP
      PARAMETER (NX=24, NY=16)
      COMMON /FLOW/ U(NX,NY),V(NX,NY),H(NX,NY)
      COMMON /OLD/ UO(NX,NY),VO(NX,NY),HO(NX,NY)
      COMMON /EDDY/ A(NX,NY)
      COMMON /CNTL/ DT,DX,G,F0,RDRAG,WIND,CSMAG,ASSEL,NVIS,NSTEP,NOUT
      COMMON /TIMER/ KSTEP
      NAMELIST /PARM/ DT,DX,G,F0,RDRAG,WIND,CSMAG,ASSEL,NVIS,NSTEP,NOUT
      DT = 300.
      DX = 1.E5
      G = 9.81
      F0 = 1.E-4
      RDRAG = 0.
      WIND = 1.E-4
      CSMAG = 0.2
      ASSEL = 0.05
      NVIS = 4
      NSTEP = 1000
      NOUT = 100
      READ (5,PARM)
      PI = 4.*ATAN(1.)
      DO 20 J = 1, NY
      DO 20 I = 1, NX
        X = 2.*PI*(I-1)/NX
        Y = 2.*PI*(J-1)/NY
        U(I,J) = 8.*SIN(Y) + 2.*COS(2.*X)*SIN(Y+0.5)
        V(I,J) = 3.*SIN(X) + 2.*SIN(2.*Y+X)
        H(I,J) = 500. + 20.*COS(X)*COS(Y) + 10.*SIN(2.*X+Y)
        UO(I,J) = U(I,J)
        VO(I,J) = V(I,J)
        HO(I,J) = H(I,J)
        A(I,J) = 0.
   20 CONTINUE
      KSTEP = 0
      END
C
C     ONE LEAPFROG STEP, A FORWARD ONE AT FIRST
      SUBROUTINE STEP
      PARAMETER (NX=24, NY=16)
      COMMON /FLOW/ U(NX,NY),V(NX,NY),H(NX,NY)
      COMMON /OLD/ UO(NX,NY),VO(NX,NY),HO(NX,NY)
      COMMON /EDDY/ A(NX,NY)
      COMMON /TEND/ UT(NX,NY),VT(NX,NY),HT(NX,NY)
      COMMON /CNTL/ DT,DX,G,F0,RDRAG,WIND,CSMAG,ASSEL,NVIS,NSTEP,NOUT
      COMMON /TIMER/ KSTEP
      IF (MOD(KSTEP,NVIS).EQ.0) CALL VISC
      CALL TENDS
      TDT = 2.*DT
      IF (KSTEP.EQ.0) TDT = DT
      DO 30 J = 1, NY
      DO 30 I = 1, NX
        UN = UO(I,J) + TDT*UT(I,J)
        VN = VO(I,J) + TDT*VT(I,J)
        HN = HO(I,J) + TDT*HT(I,J)
        UO(I,J) = U(I,J) + ASSEL*(UN - 2.*U(I,J) + UO(I,J))
        VO(I,J) = V(I,J) + ASSEL*(VN - 2.*V(I,J) + VO(I,J))
        HO(I,J) = H(I,J) + ASSEL*(HN - 2.*H(I,J) + HO(I,J))
        U(I,J) = UN
        V(I,J) = VN
        H(I,J) = HN
        IF (.NOT.(HN.GT.0. .AND. HN.LT.5000.)) THEN
          WRITE (6,*) ' DEPTH OUT OF RANGE AT', I, J, ' STEP', KSTEP
          STOP 'BLOW UP'
        END IF
   30 CONTINUE
      KSTEP = KSTEP + 1
      END
C
C     TENDENCIES; FRICTION AND MIXING AT THE OLD LEVEL
      SUBROUTINE TENDS
      PARAMETER (NX=24, NY=16)
      COMMON /FLOW/ U(NX,NY),V(NX,NY),H(NX,NY)
      COMMON /OLD/ UO(NX,NY),VO(NX,NY),HO(NX,NY)
      COMMON /EDDY/ A(NX,NY)
      COMMON /TEND/ UT(NX,NY),VT(NX,NY),HT(NX,NY)
      COMMON /CNTL/ DT,DX,G,F0,RDRAG,WIND,CSMAG,ASSEL,NVIS,NSTEP,NOUT
      R2 = 0.5/DX
      PI = 4.*ATAN(1.)
      DO 40 J = 1, NY
      JP = MOD(J,NY) + 1
      JM = MOD(J+NY-2,NY) + 1
      DO 40 I = 1, NX
        IP = MOD(I,NX) + 1
        IM = MOD(I+NX-2,NX) + 1
        DU = UO(IP,J)+UO(IM,J)+UO(I,JP)+UO(I,JM) - 4.*UO(I,J)
        DV = VO(IP,J)+VO(IM,J)+VO(I,JP)+VO(I,JM) - 4.*VO(I,J)
        UT(I,J) = - R2*(U(I,J)*(U(IP,J)-U(IM,J))
     &                + V(I,J)*(U(I,JP)-U(I,JM)))
     &            + F0*V(I,J) - G*R2*(H(IP,J)-H(IM,J))
     &            + A(I,J)*DU/DX**2 - RDRAG*UO(I,J)
     &            + WIND*SIN(2.*PI*(J-1)/NY)
        VT(I,J) = - R2*(U(I,J)*(V(IP,J)-V(IM,J))
     &                + V(I,J)*(V(I,JP)-V(I,JM)))
     &            - F0*U(I,J) - G*R2*(H(I,JP)-H(I,JM))
     &            + A(I,J)*DV/DX**2 - RDRAG*VO(I,J)
        HT(I,J) = - R2*(H(IP,J)*U(IP,J)-H(IM,J)*U(IM,J)
     &                + H(I,JP)*V(I,JP)-H(I,JM)*V(I,JM))
   40 CONTINUE
      END
C
C     EDDY VISCOSITY FROM THE RATE OF STRAIN
      SUBROUTINE VISC
      PARAMETER (NX=24, NY=16)
      COMMON /FLOW/ U(NX,NY),V(NX,NY),H(NX,NY)
      COMMON /EDDY/ A(NX,NY)
      COMMON /CNTL/ DT,DX,G,F0,RDRAG,WIND,CSMAG,ASSEL,NVIS,NSTEP,NOUT
      R2 = 0.5/DX
      DO 50 J = 1, NY
      JP = MOD(J,NY) + 1
      JM = MOD(J+NY-2,NY) + 1
      DO 50 I = 1, NX
        IP = MOD(I,NX) + 1
        IM = MOD(I+NX-2,NX) + 1
        S1 = R2*(U(IP,J)-U(IM,J) - V(I,JP)+V(I,JM))
        S2 = R2*(V(IP,J)-V(IM,J) + U(I,JP)-U(I,JM))
        A(I,J) = (CSMAG*DX)**2*SQRT(S1*S1+S2*S2) + 2.E4
   50 CONTINUE
      END
C
      SUBROUTINE DIAG
      PARAMETER (NX=24, NY=16)
      COMMON /FLOW/ U(NX,NY),V(NX,NY),H(NX,NY)
      COMMON /CNTL/ DT,DX,G,F0,RDRAG,WIND,CSMAG,ASSEL,NVIS,NSTEP,NOUT
      COMMON /TIMER/ KSTEP
      E = 0.
      S = 0.
      DO 60 J = 1, NY
      DO 60 I = 1, NX
        E = E + 0.5*H(I,J)*(U(I,J)**2 + V(I,J)**2)
        S = S + H(I,J)
   60 CONTINUE
      WRITE (6,'(A,I7,A,1PE13.5,A,E13.5)') ' STEP', KSTEP,
     &  '  KINETIC ENERGY', E/(NX*NY), '  MEAN DEPTH', S/(NX*NY)
      END

# SPDX-License-Identifier: MIT
"""Seconds a step of pyqg 0.7.2's barotropic model, run by an interpreter that has it: one tendency (Adams-Bashforth).

    python pyqg_step.py N ROUNDS
"""

import logging
import sys
import time

import numpy as np
import pyqg

n, rounds = int(sys.argv[1]), int(sys.argv[2])
logging.disable(logging.CRITICAL)
never = 10**9
model = pyqg.BTModel(nx=n, L=2 * np.pi, beta=0.0, rek=0.1, rd=0.0, H=1.0, U=0.0, dt=1e-4, ntd=1, log_level=0,
                     taveint=never, twrite=never, tmax=never)
model.set_q(np.random.default_rng(0).standard_normal((1, n, n)))
repeats = max(4, 2000000 // n**2)
for round_ in range(rounds + 1):
    start = time.perf_counter()
    for _ in range(repeats):
        model._step_forward()
    if round_:
        print((time.perf_counter() - start) / repeats)

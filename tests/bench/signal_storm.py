# SPDX-License-Identifier: MIT
"""By hand: signals at random times in every stage of every command; each has to be obeyed within 5 s, and to leave no process.

    python tests/bench/signal_storm.py [--rounds 100] [--seed 1] [--only train]

Ends with 1 when something was late, had another exit code, left a process, a damaged checkpoint, or no hint how to go on.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
SECONDS = 5.0
SMALL = """
name = "storm"
[solver]
name = "{solver}"
dt = 0.01
beta = 0.0
{options}
[network]
name = "MLP"
sizes = [3, 8, 3]
[reference]
solver = {{ name = "lorenz63", dt = 0.01, beta = 2.6666666666666665 }}
initial = [8.0, 0.0, 30.0]
perturbation = 1.0
spin_up = {spin_up}
snapshots = {snapshots}
training_runs = 2
validation_runs = 1
test_runs = 1
{offline}
[training]
window = 10
batch = 16
epochs = 1000
steps_per_epoch = 50
validate_windows = 40
[score]
leads = [5, 10]
starts = 20
long_steps = {long}
"""
PYTHON = {"solver": "lorenz63", "options": "", "spin_up": 1.0, "snapshots": 400, "offline": "[offline]\nsteps = 2000",
          "long": 2000}
SLOW = {**PYTHON, "solver": "stopping:Stopping", "options": 'isolation = "process"\npause = 0.02', "offline": ""}
DYING = {**SLOW, "options": 'isolation = "process"\nstops = "some"'}
EXPERIMENTS = {
    "small": PYTHON, "slow": SLOW, "dying": DYING,
    "reference": {**PYTHON, "spin_up": 20000.0, "snapshots": 100},
    "long": {**PYTHON, "long": 10_000_000},
}
# name: the arguments after "trimtab", seconds within which the signal comes
TASKS = {
    "train": (["train", "small.toml", "--out", "OUT"], 12.0),
    "train, slow workers": (["train", "slow.toml", "--out", "OUT"], 15.0),
    "train, dying workers": (["train", "dying.toml", "--out", "OUT"], 15.0),
    "reference run": (["train", "reference.toml", "--out", "OUT"], 10.0),
    "score": (["score", "trained", "--again"], 8.0),
    "score, long": (["score", "trained-long", "--again"], 12.0),
    "report": (["report", "trained"], 8.0),
    "run": (["run", "trained", "--steps", "100000000", "--every", "100000", "--out", "OUT.nc"], 10.0),
    "ensemble": (["ensemble", "trained", "--members", "64", "--steps", "1000000", "--every", "10000", "--out", "OUT.nc"], 10.0),
    "gradcheck": (["gradcheck", "small.toml", "--windows", "5,20", "--directions", "500", "--fit", "2000", "--out", "OUT"], 12.0),
    "export": (["export", "trained", "--out", "OUT"], 25.0),
    "doctor": (["doctor", "."], 8.0),
    "reproduce": (["reproduce", "lorenz63", "--out", "OUT"], 15.0),
}
HINTED = {"train": "--resume", "reproduce": "go on with"}


def descendants(pid: int) -> set[int]:
    """Numbers of the processes that a process started, and those that they did."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split()
    pairs = list(zip(map(int, found[::2]), map(int, found[1::2]), strict=True))
    known = {pid}
    while more := {one for one, parent in pairs if parent in known} - known:
        known |= more
    return known - {pid}


def alive(pids: set[int]) -> set[int]:
    """Those that still run and are nobody's corpse."""
    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
        except OSError:
            return ""

    return {pid for pid in pids if state(pid) not in ("", "Z")}


def damaged(folder: Path) -> list[str]:
    """Checkpoints of a run that cannot be read, and part files that were left."""
    from trimtab.core.errors import TrimtabError
    from trimtab.training.checkpoint import read_checkpoint

    bad = [one.name for one in folder.glob(".*.partial")]
    for file in folder.glob("*.pt"):
        try:
            read_checkpoint(file)
        except TrimtabError as error:
            bad.append(str(error))
    return bad


def one_round(name: str, chance: random.Random, number: int, place: Path, environment: dict[str, str]) -> list[str]:
    """Start a task, send a signal, look; what is wrong."""
    arguments, longest = TASKS[name]
    out = place / f"out{number}"
    command = [sys.executable, "-m", "trimtab", *(one.replace("OUT", str(out)) for one in arguments)]
    after, kind = chance.uniform(0.2, longest), chance.choice([signal.SIGTERM, signal.SIGINT])
    with open(place / "errors.txt", "w+") as errors:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            process.wait(after)
            return [] if process.returncode == 0 else [f"ended by itself with {process.returncode}"]
        except subprocess.TimeoutExpired:
            pass
        started = descendants(process.pid)
        began = time.monotonic()
        process.send_signal(kind)
        problems = []
        while process.poll() is None and time.monotonic() - began < 60:
            started |= descendants(process.pid)
            time.sleep(0.05)
        took = time.monotonic() - began
        if process.poll() is None:
            process.kill()
            problems.append("was not obeyed within a minute")
        process.wait()
        errors.seek(0)
        text = errors.read()
    if took > SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)):  # its share of a machine that others use
        problems.append(f"took {took:.1f} s")
    early = after < 4.0 and process.returncode == -kind  # before any of trimtab's code ran
    if process.returncode != 128 + kind and not early:
        problems.append(f"exit code {process.returncode}")
    if not early and "Traceback" in text:
        problems.append("a traceback")
    word = next((hint for key, hint in HINTED.items() if arguments[0] == key), "")
    if not early and word not in text:
        problems.append("no hint")
    time.sleep(0.3)
    if left := alive(started):
        problems.append(f"left {len(left)} processes")
    problems += damaged(out)
    print(f"{number:4} {name:22} {signal.Signals(kind).name:8} after {after:5.1f} s: {took:4.1f} s, {process.returncode}"
          f"{' !!! ' + '; '.join(problems) + chr(10) + text[-1500:] if problems else ''}", flush=True)
    return problems


def main() -> int:
    """Run it; see above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", default="", help="tasks whose name begins so")
    options = parser.parse_args()
    chance, names = random.Random(options.seed), [one for one in TASKS if one.startswith(options.only)]
    print(f"seed {options.seed}", flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in what it starts in the background
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        path = os.pathsep.join([str(HERE / "isolation"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "TRIMTAB_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
        for name, values in EXPERIMENTS.items():
            (place / f"{name}.toml").write_text(SMALL.format(**values))
        for name, file in (("trained", "small"), ("trained-long", "long")):
            short = ["--set", "training.epochs=1", "offline.steps=20"] + (["score.long_steps=100"] if name == "trained" else [])
            subprocess.run([sys.executable, "-c", "import sys; from trimtab.training.trainer import Trainer; "
                            "from trimtab.config.experiment import load_experiment; "
                            "Trainer(load_experiment(sys.argv[1], sys.argv[3:]), sys.argv[2]).fit()",
                            f"{file}.toml", name, *short[1:]], cwd=place, env=environment, check=True)
        wrong = sum(bool(one_round(names[number % len(names)], chance, number, place, environment))
                    for number in range(options.rounds))
    print(f"{wrong} of {options.rounds} rounds went wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

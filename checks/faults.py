"""Let each call of a run on its files fail once, start the same command again, and compare it with an undisturbed run.

    OMP_NUM_THREADS=1 python -m checks.faults --minutes 30 --results faults.csv

The calls open, write, sync, rename or remove files of the run folder. Debian's `strace` disturbs the n-th call of a thread:
the process is killed there, or the disk is full from there on, or the call returns one I/O error. The programs are a short run
of each algorithm, a fork and a sweep. The order of cases is random, with one of each kind first.

It prints a Markdown table. It exits 1 if a bit differs, if a command can't go on, or if a process hangs or ends without an
error line. With --results the same command goes on with the cases that are left.
"""

import csv
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path

import tyro
from tensorboard.summary.writer import event_file_writer

import dqn_atari_prune
import ppo_atari_prune
from checks.kill_runs import ROOT, bits
from prune_utils.basics import exit_codes

CALLS = "openat,mkdir,link,write,sendfile,copy_file_range,ftruncate,fsync,rename,unlink,unlinkat,rmdir"
FAULTS = {"SIGKILL": "signal=SIGKILL:when={}", "ENOSPC": "error=ENOSPC:when={}+", "EIO": "error=EIO:when={}"}
GAME = "RoadRunnerNoFrameskip-v4"  # soon lost
SHORT = {"hidden_size": 16, "eval_episodes": 0, "checkpoint_minutes": 1e-9}
DQN = SHORT | {"total_timesteps": 48, "num_envs": 8, "learning_starts": 16, "buffer_size": 64, "batch_size": 8}
PPO = SHORT | {"total_timesteps": 64, "num_envs": 2, "num_steps": 8, "update_epochs": 1}
DENSE = PPO | {"prune_type": "none"}
OPTIONS = {"dqn": DQN, "ppo": DENSE | {"eval_episodes": 1}, "fork": PPO, "dense": DENSE}
"""DQN: 6 steps of 8 games, PPO: 4 rollouts, with a checkpoint after each of them"""
EVENTS = "a/events"
"""stands for the file of TensorBoard, which has another name in each process"""
PATIENCE = 900
"""seconds after which a process that hangs is ended by SIGALRM"""
MISSED = "not reached, exit 0"
"""result of a case whose call did not come: how often TensorBoard's thread writes varies"""
UNCAUGHT = 70
"""exit code of a process that ends with a traceback"""


@dataclass
class Args:
    programs: tuple[str, ...] = ("dqn", "ppo", "fork", "sweep")
    """what to disturb: dqn (pruned), ppo (dense, with evaluations), fork (PPO), sweep (of PPO, beside its run folders)"""
    minutes: float = 1e6
    """time after which no further case begins"""
    results: Path | None = None
    """file that collects the results of cases; those in it are not tried again"""


def become(program: str, runs: Path) -> None:
    """Be the program, which works in the folder `runs`."""
    if program == "sweep":
        variables = {"RUNS_DIR": str(runs), "GAMES": GAME, "RATES": "0.5", "TYPES": "l1", "JOBS": "1", "PYTHON": sys.executable}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in PPO.items()]
        os.execve(ROOT / "scripts" / "sweep_ppo.sh", ["sweep_ppo.sh", "--no-cuda", *flags], os.environ | variables)
    parent = str(runs.parent / "dense" / "a") if program == "fork" else None
    script = dqn_atari_prune if program == "dqn" else ppo_atari_prune
    with exit_codes():
        own = {"env_id": GAME, "runs_dir": str(runs), "run_name": "a", "fork_from": parent, "num_threads": 1, "cuda": False}
        script.train(script.Args(**OPTIONS[program], **own))


def run(program: str, runs: Path, tracing: list[str], paths: Iterable[Path] = ()) -> int:
    """Run a program in a fork of this process, under strace if there are options for it; its exit code, or minus a signal."""
    child, now = os.fork(), int(time.time())
    if child == 0:
        code = 0
        try:
            signal.alarm(PATIENCE)
            event_file_writer._global_uid = event_file_writer.AtomicCounter(0)  # names end in .0, as in a process of its own
            sys.stdout = sys.stderr = open(f"{runs}.log", "a", buffering=1)
            os.dup2(sys.stdout.fileno(), 1), os.dup2(1, 2)
            while tracing and "TracerPid:\t0" in Path("/proc/self/status").read_text():
                time.sleep(0.01)
            become(program, runs)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = UNCAUGHT
        finally:
            os._exit(code)
    if tracing:
        events = [f"{runs}/a/events.out.tfevents.{now + k}.{socket.gethostname()}.{child}.0" for k in range(60)]
        tracing += [f"-P{file}" for path in paths for file in (events if path == runs / EVENTS else [path])]
        strace = subprocess.Popen(["strace", "-fqq", "-s0", "-y", f"-o{runs}.trace", f"-p{child}", *tracing])
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if tracing:
        strace.wait()
    return code


def results(runs: Path) -> dict[str, dict]:
    return {file.parent.name: bits(file.parent) for file in runs.glob("*/summary.json")}


class Program:
    """A program and its undisturbed run: its results, and the paths of each call, by name and number within a thread.

    TensorBoard writes its file in a thread of its own. Its calls are counted apart, as in `openat of events`.
    """

    def __init__(self, name: str, runs: Path):
        import torch._dynamo  # noqa: F401 it takes seconds: once here, and not in every fork of this process

        self.name, self.runs = name, runs
        runs.parent.mkdir()
        if name == "fork":
            run("dense", runs.parent / "dense", [])
        if code := run(name, runs, [f"-etrace={CALLS}"]):
            raise SystemExit(f"error: exit {code} of {name}\n{Path(f'{runs}.log').read_text()}")
        self.undisturbed, self.calls, threads = results(runs), {}, Counter()
        for line in Path(f"{runs}.trace").read_text().splitlines():
            begun = re.match(r"(\d+) +(\w+)\((.*)", line)  # and not `<... write resumed>`
            thread, call, arguments = begun.groups() if begun else ("", "", "")
            paths = [Path(path) for path in re.findall(r'(?:"|(?<!AT_FDCWD)<)(/[^">]*)', arguments)]
            if not any(path.is_relative_to(runs) for path in paths):
                continue
            if name == "sweep" and runs not in (paths[-1], paths[-1].parent):
                continue
            if paths[-1].name.startswith("events."):
                call, paths = f"{call} of events", [runs / EVENTS]
            threads[thread, call] += 1
            self.calls.setdefault((call, threads[thread, call]), paths)

    def disturb(self, call: str, number: int, fault: str) -> str:
        """Let a call fail, start the program again, and say what came of it."""
        shutil.rmtree(self.runs, ignore_errors=True)
        log, trace = Path(f"{self.runs}.log"), Path(f"{self.runs}.trace")
        log.unlink()
        paths, name = {path for (other, _), paths in self.calls.items() if other == call for path in paths}, call.split()[0]
        first = run(self.name, self.runs, [f"-etrace={name}", f"-einject={name}:{FAULTS[fault].format(number)}"], paths)
        if not re.search("INJECTED|SIGKILL", trace.read_text()):
            return MISSED if first == 0 else f"exit {first} without a fault"
        if first not in (0, 1, 2, -signal.SIGKILL) or (first > 0 and "error: " not in log.read_text()):
            return f"exit {first}: {log.read_text()}"
        if again := run(self.name, self.runs, []):
            return f"exit {again} of the second start: {log.read_text()}"
        return "same" if results(self.runs) == self.undisturbed else "different"


def main(args: Args) -> None:
    if not shutil.which("strace"):
        raise SystemExit("error: this needs strace: apt-get install strace")
    began, done = time.monotonic(), {}
    if args.results and args.results.exists():
        done = {tuple(row[:4]): row[4] for row in csv.reader(args.results.open())}
    with tempfile.TemporaryDirectory() as scratch:
        programs = {name: Program(name, Path(scratch).resolve() / name / "runs") for name in args.programs}
        groups: dict[tuple, list] = {}
        for name, program in programs.items():
            for (call, number), fault in product(program.calls, FAULTS):
                groups.setdefault((name, call, fault), []).append((name, call, str(number), fault))
        rng = random.Random(1)
        shuffled = [rng.sample(group, len(group)) for group in groups.values()]
        cases = [case for one_of_each in zip_longest(*shuffled) for case in one_of_each if case]
        done = {case: done[case] for case in cases if case in done}
        for case in (case for case in cases if case not in done):
            if time.monotonic() - began > 60 * args.minutes:
                break
            name, call, number, fault = case
            done[case] = result = programs[name].disturb(call, int(number), fault)
            path = programs[name].calls[call, int(number)][-1]
            print(f"{name}: {fault} at {call} {number}, {path.parent.name}/{path.name}: {result}", flush=True)
            if args.results:
                with open(args.results, "a") as file:
                    csv.writer(file).writerow([*case, result])
    print(f"\n| program | call | calls | {' | '.join(FAULTS)} |\n|---|---|---|{'---|' * len(FAULTS)}")
    for name, call in dict.fromkeys(key[:2] for key in groups):
        tried = [[done[case] for case in groups[name, call, fault] if done.get(case, MISSED) != MISSED] for fault in FAULTS]
        cells = [f"{of_fault.count('same')} of {len(of_fault)}" for of_fault in tried]
        print(f"| {name} | {call} | {len(groups[name, call, 'EIO'])} | {' | '.join(cells)} |")
    same, missed = (list(done.values()).count(result) for result in ("same", MISSED))
    print(f"\n{len(done)} of {len(cases)} cases, the same bits in {same}, call not reached in {missed}")
    sys.exit(same + missed < len(done))


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m checks.faults", description=__doc__))

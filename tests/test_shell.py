"""The shell files: each parses and explains itself; quickstart, also where a training fails; collect."""

import gzip
import os
import re
import shlex
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from prune_utils.basics import parse_options
from tests.conftest import SCRIPTS, SHORT, rows

ROOT = Path(__file__).resolve().parent.parent
SHELL_FILES = sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("tests/*.sh"), ROOT / ".ci" / "run"])


def bash(*words, cwd=ROOT, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", *words], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def test_the_shell_files_of_the_design_are_there():
    assert {"quickstart.sh", "test.sh", "run"} <= {path.name for path in SHELL_FILES}


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_a_shell_file_parses_can_be_executed_and_stops_at_a_failure(path):
    assert bash("-n", str(path)).stderr == ""
    assert os.access(path, os.X_OK)
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# ")
    assert "set -euo pipefail" in lines


@pytest.mark.parametrize("path", sorted(ROOT.glob("scripts/*.sh")), ids=lambda path: path.name)
def test_a_script_answers_help_with_its_header_and_each_environment_variable_that_it_reads_and_does_nothing(path, tmp_path):
    helped = bash(str(path), "--help", cwd=tmp_path, RUNS_DIR=str(tmp_path / "runs"))
    assert helped.returncode == 0 and helped.stderr == "" and list(tmp_path.iterdir()) == []
    sources = [path]
    if path.name.startswith("sweep_"):  # they have one text
        sources += [ROOT / "scripts" / "sweep.sh", ROOT / "checks" / "plan_sweep.py"]
    header = sources[min(1, len(sources) - 1)].read_text().split("\nset -euo pipefail")[0].splitlines()[1:]
    assert helped.stdout.splitlines() == [line.removeprefix("# ") for line in header]
    code = "".join(source.read_text() for source in sources)
    variables = set(re.findall(r'\$\{([A-Z][A-Z_]+):-|(?:words|number)\("([A-Z_]+)"', code))
    read = {name for pair in variables for name in pair if name and not name.startswith("WANDB_")}
    if path.name.startswith("sweep_"):
        assert read == {"SEEDS", "RATES", "TYPES", "GAMES", "AA", "FORKS", "GRADUAL", "JOBS", "RUNS_DIR", "DRY_RUN", "PYTHON"}
    assert [name for name in read if not re.search(rf"\b{name}\b", helped.stdout)] == []


# ------------------------------------------------------------------------------------------------------------- quickstart
def test_quickstart_prints_two_training_commands_that_parse_and_cut_half_of_each_network_after_it_has_learned(tmp_path):
    printed = bash(str(ROOT / "scripts" / "quickstart.sh"), "--seed", "7", cwd=tmp_path, DRY_RUN="1")
    assert printed.returncode == 0 and list(tmp_path.iterdir()) == []
    commands = [shlex.split(line) for line in printed.stdout.splitlines()]
    assert [words[1] for words in commands] == ["ppo_atari_prune.py", "dqn_atari_prune.py"]
    for algorithm, words in zip(("ppo", "dqn"), commands, strict=True):
        args = parse_options(SCRIPTS[algorithm].Args, "", words[2:])
        assert args.run_name == f"quickstart_{algorithm}" and args.runs_dir == "runs"
        criterion = {"ppo": "l1", "dqn": "l1-structured"}[algorithm]
        assert (args.env_id, args.prune_type, args.prune_rate) == ("SpaceInvadersNoFrameskip-v4", criterion, 0.5)
        assert (args.prune_at, args.eval_episodes, args.num_threads, args.seed) == (0.5, 10, 1, 7)
        if algorithm == "dqn":  # at least 1,000 gradient updates before the cut, and exploration is over by then
            assert args.total_timesteps / 2 - args.learning_starts >= 1000 * args.train_frequency
            assert args.exploration_fraction < args.prune_at
        else:  # at least 10 rollouts before the cut
            assert args.total_timesteps / 2 >= 10 * args.steps_per_iteration


STUB = """#!/usr/bin/env bash
echo "$*" >> calls
case "$*" in {fails}*) exit 3 ;; esac
case "$*" in {slow}*) exec sleep 600 ;; esac
"""


def quickstart_with_a_stub(root: Path, fails: str, slow: str = "no") -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run a copy of quickstart.sh from elsewhere with a stand-in for python that fails on one call; also the calls.

    The call that is `slow` takes ten minutes.
    """
    (root / "scripts").mkdir()
    (root / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "quickstart.sh", root / "scripts")
    for name in ("python", "pip"):
        (root / ".venv" / "bin" / name).write_text(STUB.format(fails=fails, slow=slow))
        (root / ".venv" / "bin" / name).chmod(0o755)
    (root / "elsewhere").mkdir()
    done = bash(str(root / "scripts" / "quickstart.sh"), cwd=root / "elsewhere")
    return done, [call for call in (root / "calls").read_text().splitlines() if not call.startswith("-c ")]


def test_quickstart_installs_trains_both_prints_the_table_of_both_and_lets_a_trained_agent_play(tmp_path):
    done, calls = quickstart_with_a_stub(tmp_path, "nothing")
    assert done.returncode == 0, done.stderr
    assert "-m pip install" in calls[0] and calls[0].endswith("-r requirements.txt")
    assert sorted(call.split()[0] for call in calls[1:3]) == ["dqn_atari_prune.py", "ppo_atari_prune.py"]
    assert calls[3] == "-m analysis.table runs/quickstart_ppo runs/quickstart_dqn"
    assert calls[4:] == ["-m evals.ppo_eval results/agents/ppo_l1-0.5_s1 --out runs/quickstart_agent.csv"]
    of_game = [row for row in rows(ROOT / "results" / "no_skill.csv") if row["env_id"] == "SpaceInvadersNoFrameskip-v4"]
    scores = {row["policy"]: float(row["mean"]) for row in of_game}
    best = max(scores, key=scores.get)
    told = f"random play scores {scores['random']:.0f} here, and holding {best} {scores[best]:.0f}."
    assert told in done.stdout and "tensorboard --logdir runs" in done.stdout


@pytest.mark.parametrize(("fails", "slow"), [("ppo", "dqn"), ("dqn", "ppo")])
def test_quickstart_stops_the_other_training_when_one_fails_and_exits_with_the_code_of_that(fails, slow, tmp_path):
    done, calls = quickstart_with_a_stub(tmp_path, f"{fails}_atari_prune.py", f"{slow}_atari_prune.py")
    told = f"error: the {fails.upper()} run ended with exit code 3\n"
    assert (done.returncode, done.stderr) == (3, told)
    assert not any("analysis.table" in call for call in calls)


def test_quickstart_that_is_stopped_waits_until_its_trainings_have_saved(tmp_path):
    saves = "trap 'sleep 1; echo saved >&2; exit 143' TERM; echo waits; for _ in {1..600}; do sleep 0.1; done"
    quickstart_with_a_stub(tmp_path, "nothing")
    (tmp_path / ".venv" / "bin" / "python").write_text(f"#!/usr/bin/env bash\n[[ $1 == *_prune.py ]] || exit 0\n{saves}\n")
    words = ["bash", str(tmp_path / "scripts" / "quickstart.sh")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where these tests run in the background
    started = subprocess.Popen(words, **pipes, text=True, start_new_session=True, preexec_fn=heard)
    printed = [started.stdout.readline() for _ in range(4)]  # it installs, it trains, both wait
    told = ["dqn: waits", "installing requirements.txt into .venv", "ppo: waits", "training PPO and DQN side by side"]
    assert sorted(printed) == [f"{line}\n" for line in told]
    os.killpg(started.pid, signal.SIGINT)  # Ctrl-C, which trainings in the background ignore
    assert started.wait(timeout=60) == -signal.SIGINT
    os.set_blocking(started.stderr.fileno(), False)  # what comes later does not count
    assert started.stderr.read() == "saved\nsaved\n"


def test_quickstart_trains_nothing_when_the_installation_fails(tmp_path):
    done, calls = quickstart_with_a_stub(tmp_path, "'-m pip'")
    assert done.returncode == 3 and len(calls) == 1


def test_quickstart_says_that_a_virtual_environment_is_broken_or_too_old(tmp_path):
    done, calls = quickstart_with_a_stub(tmp_path, "-c")
    assert done.returncode == 2 and not calls
    assert done.stderr.startswith("error: .venv is broken or older than Python 3.11: delete it, and start again with a python3")


@pytest.mark.parametrize("word", ["--runs-dir", "--run_name=x", "--env-id"])
def test_quickstart_refuses_options_that_it_sets_itself(word, tmp_path):
    done = bash(str(ROOT / "scripts" / "quickstart.sh"), word, "x", cwd=tmp_path, DRY_RUN="1")
    assert (done.returncode, done.stderr) == (2, f"error: the quickstart sets {word.split('=')[0]} itself\n")


def test_a_missing_python_is_named_before_time_on_a_gpu_is_spent(tmp_path):
    done = bash(str(ROOT / "checks" / "gpu.sh"), str(tmp_path / "out"), "tests", PYTHON="/nowhere/python")
    assert (done.returncode, done.stderr) == (2, "error: PYTHON must be a Python that is there, got /nowhere/python\n")


# ------------------------------------------------------------------------------------------------------------------ slurm
def test_the_sweep_after_slurm_sh_is_named_relative_to_where_the_user_is(tmp_path):
    (tmp_path / "sweep").write_text("#!/usr/bin/env bash\necho 'a --until-cut'; echo b\n")
    (tmp_path / "sweep").chmod(0o755)
    done = bash(str(ROOT / "scripts" / "slurm.sh"), "./sweep", cwd=tmp_path, DRY_RUN="1")
    assert (done.returncode, done.stdout) == (0, "a --until-cut\nb\n"), done.stderr


def test_more_jobs_than_an_array_may_have_are_refused_before_any_is_submitted(tmp_path):
    (tmp_path / "sbatch").write_text(f"#!/usr/bin/env bash\ntouch {tmp_path}/submitted\n")
    (tmp_path / "scontrol").write_text("#!/usr/bin/env bash\necho 'MaxArraySize            = 3'\n")
    for name in ("sbatch", "scontrol"):
        (tmp_path / name).chmod(0o755)
    words = [str(ROOT / "scripts" / "slurm.sh"), "bash", "-c", "echo 'a --until-cut'; echo b; echo c"]
    told = "error: these 3 jobs do not fit into an array (MaxArraySize is 3): submit fewer SEEDS, RATES or GAMES at once\n"
    done = bash(*words, PATH=f"{tmp_path}:{os.environ['PATH']}", RUNS_DIR=str(tmp_path / "runs"))
    assert (done.returncode, done.stderr) == (2, told)
    assert not (tmp_path / "submitted").exists() and not (tmp_path / "runs").exists()


def slurm(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """scripts/slurm.sh with an sbatch that does nothing."""
    (folder / "sbatch").write_text("#!/usr/bin/env bash\n")
    (folder / "sbatch").chmod(0o755)
    return bash(str(ROOT / "scripts" / "slurm.sh"), *words, PATH=f"{folder}:{os.environ['PATH']}", **environment)


@pytest.mark.parametrize("dry", ["0", "1"])
@pytest.mark.parametrize("words", [["echo", "hello"], ["sweep_ppo.sh"], ["--track", "scripts/sweep_ppo.sh"]])
def test_what_is_no_sweep_is_refused_before_anything_is_written(words, dry, tmp_path):
    done = slurm(tmp_path, *words, DRY_RUN=dry, RUNS_DIR=str(tmp_path / "runs"))
    told = f"error: what follows scripts/slurm.sh must be a sweep with its options, got {' '.join(words)}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told) and not (tmp_path / "runs").exists()


def test_slurm_refuses_a_runs_dir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    done = slurm(tmp_path, "bash", "-c", "echo 'a --until-cut'; echo b", RUNS_DIR=str(tmp_path / "file"))
    told = f"error: RUNS_DIR must be a folder that can be written, got {tmp_path / 'file'}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_a_second_array_that_slurm_refuses_is_a_failure(tmp_path):
    (tmp_path / "sbatch").write_text('#!/usr/bin/env bash\n[[ "$*" != *--dependency* ]] || exit 3\necho 7\n')
    (tmp_path / "sbatch").chmod(0o755)
    words = [str(ROOT / "scripts" / "slurm.sh"), "bash", "-c", "echo 'a --until-cut'; echo b"]
    done = bash(*words, PATH=f"{tmp_path}:{os.environ['PATH']}", RUNS_DIR=str(tmp_path / "runs"))
    assert done.returncode == 3 and done.stdout == "dense runs to their cuts: job 7\n"


def test_the_second_array_waits_for_the_first_whatever_sbatch_is_told_and_a_job_without_its_command_fails(tmp_path):
    (tmp_path / "sbatch").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$*" >>calls && cat >task && echo 7\n')
    (tmp_path / "sbatch").chmod(0o755)
    words = [str(tmp_path / "scripts" / "slurm.sh"), "bash", "-c", "echo 'a --until-cut'; echo ls --none"]
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "slurm.sh", words[0])
    variables = {"SBATCH": "--dependency=afterany:55", "RUNS_DIR": str(tmp_path / "runs")}
    assert bash(*words, PATH=f"{tmp_path}:{os.environ['PATH']}", **variables).returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    told = [re.findall(r"--dependency=\S+", call) for call in calls]
    # a job is told a minute before its time is up, and what is preempted starts again and adds to its log
    assert all({"--signal=B:TERM@60", "--requeue", "--open-mode=append"} <= set(call.split()) for call in calls)
    assert [dependencies[-1] for dependencies in told] == [
        "--dependency=afterany:55",
        "--dependency=afterany:7",
    ]  # the last counts
    codes = [bash(str(tmp_path / "task"), SLURM_ARRAY_TASK_ID=line).returncode for line in ("2", "3")]
    next((tmp_path / "runs").glob("slurm-*.txt")).unlink()
    assert [*codes, bash(str(tmp_path / "task"), SLURM_ARRAY_TASK_ID="2").returncode] == [2, 1, 1]


@pytest.mark.parametrize("words", [["slurm.sh", "scripts/sweep_ppo.sh"], ["quickstart.sh"]])
def test_a_dry_run_that_is_misspelt_does_nothing(words, tmp_path):
    done = bash(str(ROOT / "scripts" / words[0]), *words[1:], DRY_RUN="true", RUNS_DIR=str(tmp_path / "runs"))
    assert (done.returncode, done.stderr) == (2, "error: DRY_RUN must be 0 or 1, got true\n") and not list(tmp_path.iterdir())


def test_a_dry_run_on_slurm_prints_the_commands_and_submits_nothing(tmp_path):
    (tmp_path / "sbatch").write_text("#!/usr/bin/env bash\ntouch submitted\n")
    (tmp_path / "sbatch").chmod(0o755)
    words = [str(ROOT / "scripts" / "slurm.sh"), "bash", "-c", "echo 'a --until-cut'; echo b"]
    done = bash(*words, PATH=f"{tmp_path}:{os.environ['PATH']}", RUNS_DIR=str(tmp_path / "runs"), DRY_RUN="1", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "a --until-cut\nb\n"
    assert [path.name for path in tmp_path.iterdir()] == ["sbatch"] and not (ROOT / "submitted").exists()


# ---------------------------------------------------------------------------------------------------------------- collect
def collect(*words) -> subprocess.CompletedProcess:
    return bash(str(ROOT / "scripts" / "collect.sh"), *map(str, words))


def test_collect_keeps_what_the_report_needs_in_the_same_bytes_and_names_a_run_that_is_not_finished(small_run, tmp_path):
    run, unfinished = small_run("ppo", prune_type="none"), tmp_path / "half"
    unfinished.mkdir()
    (unfinished / "config.json").touch(), (tmp_path / "half.log").touch()  # a sweep leaves one beside each run
    (tmp_path / "one" / run.name).mkdir(parents=True)
    (tmp_path / "one" / run.name / "config.json.part").write_text("of a copy that was killed")
    for study in ("one", "two"):
        done = collect(tmp_path / study, run, unfinished, tmp_path / "half.log")
        assert done.returncode == 0 and done.stderr == f"not finished: {unfinished}\n"
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / study / run.name).iterdir()} for study in ("one", "two"))
    assert one == two and one.keys() == {"config.json", "summary.json", "eval.csv", "curves.csv.gz"}
    assert gzip.decompress(one.pop("curves.csv.gz")) == (run / "curves.csv").read_bytes()
    assert all(data == (run / name).read_bytes() for name, data in one.items())
    assert [path.name for path in (tmp_path / "one").iterdir()] == [run.name]
    assert collect().returncode == 2
    done = collect(tmp_path / "five", run, tmp_path)  # the folder of runs, and nothing is copied before it is refused
    assert done.returncode == 2 and "error: no run folder (it has no config.json): " in done.stderr
    assert not (tmp_path / "five").exists()
    assert collect(tmp_path / "five", tmp_path / "half.log").returncode == 2
    done = collect(run, run)  # the folder for copies was forgotten
    assert done.returncode == 2 and done.stderr == f"error: {run} is a run folder: name a folder for the copies first\n"
    bash(str(ROOT / "scripts" / "collect.sh"), str(tmp_path / "three"), ".", cwd=run)  # the run that one stands in
    assert collect(tmp_path / "four", tmp_path / "three" / run.name).returncode == 0  # what was collected before
    assert (tmp_path / "four" / run.name / "curves.csv.gz").exists()
    (tmp_path / "link").symlink_to(run)
    assert collect(tmp_path / "six", tmp_path / "link").returncode == 0 and (tmp_path / "six" / "link").is_dir()


def test_collect_takes_the_curves_that_the_report_reads_and_refuses_a_finished_run_that_lacks_a_file(small_run, tmp_path):
    run = shutil.copytree(small_run("ppo", prune_type="none"), tmp_path / "a")
    (run / "curves.csv.gz").write_bytes(gzip.compress(b"of another day"))
    assert collect(tmp_path / "study", run).returncode == 0
    assert gzip.decompress((tmp_path / "study" / "a" / "curves.csv.gz").read_bytes()) == (run / "curves.csv").read_bytes()
    (run / "curves.csv.gz").unlink()
    for name in ("eval.csv", "curves.csv"):
        (run / name).unlink()
        done = collect(tmp_path / "other", run)
        assert (done.returncode, done.stderr) == (2, f"error: a finished run without its {name}: {run}\n")
    assert not (tmp_path / "other").exists()
    without = small_run("ppo", "short", **SHORT["ppo"], prune_rate=0.5)  # it played no evaluation games
    assert collect(tmp_path / "other", without).returncode == 0


def test_collect_deletes_nothing_and_replaces_only_files_of_the_same_run(small_run, tmp_path):
    run, study = small_run("ppo", prune_type="none"), tmp_path / "study"
    copy, hidden = study / run.name, study / f".{run.name}.part"
    copy.mkdir(parents=True), hidden.mkdir()
    (copy / "notes.md").write_text("mine"), (hidden / "thesis.tex").write_text("years of work")
    assert collect(study, run).returncode == 0
    (copy / "summary.json").write_text("torn")
    assert collect(study, run).returncode == 0  # the same run again
    assert (copy / "summary.json").read_bytes() == (run / "summary.json").read_bytes()
    itself = collect(study, copy)
    assert itself.returncode == 2 and "is the run itself" in itself.stderr
    (copy / "config.json").write_text("of another run")
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    for folder, message in (
        (run, "already holds another run"),
        (tmp_path / "nowhere", "no run folder (it has no config.json)"),
    ):
        refused = collect(study, folder)
        assert refused.returncode == 2 and message in refused.stderr
    (copy / "config.json").unlink()  # whose files these are is not known
    assert collect(study, run).returncode == 2
    del before[copy / "config.json"]
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before
    assert len(before) == 5 and {"mine", "years of work"} <= {data.decode(errors="replace") for data in before.values()}

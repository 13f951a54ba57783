"""A run folder: named, opened and locked, described, checkpointed, resumed, forked, stopped, finished."""

import csv
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn

from prune_utils import device, evaluation, health, storage
from prune_utils.basics import Busy, Stop, Tensors, UserError, check, derive_seed, say, write_atomically
from prune_utils.games import atari_spec
from prune_utils.log import Log

CRITERIA = ("l1", "random", "l1-structured", "random-structured")
"""criteria of --prune-type, without `none`, for sweeps and analysis; the scripts list the same"""
NEUTRAL = {"runs_dir", "run_name", "overwrite", "track", "wandb_project_name", "wandb_entity", "capture_video", "save_model"}
NEUTRAL |= {"checkpoint_minutes", "fork_from", "until_cut"}
"""options that do not shape a result"""
OF_THE_CUT = {"prune_type", "prune_rate", "prune_cuts", "prune_until", "prune_scope", "prune_bias", "prune_head", "fork_seed"}
"""options in which a fork may differ from its parent"""
FORMAT = 5  # of checkpoints; others are refused
CHECKPOINTS = ("checkpoint.pt", "checkpoint_previous.pt")
HEALTH_STEPS = 1_000_000
"""agent steps of the shortest run that measures health every tenth, where it takes about 1 % of the time (PPO on a CPU)"""
RESULTS = ("summary.json", "model.pt", "model_packed.npz", "eval.csv", "curves.csv", "final.mp4", "prune_point.pt")
WHOLE_FILES = (*RESULTS, *CHECKPOINTS, "source", "source.py")  # source.py: of earlier versions
OWN_FILES = (*WHOLE_FILES, "events.out.tfevents.*", "config.json.part", *(f"{name}.part" for name in WHOLE_FILES))
"""what a run writes and may delete, beside WANDB_FILES; it touches nothing else in its folder"""
WANDB_FILES = ("wandb", "wandb_id")
WANDB_MODES = ("online", "offline", "shared", "disabled")
MOMENTS = {"before_prune": "before the cut", "after_prune": "right after the cut", "final": "at the end"}


# ---------------------------------------------------------------------------------------------------------------- naming
def check_common(args) -> None:
    """Raise UserError for an option that both scripts have and that breaks its rule."""
    atari_spec(args.env_id)
    for name, value in vars(args).items():
        check(not isinstance(value, int) or value < 2**40, name, "be below 2**40", value)
    for name in ("seed", "eval_episodes", "num_threads"):
        check(getattr(args, name) >= 0, name, "be at least 0", getattr(args, name))
    check(args.num_threads <= 1024, "num_threads", "be at most 1024", args.num_threads)
    check(0 <= args.checkpoint_minutes < float("inf"), "checkpoint_minutes", "be finite, at least 0", args.checkpoint_minutes)
    named = args.run_name is None or re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}", args.run_name)
    check(bool(named), "run_name", "be 1 to 200 of the characters [A-Za-z0-9_.-], and no dot first", args.run_name)
    named = re.fullmatch(r"[^/\\#?%:]{1,128}", args.wandb_project_name)
    check(bool(named), "wandb_project_name", r"be 1 to 128 characters, none of / \ # ? % :", args.wandb_project_name)
    if args.track:
        check_wandb_mode()
    if args.fork_seed is not None:
        check(args.fork_from is not None, "fork_seed", "come with --fork-from", args.fork_seed)
        check(args.fork_seed >= 0, "fork_seed", "be at least 0", args.fork_seed)
    check(0 <= args.prune_rate < 1, "prune_rate", "lie in [0, 1)", args.prune_rate)
    check(0 <= args.prune_at <= 1, "prune_at", "lie in [0, 1]", args.prune_at)
    check(1 <= args.prune_cuts <= 1000, "prune_cuts", "lie in 1 to 1000", args.prune_cuts)
    several = args.prune_cuts > 1 and args.prune_type != "none"
    earliest = args.prune_at if several else 0
    rule = f"lie in [--prune-at, 1], here [{earliest:g}, 1]" if several else "lie in [0, 1]"
    check(earliest <= args.prune_until <= 1, "prune_until", rule, args.prune_until)
    check(1 <= args.hidden_size <= 65_536, "hidden_size", "lie in 1 to 65536", args.hidden_size)
    check(0 < args.width <= 16, "width", "lie in (0, 16]", args.width)
    weights = 7 * 7 * args.widths[2] * args.widths[3]
    most = device.memory_bytes(args.cuda) // 16  # bytes of a weight, its gradient and its two moments, in fp32
    rule = f"be smaller: with --width {args.width:g} fc1 has {weights:,} weights, and {most:,} fit into memory here"
    check(weights <= most, "hidden_size", rule, args.hidden_size)
    check(args.num_envs >= 1, "num_envs", "be at least 1", args.num_envs)
    check(0 < args.learning_rate < float("inf"), "learning_rate", "be finite and above 0", args.learning_rate)
    check(0 <= args.gamma <= 1, "gamma", "lie in [0, 1]", args.gamma)
    if args.prune_type.endswith("-structured"):
        needed = f"with {args.prune_type}"
        check(args.prune_cuts == 1, "prune_cuts", f"be 1 {needed}", args.prune_cuts)
        check(args.prune_scope == "layer", "prune_scope", f"be layer {needed}", args.prune_scope)
        check(args.prune_bias, "prune_bias", f"stay on {needed}, which removes units with their biases", args.prune_bias)
        check(args.prune_head, "prune_head", f"stay on {needed}, which removes inputs of the output layers", args.prune_head)
    dense = args.prune_type == "none" and args.fork_from is None
    check(dense or not args.until_cut, "until_cut", "come with --prune-type none and without --fork-from", args.until_cut)


def check_wandb_mode() -> None:
    """Raise UserError for a WANDB_MODE with which W&B would not start."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in WANDB_MODES:
        raise UserError(f"WANDB_MODE must be {', '.join(WANDB_MODES)} or unset, got {mode}")


def arm(algorithm: str, options: dict) -> dict:
    """What a run is in a study: arms of one algorithm, game and seed are compared."""
    rate = 0.0 if options["prune_type"] == "none" else options["prune_rate"]
    name = "none" if options["prune_type"] == "none" else f"{options['prune_type']}-{rate:.15g}"
    name += f"-{options['prune_cuts']}cuts" if options["prune_type"] != "none" and options["prune_cuts"] > 1 else ""
    name += "" if options["fork_seed"] is None else f"-fork{options['fork_seed']}"
    where = {"algorithm": algorithm, "env_id": options["env_id"], "seed": options["seed"]}
    return where | {"arm": name, "prune_type": options["prune_type"], "effective_prune_rate": rate}


def identity(config: dict) -> dict:
    """The options and resolved values of a config that shape a result. Those of a cut count only if there is one."""
    options, unused = config["options"], set()
    if options["prune_type"] == "none":
        unused = OF_THE_CUT - {"prune_type", "fork_seed"}
    elif options["prune_cuts"] == 1:
        unused = {"prune_until"}
    return {name: value for name, value in (options | config["resolved"]).items() if name not in NEUTRAL | unused}


def differences(old: dict, new: dict, ignored: set[str] = frozenset()) -> str:
    """How two identities differ, in the names that both have."""
    names = [name for name in new if name in old and name not in ignored and old[name] != new[name]]
    texts = {name: f"{name} {old[name]} -> {new[name]}" for name in names}
    if (name := "source_sha256") in texts:
        texts[name] = f"text of script or prune_utils (SHA-256 {old[name]:.8} -> {new[name]:.8})"
    return ", ".join(texts.values())


def other_options(args, ignored: set[str] = frozenset()) -> list[str]:
    """The part of a name for options that shape the result, are not at their default, and are not named otherwise."""
    options = asdict(args)
    of_arm = {"exp_name", "seed", "env_id", "prune_type", "prune_rate", "prune_cuts", "fork_seed"}
    shaping = identity({"options": options, "resolved": {}}).keys() - of_arm - ignored
    return [f"{f.name}-{options[f.name]}" for f in fields(args) if f.name in shaping and options[f.name] != f.default]


def wandb_group(algorithm: str, args) -> str:
    """The W&B group: runs that differ only by seed, machine options (precision too) or number of evaluation games."""
    ignored = {"cuda", "precision", "num_threads", "torch_deterministic", "eval_episodes"}
    names = [args.env_id, algorithm, arm(algorithm, asdict(args))["arm"], *other_options(args, ignored)]
    return shortened("__".join(names), 128)


def default_run_name(args) -> str:
    """Game, script, arm, seed, then every other option that shapes the result and is not at its default."""
    name = "__".join([args.env_id, args.exp_name, arm("", asdict(args))["arm"], f"s{args.seed}", *other_options(args)])
    return shortened(re.sub(r"[^A-Za-z0-9_.-]", "-", name), 200)


def shortened(name: str, most: int) -> str:
    """A name of at most so many characters. A hash takes the place of what is cut off."""
    return name if len(name) <= most else f"{name[: most - 20]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def read_config(folder: Path) -> dict:
    """config.json of a run folder; empty where there is none, or none that a run could have written."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return config if isinstance(config["options"], dict) and isinstance(config["resolved"], dict) else {}
    except (OSError, ValueError, TypeError, LookupError):
        return {}


def speed(steps: int, seconds: float) -> float | None:
    return steps / seconds if seconds else None


def source_files(script: Path) -> list[Path]:
    """What makes a run: its script and prune_utils."""
    return [script, *sorted(Path(__file__).resolve().parent.glob("*.py"))]


# ----------------------------------------------------------------------------------------------------------- checkpoints
def state_of(part):
    """What a checkpoint keeps of a part of a run: a generator, tensor, dictionary of tensors, or object with a state_dict."""
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part if isinstance(part, (torch.Tensor, dict)) else part.state_dict()


def restore(part, state, device: torch.device) -> None:
    """Put a part back into an earlier state, in place. A dictionary gets new tensors."""
    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif isinstance(part, torch.Tensor):
        part.copy_(state)
    elif isinstance(part, dict):
        part.update({name: t.to(device) for name, t in state.items()})
    else:
        part.load_state_dict(state)


def load_checkpoint(path: Path) -> dict | None:
    """A checkpoint, with every checksum verified, and its `file`. If it is broken, the one before; None where there is none.

    Raises OSError if there are files but no good one.
    """
    found = [file for file in (path, path.with_stem(path.stem + "_previous")) if file.exists()]
    for file in found:
        try:
            with zipfile.ZipFile(file) as archive:
                if broken := archive.testzip():
                    raise zipfile.BadZipFile(f"{broken} has a wrong checksum")
            checkpoint = torch.load(file, weights_only=True, map_location="cpu")
            if checkpoint["format"] != FORMAT:
                raise ValueError(f"format {checkpoint['format']}, not {FORMAT}; {path.parent / 'source'} has the script for it")
            return checkpoint | {"file": file}
        except Exception as error:  # whatever a torn or strange file makes the readers say
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            say(f"cannot read the checkpoint {file} ({reason})", error=True)
    if found:
        if path.name in CHECKPOINTS:
            raise OSError(f"no readable checkpoint is left in {path.parent}: start that run anew with --overwrite")
        raise OSError(f"{path} is needed for forks: train its dense run again, under another name")
    return None


def is_dense_before_cut(checkpoint: dict) -> bool:
    """Whether a checkpoint is of a dense run from scratch, before its cut. False for a config, which has no cuts_done."""
    options = checkpoint["options"]
    return options["prune_type"] == "none" and options["fork_from"] is None and not checkpoint.get("cuts_done", 1)


# ------------------------------------------------------------------------------------------------------------------- run
class Run:
    """A run folder while its script trains. `finished` says that nothing is left to do.

    A fork is a run whose first checkpoint is its parent's prune point.
    """

    def __init__(self, args, algorithm: str, script: str):
        """Open and lock the folder that the options name, and load its checkpoint.

        Raises UserError if the folder can't be written, if it holds other files or a run of other options, or if a fork does
        not match its parent. Raises Busy if another process holds the folder.
        """
        self.args, self.algorithm, self.script = args, algorithm, Path(script).resolve()
        self.folder = Path(args.runs_dir) / (args.run_name or default_run_name(args))
        self.parent = None if args.fork_from is None else Path(args.fork_from)
        self.finished, self.cuts_done, self.evaluations, self.handlers = False, 0, [], {}
        self.measures: dict[str, dict] = {}  # at each moment: share of the commonest action, health
        self.signal: signal.Signals | None = None
        self.last_moment: tuple[int, int, int] | None = None  # of a checkpoint: step, number of cuts and of evaluations

        found = self.find()
        previous, finished, resumes = found
        self.checkpoint = None
        itself = self.parent and self.parent.resolve() == self.folder.resolve()
        check(not itself, "fork_from", "be another folder than the run's own", self.parent)
        if self.parent and not finished and not resumes:
            self.checkpoint = load_checkpoint(self.parent / "prune_point.pt") if os.path.isdir(self.parent) else None
            rule = "be the folder of a dense run with a prune_point.pt, which it writes at its cut"
            check(bool(self.checkpoint), "fork_from", rule, self.parent)
        self.describe((self.checkpoint or previous).get("resolved", {}))
        if self.checkpoint:
            rule = f"be a run of the same options, script and versions ({self.parent} -> this run)"
            self.compare(self.checkpoint, "fork_from", rule)
        self.lock()
        if self.find() != found:
            raise Busy(f"{self.folder} was in use by another process until now: start the same command again")
        if finished:
            changed = self.changes(previous, set(self.config["resolved"]))
            check(not changed, "run_name", f"name another run: {self.folder} is finished (--overwrite starts it anew)", changed)
            changed = self.changes(previous)
            say(f"{self.folder} is finished; --overwrite starts anew" + f" (since then: {changed})" * bool(changed))
            return self.leave()
        if previous:
            check(os.access(self.folder, os.W_OK | os.X_OK), "runs_dir", "be a folder that can be written", self.folder)
            how = "to resume it, give its options and versions, or run the copy in its source/; --overwrite starts anew"
            self.compare(previous, "run_name", f"name another run: {self.folder} is not the same ({how})")
        if resumes:
            self.checkpoint = load_checkpoint(self.folder / CHECKPOINTS[0])
            self.compare(self.checkpoint, "run_name", f"name a run with a checkpoint of its own: {self.folder} differs")
            mixed = is_dense_before_cut(self.checkpoint) and bool(self.parent) != bool(previous.get("parent"))
            rule = f"be what it was when the run in {self.folder} began ({previous.get('parent') or 'not given'})"
            check(not mixed, "fork_from", rule, self.parent or "nothing")
            # where checkpoint.pt is broken the one before takes its place, or the next save would write over the last good one
            os.replace(self.checkpoint["file"], self.folder / CHECKPOINTS[0])
        else:
            if previous and not self.checkpoint:
                say(f"{self.folder}: there is no checkpoint yet, so it starts at step 0")
            # started again, an unfinished run sends the same rows to the same W&B run
            self.begin(OWN_FILES if previous else OWN_FILES + WANDB_FILES)
        if args.until_cut and self.checkpoint and self.checkpoint["cuts_done"]:
            say(f"{self.folder} is past its cut")
            return self.leave()
        resolved = self.config["resolved"]
        self.device, self.dtype = torch.device(resolved["device"]), device.DTYPES[resolved["precision"]]
        self.num_threads = resolved["num_threads"]
        if args.cuda and resolved["device"] == "cpu":
            say("no CUDA device: training on the CPU", error=True)
        device.configure(self.num_threads, resolved["precision"], args.torch_deterministic)
        self.listen()

    def find(self) -> tuple[dict, bool, bool]:
        """What an earlier process left in the folder: its config, whether it finished, and whether there is a checkpoint."""
        config = {} if self.args.overwrite else read_config(self.folder)
        finished = bool(config) and (self.folder / "summary.json").exists()
        return config, finished, bool(config) and any((self.folder / name).exists() for name in CHECKPOINTS)

    def describe(self, recorded: dict) -> None:
        """Make the run's config: its options, and what they become here. Results repeat only where both agree."""
        resolved = device.resolve(self.args.cuda, self.args.precision, self.args.num_threads, recorded)
        self.source = {file.relative_to(self.script.parent): file.read_bytes() for file in source_files(self.script)}
        digest = hashlib.sha256(b"".join(self.source.values())).hexdigest()
        resolved |= {"torch": str(torch.__version__), "ale_py": ale_py.__version__, "source_sha256": digest}
        self.config = {"algorithm": self.algorithm, "options": asdict(self.args), "resolved": resolved}
        self.config |= {"device_name": device.device_name(resolved["device"])}

    def changes(self, other: dict, ignored: set[str] = frozenset()) -> str:
        """How this run differs from a config or a checkpoint. An option that the other did not know had its default there."""
        defaults = {field.name: field.default for field in fields(self.args)}
        return differences(identity(other | {"options": defaults | other["options"]}), identity(self.config), ignored)

    def compare(self, other: dict, option: str, rule: str) -> None:
        """Raise UserError if a config or checkpoint is neither of this run nor of the parent of this fork."""
        check(other["algorithm"] == self.algorithm, option, rule, f"algorithm {other['algorithm']} -> {self.algorithm}")
        changed = self.changes(other, OF_THE_CUT if self.parent and is_dense_before_cut(other) else frozenset())
        check(not changed, option, rule, changed)

    def lock(self) -> None:
        """Create the folder and hold its lock until the process ends."""
        try:
            found = {p.name for p in self.folder.iterdir()} if self.folder.is_dir() else set()
            ours = not found - {".lock", "config.json.part"} or read_config(self.folder)
            check(bool(ours), "run_name", "not name a folder that holds other files", self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock_file = open(self.folder / ".lock", "w")
        except OSError as error:
            raise UserError(f"--runs-dir must be a folder that can be written, got {self.folder}: {error.strerror}") from None
        try:
            fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{self.folder} is in use by another process") from None

    def begin(self, obsolete: tuple[str, ...]) -> None:
        """Start the folder anew: config, source and, in a fork, the parent's prune point as first checkpoint."""
        describe = ["git", "-C", str(self.script.parent), "describe", "--always", "--dirty"]
        git = subprocess.run(describe, capture_output=True, text=True).stdout.strip() if shutil.which("git") else None
        git = read_config(self.script.parent.parent).get("git", git)  # a run folder knows of which commit its copy is
        versions = {"python": sys.version.split()[0], "numpy": np.__version__, "gymnasium": gym.__version__}
        self.config |= {"versions": versions, "git": git or None, "command": sys.argv, "parent": self.args.fork_from}
        self.delete(obsolete)  # the copy that runs may be this folder's own: it was read before
        write_atomically(self.folder / "config.json", json.dumps(self.config, indent=2).encode())
        for name, data in self.source.items():
            copy = self.folder / "source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)
        if self.parent:
            write_atomically(self.folder / CHECKPOINTS[0], (self.parent / "prune_point.pt").read_bytes())

    def delete(self, patterns: tuple[str, ...]) -> None:
        """Remove files of this run, in this order."""
        for path in (path for pattern in patterns for path in self.folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def seed(self, purpose: str) -> int:
        """A seed for a part of this run."""
        return derive_seed(self.args.seed, purpose)

    def mask_seed(self) -> int:
        """The seed of the cut that comes next. A fork with a seed of its own draws other masks."""
        purpose = "mask" if self.args.fork_seed is None else f"mask of fork {self.args.fork_seed}"
        return self.seed(f"{purpose}, cut {self.cuts_done}" if self.cuts_done else purpose)

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for a part of this run, on its device."""
        return torch.Generator(self.device).manual_seed(self.seed(purpose))

    def saved_part(self, name: str) -> dict:
        """A dictionary of the checkpoint that is needed before the other parts are restored; empty without a checkpoint."""
        return {key: t.to(self.device) for key, t in self.checkpoint["parts"][name].items()} if self.checkpoint else {}

    def resume(self, parts: dict) -> int:
        """Register what checkpoints hold, restore it if there is one, start the log. Returns the agent step to go on from."""
        self.parts = parts
        checkpoint, global_step, self.first_step = self.checkpoint, 0, 0
        forked = bool(self.parent) and is_dense_before_cut(checkpoint)
        if checkpoint:
            global_step = checkpoint["global_step"]
            for name, part in parts.items():
                restore(part, checkpoint["parts"][name], self.device)
            self.cuts_done, self.evaluations = checkpoint["cuts_done"], checkpoint["evaluations"]
            self.measures = checkpoint["measures"]
            self.last_moment = (global_step, self.cuts_done, len(self.measures))
            self.first_step = global_step if forked else checkpoint["first_step"]
            how = f"forked from {self.parent}" if forked else "resumed"
            say(f"{self.folder}: {how} at step {global_step:,} of {self.args.total_timesteps:,}")
            if checkpoint["device_name"] != self.config["device_name"]:
                machines = f"made on {checkpoint['device_name']}, this is {self.config['device_name']}"
                say(f"its checkpoint was {machines}: the same bits can't be promised", error=True)
        if forked and self.args.fork_seed is not None:  # the index is in the seed: a new generator goes last
            for index, generator in enumerate(part for part in parts.values() if isinstance(part, torch.Generator)):
                generator.manual_seed(derive_seed(self.args.fork_seed, f"fork {index} of {self.args.seed}"))
        run_arm = arm(self.algorithm, asdict(self.args)) | {"group": wandb_group(self.algorithm, self.args)}
        state = checkpoint and checkpoint["log"]
        self.log = Log(self.folder, self.config, run_arm, state, global_step, forked, self.check_folder)
        self.checkpoint, self.saved_at = None, time.monotonic()
        return global_step

    # ------------------------------------------------------------------------------------------------ while it trains
    def save(self, global_step: int) -> None:
        """Write a checkpoint, unless the last one is of this moment. Keep the one before it."""
        moment = (global_step, self.cuts_done, len(self.measures))
        if self.last_moment == moment:
            return
        state = self.config | {"format": FORMAT, "global_step": global_step, "first_step": self.first_step}
        state |= {"cuts_done": self.cuts_done, "evaluations": self.evaluations, "measures": self.measures}
        state |= {"log": self.log.state_dict(), "parts": {name: state_of(part) for name, part in self.parts.items()}}
        data = io.BytesIO()  # torch.save to a full disk says something else than that it is full
        torch.save(state, data)
        self.write(CHECKPOINTS[0], data.getbuffer(), keep_previous=True)
        self.last_moment, self.saved_at = moment, time.monotonic()

    def save_prune_point(self, global_step: int) -> None:
        """Keep a checkpoint of this moment for forks."""
        self.save(global_step)
        self.write("prune_point.pt", (self.folder / CHECKPOINTS[0]).read_bytes())

    def check_folder(self) -> None:
        """Raise OSError where the folder is no longer that of this process."""
        path = self.folder / ".lock"
        if not path.exists() or not os.path.samestat(os.fstat(self.lock_file.fileno()), path.stat()):
            raise OSError(f"{self.folder} was deleted or replaced while this run was at work in it")

    def write(self, name: str, data: bytes | memoryview, keep_previous: bool = False) -> None:
        """Write a file of the run folder."""
        self.check_folder()
        write_atomically(self.folder / name, data, keep_previous)

    def checkpoint_if_due(self, global_step: int) -> None:
        """Call between two iterations. Saves every --checkpoint-minutes, and ends the run if a signal asked for it."""
        due = self.args.checkpoint_minutes and time.monotonic() - self.saved_at >= 60 * self.args.checkpoint_minutes
        if due or self.signal:
            self.save(global_step)
            self.stop_if_asked()  # only here: a signal that comes after the test must not end the run unsaved

    def evaluate(self, moment: str, global_step: int, network: nn.Module, make_policy: Callable) -> None:
        """Play the evaluation games of a moment, with games and generators of their own; write their rows to eval.csv."""
        episodes = self.args.eval_episodes
        if not episodes or moment in self.measures:  # not asked for, or done: at the first cut, or before a resume
            return
        if self.args.checkpoint_minutes and moment != "after_prune":  # with one cut, the last checkpoint is of this step
            self.save(global_step)
        say(f"step {global_step:,}: playing {episodes} evaluation game{'s' * (episodes > 1)} {MOMENTS[moment]}")
        seed = self.seed(moment)  # the same in every arm
        counts: Counter[int] = Counter()

        def each_step(actions: np.ndarray) -> None:
            if self.signal:
                self.save(global_step)
                self.stop_if_asked()
            counts.update(actions.tolist())

        policy = make_policy(device.fp32_copy(network), seed)
        games = evaluation.play(policy, self.args.env_id, episodes, seed, self.num_threads, each_step)
        measured = self.measure_health(network, make_policy)
        self.measures[moment] = {"commonest_action_share": max(counts.values()) / counts.total(), "health": measured}
        self.evaluations += [{"moment": moment, "global_step": global_step, **game} for game in games]
        file = io.StringIO()
        writer = csv.DictWriter(file, self.evaluations[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.evaluations)
        self.write("eval.csv", file.getvalue().encode())
        mean = sum(game["return"] for game in games) / len(games)
        say(f"mean return {MOMENTS[moment]}: {mean:.1f}")
        self.log(global_step, {f"eval/{moment}_return": mean} | {f"health/{name}": value for name, value in measured.items()})
        self.log.restart_clock(global_step)

    def measure_health(self, network: nn.Module, make_policy: Callable) -> dict[str, float]:
        """Health of a network on 500 observations of games played for this, or fewer in a run of less than 2M agent steps."""
        network, seed = device.fp32_copy(network), self.seed("health")
        steps = max(1, min(250, self.args.total_timesteps // 8000))
        obs = evaluation.observe(make_policy(network, seed), self.args.env_id, steps, seed, self.num_threads)
        return health.measure(network, obs.to(self.device))

    def log_health_if_due(self, global_step: int, network: nn.Module, make_policy: Callable) -> None:
        """Log the health of the network every tenth of the training, unless an evaluation just did.

        Not in a run without evaluations, or of less than HEALTH_STEPS.
        """
        iteration, n = global_step // self.args.steps_per_iteration, self.args.num_iterations
        tenth = 10 * iteration // n > 10 * max(0, iteration - 1) // n
        evaluated = bool(self.evaluations) and self.evaluations[-1]["global_step"] == global_step
        if tenth and not evaluated and self.args.eval_episodes and self.args.total_timesteps >= HEALTH_STEPS:
            started = time.perf_counter()
            measured = self.measure_health(network, make_policy)
            self.log(global_step, {f"health/{name}": value for name, value in measured.items()})
            self.log.lap_time += time.perf_counter() - started  # the lap goes on without it

    def log_cut(self, global_step: int, counts: dict[str, dict[str, int]]) -> None:
        """Log the share of pruned entries, of the network and of each tensor; `counts` as in `finish`."""
        total, pruned = (sum(count[key] for count in counts.values()) for key in ("total", "pruned"))
        what = f"the cut removed {pruned:,} of {total:,} entries ({pruned / total:.1%})"
        if self.args.prune_type == "none":
            what = "a dense run: nothing is pruned"
            if self.evaluations:
                what += ", so its evaluations before and after differ by chance"
        elif self.args.prune_cuts > 1:
            what = f"after cut {self.cuts_done} of {self.args.prune_cuts}, {pruned:,} of {total:,} entries are pruned"
        say(f"step {global_step:,}: {what}")
        if self.cuts_done == 1:
            self.log.at_cut = (self.log.steps, self.log.seconds)
        self.log.restart_clock(global_step)  # the lap of the cut does not count
        for name, count in counts.items():
            if count["pruned"] == count["total"] and self.cuts_done == self.args.prune_cuts:
                say(f"warning: pruning removed every entry of {name}", error=True)
        shares = {f"prune/sparsity_{name}": count["pruned"] / count["total"] for name, count in counts.items()}
        self.log(global_step, {"prune/sparsity": pruned / total, **shares})

    def pause(self, global_step: int) -> Path:
        """End a process whose run goes on later from its checkpoint."""
        self.write("curves.csv", "".join(self.log.rows).encode())
        self.log.close()
        without = "without --until-cut" + " and --overwrite" * self.args.overwrite
        say(f"stopped at the cut (step {global_step:,}); {without} the same command continues: {self.folder}")
        self.leave()
        return self.folder

    # ------------------------------------------------------------------------------------------------ its end
    def listen(self) -> None:
        """From here on SIGTERM, Ctrl-C or a hang-up lets the run save and end after its iteration; a second one ends it."""
        if threading.current_thread() is threading.main_thread():
            numbers = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
            self.handlers = {number: signal.signal(number, self.on_signal) for number in numbers}

    def on_signal(self, number: int, _frame) -> None:
        if self.signal is None:
            self.signal, self.signal_at = signal.Signals(number), time.monotonic()
            message = f"\n{self.signal.name}: stops at the next safe point; another, or the same a second later, kills it\n"
            with suppress(OSError, ValueError, AttributeError):  # and no print, which may be at work just now
                os.write(sys.stderr.fileno(), message.encode())
            for other in self.handlers.keys() - {number}:
                signal.signal(other, signal.SIG_DFL)
        elif time.monotonic() - self.signal_at > 1:  # `timeout` and a terminal that closes send theirs twice in a row
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def stop_if_asked(self) -> None:
        """Raise Stop if a signal came. Call it after `save`."""
        if self.signal:
            self.log.bar.close()
            command = "the same command" + " without --overwrite" * self.args.overwrite
            say(f"stopped by {self.signal.name}; {command} resumes from step {self.last_moment[0]:,}", error=True)
            self.leave()
            raise Stop(self.signal)

    def leave(self) -> None:
        """Release the lock, restore the signal handlers, and delete the checkpoints of a run that has its summary."""
        self.finished = True
        if (self.folder / "summary.json").exists():
            self.delete(CHECKPOINTS)
        self.lock_file.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def finish(self, global_step: int, network: nn.Module, counts: dict[str, dict[str, int]], make_policy: Callable) -> Path:
        """Evaluate and save the network, write what the cut cost and gained, and close the logs. summary.json comes last.

        `counts`: total, pruned and nonzero entries of each tensor. After the evaluation it is too late for a signal.
        """
        self.evaluate("final", global_step, network, make_policy)
        network = device.fp32_copy(network)
        weights = {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
        if not all(t.isfinite().all() for t in weights.values()):
            raise FloatingPointError("the final weights are not finite: the training has diverged")
        summary = self.summarise(global_step, network, weights, counts)
        files = []
        if self.args.save_model:
            self.write("model.pt", storage.torch_file(weights, storage.FORMATS["dense"]))
            self.write("model_packed.npz", storage.pack(weights))
            files = [self.folder / "model.pt", self.folder / "model_packed.npz"]
        if self.args.capture_video:
            self.check_folder()
            video, seed = self.folder / "final.mp4", self.seed("video")
            try:
                evaluation.record_video(make_policy(network, seed), self.args.env_id, seed, video)
                files.append(video)
            except OSError as error:
                say(f"{error}; the run finishes without it", error=True)
        self.log(global_step, {f"disk/{name}_bytes": size for name, size in summary["disk"].items()})
        steps, seconds = self.log.at_cut
        summary["time"] = {
            "agent_steps_per_second_while_learning": speed(self.log.steps, self.log.seconds),
            "agent_steps_per_second_before_cut": speed(steps, seconds),
            "agent_steps_per_second_after_cut": speed(self.log.steps - steps, self.log.seconds - seconds),
            "wall_seconds": self.log.seconds_open(),
            "peak_ram_bytes": device.peak_ram_bytes(),
            "peak_gpu_bytes": torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None,
        }
        curves = self.folder / "curves.csv"
        if not curves.exists() or not os.path.samestat(os.fstat(self.log.file.fileno()), curves.stat()):
            say(f"{curves} was replaced while this run wrote to it: it is written anew, whole", error=True)
        self.write("curves.csv", "".join(self.log.rows).encode())
        self.log.close(summary, self.evaluations, files)
        self.write("summary.json", json.dumps(summary, indent=2).encode())
        means = ", ".join(f"{score['mean']:.1f} {MOMENTS[moment]}" for moment, score in summary["eval"].items())
        sizes = f"{summary['disk']['dense']:,} bytes dense, {summary['disk']['packed']:,} packed"
        say(f"finished: mean return {means or 'not measured'}; sparsity {summary['sparsity']:.2f}; {sizes}; {self.folder}")
        self.leave()
        return self.folder

    def summarise(self, global_step: int, network: nn.Module, weights: Tensors, counts: dict) -> dict:
        """What summary.json says of a network, but for its clocks."""
        totals = {key: sum(count[key] for count in counts.values()) for key in ("total", "pruned", "nonzero")}
        returns = {moment: [row["return"] for row in self.evaluations if row["moment"] == moment] for moment in self.measures}
        return arm(self.algorithm, asdict(self.args)) | {
            "global_step": global_step,
            "agent_steps_run": global_step - self.first_step,
            **totals,
            "sparsity": totals["pruned"] / totals["total"],
            "emptied": [name for name, count in counts.items() if count["pruned"] == count["total"]],
            "tensors": counts,
            "parameters": sum(t.numel() for t in weights.values()),
            "resident_bytes": sum(t.numel() * t.element_size() for t in weights.values()),
            "disk": storage.storage_bytes(weights),
            "eval": {moment: evaluation.statistics(returns[moment]) | self.measures[moment] for moment in self.measures},
            "multiply_adds": evaluation.multiply_adds(network),
        }

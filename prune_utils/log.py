"""One call feeds curves.csv, TensorBoard and W&B. The progress bar is here too."""

import json
import math
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from prune_utils.basics import say, write_atomically
from prune_utils.games import Game

LAYOUT = {
    "What did the cut cost": {
        "training return": ["charts/episodic_return"],
        "return before the cut, right after it, at the end": ["eval/.*_return"],
    },
    "What did it gain": {
        "sparsity of the network and of each tensor": ["prune/sparsity.*"],
        "bytes on disk, dense and packed": ["disk/(dense|packed)_bytes"],
        "agent steps per second": ["charts/SPS"],
    },
    "Inside the network": {
        "share of dormant units by layer": ["health/dormant_.*"],
        "effective rank of the last features": ["health/effective_rank"],
        "norms": ["health/.*_norm"],
        "Q values and entropy": ["health/q_.*", "health/entropy"],
    },
    "Is training healthy": {
        "loss": ["losses/.*_loss"],
        "Q values": ["losses/q_values"],
        "entropy": ["losses/entropy"],
        "approximate KL": ["losses/approx_kl"],
    },
}
"""TensorBoard's page of custom scalars: sections, charts, and regular expressions of the tags in each"""


class Log:
    """Curves of a run. Clocks go to TensorBoard and W&B only, so that equal runs have the same curves.csv."""

    def __init__(
        self, folder: Path, config: dict, arm: dict, state: dict | None, global_step: int, forked: bool, check_folder: Callable
    ):
        """`state` is the state_dict of this run at global_step or, in a new fork, that of its dense run.

        `check_folder` raises if the folder is no longer this run's: TensorBoard would write into a folder that took its place.
        """
        self.check_folder = check_folder
        self.rows = [state["curves"] if state else "global_step,tag,value\n"]
        self.recent_returns: deque[float] = deque(state["recent_returns"] if state else [], maxlen=20)
        fresh = {"steps": 0, "seconds": 0.0, "wall_seconds": 0.0, "at_cut": (0, 0.0)}
        clocks = fresh if state is None or forked else state
        self.steps, self.seconds, self.wall_seconds = clocks["steps"], clocks["seconds"], clocks["wall_seconds"]
        self.at_cut = tuple(clocks["at_cut"])  # steps and seconds of learning before the cut, in this run
        self.started = self.last_line = time.monotonic()
        self.file = open(folder / "curves.csv", "w")
        self.file.write(self.rows[0])
        # a fork that was killed before its first checkpoint sends its parent's rows again: hide those of the first time
        purge_step = None if state is None else 0 if forked else global_step + 1
        self.tensorboard = SummaryWriter(str(folder), purge_step=purge_step)
        self.tensorboard.add_text("config", "```json\n" + json.dumps(config, indent=2) + "\n```")
        self.tensorboard.add_custom_scalars({k: {c: ["Multiline", tags] for c, tags in v.items()} for k, v in LAYOUT.items()})
        self.wandb = None
        if config["options"]["track"]:
            with self.wandb_may_fail():
                self.wandb = start_wandb(folder, config, arm)
        for step, tag, value in (row.split(",") for row in self.rows[0].splitlines()[1:]):
            if forked:
                self.tensorboard.add_scalar(tag, float(value), int(step))
            self.track({tag: float(value), "global_step": int(step)})  # a killed client may have lost any of them
        self.total = config["options"]["total_timesteps"]
        layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]"
        terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
        self.bar = tqdm(total=self.total, initial=global_step, bar_format=layout, dynamic_ncols=True, disable=not terminal)
        self.restart_clock(global_step)

    def __call__(self, global_step: int, metrics: dict[str, float], clocks: dict[str, float] | None = None) -> None:
        """Log metrics at an agent step."""
        self.check_folder()
        rows = [f"{global_step},{tag},{float(value)!r}\n" for tag, value in metrics.items()]
        self.rows += rows
        self.file.writelines(rows)
        metrics = metrics | (clocks or {})
        for tag, value in metrics.items():
            self.tensorboard.add_scalar(tag, value, global_step)
        self.track(metrics | {"global_step": global_step})

    def track(self, row: dict[str, float]) -> None:
        """Give W&B a row."""
        if self.wandb:
            with self.wandb_may_fail():
                self.wandb.log(row)

    @contextmanager
    def wandb_may_fail(self):
        """W&B never stops a run. Its client is a process of its own, which may not start, or may die."""
        try:
            yield
        except Exception as error:
            self.wandb = None
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"  # on one line
            say(f"W&B failed ({reason}): the run continues without it; stop and resume it to send what is missing", error=True)

    def games(self, global_step: int, finished: list[Game]) -> None:
        """Log finished training games."""
        for game in finished:
            self.recent_returns.append(game.episodic_return)
            scores = {"charts/episodic_return": game.episodic_return, "charts/episodic_length": game.episodic_length}
            self(global_step, scores)

    def restart_clock(self, global_step: int) -> None:
        """Begin a lap that does not count: the first after a start or an evaluation warms up."""
        self.lap_step, self.lap_time, self.lap_counts = global_step, time.perf_counter(), False

    def progress(self, global_step: int, metrics: dict[str, float], learning: bool) -> None:
        """Log metrics and the speed since the last call; move the bar, or print a line per minute where there is none.

        Raises FloatingPointError where a loss is not finite.
        """
        steps, seconds = global_step - self.lap_step, time.perf_counter() - self.lap_time
        if self.lap_counts:
            self.steps, self.seconds = self.steps + steps, self.seconds + seconds
        self.restart_clock(global_step)
        self.lap_counts = learning
        self(global_step, metrics, {"charts/SPS": steps / seconds})
        for tag, value in metrics.items():
            if tag.endswith("_loss") and not math.isfinite(value):
                raise FloatingPointError(f"{tag} is {value} at step {global_step:,}: the training has diverged")
        mean = sum(self.recent_returns) / len(self.recent_returns) if self.recent_returns else float("nan")
        status = f"{steps / seconds:.0f} steps/s, return {mean:.1f}"  # mean of the last 20 training games
        self.bar.set_postfix_str(status, refresh=False)
        self.bar.update(global_step - self.bar.n)
        if self.bar.disable and time.monotonic() - self.last_line >= 60:
            self.last_line = time.monotonic()
            say(f"step {global_step:,} of {self.total:,}, {status}")

    def state_dict(self) -> dict:
        self.file.flush()
        self.tensorboard.flush()
        state = {"curves": "".join(self.rows), "recent_returns": list(self.recent_returns), "at_cut": self.at_cut}
        return state | {"steps": self.steps, "seconds": self.seconds, "wall_seconds": self.seconds_open()}

    def seconds_open(self) -> float:
        """How long the processes of this run, taken together, have been at work."""
        return self.wall_seconds + time.monotonic() - self.started

    def close(self, summary: dict | None = None, games: list[dict] | None = None, files: list[Path] | None = None) -> None:
        """Close the bar, the files and the W&B run, which gets the summary, the games and the files."""
        self.bar.close()
        self.file.close()
        self.tensorboard.close()
        if self.wandb:
            try:
                finish_wandb(self.wandb, summary or {}, games or [], files or [])
            except Exception as error:  # whatever an answer makes the client say: the run folder has everything
                reason = " ".join(str(error).split())  # on one line
                again = f"wandb sync --no-skip-online {Path(self.wandb.dir).parent} uploads the run"
                say(f"the upload to W&B did not finish ({type(error).__name__}: {reason}); {again}", error=True)


def init_wandb(**options):
    """Start a W&B run; without a key or a network it is written offline, for scripts/sync_wandb.sh later."""
    import wandb

    settings = wandb.Settings(init_timeout=20, finish_timeout=60, x_transaction_log_flush_interval=1)
    try:
        # a start without a key would ask for one and wait; this only looks whether there is one
        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False, verify=False):
            raise wandb.errors.UsageError("no API key")
        return wandb.init(settings=settings, **options)
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        wandb.teardown()  # without it the next init says that the run id is in use
        reason = " ".join(str(error).split())  # on one line
        later = f"logging offline; scripts/sync_wandb.sh {options['dir']} uploads the run later"
        say(f"cannot reach W&B ({reason}): {later}", error=True)
        return wandb.init(settings=settings, mode="offline", **options)


def start_wandb(folder: Path, config: dict, arm: dict):
    """Start the W&B run of a run folder."""
    # the id is made once and kept: two machines must not merge, and an id that was deleted on the server stays blocked
    file = folder / "wandb_id"
    own_id = file.read_text() if file.exists() else f"{folder.name[:100]}-{secrets.token_hex(3)}"
    run_id = os.environ.get("WANDB_RUN_ID") or own_id  # an agent's id wins, also for later processes without the agent
    write_atomically(file, run_id.encode())
    options = config["options"]
    run = init_wandb(
        project=options["wandb_project_name"],
        entity=options["wandb_entity"],
        name=folder.name,
        id=run_id,
        dir=str(folder),
        group=arm["group"],
        tags=[arm["env_id"], arm["algorithm"], arm["prune_type"]],
        job_type="train",
        resume="allow",
        config=options | config["resolved"] | arm | {"device_name": config["device_name"]},
    )
    run.define_metric("global_step")
    run.define_metric("*", step_metric="global_step")
    return run


def finish_wandb(run, summary: dict, games: list[dict], files: list[Path]) -> None:
    """Send the video, the evaluation games, the summary, and the files as an artifact."""
    import wandb

    run.log({f"{path.stem}_video": wandb.Video(str(path)) for path in files if path.suffix == ".mp4"})
    if games:
        run.log({"evaluation_games": wandb.Table(list(games[0]), [list(game.values()) for game in games])})
    run.summary.update(summary)
    if files:
        artifact = wandb.Artifact(f"model-{run.id}", type="model")
        for path in files:
            artifact.add_file(str(path))
        run.log_artifact(artifact)
    run.finish()

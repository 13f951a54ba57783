"""What the two evaluators share: options, the loading of a saved model, and its games."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn as nn
import tyro

from prune_utils.basics import UserError, check, check_file, derive_seed
from prune_utils.evaluation import play, record_video, statistics
from prune_utils.games import AtariGames
from prune_utils.run import OWN_FILES, WANDB_FILES, read_config
from prune_utils.storage import MODELS, load_weights, storage_bytes


@dataclass
class Args:
    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """a run folder, a model.pt or a model_packed.npz (with --env-id if no config.json lies beside it)"""
    eval_episodes: int = 10
    """whole games to play, at least 1"""
    seed: int = 1
    """seed of the games and of the actions, at least 0; the games are others than those of the run's own evaluations"""
    greedy: bool = False
    """always take the best action; without sticky actions only 29 different greedy games exist, so they are no sample"""
    prune_type: Literal["none", "random", "l1"] = "none"
    """prune the loaded model first: the loss without recovery"""
    prune_rate: float = 0.3
    """share of the entries of every tensor (scopes global and erk: of all) to remove, in [0, 1)"""
    prune_scope: Literal["layer", "global", "erk"] = "layer"
    """layer removes the rate from each tensor, global ranks all tensors together, erk shares it out by Erdos-Renyi-Kernel"""
    prune_bias: bool = True
    """prune bias tensors too"""
    prune_head: bool = True
    """prune the output layers too"""
    env_id: str | None = None
    """Gymnasium id of an Atari game; None is the one that the model was trained on"""
    capture_video: bool = False
    """record one more game as an mp4 in colour"""
    out: Path | None = None
    """CSV file of the games; None is a name made of the options and the model's file, beside the model"""


def check_out(option: str, *files: Path, model: Path | None = None) -> None:
    """Raise UserError unless each file can be written and is neither the model nor a file of a run. It names the first."""
    models = {path.resolve() for path in (model, *(folder_of(model) / name for name in MODELS))} if model else set()
    for file in files:
        check_file(option, file)
        check(file.resolve() not in models, option, "not name the model itself", files[0])
        for folder in filter(read_config, file.resolve().parents):
            part = file.resolve().relative_to(folder).parts[0]
            own = any(fnmatch(part, pattern) for pattern in (*OWN_FILES, *WANDB_FILES, "config.json", "curves.csv.gz", ".lock"))
            check(not own, option, "not name a file that the run itself wrote", files[0])


def folder_of(model: Path) -> Path:
    return model if model.is_dir() else model.parent


def own_stem(model: Path) -> str:
    """What tells the files made from a model from those of other models in its folder; empty for that of a run."""
    return model.stem if model.is_file() and model.stem not in ("model", "model_packed") else ""


def recorded_options(model: Path) -> dict:
    """The options of the run that saved a model; empty if they are not known."""
    return read_config(folder_of(model)).get("options", {})


def load(model: Path | str, network_class: type[nn.Module], env_id: str | None = None) -> tuple[nn.Module, str]:
    """The network of a saved model, as its run evaluated it, and its game. Raises UserError for any other file."""
    model = Path(model)
    if not model.exists():
        raise UserError(f"MODEL must be a run folder or a model file, got {model}: no such file")
    if model.is_dir() and not any((model / name).is_file() for name in MODELS):
        raise UserError(f"MODEL must be the folder of a run that has finished and saved its model, got {model}: no {MODELS[0]}")
    env_id = env_id or recorded_options(model).get("env_id")
    check(env_id is not None, "env_id", f"be given where no config.json of a run lies in {folder_of(model)}", env_id)
    num_actions = AtariGames(env_id, 1, 0).num_actions
    try:
        weights = load_weights(model)
        widths = [len(weights[f"{name}.weight"]) for name in ("conv1", "conv2", "conv3", "fc1")]
        if not min(widths) or not all(t.isfinite().all() for t in weights.values()):
            raise ValueError("a layer without units, or weights that are not finite")
        network = network_class(num_actions, widths)
        if types := {t.dtype for t in weights.values()} - {torch.float32}:
            raise TypeError(f"tensors of {types}")
        network.load_state_dict(weights)
    except Exception as error:  # whatever the readers say of a stranger's file, in any number of lines
        algorithm = read_config(folder_of(model)).get("algorithm")
        given = f"{model} of a {str(algorithm).upper()} run" if algorithm else model
        reason = shorten(f"{type(error).__name__}: {error}", 300)
        raise UserError(f"MODEL must be a saved {network_class.__name__} for {env_id}, got {given}: {reason}") from None
    return network, env_id


def count_nonzero(network: nn.Module) -> int:
    return sum(int(p.count_nonzero()) for p in network.parameters())


def run(
    args: Args, network_class: type[nn.Module], make_policy: Callable, how: str, prunable: Callable, make_masks: Callable
) -> None:
    """Load a model, prune it if asked, play its games, print and write their scores. `how` says which policy plays."""
    check(args.eval_episodes >= 1, "eval_episodes", "be at least 1", args.eval_episodes)
    check(args.seed >= 0, "seed", "be at least 0", args.seed)
    check(0 <= args.prune_rate < 1, "prune_rate", "lie in [0, 1)", args.prune_rate)
    for name in ("prune_rate", "prune_scope", "prune_bias", "prune_head"):
        given = getattr(args, name)
        check(args.prune_type != "none" or given == getattr(Args, name), name, "come with --prune-type l1 or random", given)
    parts = [f"games-{args.eval_episodes}", f"s{args.seed}", how.replace(" ", "-")]
    if args.prune_type != "none":
        parts += [f"{args.prune_type}-{args.prune_rate:g}", args.prune_scope]
        parts += ["no-bias"] * (not args.prune_bias) + ["no-head"] * (not args.prune_head)
    parts += [args.env_id.replace("/", "-")] if args.env_id else []
    parts += filter(None, [own_stem(args.model)])
    out = args.out or folder_of(args.model) / f"{'_'.join(parts)}.csv"
    torch.set_flush_denormal(True)  # as in training; threads that torch starts in `load` inherit it
    network, env_id = load(args.model, network_class, args.env_id)
    check_out("out", out, model=args.model)
    if args.capture_video:
        check(out.suffix != ".mp4", "out", "not end in .mp4, as the video does", out)
        check_out("out", out, out.with_suffix(".mp4"))

    tensors = prunable(network, args.prune_bias, args.prune_head)
    masks = make_masks(tensors, args.prune_type, args.prune_rate, args.prune_scope, derive_seed(args.seed, "mask"))
    nonzero = count_nonzero(network)
    for name, mask in masks.items():
        tensors[name].masked_fill_(mask == 0, 0.0)
    if masks:
        left = count_nonzero(network)
        print(f"pruning left {left:,} of {nonzero:,} entries that are not zero" + "; nothing changed" * (left == nonzero))
    policy = make_policy(network, derive_seed(args.seed, "evaluation"))
    games = play(policy, env_id, args.eval_episodes, derive_seed(args.seed, "games"))
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, games[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(games)

    score = statistics([game["return"] for game in games])
    spread = "" if score["std"] is None else f", std {score['std']:.1f}, 95 % interval {np.round(score['ci95'], 1)}"
    print(f"{args.model}: {score['n']} games of {env_id}, {how}, mean return {score['mean']:.1f}{spread}; games in {out}")
    sizes = storage_bytes(network.state_dict()).items()
    print("bytes on disk: " + ", ".join(f"{size:,} as {name}" for name, size in sizes))
    if args.capture_video:
        video = out.with_suffix(".mp4")
        print(f"recorded a game with a return of {record_video(policy, env_id, args.seed, video):.0f}: {video}")

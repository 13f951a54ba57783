"""The ground floor: errors and exit codes, messages, the command line, seeds, atomic writes."""

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Annotated

import docstring_parser
import torch
import tyro
from tqdm import tqdm

Tensors = dict[str, torch.Tensor]
"""tensors by name: weights, masks, units that stay"""


class UserError(ValueError):
    """What a user typed wrong: shown as one line."""

    exit_code = 2


class Busy(Exception):
    """Another process holds the run folder."""

    exit_code = 75


class Stop(BaseException):
    """A signal asked the run to end: exit code 128 + its number."""


def check(holds: bool, option: str, rule: str, value) -> None:
    """Raise UserError unless the rule holds: "--flag must rule, got value"."""
    if not holds:
        raise UserError(f"--{option.replace('_', '-')} must {rule}, got {value}")


def check_file(option: str, path: Path) -> None:
    """Raise UserError unless a file can be written there. Call it before hours of work."""
    writable = os.access(path.parent, os.W_OK | os.X_OK) and not path.is_dir()
    writable = writable and (not path.exists() or os.access(path, os.W_OK))
    check(writable, option, "be a file in a folder that can be written", path)


def say(message: str, error: bool = False) -> None:
    """Print a line above the progress bar. Output that can't be written never ends a training."""
    stream = sys.stderr if error else sys.stdout
    with suppress(OSError, ValueError, AttributeError):
        tqdm.write(message, file=stream)
        stream.flush()


@contextmanager
def exit_codes():
    """End the process with a line and a code: 2 for a user's mistake, 75 a folder in use, 1 a fault, 128 + n signal n."""
    try:
        yield
    except (UserError, Busy, OSError, FloatingPointError, torch.OutOfMemoryError) as error:
        say(f"error: {error}", error=True)
        sys.exit(getattr(error, "exit_code", 1))
    except Stop as stop:
        sys.exit(128 + stop.args[0])
    except KeyboardInterrupt:  # before the run installed its own handler
        sys.exit(130)


GROUPS = {
    "pruning": "prune_type prune_rate prune_at prune_cuts prune_until prune_scope prune_bias prune_head",
    "run_folder": "runs_dir run_name overwrite checkpoint_minutes fork_from fork_seed until_cut save_model",
    "logging": "track wandb_project_name wandb_entity capture_video exp_name",
    "machine": "cuda precision num_threads torch_deterministic",
}
"""headings of --help and the options below them; all others stand below `algorithm`"""


def parse_options(options: Callable, description: str, words: list[str] | None = None):
    """Options from the command line: an instance of a flat dataclass, whose docstrings are the help, shown in groups.

    tyro makes groups of nested dataclasses only. So the fields are nested for it, with flags that have no prefix.
    """
    texts = {option.arg_name: option.description for option in docstring_parser.parse_from_object(options).params}
    groups: dict[str, list] = {"algorithm": [], **{title: [] for title in GROUPS}}
    for field in fields(options):
        title = next((title for title, names in GROUPS.items() if field.name in names.split()), "algorithm")
        argument = tyro.conf.arg(prefix_name=False, help=texts[field.name])
        groups[title].append((field.name, Annotated[field.type, argument], field.default))
    nested = make_dataclass("Options", [(title, make_dataclass(title, members)) for title, members in groups.items()])
    parsed = tyro.cli(nested, description=description, args=words)
    return options(**{name: value for group in vars(parsed).values() for name, value in vars(group).items()})


def derive_seed(seed: int, purpose: str) -> int:
    """A seed below 2**30 for a purpose. Each purpose has its own, so no two parts of a run share a random stream."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:4], "big") >> 2


@contextmanager
def seeded(seed: int):
    """Seed torch's global CPU generator inside the block, for library code that draws from it; restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def write_atomically(path: Path, data: bytes | memoryview, keep_previous: bool = False) -> None:
    """Write a file so that a reader, or a crash, finds the old file or the whole new one.

    With keep_previous the old file stays as STEM_previous.SUFFIX. For a moment, between two renames, it is the only one.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        part.unlink(missing_ok=True)  # it would keep a full disk full
        raise
    if keep_previous and path.exists():
        os.replace(path, path.with_stem(path.stem + "_previous"))
    os.replace(part, path)

"""What no skill scores in a game, as `python -m evals.no_skill` measured it: the floor of every figure and sentence."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.views import number
from prune_utils.basics import UserError

COLUMNS = {"env_id", "policy", "epsilon", "games", "mean", "low", "high"}


@dataclass
class NoSkill:
    """Uniform random play and the best of the held actions: rows of the table."""

    random: dict
    held: dict

    @property
    def best(self) -> float:
        return max(self.random["mean"], self.held["mean"])

    @property
    def ceiling(self) -> float:
        """The higher of the upper ends of their 95 % intervals, which may be that of the lower mean."""
        return max(self.random["high"], self.held["high"])

    @property
    def in_words(self) -> str:
        def score(row: dict) -> str:
            mean, low, high = (number(row[key]) for key in ("mean", "low", "high"))
            return f"{mean} (95 % interval {low} to {high}, {row['games']} games)"

        best = f"The best held action, {self.held['policy']}, scores {score(self.held)}."
        return f"No skill in {self.random['env_id']}: uniform random play scores {score(self.random)}. {best}"


def read_no_skill(file: Path) -> dict[str, NoSkill]:
    """Scores of no skill by game; empty where there is no such file."""
    if not file.is_file():
        return {}
    rule = f"--no-skill must be a table of evals.no_skill, got {file}"
    try:
        table = pd.read_csv(file).reindex(columns=sorted(COLUMNS))  # nan where a column is missing
        numbers = sorted(COLUMNS - {"env_id", "policy"})
        table[numbers] = table[numbers].apply(pd.to_numeric)
    except (OSError, ValueError) as error:
        raise UserError(f"{rule}: {error}") from None
    if table.isna().any(axis=None):
        raise UserError(f"{rule}: it lacks {', '.join(table.columns[table.isna().any()])}")
    games = {}
    for env_id, rows in table.groupby("env_id"):
        random, held = rows[rows.policy == "random"], rows[rows.policy != "random"]
        if len(random) and len(held):
            games[str(env_id)] = NoSkill(random.iloc[0].to_dict(), held.loc[held["mean"].idxmax()].to_dict())
    return games


def missing(env_id: str) -> str:
    return f"No skill in {env_id}: not measured; python -m evals.no_skill --env-id {env_id} measures it."

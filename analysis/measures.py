"""The numbers of a report: the rows of each table, computed from the arms of its studies."""

from collections.abc import Iterable
from itertools import combinations

import numpy as np

from analysis import paired
from analysis.design import BINS, CONTROLS, DECLARED, EQUAL, FEW_DISTINCT, HELD, MARGIN, MIN_SEEDS, OF_GAMES, QUANTITIES
from analysis.no_skill import NoSkill
from analysis.runs import MOMENTS
from analysis.studies import Arm, Study, mean, mean_bins
from prune_utils.run import CRITERIA


def role(study: Study, arm: Arm) -> str:
    if arm.rate >= CONTROLS and arm.plain:  # a variant may lose less, so it can't show what would be seen
        return "positive control"
    if arm.kind in CRITERIA:
        return "declared" if study.declares and arm.label == DECLARED else "exploratory"
    return {"none": "dense", "A/A": "A/A", "small": "control"}[arm.kind]


def interval(prefix: str, ends) -> dict[str, float]:
    """A mean and the two ends of its interval, as columns."""
    return dict(zip((prefix, f"{prefix}_low", f"{prefix}_high"), map(float, ends), strict=True))


def against(prefix: str, scores: np.ndarray, references: np.ndarray, shares: bool, level: float = paired.LEVEL) -> dict:
    """Mean paired difference in points and, with `shares`, as a share of the mean reference; empty without pairs."""
    if not len(scores):
        return {}
    nothing = np.full(3, np.nan)
    row = interval(prefix, paired.ratio_interval(scores - references, references, level) if shares else nothing)
    return row | interval(f"{prefix}_points", paired.t_interval(scores - references, level))


# ---------------------------------------------------------------------------------------------------------------- returns
def comparisons(study: Study) -> tuple[list[dict], list[dict], list[dict]]:
    """The rows of three tables: changes against dense, trends, and variants against a plain cut.

    Simultaneous intervals are made within a family. The exploratory changes and the trends are one family, the positive
    controls are another, and the variants a third. So comparing variants with plain cuts does not widen the intervals against
    dense.
    """
    changes, trends = changes_table(study, study.arms, QUANTITIES), trend_table(study)
    variants = changes_table(study, study.variants, [name for name in QUANTITIES if name != "shock"])
    exploratory, controls = ([row for row in changes if row["role"] == role] for role in ("exploratory", "positive control"))
    for rows in (exploratory + trends, controls, variants):
        family = [row for row in rows if len(row["scores"]) > 1]
        for row in family:
            row["family"] = len(family)
        for row in rows:
            level = paired.simultaneous(len(family))
            row |= against("simultaneous", row["scores"], row["references"], row["shares"], level)
    for row in changes + trends + variants:
        del row["scores"], row["references"], row["shares"]
    return changes, trends, variants


def changes_table(study: Study, arms: list[Arm], quantities: Iterable[str]) -> list[dict]:
    """Each arm against its twins in these quantities. `scores` and `references` are the pairs of the return after the cut."""
    rows = []
    for arm in arms:
        contrasts = {quantity: arm.contrast(quantity) for quantity in quantities}
        if not any(len(scores) for scores, _ in contrasts.values()):
            continue
        row = {"study": study.label, "arm": arm.label, "role": role(study, arm), "rate": arm.rate}
        pairs = len(contrasts["after_cut"][0])
        row |= {"pairs": pairs, "lacking": len(arm.twins) - pairs, "runs": len(arm.all_runs)}
        row["against"] = next(iter(arm.twins.values()))[0].label
        (row["scores"], row["references"]), row["shares"] = contrasts["after_cut"], arm.shares
        for quantity, (scores, references) in contrasts.items():
            row |= against(quantity, scores, references, arm.shares)
        rows.append(row)
    return rows


def returns_table(study: Study, no_skill: NoSkill | None) -> list[dict]:
    """The returns themselves, and which of them are not clearly above what no skill scores.

    As in the declared answer, the interval of enough seeds has to lie above it, or else their mean.
    """
    rows, headings = [], QUANTITIES | {"before_prune": "before the cut", "after_prune": "right after the cut"}
    for arm in study.arms:
        row = {"study": study.label, "arm": arm.label, "role": role(study, arm), "rate": arm.rate, "seeds": len(arm.runs)}
        row["runs"], low = len(arm.all_runs), []
        for quantity in ("after_cut", "late", "final", "before_prune", "after_prune"):
            if len(scores := arm.quantity(quantity)):
                ends = paired.t_interval(scores)
                row |= interval(quantity, ends) | {f"{quantity}_seeds": len(scores)}
                least = ends[1] if len(scores) >= MIN_SEEDS else ends[0]
                shared = quantity == "before_prune" and arm.kind not in ("none", "small") and study.dense  # dense's network
                shared = shared or (quantity == "after_prune" and arm.kind == "A/A")
                low += [headings[quantity]] if no_skill and not least > no_skill.ceiling and not shared else []
        row["not_above_no_skill"] = ", ".join(low)
        rows.append(row)
    return rows


def evaluations_table(study: Study, no_skill: NoSkill | None) -> list[dict]:
    """Every evaluation: how many of its games are distinct, the share of its commonest action, and what these two say.

    Up to the cut all arms of a seed are one network, and its dense runs stay so until training goes on. It is counted once.
    """
    rows = []
    for arm in study.arms:
        for moment in MOMENTS if arm.kind in ("none", "small") or not study.dense else MOMENTS[1:]:
            runs = arm.all_runs if moment == "final" or arm.rate else [of_seed[0] for of_seed in arm.runs.values()]
            runs = [run for run in runs if moment in run.scores]
            if not runs or arm.kind == "A/A":
                continue
            games = [run.games_of(moment) for run in runs]
            counts = [(len(of_run.drop_duplicates(["return", "length"])), len(of_run)) for of_run in games]
            distinct, played = min(counts, key=lambda count: count[0] / count[1])
            row = {"study": study.label, "arm": arm.label, "moment": moment, "networks": len(runs)}
            row |= {"mean": float(np.mean(arm.quantity(moment))), "games": played, "distinct": distinct}
            shares = [share for run in runs if not np.isnan(share := run.commonest_action(moment))]
            row["commonest_action"] = max(shares) if shares else np.nan
            row["held"] = ""
            if held := sum(share >= HELD for share in shares):
                row["held"] = f"{held} of {len(runs)} networks"
            unrecorded = [count for run, count in zip(runs, counts, strict=True) if np.isnan(run.commonest_action(moment))]
            if few := [(n, of) for n, of in unrecorded if of >= OF_GAMES and n < FEW_DISTINCT * of]:
                n, of = min(few, key=lambda count: count[0] / count[1])
                row["held"] += "; " * bool(row["held"]) + f"perhaps: only {n} of {of} games are distinct"
            row["not_above_no_skill"] = "yes" if no_skill and row["mean"] <= no_skill.ceiling else ""
            rows.append(row)
    return rows


def bins_table(study: Study) -> list[dict]:
    """The training return in each bin after the cut, and its paired change."""
    rows = []
    for arm in study.arms:
        own = mean_bins(arm.runs.values())
        changes, pairs = changes_by_bin(arm)
        for k in range(BINS):
            row = {"study": study.label, "arm": arm.label, "bin": k + 1, "mean": own[k].mean(), "pairs": pairs}
            rows.append(row | (interval("change", [ends[k] for ends in changes]) if pairs else {}))
    return rows


def changes_by_bin(arm: Arm) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], int]:
    """Paired change in each bin after the cut, and the ends of its 95 % interval; the number of pairs."""
    if not arm.twins:
        return (np.full(BINS, np.nan),) * 3, 0
    own, twins = mean_bins(arm.runs[seed] for seed in arm.twins), mean_bins(arm.twins.values())
    if not arm.shares:
        return (np.full(BINS, np.nan),) * 3, own.shape[-1]
    return paired.ratio_interval(own - twins, twins), own.shape[-1]


def recovery_table(study: Study) -> list[dict]:
    """How long each arm took to come back to its level before the cut, over the seeds in which a run has enough games to tell.

    A pruned agent that is stuck where its twin has these games is never back, and its area is unknown.
    A seed has the mean over its runs, so it is never back if one of them is not.
    """
    rows = []
    for arm in study.arms:
        beside = {seed: [*runs, *arm.twins.get(seed, [])] for seed, runs in arm.runs.items()}
        enough = {seed for seed, runs in beside.items() if not all(np.isnan(run.recovery["area"]) for run in runs)}
        judged = {seed: runs for seed, runs in arm.runs.items() if seed in enough}
        if not judged:
            continue
        levels, backs, areas = (
            [np.mean([run.recovery[key] for run in runs]) for runs in judged.values()] for key in ("level", "back", "area")
        )
        level, area = np.mean(levels), np.mean(areas)  # nan if one of them is
        steps_left = np.mean([run.summary["global_step"] - run.cut_step for runs in judged.values() for run in runs])
        row = {"study": study.label, "arm": arm.label, "seeds": len(judged), "level": level}
        row |= {"back": int(np.isfinite(backs).sum()), "steps_until_back": float(np.median(backs)), "area": area}
        rows.append(row | {"area_share": area / (level * steps_left) if level > 0 else np.nan})
    return rows


def trend_table(study: Study) -> list[dict]:
    """The slope of the return after the cut over the rate, per criterion; dense has rate 0, rates from CONTROLS on are left
    out.

    The rates are those, at least two, that the largest number of seeds have in common. Of two sets with as many seeds, the
    larger set of rates is taken.
    """
    rows = []
    for criterion, arms in study.by_criterion().items():
        pairs = {arm.rate: arm.pairs("after_cut") for arm in arms}
        pairs = {rate: by_seed for rate, by_seed in pairs.items() if 0 < rate < CONTROLS and by_seed}
        common = [set(one) & set(other) for one, other in combinations(pairs.values(), 2)]
        designs = [(sorted(seeds), [rate for rate in pairs if seeds <= set(pairs[rate])]) for seeds in common]
        seeds, rates = max(designs, key=lambda design: tuple(map(len, design)), default=([], []))
        if not seeds:
            continue
        dense = [pairs[rates[0]][seed][1] for seed in seeds]
        scores = np.array([dense, *([pairs[rate][seed][0] for seed in seeds] for rate in rates)])
        slopes = paired.slopes(scores, np.array([0.0, *rates])) / 10  # per 0.1 of rate
        stuck = {s for arm in arms if 0 < arm.rate < CONTROLS for s in arm.twins if s not in pairs.get(arm.rate, {})}
        row = {"study": study.label, "criterion": criterion, "pairs": len(seeds), "lacking": len(stuck)}
        row["rates"] = " ".join(f"{rate:g}" for rate in [0.0, *rates])
        # as a share: slope and dense are a pair, and so are slope + dense and dense
        row |= {"role": "exploratory", "shares": all(arm.shares for arm in arms)}
        rows.append(row | {"scores": scores[0] + slopes, "references": scores[0]})
    return rows


def noise_table(study: Study) -> list[dict]:
    """How far arm - (1 - MARGIN) * dense deviates between seeds, and the power that this gives the declared test.

    There is a row per source. The first is the declared pairs themselves. The others are those of `paired.run_deviation`,
    pooled over all arms below CONTROLS, each in shares of its mean. A cut at rate 0 removes nothing, so it is no arm here.
    """
    arms = [arm for arm in study.arms if arm.kind == "none" or 0 < arm.rate < CONTROLS]
    values, of_arms, of_seeds = [], [], []
    for arm in arms if study.dense else []:
        returns = {run: run.value("after_cut") for s in study.dense.runs for run in arm.runs.get(s, [])}
        returns = {run: value for run, value in returns.items() if not np.isnan(value)}
        if returns and arm.shares and min(returns.values()) > 0:  # a share of a return that may be 0 says nothing
            middle = np.mean(list(returns.values()))
            values += [value / middle for value in returns.values()]
            of_arms += [arm.label] * len(returns)
            of_seeds += [run.seed for run in returns]
    if not values:
        return []
    declared, rows = study.arm(DECLARED), []
    pairs = [(len(declared.runs[s]), len(declared.twins[s])) for s in declared.pairs("after_cut")] if declared else []
    own, dense = np.mean([[1 / k for k in pair] for pair in pairs or [(1, 1)]], axis=0)
    scale = float(np.sqrt(own + (1 - MARGIN) ** 2 * dense))  # of arm - (1 - MARGIN) * dense, each a mean over its runs
    deviations = paired.run_deviation(np.array(values), of_arms, of_seeds)
    sources = {source: (*(scale * float(end) for end in ends), df) for source, (*ends, df) in deviations.items()}
    if declared and len(pairs) > 1 and declared.shares:
        scores, twins = declared.contrast("after_cut")
        squares = float((scores - (1 - MARGIN) * twins).var() * len(pairs) / twins.mean() ** 2)
        if squares > 1e-18:  # else the seeds agree to the last bit, as in no real study
            sources = {f"the pairs of {DECLARED}": paired.deviation_interval(squares, len(pairs) - 1)} | sources
    for source, (middle, low, high, df) in sources.items():
        row = {"study": study.label, "source": source, "df": df, "pairs": len(pairs)}
        row |= interval("deviation", (middle, low, high))
        row |= interval("needed", map(paired.seeds_needed, (middle, low, high)))
        powers = [paired.power(len(pairs), noise) for noise in (middle, high, low)] if len(pairs) > 1 else [np.nan] * 3
        rows.append(row | interval("power", powers))
    return rows


def aggregate_table(studies: list[Study]) -> list[dict]:
    """Interquartile mean over several games of the change of the return after the cut. Seeds are the sample, as clusters.

    `left_out` names games that have no share of dense, and seeds that have no return after the cut in a game.
    """
    families: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    left_out: dict[tuple[str, str], list[str]] = {}
    for study in studies:
        for arm in study.arms:
            if not arm.rate or not arm.twins:
                continue
            pairs, key, env_id = arm.pairs("after_cut"), (study.first.study_key(("env_id",)), arm.label), study.first.env_id
            without = left_out.setdefault(key, [])
            if not pairs or not arm.shares or min(twin for _, twin in pairs.values()) <= 0:  # its shares say nothing
                without.append(env_id)
            else:
                without += [f"seed {seed} of {env_id}" for seed in arm.twins if seed not in pairs]
                dense = np.mean([twin for _, twin in pairs.values()])
                family = families.setdefault(key, {})
                family[study.label] = {seed: (score - twin) / dense for seed, (score, twin) in pairs.items()}
    rows = []
    for key, games in families.items():
        seeds = sorted(set.intersection(*map(set, games.values())))
        if len(games) > 1 and len(seeds) > 1:
            changes = np.array([[game[seed] for seed in seeds] for game in games.values()])
            row = {"studies": "; ".join(games), "arm": key[1], "games": len(games), "seeds": len(seeds)}
            row["left_out"] = ", ".join(left_out[key])
            rows.append(row | interval("iqm", paired.over_games(changes)))
    return rows


# ----------------------------------------------------------------------------------------------------------------- others
def costs_table(study: Study) -> list[dict]:
    rows = []
    for arm in study.arms:
        if arm.kind == "A/A":
            continue
        summaries = [run.summary for run in arm.all_runs]
        row = {"study": study.label, "arm": arm.label, "seeds": len(arm.runs), "runs": len(summaries)}
        row |= {name: float(np.mean([s[name] for s in summaries])) for name in ("total", "nonzero", "sparsity")}
        row["zeros"] = float(np.mean([s.get("parameters", s["total"]) - s["nonzero"] for s in summaries]))
        row["kept"] = float(np.mean([s["total"] - s["pruned"] for s in summaries]))
        row["emptied"] = ", ".join(sorted({name for s in summaries for name in s["emptied"]}))
        for part in ("disk", "multiply_adds"):
            for name in dict.fromkeys(name for s in summaries for name in s.get(part, {})):
                values = arm.values(lambda run, part=part, name=name: run.summary.get(part, {}).get(name))
                row[f"{part}_{name}"] = values.mean()
        row["resident_bytes"] = arm.values(lambda run: run.summary["resident_bytes"]).mean()
        speeds = [f"agent_steps_per_second_{when}" for when in ("while_learning", "before_cut", "after_cut")]
        for name in (*speeds, "peak_ram_bytes", "peak_gpu_bytes"):
            values = arm.values(lambda run, name=name: run.summary["time"].get(name))
            row[name] = values.mean() if len(values) else np.nan
        rows.append(row)
    return rows


def alike(sizes: dict[Arm, float], apart: float) -> list[list[Arm]]:
    """Groups of arms by size: in a group, none is larger than the smallest by more than the share `apart` of it."""
    groups: list[list[Arm]] = []
    for arm in sorted(sizes, key=sizes.get):
        if not groups or sizes[arm] > (1 + apart) * sizes[groups[-1][0]]:
            groups.append([])
        groups[-1].append(arm)
    return groups


def equal_parameters_table(study: Study) -> list[dict]:
    """Arms that leave the same share of the dense parameters, within EQUAL.

    A group is shown if one of its arms removed units or is a small network.
    """
    if not study.dense:
        return []
    total, dense = study.dense.all_runs[0].summary["total"], study.dense.quantity_by_seed("after_cut")
    left = {arm: mean(arm.all_runs, lambda run: run.summary["total"] - run.summary["pruned"]) / total for arm in study.arms}
    of_arms = {arm: arm.quantity_by_seed("after_cut") for arm in study.arms if arm.rate or arm.kind == "small"}
    of_arms = {arm: {seed: score for seed, score in of.items() if seed in dense} for arm, of in of_arms.items()}
    groups = alike({arm: left[arm] for arm, of in of_arms.items() if of}, EQUAL)
    groups = [arms for arms in groups if len(arms) > 1 and any(arm.kind == "small" or "structured" in arm.kind for arm in arms)]
    rows = []
    for k, arm in ((k, arm) for k, arms in enumerate(groups) for arm in arms):
        scores, middle = of_arms[arm], np.mean([dense[seed] for seed in of_arms[arm]])
        row = {"study": study.label, "size": k, "left": left[arm], "arm": arm.label, "seeds": len(scores)}
        row |= interval("after_cut", paired.t_interval(np.array(list(scores.values()))))
        row["of_dense"] = row["after_cut"] / middle if middle > 0 else np.nan
        row["disk_packed"] = mean(arm.all_runs, lambda run: run.summary["disk"].get("packed"))
        row["multiply_adds_dense"] = mean(arm.all_runs, lambda run: run.summary.get("multiply_adds", {}).get("dense"))
        speed = mean(arm.all_runs, lambda run: run.summary["time"].get("agent_steps_per_second_after_cut"))
        rows.append(row | {"agent_steps_per_second_after_cut": speed})
    return rows


def health_table(study: Study) -> list[dict]:
    """What each moment showed inside the networks, as means over the seeds. Before the cut all arms are the dense network."""
    rows = []
    for arm in study.arms:
        for moment in MOMENTS if arm.kind in ("none", "small") else MOMENTS[1:]:
            names = dict.fromkeys(name for run in arm.all_runs for name in run.health(moment))
            if not names or arm.kind == "A/A":
                continue
            values = {name: arm.by_seed(lambda run, m=moment, name=name: run.health(m).get(name)) for name in names}
            row = {"study": study.label, "arm": arm.label, "moment": moment, "seeds": max(map(len, values.values()))}
            rows.append(row | {name: float(np.mean(list(of.values()))) for name, of in values.items()})
    return rows


def no_skill_table(games: dict[str, NoSkill]) -> list[dict]:
    rows = []
    for env_id, no_skill in games.items():
        for what, policy in (("uniform random play", no_skill.random), ("best held action", no_skill.held)):
            row = {"game": env_id, "what": what, "games": policy["games"]}
            row |= {"policy": policy["policy"], "epsilon": policy["epsilon"]}
            rows.append(row | interval("mean", [policy[key] for key in ("mean", "low", "high")]))
    return rows


def runs_table(studies: list[Study]) -> list[dict]:
    """Every finished run, with the numbers of its own folder."""
    rows = []
    for study in studies:
        paired_runs = {run for arm in study.arms for s in arm.twins for run in arm.runs[s]}
        for run in [*study.arm_runs, *study.not_compared]:
            row = {"study": study.label, "arm": run.label, "seed": run.seed, "run": run.name}
            row |= {"paired": run in paired_runs, "games": len(run.games_of("final"))}
            row |= {name: run.value(name) for name in ("after_cut", "late", "final", *MOMENTS[:2])}
            rows.append(row | {name: run.recovery[name] for name in ("level", "back", "area")})
    return rows


def rliable_scores(studies: list[Study]) -> dict[str, np.ndarray]:
    """Returns after the cut (seeds, games) of each arm, in rliable's form: of the seeds that the arm has in all its games.

    The name of an arm that has no return in a game of its study ends in "without" and that game.
    """
    arms: dict[str, dict[str, dict[int, float]]] = {}
    for study in studies:
        family = study.label.replace(f", {study.first.env_id}", "")
        for arm in study.arms:
            if arm.kind != "A/A":
                arms.setdefault(f"{family}, {arm.label}", {})[study.first.env_id] = arm.quantity_by_seed("after_cut")
    scores = {}
    for name, of_games in arms.items():
        games = {env_id: of_seeds for env_id, of_seeds in of_games.items() if of_seeds}
        if not games:
            continue
        seeds = sorted(set.intersection(*map(set, games.values())))
        name += "".join(f" without {env_id}" for env_id in sorted(of_games.keys() - games.keys()))
        scores[name] = np.array([[games[env_id][seed] for env_id in sorted(games)] for seed in seeds], float)
    return scores

"""Whole small runs: they learn, prune, log, evaluate and save, and the same command gives the same bits."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from checks.kill_runs import bits
from prune_utils import evaluation
from prune_utils.basics import derive_seed, seeded
from prune_utils.device import peak_ram_bytes, true_fp32
from prune_utils.games import AtariGames
from prune_utils.log import Log
from prune_utils.run import Run, source_files
from tests.conftest import SCRIPTS, SHORT, SMALL, flags, rows, summary, weights

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {"dqn": SCRIPTS["dqn"].QNetwork, "ppo": SCRIPTS["ppo"].Agent}
both = pytest.mark.parametrize("algorithm", ["dqn", "ppo"])


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(int(r["global_step"]), float(r["value"])) for r in rows(folder / "curves.csv") if r["tag"] == tag]


@both
def test_a_run_learns_prunes_logs_evaluates_and_saves(algorithm, small_run):
    script, folder = SCRIPTS[algorithm], small_run(algorithm, prune_type="l1", prune_rate=0.5)
    names = {p.name for p in folder.iterdir() if not p.name.startswith("events.out.tfevents")}
    files = ".lock config.json source curves.csv model.pt model_packed.npz eval.csv summary.json"
    assert names == set(files.split())

    with seeded(derive_seed(1, "network")):
        network = NETWORKS[algorithm](6, script.Args(**SMALL[algorithm]).widths)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    network.load_state_dict(weights(folder))
    for name, t in network.state_dict().items():
        zeros = round(0.5 * t.numel())
        assert zeros <= int((t == 0).sum()) < t.numel() or t.numel() == 1
        assert not torch.signbit(t[t == 0]).any()
        assert not torch.equal(t, before[name]) or t.numel() == 1
    told = summary(folder)
    for name, t in script.prunable(network).items():
        assert told["tensors"][name] == {
            "total": t.numel(),
            "pruned": round(0.5 * t.numel()),
            "nonzero": int(t.count_nonzero()),
        }
    assert told["sparsity"] == told["pruned"] / told["total"] == pytest.approx(0.5, abs=1e-4) and told["arm"] == "l1-0.5"
    assert told["disk"]["dense"] == (folder / "model.pt").stat().st_size
    assert told["disk"]["packed"] == (folder / "model_packed.npz").stat().st_size
    assert told["disk"]["coo"] > told["disk"]["csr_int64"] > told["disk"]["csr_int32"] > 0.99 * told["disk"]["dense"]
    assert 0.45 < told["multiply_adds"]["nonzero"] / told["multiply_adds"]["dense"] <= 0.5
    assert told["time"]["peak_ram_bytes"] > 1e8 and told["time"]["wall_seconds"] > 0
    speed = told["time"]["agent_steps_per_second_while_learning"]
    assert speed is None if algorithm == "dqn" else speed > 0  # a lap of 1000 agent steps after the evaluations' is not there
    assert told["global_step"] == SMALL[algorithm]["total_timesteps"]


def test_the_target_is_synced_where_cleanrl_does_it_though_learning_starts_within_a_step_of_the_games(small_run, monkeypatch):
    # steps of 2 games, after step 299, every 299 steps: at 598 and 897 of 1000, not at 299 itself, which lies in (298, 300]
    synced, sync = [], SCRIPTS["dqn"].sync_target
    monkeypatch.setattr(SCRIPTS["dqn"], "sync_target", lambda *args: synced.append(sync(*args)))
    start = {"learning_starts": 299, "target_network_frequency": 299, "total_timesteps": 1000}
    small_run("dqn", name="synced", prune_type="none", eval_episodes=0, **start)
    assert len(synced) == 2


def test_a_dense_dqn_copies_its_target_at_the_cut_and_tau_and_eval_epsilon_are_those_of_its_options(tmp_path, monkeypatch):
    script, taus, epsilons, equal = SCRIPTS["dqn"], set(), set(), []
    sync, log_cut = script.sync_target, Run.log_cut

    def look(run, *args):
        online, target = (run.parts[name].state_dict() for name in ("q_network", "target_network"))
        equal.append(all(torch.equal(t, target[name]) for name, t in online.items()))
        log_cut(run, *args)

    monkeypatch.setattr(script, "sync_target", lambda *args: taus.add(args[2]) or sync(*args))
    monkeypatch.setattr(Run, "evaluate", lambda run, moment, step, network, policy: epsilons.add(policy.keywords["epsilon"]))
    monkeypatch.setattr(Run, "log_cut", look)
    options = SHORT["dqn"] | {"prune_type": "none", "prune_at": 0.53, "tau": 0.5, "eval_epsilon": 0.3}  # no sync is due at .53
    script.train(script.Args(**options, runs_dir=str(tmp_path)))
    assert taus == {0.5} and epsilons == {0.3} and equal == [True]


def test_speeds_before_and_after_the_cut_are_those_of_their_steps_and_a_model_is_saved_only_if_asked_for(tmp_path, monkeypatch):
    script, summarise = SCRIPTS["ppo"], Run.summarise

    def with_known_clocks(run, *args):
        run.log.steps, run.log.seconds, run.log.at_cut, run.log.wall_seconds = 300, 4.0, (100, 2.0), 1000.0
        return summarise(run, *args)

    monkeypatch.setattr(Run, "summarise", with_known_clocks)
    monkeypatch.setattr(evaluation, "record_video", lambda policy, env_id, seed, path: path.write_bytes(b""))
    folder = script.train(script.Args(**SHORT["ppo"], runs_dir=str(tmp_path), save_model=False, capture_video=True))
    told = summary(folder)["time"]
    assert [told[f"agent_steps_per_second_{when}"] for when in ("before_cut", "after_cut", "while_learning")] == [50, 100, 75]
    assert 1000 < told["wall_seconds"] < 1100  # with those of earlier processes
    assert [path.name for path in folder.iterdir() if path.suffix in (".pt", ".npz", ".mp4")] == ["final.mp4"]


@both
def test_every_moment_has_its_games_with_unclipped_returns_and_start_seeds_of_their_own(algorithm, small_run):
    folder = small_run(algorithm, prune_type="l1", prune_rate=0.5)
    half = SMALL[algorithm]["total_timesteps"] // 2
    games, told = rows(folder / "eval.csv"), summary(folder)["eval"]
    moments = [("before_prune", half), ("after_prune", half), ("final", 2 * half)]
    assert [(g["moment"], int(g["global_step"]), g["episode"]) for g in games] == [(*m, "0") for m in moments]
    assert len({g["seed"] for g in games}) == 3
    for moment, step in moments:
        (score,) = (float(g["return"]) for g in games if g["moment"] == moment)
        assert told[moment]["mean"] == score and 1 / 6 < told[moment]["commonest_action_share"] <= 1
        assert curve(folder, f"eval/{moment}_return") == [(step, score)]
    assert all(float(g["return"]) % 5 == 0 and int(g["length"]) > 100 and g["truncated"] == "False" for g in games)


@both
def test_curves_hold_games_losses_and_the_cut_and_tensorboard_shows_the_same(algorithm, small_run):
    folder = small_run(algorithm, prune_type="l1", prune_rate=0.5)
    losses = {"dqn": "td_loss q_values", "ppo": "policy_loss value_loss entropy approx_kl clipfrac explained_variance"}[
        algorithm
    ]
    for name in losses.split():
        assert all(abs(value) < 1e3 for _, value in curve(folder, f"losses/{name}")) and curve(folder, f"losses/{name}")
    half = SMALL[algorithm]["total_timesteps"] // 2
    assert [step for step, _ in curve(folder, "prune/sparsity")] == [half]
    assert curve(folder, "prune/sparsity_fc1.weight") == [(half, 0.5)]
    returns = curve(folder, "charts/episodic_return")
    assert returns and all(value >= 0 and value % 5 == 0 for _, value in returns)
    assert not [r for r in rows(folder / "curves.csv") if r["tag"] == "charts/SPS"]  # a clock: its bytes would not repeat
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) - {"charts/SPS"} == {r["tag"] for r in rows(folder / "curves.csv")}
    assert [(e.step, e.value) for e in events.Scalars("charts/episodic_return")] == returns


@both
def test_the_same_command_gives_the_same_bits_with_evaluation_and_without_and_another_seed_gives_others(algorithm, small_run):
    options = SHORT[algorithm] | {"prune_type": "l1", "prune_rate": 0.5}
    first, again = small_run(algorithm, "short", **options), small_run(algorithm, "again", **options)
    assert bits(first) == bits(again) and not (first / "eval.csv").exists() and summary(first)["eval"] == {}
    seen, other = (small_run(algorithm, "short", **options | changed) for changed in ({"eval_episodes": 1}, {"seed": 2}))
    assert (seen / "model.pt").read_bytes() == (first / "model.pt").read_bytes() and (seen / "eval.csv").exists()
    assert (other / "model.pt").read_bytes() != (first / "model.pt").read_bytes()


@both
def test_up_to_the_cut_the_arms_of_a_seed_are_the_same_run(algorithm, small_run):
    half = SMALL[algorithm]["total_timesteps"] // 2
    arms = [
        small_run(algorithm, prune_type="l1", prune_rate=0.5),
        small_run(algorithm, name="random", prune_type="random", prune_rate=0.8, prune_bias=False),
        small_run(algorithm, prune_type="none"),
    ]
    shared = [[r for r in rows(arm / "curves.csv") if int(r["global_step"]) < half] for arm in arms]
    assert len(shared[0]) >= 3 and shared[0] == shared[1] == shared[2]
    before = [[g for g in rows(arm / "eval.csv") if g["moment"] == "before_prune"] for arm in arms]
    assert before[0] == before[1] == before[2]
    starts = [[(g["moment"], g["seed"]) for g in rows(arm / "eval.csv")] for arm in arms]
    assert starts[0] == starts[1] == starts[2]
    assert len({(arm / "model.pt").read_bytes() for arm in arms}) == 3
    counts = summary(arms[1])["tensors"]
    assert all(c["pruned"] == (round(0.8 * c["total"]) if name.endswith("weight") else 0) for name, c in counts.items())
    assert summary(arms[2])["pruned"] == 0 and summary(arms[2])["effective_prune_rate"] == 0


@pytest.mark.parametrize(("algorithm", "prune_at"), [("ppo", 0.0), ("dqn", 1.0)])
def test_a_cut_at_0_is_before_the_first_step_and_at_1_after_the_last(algorithm, prune_at, small_run):
    more = {"dqn": {"tau": 0.5}, "ppo": {"anneal_lr": False, "target_kl": 1e-9, "clip_vloss": False}}
    options = {"prune_at": prune_at, "prune_scope": "global", "prune_rate": 0.3, "eval_episodes": 2} | more[algorithm]
    folder = small_run(algorithm, f"at{prune_at:g}", **(SHORT[algorithm] | options))
    total = summary(folder)["global_step"]
    games = rows(folder / "eval.csv")
    assert [int(g["global_step"]) for g in games] == [int(prune_at * total)] * 4 + [total] * 2
    assert len({g["seed"] for g in games}) == 6 and [g["episode"] for g in games] == ["0", "1"] * 3
    mean = sum(float(g["return"]) for g in games[4:]) / 2
    assert summary(folder)["eval"]["final"]["mean"] == mean and curve(folder, "eval/final_return") == [(total, mean)]
    zeros = sum(int((t == 0).sum()) for t in weights(folder).values())
    assert summary(folder)["pruned"] == round(0.3 * summary(folder)["total"]) <= zeros
    assert [step for step, _ in curve(folder, "prune/sparsity")] == [int(prune_at * total)]
    if algorithm == "ppo":  # at its start biases are 0, and the actor is a hundred times smaller than the other layers
        assert "actor.weight" in summary(folder)["emptied"]
        assert {value for _, value in curve(folder, "charts/learning_rate")} == {2.5e-4}  # --no-anneal-lr


@both
def test_a_cut_that_removes_nothing_changes_nothing(algorithm, small_run):
    dense, cut = (
        small_run(algorithm, "short", **SHORT[algorithm] | {"prune_type": kind, "prune_rate": 0.0}) for kind in ("none", "l1")
    )
    assert all(torch.equal(t, weights(cut)[name]) for name, t in weights(dense).items())


def test_a_run_says_what_it_does_and_ends_with_its_scores_sparsity_bytes_and_folder(tmp_path, capsys):
    options = SHORT["ppo"] | {"eval_episodes": 1, "prune_rate": 0.5, "runs_dir": str(tmp_path), "cuda": False}
    folder = SCRIPTS["ppo"].train(SCRIPTS["ppo"].Args(**options))
    told, output = summary(folder), capsys.readouterr()
    score = {moment: f"{statistics['mean']:.1f}" for moment, statistics in told["eval"].items()}
    scores = f"{score['before_prune']} before the cut, {score['after_prune']} right after the cut, {score['final']} at the end"
    assert output.err == "" and output.out.splitlines() == [
        "step 80: playing 1 evaluation game before the cut",
        f"mean return before the cut: {score['before_prune']}",
        f"step 80: the cut removed {told['pruned']:,} of {told['total']:,} entries (50.0%)",
        "step 80: playing 1 evaluation game right after the cut",
        f"mean return right after the cut: {score['after_prune']}",
        "step 160: playing 1 evaluation game at the end",
        f"mean return at the end: {score['final']}",
        f"finished: mean return {scores}; sparsity 0.50; {told['disk']['dense']:,} bytes dense, "
        f"{told['disk']['packed']:,} packed; {folder}",
    ]


@pytest.mark.parametrize(("eval_episodes", "said"), [(0, ""), (1, ", so its evaluations before and after differ by chance")])
def test_a_dense_run_says_at_its_cut_that_nothing_is_pruned(eval_episodes, said, tmp_path, capsys):
    options = {"prune_type": "none", "eval_episodes": eval_episodes, "runs_dir": str(tmp_path)}
    SCRIPTS["ppo"].train(SCRIPTS["ppo"].Args(**SHORT["ppo"] | options))
    assert f"step 80: a dense run: nothing is pruned{said}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"learning_starts": 100}, False),  # cut at step 120
        ({"learning_starts": 120}, True),
        ({"learning_starts": 100, "prune_at": 0.0}, False),  # sparse from scratch
        ({"learning_starts": 100, "prune_at": 0.0, "prune_cuts": 2, "prune_until": 0.25}, True),
    ],
)
def test_a_dqn_that_is_cut_before_it_learns_is_warned_of(options, warned, tmp_path, capsys):
    SCRIPTS["dqn"].train(SCRIPTS["dqn"].Args(**SHORT["dqn"] | options | {"runs_dir": str(tmp_path), "cuda": False}))
    assert ("warning: a cut comes before --learning-starts" in capsys.readouterr().err) == warned


def test_the_speed_of_a_run_is_that_of_its_learning_without_the_first_lap_after_a_start_or_an_evaluation(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    log = Log(
        tmp_path, {"options": {"total_timesteps": 100, "track": False}}, None, None, 0, forked=False, check_folder=lambda: None
    )
    # until 20 it does not learn; 20 to 30 in 1 s counts; an evaluation; 30 to 40 warms up; 40 to 60 in 4 s counts
    for seconds, step, learning in (
        (1, 10, False),
        (3, 20, True),
        (4, 30, True),
        (100, 30, None),
        (102, 40, True),
        (106, 60, True),
    ):
        now[0] = seconds
        log.restart_clock(step) if learning is None else log.progress(step, {}, learning)
    state = log.state_dict()
    assert (state["steps"], state["seconds"]) == (10 + 20, 1 + 4)
    again = [
        Log(tmp_path, {"options": {"total_timesteps": 100, "track": False}}, None, state, 60, forked, check_folder=lambda: None)
        for forked in (False, True)
    ]
    assert [(each.steps, each.seconds) for each in again] == [(30, 5.0), (0, 0.0)]
    for each in (log, *again):
        each.close()


def test_each_1000_steps_a_dqn_logs_its_last_update_and_the_epsilon_that_it_acted_with(tmp_path, monkeypatch):
    dqn, told = SCRIPTS["dqn"], []
    update = dqn.update

    def update_and_keep(*arguments):
        told.append(update(*arguments).tolist())
        return torch.tensor(told[-1])

    monkeypatch.setattr(dqn, "update", update_and_keep)
    options = SHORT["dqn"] | {"total_timesteps": 1100, "learning_starts": 900, "exploration_fraction": 1.0, "cuda": False}
    folder = dqn.train(dqn.Args(runs_dir=str(tmp_path), prune_type="none", **options))
    (td_loss,), (q_values,), (epsilon,) = (
        curve(folder, tag) for tag in ("losses/td_loss", "losses/q_values", "charts/epsilon")
    )
    assert [td_loss, q_values] == [(1000, loss) for loss in told[24]]  # (1000 - 900) / 4 = 25 updates
    assert epsilon == (1000, pytest.approx(1 - 0.99 * 998 / 1100))  # of the step of 2 games from 998 on


def test_without_a_terminal_a_line_each_minute_tells_step_speed_and_the_mean_of_the_last_games(tmp_path, monkeypatch, capsys):
    now, config = [0.0], {"options": {"total_timesteps": 100_000, "track": False}}
    for clock in ("perf_counter", "monotonic"):
        monkeypatch.setattr(f"time.{clock}", lambda: now[0])
    log = Log(tmp_path, config, None, None, 0, forked=False, check_folder=lambda: None)
    log.recent_returns.extend([20.0, 50.0])
    for seconds, step in ((10, 10_000), (61, 20_200), (90, 30_000), (121, 45_500)):
        now[0] = seconds
        log.progress(step, {}, learning=True)
    log.close()
    # 10,200 steps in 51 s, and 15,500 in 31 s
    lines = ["step 20,200 of 100,000, 200 steps/s, return 35.0", "step 45,500 of 100,000, 500 steps/s, return 35.0"]
    assert capsys.readouterr().out.splitlines() == lines


@both
def test_the_cut_is_evaluate_mask_sync_log_evaluate_in_this_order(algorithm, tmp_path, monkeypatch):
    script, order, masks = SCRIPTS[algorithm], [], []
    names = {"evaluate": Run, "save_prune_point": Run, "log_cut": Run, "make_masks": script, "apply_masks": script}

    def watch(name, function):
        def call(*args):
            order.append(args[1] if name == "evaluate" else name)
            if name == "apply_masks":
                masks.append(args[2])
            return function(*args)

        return call

    for name, home in names.items():
        monkeypatch.setattr(home, name, watch(name, getattr(home, name)))
    networks, log_cut = [], Run.log_cut

    def look(run, *args):
        state = {name: part.state_dict() for name, part in run.parts.items() if name in ("q_network", "target_network")}
        networks.append({name: {key: t.clone() for key, t in each.items()} for name, each in state.items()})
        log_cut(run, *args)

    monkeypatch.setattr(Run, "log_cut", look)
    script.train(script.Args(**SHORT[algorithm] | {"prune_rate": 0.5, "runs_dir": str(tmp_path)}))
    assert order == ["before_prune", "make_masks", "apply_masks", "log_cut", "after_prune", "final"]
    if algorithm == "dqn":  # the target is as sparse as the network, at once
        (state,) = networks
        for name, mask in masks[0].items():
            assert torch.equal(state["target_network"][name], state["q_network"][name]), name
            assert not state["target_network"][name][mask == 0].any()


def test_ppo_learns_from_the_very_frames_that_it_acted_on_and_they_lie_channels_last(monkeypatch, tmp_path):
    ppo, seen, learned = SCRIPTS["ppo"], [], []
    send, update = ppo.AtariGames.send, ppo.update

    def send_and_keep(games, actions):
        seen.append(ppo.scaled(torch.from_numpy(games.obs), torch.float32))
        send(games, actions)

    def update_and_keep(agent, fast_agent, optimizer, masks, minibatch, args):
        learned.append(minibatch[0].clone())
        return update(agent, fast_agent, optimizer, masks, minibatch, args)

    monkeypatch.setattr(ppo.AtariGames, "send", send_and_keep)
    monkeypatch.setattr(ppo, "update", update_and_keep)
    options = SMALL["ppo"] | {"total_timesteps": 128, "num_steps": 64, "update_epochs": 1, "eval_episodes": 0, "cuda": False}
    ppo.train(ppo.Args(runs_dir=str(tmp_path), prune_type="none", **options))
    assert all(frames.is_contiguous(memory_format=torch.channels_last) for frames in learned)
    seen, learned = (sorted(frames.numpy().tobytes() for frames in torch.cat(kept)) for kept in (seen, learned))
    assert learned == seen and len(set(seen)) > 50


@both
def test_in_bf16_what_computes_is_the_rounded_network_at_every_moment(algorithm, monkeypatch, tmp_path):
    script, pairs, moments, low_precision = SCRIPTS[algorithm], [], [], SCRIPTS[algorithm].low_precision

    def copy_and_keep(network, *args):
        pairs.append((low_precision(network, *args), network))
        return pairs[-1][0]

    def look(run, moment, *_):
        moments.append(moment)
        for low, network in pairs:
            assert {p.dtype for p in low.parameters()} == {torch.bfloat16, torch.float32}  # body, heads
            for p, master in zip(low.parameters(), network.parameters(), strict=True):
                assert master.dtype == torch.float32 and torch.equal(p, master.to(p.dtype))

    monkeypatch.setattr(script, "low_precision", copy_and_keep)
    monkeypatch.setattr(Run, "evaluate", look)
    options = SHORT[algorithm] | {"precision": "bf16", "prune_rate": 0.5, "runs_dir": str(tmp_path)}
    saved = weights(script.train(script.Args(**options)))["conv1.weight"]
    assert not torch.equal(saved, saved.bfloat16().float())  # the master weights are what is kept
    assert moments == ["before_prune", "after_prune", "final"] and len(pairs) == (2 if algorithm == "dqn" else 1)


@pytest.mark.parametrize(("algorithm", "precision"), [("dqn", "tf32"), ("ppo", "fp32")])
def test_tf32_is_on_where_a_run_trains_in_it_and_off_in_its_evaluations(algorithm, precision, monkeypatch, tmp_path):
    """Of the switches alone: on a CPU they change nothing. tests/test_cuda.py has what they do."""
    script, update, training, evaluation = SCRIPTS[algorithm], SCRIPTS[algorithm].update, [], []
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def update_and_look(*args):
        training.append((matmul.allow_tf32, cudnn.allow_tf32))
        return update(*args)

    def hold_noop(obs):
        evaluation.append((matmul.allow_tf32, cudnn.allow_tf32))
        return torch.zeros(len(obs), dtype=torch.int64)

    monkeypatch.setattr(script, "update", update_and_look)
    monkeypatch.setattr(script, "make_policy", lambda network, seed, **_: hold_noop)
    monkeypatch.setattr("prune_utils.evaluation.AtariGames", partial(AtariGames, max_frames=40))
    resolved = {"device": "cpu", "precision": precision, "num_threads": 1}  # tf32 as on a GPU
    monkeypatch.setattr("prune_utils.device.resolve", lambda *_: dict(resolved))
    with true_fp32():  # afterwards they are as before
        cudnn.allow_tf32 = True  # its default
        folder = script.train(script.Args(**SHORT[algorithm] | {"eval_episodes": 1, "runs_dir": str(tmp_path)}))
    assert len(training) > 30 and set(training) == {(precision == "tf32",) * 2}
    assert len(evaluation) == 33 and set(evaluation) == {(False, False)}  # at each moment 10 steps, and one for health
    assert json.loads((folder / "config.json").read_text())["resolved"].items() >= resolved.items()


@both
def test_the_source_in_a_run_folder_is_all_that_it_takes_to_train_the_same_network_elsewhere(algorithm, small_run, tmp_path):
    folder = small_run(algorithm, "short", **SHORT[algorithm], prune_rate=0.5)
    files = source_files(ROOT / f"{algorithm}_atari_prune.py")
    kept = {file.relative_to(folder / "source"): file.read_bytes() for file in (folder / "source").rglob("*.py")}
    assert kept == {file.relative_to(ROOT): file.read_bytes() for file in files} and len(kept) > 5

    source = shutil.copytree(folder / "source", tmp_path / "elsewhere")
    options = SHORT[algorithm] | {"prune_rate": 0.5, "run_name": "r"}
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path).resolve() != ROOT]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    call = [sys.executable, source / f"{algorithm}_atari_prune.py", *flags(options)]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and ("training on the CPU" in done.stderr) == (not torch.cuda.is_available()), done.stderr
    assert bits(tmp_path / "runs" / "r") == bits(folder)
    configs = [json.loads((place / "config.json").read_text()) for place in (tmp_path / "runs" / "r", folder)]
    assert configs[0]["resolved"] == configs[1]["resolved"] and configs[0]["git"] is None


@both
def test_memory_does_not_grow_with_the_length_of_a_run(algorithm, tmp_path):
    options = SMALL[algorithm] | {"eval_episodes": 0, "prune_type": "none", "num_envs": 8, "runs_dir": tmp_path}
    options |= {"train_frequency": 32} if algorithm == "dqn" else {"update_epochs": 1}
    runs = [
        subprocess.Popen(
            [sys.executable, str(ROOT / f"{algorithm}_atari_prune.py"), *flags(options | {"total_timesteps": t, "run_name": t})]
        )
        for t in (1024, 6656)
    ]
    assert [run.wait() for run in runs] == [0, 0]
    short, long = (summary(tmp_path / str(t))["time"]["peak_ram_bytes"] for t in (1024, 6656))
    assert long < short + 4000 * 5632  # a frame kept of each further step would be 7056 bytes


def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it():
    with subprocess.Popen(["sleep", "60"]) as small:
        told = peak_ram_bytes(small.pid)
        small.kill()
    assert 0 < told < 5e7 < 1e8 < peak_ram_bytes()

"""Several cuts: the cubic schedule, nested masks, shares per layer by Erdos-Renyi-Kernel, and runs that fork and resume."""

import signal

import pytest
import torch

from analysis.runs import HEADS
from prune_utils.run import Run, default_run_name, load_checkpoint
from tests.conftest import SCRIPTS, SHORT, rows, summary, weights
from tests.test_pruning import NETWORKS, build, criteria, networks, zeros

ALL_SCOPES = pytest.mark.parametrize("scope", ["layer", "global", "erk"])
GRADUAL = {"prune_type": "l1", "prune_rate": 0.8, "prune_cuts": 8, "prune_until": 0.9}
SIZE = {"dqn": SHORT["dqn"], "ppo": SHORT["ppo"] | {"total_timesteps": 320}}
"""120 steps of all games and 20 rollouts: eight cuts with updates between them, and after the last"""
TESTED = ("model.pt", "model_packed.npz", "eval.csv", "curves.csv")


def files(folder):
    return {name: (folder / name).read_bytes() for name in TESTED if (folder / name).exists()}


@networks
@pytest.mark.parametrize(
    ("cuts", "shares"),
    [
        (1, [1.0]),
        (2, [0.875, 1.0]),  # 1 - (1/2)^3
        (8, [169 / 512, 296 / 512, 387 / 512, 448 / 512, 485 / 512, 504 / 512, 511 / 512, 1.0]),  # 1 - (7/8)^3 = 169/512
    ],
)
def test_shares_follow_the_cubic_schedule(algorithm, cuts, shares):
    args = SCRIPTS[algorithm].Args(prune_cuts=cuts, prune_rate=0.8)
    found = [SCRIPTS[algorithm].rate_after(args, k + 1) for k in range(cuts)]
    assert found == pytest.approx([0.8 * share for share in shares])
    assert found[-1] == 0.8  # exactly: one shot prunes what it pruned


@networks
def test_cuts_are_evenly_spaced_and_a_dense_run_has_only_the_first(algorithm):
    script = SCRIPTS[algorithm]
    args = script.Args(prune_cuts=4, prune_at=0.5, prune_until=0.8)
    n = args.num_iterations
    assert script.cut_iterations(args) == [-int(-share * n // 1) for share in (0.5, 0.6, 0.7, 0.8)]
    args.prune_type = "none"
    assert script.cut_iterations(args) == [-int(-0.5 * n // 1)]


@networks
@criteria
@ALL_SCOPES
def test_each_cut_prunes_its_share_of_all_and_what_is_pruned_stays_pruned(algorithm, prune_type, scope):
    network, _ = build(algorithm, hidden_size=64)
    script = SCRIPTS[algorithm]
    args, tensors = script.Args(prune_cuts=4, prune_rate=0.9), script.prunable(network)
    total, masks, generator = sum(t.numel() for t in tensors.values()), {}, torch.Generator().manual_seed(2)
    for cut in range(1, 5):
        rate, before = script.rate_after(args, cut), masks
        masks = script.make_masks(tensors, prune_type, rate, scope, cut, before)
        if scope == "layer":
            assert zeros(masks) == {name: round(rate * t.numel()) for name, t in tensors.items()}
        assert abs(sum(zeros(masks).values()) - rate * total) <= len(tensors) / 2
        for name, t in tensors.items():
            assert masks[name].stride() == t.stride()
            if before:
                assert ((before[name] == 0) <= (masks[name] == 0)).all()
            newly = (masks[name] == 0) & (before.get(name, torch.ones_like(t)) == 1)
            if prune_type == "l1" and scope != "global" and newly.any() and masks[name].any():  # of what was left the smallest
                assert t[newly].abs().max() <= t[masks[name] == 1].abs().min()
            t.copy_(torch.empty_like(t).normal_(generator=generator)).mul_(masks[name])  # trained on: other magnitudes


def test_a_weight_that_is_zero_by_itself_does_not_stand_for_a_pruned_one():
    tensors = {"bias": torch.zeros(10)}  # as PPO's biases begin
    make_masks = SCRIPTS["ppo"].make_masks
    masks = make_masks(tensors, "l1", 0.3, "layer", 0)
    assert zeros(make_masks(tensors, "l1", 0.6, "layer", 0, masks)) == {"bias": 6}


# --------------------------------------------------------------------------------------------------------- shares by layer
def rigl_sparsities(shapes: dict[str, tuple[int, ...]], rate: float) -> dict[str, float]:
    """The sparsities of google-research/rigl, sparse_utils.get_sparsities_erdos_renyi: one dense layer more per round."""
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    dense = set()
    while True:
        raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items() if name not in dense}
        right = sum((1 - rate) * sizes[name] for name in raw) - sum(rate * sizes[name] for name in dense)
        epsilon = right / sum(raw[name] * sizes[name] for name in raw)
        largest = max(raw.values())
        if largest * epsilon <= 1:
            return {name: 0.0 if name in dense else 1 - epsilon * raw[name] for name in shapes}
        dense |= {name for name in raw if raw[name] == largest}


@networks
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8, 0.9, 0.99])
def test_erk_shares_equal_those_of_rigl_and_remove_the_rate_of_the_whole_network(algorithm, bias, rate):
    tensors = SCRIPTS[algorithm].prunable(build(algorithm)[0], bias)
    shares = SCRIPTS[algorithm].erk_rates(tensors, rate)
    assert shares == pytest.approx(rigl_sparsities({name: tuple(t.shape) for name, t in tensors.items()}, rate))
    assert all(0 <= share <= 1 for share in shares.values())
    total = sum(t.numel() for t in tensors.values())
    assert sum(shares[name] * t.numel() for name, t in tensors.items()) == pytest.approx(rate * total)
    masks = SCRIPTS[algorithm].make_masks(tensors, "l1", rate, "erk", 0)
    assert abs(sum(zeros(masks).values()) - rate * total) <= len(tensors)  # within one entry per tensor


def test_erk_shares_worked_by_hand():
    """Sizes 100 and 400, sums of shapes 20 and 40, half to keep: 250 / 60 per unit of shape, so 83.3 and 166.7 are kept."""
    tensors = {"small": torch.zeros(10, 10), "large": torch.zeros(20, 20)}
    for script in SCRIPTS.values():
        assert script.erk_rates(tensors, 0.5) == pytest.approx({"small": 1 - 5 / 6, "large": 1 - 5 / 12})
        # 0.3: 350 / 60 * 20 = 116.7 is more than 100, so small stays whole and large keeps the other 250
        assert script.erk_rates(tensors, 0.3) == pytest.approx({"small": 0.0, "large": 1 - 250 / 400})
        assert script.erk_rates(tensors, 0.0) == {"small": 0.0, "large": 0.0}


def test_the_analysis_knows_the_output_layers_of_both_networks():
    assert set(HEADS) == {head for network in NETWORKS.values() for head in network.HEADS}


@networks
def test_the_output_layers_can_stay_whole(algorithm):
    network, _ = build(algorithm, hidden_size=16)
    heads = NETWORKS[algorithm].HEADS
    names = SCRIPTS[algorithm].prunable(network, head=False)
    assert set(SCRIPTS[algorithm].prunable(network)) - set(names) == {f"{h}.{k}" for h in heads for k in ("weight", "bias")}


# -------------------------------------------------------------------------------------------------------------------- runs
@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_a_gradual_run_prunes_by_its_schedule_and_ends_with_exactly_its_rate(algorithm, small_run):
    script, options = SCRIPTS[algorithm], SIZE[algorithm] | GRADUAL | {"eval_episodes": 1}
    folder, args = small_run(algorithm, **options), script.Args(**options)
    logged = [row for row in rows(folder / "curves.csv") if row["tag"] == "prune/sparsity"]
    steps = [k * args.steps_per_iteration for k in script.cut_iterations(args)]
    assert [int(row["global_step"]) for row in logged] == steps and len(set(steps)) == 8
    shares = [script.rate_after(args, cut) for cut in range(1, 9)]
    assert [float(row["value"]) for row in logged] == pytest.approx(shares, abs=1e-3)
    found = summary(folder)
    assert steps[-1] < found["global_step"]
    assert found["arm"] == "l1-0.8-8cuts" and "__l1-0.8-8cuts__s1__" in default_run_name(args)
    for name, t in weights(folder).items():
        assert found["tensors"][name]["pruned"] == round(0.8 * t.numel()) <= int((t == 0).sum())
    moments = {row["moment"]: int(row["global_step"]) for row in rows(folder / "eval.csv")}
    assert moments == {"before_prune": steps[0], "after_prune": steps[-1], "final": found["global_step"]}


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize("prune_type", ["l1", "random"])
def test_in_a_run_what_is_pruned_is_plus_zero_before_and_after_each_of_8_cuts_and_stays_pruned(
    algorithm, prune_type, tmp_path, monkeypatch
):
    script, cuts = SCRIPTS[algorithm], []
    make_masks, log_cut = script.make_masks, Run.log_cut

    def is_plus_zero(t, mask):
        return not t.detach()[mask == 0].view(torch.int32).any()  # -0.0 has a bit

    def before_cut(tensors, *arguments):
        for masks in cuts[-1:]:
            assert all(is_plus_zero(t, masks[name]) for name, t in tensors.items())
        return make_masks(tensors, *arguments)

    def after_cut(run, *arguments):
        masks = {name: mask.clone() for name, mask in run.parts["masks"].items()}
        rate = script.rate_after(run.args, len(cuts) + 1)
        assert zeros(masks) == {name: round(rate * mask.numel()) for name, mask in masks.items()}
        for earlier in cuts[-1:]:
            assert all(((earlier[name] == 0) <= (mask == 0)).all() for name, mask in masks.items())
        for network in [part for part in run.parts.values() if isinstance(part, torch.nn.Module)]:
            for name, mask in masks.items():
                assert is_plus_zero(network.get_parameter(name), mask)
        network, optimizer = next(iter(run.parts.values())), run.parts["optimizer"]
        for name, mask in masks.items():
            state = optimizer.state[network.get_parameter(name)]
            assert is_plus_zero(state["exp_avg"] + 0.0, mask) and is_plus_zero(state["exp_avg_sq"], mask)
        cuts.append(masks)
        log_cut(run, *arguments)

    monkeypatch.setattr(script, "make_masks", before_cut)
    monkeypatch.setattr(Run, "log_cut", after_cut)
    options = SIZE[algorithm] | GRADUAL | {"prune_type": prune_type, "runs_dir": str(tmp_path)}
    folder = script.train(script.Args(**options))
    assert len(cuts) == 8 and all(is_plus_zero(t, cuts[-1][name].cpu()) for name, t in weights(folder).items())


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_a_gradual_fork_equals_the_run_from_scratch(algorithm, small_run):
    parent = small_run(algorithm, **SIZE[algorithm], prune_type="none")
    fork = small_run(algorithm, fork_from=str(parent), **SIZE[algorithm] | GRADUAL)
    assert files(fork) == files(small_run(algorithm, **SIZE[algorithm] | GRADUAL))


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_cuts_may_reach_from_before_the_first_step_to_after_the_last(algorithm, tmp_path):
    script = SCRIPTS[algorithm]
    options = SHORT[algorithm] | {"prune_type": "random", "prune_rate": 0.5, "prune_cuts": 3, "prune_at": 0, "prune_until": 1}
    folder = script.train(script.Args(**options, runs_dir=str(tmp_path)))
    logged = [int(row["global_step"]) for row in rows(folder / "curves.csv") if row["tag"] == "prune/sparsity"]
    assert logged[0] == 0 and len(logged) == 3 and logged[2] == summary(folder)["global_step"]
    assert all(int((t == 0).sum()) >= round(0.5 * t.numel()) for t in weights(folder).values())


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_a_gradual_run_that_is_killed_in_its_fifth_cut_ends_in_the_same_bits(algorithm, small_run, tmp_path, monkeypatch, main):
    script = SCRIPTS[algorithm]
    options = SIZE[algorithm] | GRADUAL | {"runs_dir": str(tmp_path), "run_name": "a"}
    make_masks, cuts = script.make_masks, []

    def interrupted(*arguments):
        cuts.append(arguments)
        if len(cuts) == 5:
            raise SystemExit(9)
        return make_masks(*arguments)

    monkeypatch.setattr(script, "make_masks", interrupted)
    assert main(algorithm, options | {"checkpoint_minutes": 1e-9}) == 9
    monkeypatch.undo()
    folder = script.train(script.Args(**options))
    assert files(folder) == files(small_run(algorithm, **SIZE[algorithm] | GRADUAL))


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_a_signal_before_the_last_cut_leaves_a_checkpoint_of_that_moment(algorithm, small_run, tmp_path, monkeypatch, main):
    script = SCRIPTS[algorithm]
    whole = SIZE[algorithm] | GRADUAL | {"eval_episodes": 1}
    options = whole | {"runs_dir": str(tmp_path), "run_name": "a", "checkpoint_minutes": 0}
    last = script.cut_iterations(script.Args(**options))[-1]
    steps, log_health = [], Run.log_health_if_due

    def signal_in_the_last_iteration_before(run, global_step, *arguments):
        steps.append(global_step)
        run.signal = signal.SIGTERM if len(steps) == last else None
        log_health(run, global_step, *arguments)

    monkeypatch.setattr(Run, "log_health_if_due", signal_in_the_last_iteration_before)
    assert main(algorithm, options) == 143
    monkeypatch.undo()
    checkpoint = load_checkpoint(tmp_path / "a" / "checkpoint.pt")
    assert (checkpoint["global_step"], checkpoint["cuts_done"]) == (steps[-1] + steps[1], 7)
    assert files(script.train(script.Args(**options))) == files(small_run(algorithm, **whole))


@networks
def test_a_gradual_run_can_share_out_by_erk_and_leave_the_output_layers_whole(algorithm, small_run):
    options = {"prune_type": "random", "prune_rate": 0.7, "prune_scope": "erk", "prune_head": False, "prune_cuts": 2}
    folder = small_run(algorithm, **SHORT[algorithm] | options)
    found, heads = summary(folder), NETWORKS[algorithm].HEADS
    counts = {name: count for name, count in found["tensors"].items() if name.split(".")[0] not in heads}
    assert sum(count["pruned"] for count in counts.values()) == found["pruned"]
    assert abs(found["pruned"] - 0.7 * sum(count["total"] for count in counts.values())) <= len(counts)
    args = SCRIPTS[algorithm].Args(**SHORT[algorithm] | options)
    assert "__prune_scope-erk__prune_head-False" in default_run_name(args)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"prune_cuts": 0}, "--prune-cuts must lie in 1 to 1000, got 0"),
        ({"prune_cuts": 8, "prune_until": 0.4}, "--prune-until must lie in [--prune-at, 1], here [0.5, 1], got 0.4"),
        ({"prune_cuts": 8, "prune_until": 1.1}, "--prune-until must lie in [--prune-at, 1], here [0.5, 1], got 1.1"),
        ({"prune_until": "nan", "prune_type": "none"}, "--prune-until must lie in [0, 1], got nan"),
        ({"prune_cuts": 2, "prune_until": 0.5}, "--prune-cuts must be at most 1, one per iteration until --prune-until, got 2"),
        ({"prune_cuts": 2, "prune_type": "l1-structured"}, "--prune-cuts must be 1 with l1-structured, got 2"),
        ({"prune_scope": "erk", "prune_type": "l1-structured"}, "--prune-scope must be layer with l1-structured, got erk"),
        ({"prune_head": False, "prune_type": "l1-structured"}, "--prune-head must stay on with l1-structured"),
    ],
)
def test_options_that_make_no_sense_are_one_line(main, tmp_path, capsys, options, line):
    for algorithm in SCRIPTS:
        assert main(algorithm, {"runs_dir": str(tmp_path / "runs")} | options) == 2
        assert line in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_tensor_that_several_cuts_empty_is_named_once(tmp_path, capsys):
    options = SHORT["ppo"] | {"prune_rate": 0.9, "prune_cuts": 3, "prune_at": 0.0, "prune_until": 1.0}  # 0.63 after the first
    SCRIPTS["ppo"].train(SCRIPTS["ppo"].Args(**options, runs_dir=str(tmp_path)))
    assert capsys.readouterr().err.count("warning: pruning removed every entry of critic.bias") == 1


def test_rates_that_differ_in_the_eighth_digit_are_two_runs():
    names = {default_run_name(SCRIPTS["ppo"].Args(prune_rate=rate)) for rate in (0.9999999, 0.99999999)}
    assert len(names) == 2


def test_one_cut_ignores_when_the_last_is_and_a_dense_run_all_of_it():
    names = {
        default_run_name(SCRIPTS["ppo"].Args(**options))
        for options in (
            {"prune_type": "none"},
            {"prune_type": "none", "prune_cuts": 8, "prune_head": False, "prune_until": 0.3},
        )
    }
    assert len(names) == 1
    assert default_run_name(SCRIPTS["ppo"].Args(prune_until=0.6)) == default_run_name(SCRIPTS["ppo"].Args())

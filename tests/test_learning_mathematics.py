"""The equations of both algorithms, worked by hand and against references written another way."""

from fractions import Fraction

import pytest
import torch
import torch.nn as nn

import dqn_atari_prune as dqn
import ppo_atari_prune as ppo
from prune_utils.device import PreallocatedAdam


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frames(n: int, seed: int) -> torch.Tensor:
    return torch.randint(256, (n, 4, 84, 84), dtype=torch.uint8, generator=generator(seed))


# ---------------------------------------------------------------------------------------------------------------- schedules
def test_epsilon_falls_in_a_straight_line_and_then_stays():
    values = [dqn.linear_schedule(1.0, 0.01, 100, t) for t in (0, 50, 100, 1000)]
    assert values == pytest.approx([1.0, 0.505, 0.01, 0.01])  # 1 - .99 / 2 = .505
    assert dqn.linear_schedule(0.01, 1.0, 10, 5) == pytest.approx(0.505)  # rising works too


@pytest.mark.parametrize("script", [dqn, ppo])
@pytest.mark.parametrize("prune_at", ["0", "0.1", "0.3", "1/3", "0.5", "0.7", "0.999", "1"])
@pytest.mark.parametrize("iterations", [1, 2, 3, 7, 10, 250, 1953])
def test_the_cut_is_at_the_first_iteration_whose_end_reaches_its_share_of_all_whole_iterations(script, prune_at, iterations):
    args = script.Args(prune_at=float(Fraction(prune_at)))
    args.total_timesteps = (
        iterations * args.steps_per_iteration + args.steps_per_iteration // 2
    )  # half an iteration is left over
    reached = [k for k in range(iterations + 1) if k >= Fraction(prune_at) * iterations]  # exact: 0.3 of 10 is 3, not 4
    assert script.cut_iterations(args) == [reached[0]]


# ---------------------------------------------------------------------------------------------------------------------- DQN
def test_lost_lives_and_ended_games_do_not_bootstrap_and_other_transitions_do():
    next_q = torch.tensor([[1.0, 3.0], [2.0, 8.0], [5.0, 4.0]])
    rewards, terminations = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([False, True, False])
    # 1 + .5 * 3 = 2.5; a lost life: -1 alone; 0 + .5 * 5 = 2.5
    assert dqn.td_target(next_q, rewards, terminations, gamma=0.5).tolist() == [2.5, -1.0, 2.5]


def test_a_sync_copies_with_tau_1_and_averages_with_tau_below():
    target, online = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    for tau, expected in ((0.25, 2.5), (1.0, 4.0)):
        nn.init.constant_(target.weight, 2.0), nn.init.constant_(online.weight, 4.0)
        dqn.sync_target(target, online, tau)  # .25 * 4 + .75 * 2 = 2.5
        assert target.weight.item() == expected


def test_epsilon_greedy_explores_at_its_rate_and_draws_the_same_numbers_whatever_epsilon_is():
    q_values = torch.zeros(20_000, 4)
    q_values[:, 2] = 1.0
    after = []
    for epsilon, expected in ((0.0, 1.0), (0.4, 0.7), (1.0, 0.25)):  # greedy share: 1 - epsilon + epsilon / 4
        g = generator()
        actions = dqn.epsilon_greedy(q_values, epsilon, g)
        assert (actions == 2).float().mean().item() == pytest.approx(expected, abs=0.01)
        after.append(g.get_state())
    assert torch.equal(after[0], after[1]) and torch.equal(after[1], after[2])


def test_two_updates_from_one_batch_equal_two_from_its_halves_as_the_target_network_stands_still_between_them():
    torch.manual_seed(0)
    one, two, target = (dqn.QNetwork(6, (32, 64, 64, 64)) for _ in range(3))
    two.load_state_dict(one.state_dict())
    batch = (
        frames(16, 1),
        torch.arange(16) % 6,
        torch.randn(16, generator=generator()),
        frames(16, 2),
        torch.arange(16) % 4 == 0,
    )
    dqn.update(one, one, target, PreallocatedAdam(one.parameters(), lr=1e-3, eps=1e-8), {}, batch, 8, 0.99)
    adam = PreallocatedAdam(two.parameters(), lr=1e-3, eps=1e-8)
    for half in range(2):
        dqn.update(two, two, target, adam, {}, [t[8 * half : 8 * half + 8] for t in batch], 8, 0.99)
    for p, r in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, r, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------- PPO
def gae(rewards, values, terminations, next_value, gamma, gae_lambda):
    columns = [torch.tensor(x, dtype=torch.float32)[:, None] for x in (rewards, values)]
    advantages = ppo.compute_gae(*columns, torch.tensor(terminations)[:, None], torch.tensor([next_value]), gamma, gae_lambda)
    return advantages[:, 0].tolist()


def test_gae_with_lambda_one_is_the_discounted_return_minus_value():
    # rewards 1, 0, 2; bootstrap 4; gamma 0.5: A2 = 2 + .5*4 = 4, A1 = .5*4 = 2, A0 = 1 + .5*2 = 2; values 1 are taken off
    assert gae([1, 0, 2], [1, 1, 1], [False] * 3, 4.0, 0.5, 1.0) == [1.0, 1.0, 3.0]


def test_gae_with_lambda_zero_is_the_td_error():
    # 1 + .5*3 - 2 = .5; 0 + .5*4 - 3 = -1
    assert gae([1, 0], [2, 3], [False, False], 4.0, 0.5, 0.0) == [0.5, -1.0]


def test_nothing_after_a_lost_life_counts_for_gae():
    # the second step ends a life: A1 = 0 - 1 = -1; A0 = 1 + .5*1 - 1 + .5*.5*(-1) = .25; A2 = 2 + .5*4 - 1 = 3
    assert gae([1, 0, 2], [1, 1, 1], [False, True, False], 4.0, 0.5, 0.5) == [0.25, -1.0, 3.0]


def test_gae_equals_its_definition_as_a_sum_over_all_later_steps():
    g, steps, envs, gamma, lam = generator(), 12, 3, 0.9, 0.8
    rewards, values, next_value = (torch.randn(shape, generator=g) for shape in ((steps, envs), (steps, envs), (envs,)))
    terminations = torch.rand(steps, envs, generator=g) < 0.2
    advantages = ppo.compute_gae(rewards, values, terminations, next_value, gamma, lam)
    following = torch.cat([values[1:], next_value[None]])
    for k in range(envs):
        for t in range(steps):
            total, weight = 0.0, 1.0
            for u in range(t, steps):
                on = 0.0 if terminations[u, k] else 1.0
                total += weight * float(rewards[u, k] + gamma * on * following[u, k] - values[u, k])
                weight *= gamma * lam * on
            assert advantages[t, k].item() == pytest.approx(total, abs=1e-5)


def test_the_policy_gradient_stops_where_the_ratio_has_moved_by_the_clip_coefficient_in_the_right_direction():
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5], requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss = ppo.policy_loss(advantages, ratio, 0.1)
    # better than before by a lot: -1.1; worse: -.5; a bad action taken more often: 1.5; less often: .9; mean .2
    assert loss.item() == pytest.approx((-1.1 - 0.5 + 1.5 + 0.9) / 4)
    loss.backward()
    assert ratio.grad.tolist() == [0.0, -0.25, 0.25, 0.0]


def test_the_value_loss_takes_the_larger_of_the_clipped_and_the_free_error():
    new, old, returns = torch.tensor([2.0, 0.05]), torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0])
    # free errors 0 and .95 ** 2; clipped to 1.1: .9 ** 2, 0.05 stays: .95 ** 2
    assert ppo.value_loss(new, old, returns, 0.1, clip_vloss=False).item() == pytest.approx(0.5 * 0.95**2 / 2)
    assert ppo.value_loss(new, old, returns, 0.1, clip_vloss=True).item() == pytest.approx(0.5 * (0.9**2 + 0.95**2) / 2)


def test_sampled_actions_follow_the_softmax_and_repeat_for_a_seed():
    logits = torch.tensor([2.0, 0.0, -1.0]).expand(60_000, 3)
    actions = ppo.sample_actions(logits, generator(5))
    assert torch.equal(actions, ppo.sample_actions(logits, generator(5)))
    assert not torch.equal(actions, ppo.sample_actions(logits, generator(6)))
    frequencies = torch.bincount(actions, minlength=3) / 60_000
    torch.testing.assert_close(frequencies, logits[0].softmax(0), atol=0.006, rtol=0)


def test_log_probabilities_are_those_of_the_categorical_distribution():
    logits, actions = torch.randn(9, 6, generator=generator()), torch.arange(9) % 6
    torch.testing.assert_close(ppo.log_prob(logits, actions), torch.distributions.Categorical(logits=logits).log_prob(actions))


def ppo_minibatch(agent, n: int = 16):
    g = generator(3)
    obs, actions = frames(n, 1), torch.arange(n) % 6
    with torch.no_grad():
        logits, values = agent(obs)
    logprobs = ppo.log_prob(logits, actions) + 0.2 * torch.randn(n, generator=g)  # ratios on both sides of the clip
    return obs, actions, logprobs, torch.randn(n, generator=g), values + torch.randn(n, generator=g), values


@pytest.mark.parametrize("clip_vloss", [True, False])
@pytest.mark.parametrize("norm_adv", [True, False])
def test_one_whole_ppo_update_equals_cleanrls_written_out_with_an_unfused_adam(clip_vloss, norm_adv):
    torch.manual_seed(0)
    agent, reference = ppo.Agent(6, (32, 64, 64, 64)), ppo.Agent(6, (32, 64, 64, 64))
    reference.load_state_dict(agent.state_dict())
    args, minibatch = ppo.Args(clip_vloss=clip_vloss, norm_adv=norm_adv), ppo_minibatch(agent)
    optimizer = PreallocatedAdam(agent.parameters(), lr=2.5e-4, eps=1e-5)
    losses = ppo.update(agent, agent, optimizer, {}, minibatch, args)

    obs, actions, b_logprobs, adv, b_returns, b_values = minibatch
    logits, newvalue = reference(obs)
    distribution = torch.distributions.Categorical(logits=logits)
    ratio = torch.exp(distribution.log_prob(actions) - b_logprobs)
    adv = (adv - adv.mean()) / (adv.std() + 1e-8) if norm_adv else adv
    pg_loss = torch.stack([torch.max(-a * r, -a * torch.clamp(r, 0.9, 1.1)) for a, r in zip(adv, ratio, strict=True)]).mean()
    free = (newvalue - b_returns) ** 2
    clipped = (b_values + torch.clamp(newvalue - b_values, -0.1, 0.1) - b_returns) ** 2
    v_loss = 0.5 * (torch.maximum(free, clipped) if clip_vloss else free).mean()
    (pg_loss - 0.01 * distribution.entropy().mean() + 0.5 * v_loss).backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in reference.parameters()))
    for p in reference.parameters():
        p.grad *= min(1.0, 0.5 / (norm.item() + 1e-6))
    torch.optim.Adam(reference.parameters(), lr=2.5e-4, eps=1e-5, foreach=False, fused=False).step()
    assert norm > 0.5 and losses["clipfrac"] == ((ratio - 1).abs() > 0.1).float().mean() and 0.1 < losses["clipfrac"] < 0.9
    logged = [losses[name].item() for name in ("policy_loss", "value_loss", "entropy", "approx_kl")]
    kl = ((ratio - 1) - ratio.log()).mean()
    assert logged == pytest.approx([x.item() for x in (pg_loss, v_loss, distribution.entropy().mean(), kl)], rel=1e-4, abs=1e-6)
    for p, r in zip(agent.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, r, rtol=1e-4, atol=5e-6)

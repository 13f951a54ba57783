"""The two scripts repeat code on purpose; what they repeat is word for word the same, and nothing new repeats unnoticed."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DQN, PPO = ((ROOT / f"{name}_atari_prune.py").read_text() for name in ("dqn", "ppo"))
TWINS = {"cut_iterations", "rate_after", "prunable", "erk_rates", "make_masks", "choose_units"}
TWINS |= {"apply_masks", "mask_gradients", "main"}
DIFFERENT_ON_PURPOSE = {"Args", "make_policy", "update", "train"}
OPTIONS_DIFFERENT_ON_PURPOSE = {"learning_rate", "num_envs"}  # CleanRL's defaults, and what the number of games changes
CHECKS_DIFFERENT_ON_PURPOSE = {"total_timesteps"}  # PPO's holds a rollout; DQN's learning_starts is below it


def definitions(source: str) -> dict[str, str]:
    """The text of everything that a module defines at its top level, by name, decorators included."""
    found = {}
    for node in ast.parse(source).body:
        targets = [*getattr(node, "targets", []), *filter(None, [getattr(node, "target", None)])]
        assigned = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
        names = [node.name] if hasattr(node, "name") else assigned
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        for name in names:
            found[name] = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
    return found


def options(source: str) -> dict[str, tuple[str, str]]:
    """Type and default, and help text, of each option of Args, in order."""
    (args,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == "Args")
    pairs = zip(args.body, args.body[1:], strict=False)
    return {a.target.id: (ast.unparse(a), ast.unparse(text)) for a, text in pairs if isinstance(a, ast.AnnAssign)}


def properties(source: str) -> dict[str, str]:
    """What Args derives from its options, by name."""
    (args,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == "Args")
    return {n.name: ast.unparse(n) for n in args.body if isinstance(n, ast.FunctionDef) and n.name != "__post_init__"}


def checks(source: str) -> dict[str, list[str]]:
    """The calls of check() in Args by the option that they name."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(definitions(source)["Args"])):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "check":
            found.setdefault(ast.literal_eval(node.args[1]), []).append(ast.unparse(node))
    return found


def the_cut(source: str) -> list[str]:
    """The lines of the cut in train(), with one name for the network and one for its policies."""
    block = re.search(r"^ +# the cut: .*?(?=^ +if iteration == args)", definitions(source)["train"], re.M | re.S)[0]
    block = re.sub(r"\b(q_network|agent)\b", "network", block)
    return re.sub(r"\bmake_eval_policy\b", "make_policy", block).splitlines()


def test_every_name_that_both_scripts_define_is_declared_a_twin_or_different_on_purpose():
    assert definitions(DQN).keys() & definitions(PPO).keys() == TWINS | DIFFERENT_ON_PURPOSE


def test_twins_are_word_for_word_the_same():
    dqn, ppo = definitions(DQN), definitions(PPO)
    assert [name for name in sorted(TWINS) if dqn[name] != ppo[name]] == []
    assert [name for name in sorted(DIFFERENT_ON_PURPOSE) if dqn[name] == ppo[name]] == []


def test_the_cut_is_the_same_but_for_the_target_network():
    assert the_cut(PPO) == [line for line in the_cut(DQN) if "target_network" not in line] and len(the_cut(PPO)) > 12
    assert len(the_cut(DQN)) == len(the_cut(PPO)) + 1


def test_sections_come_in_the_same_order_with_the_same_rules():
    rules = [re.findall(r"^# -{9,} .*$", text, re.M) for text in (DQN, PPO)]
    assert rules[0] == rules[1] and len({len(rule) for rule in rules[0]}) == 1
    assert [rule.split()[2] for rule in rules[0]] == ["options", "network", "pruning", "algorithm", "training"]


def test_the_section_of_the_pruning_is_one_text():
    sections = [re.search(r"^# -+ pruning$.*?(?=^# -+ algorithm$)", text, re.M | re.S)[0] for text in (DQN, PPO)]
    assert sections[0] == sections[1] and len(sections[0]) > 3_000


def test_options_of_both_scripts_have_the_same_type_default_text_check_and_order():
    dqn, ppo = options(DQN), options(PPO)
    common = [name for name in dqn if name in ppo]
    assert len(common) > 25 and common == [name for name in ppo if name in dqn]
    assert {name for name in common if dqn[name] != ppo[name]} == OPTIONS_DIFFERENT_ON_PURPOSE
    different = {name for name in common if checks(DQN).get(name) != checks(PPO).get(name)}
    assert different == CHECKS_DIFFERENT_ON_PURPOSE


def test_what_follows_from_the_options_is_the_same_but_for_the_steps_of_an_iteration():
    dqn, ppo = properties(DQN), properties(PPO)
    assert dqn.keys() == ppo.keys() and {name for name in dqn if dqn[name] != ppo[name]} == {"steps_per_iteration"}

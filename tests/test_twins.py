"""The two scripts repeat code on purpose; what they repeat is word for word the same, and nothing new repeats unnoticed."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DQN, PPO = ((ROOT / f"{name}_atari_prune.py").read_text() for name in ("dqn", "ppo"))
SHARED = """
    NEUTRAL EVALS RULES UserError Busy require check_options arm default_run_name derive_seed seeded cut_iteration
    atari_spec Game Step AtariGames prunable make_masks apply_masks mask_gradients count_tensors resolve git_state Stop
    write_atomically open_run Log start_wandb plain_state_dict evaluation_copy evaluate_moment cut finish Inbox make_adam
    live_tensors capture scaled working_copy renew FoldedConv2d main OF_THE_CUT CHECKPOINT_FORMAT differences read_config
    compress decompress save_checkpoint load_checkpoint begin pause wandb_records wandb_rows device_name peak_ram_bytes
    init_wandb
"""
DIFFERENT_ON_PURPOSE = {"ALGORITHM", "Args", "update", "train"}
OPTIONS_DIFFERENT_ON_PURPOSE = {"learning_rate", "num_envs"}  # CleanRL's defaults, and what the number of games changes


def definitions(source: str) -> dict[str, str]:
    """The text of everything that a module defines at its top level, by name, decorators included."""
    found = {}
    for node in ast.parse(source).body:
        names = [node.name] if hasattr(node, "name") else [t.id for t in getattr(node, "targets", [])]
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        for name in names:
            found[name] = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
    return found


def options(source: str) -> dict[str, tuple[str, str]]:
    """Type and default, and help text, of each option of Args."""
    (args,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == "Args")
    pairs = zip(args.body, args.body[1:], strict=False)
    return {a.target.id: (ast.unparse(a), ast.unparse(text)) for a, text in pairs if isinstance(a, ast.AnnAssign)}


def test_every_name_that_both_scripts_define_is_declared_shared_or_different_on_purpose():
    assert definitions(DQN).keys() & definitions(PPO).keys() == set(SHARED.split()) | DIFFERENT_ON_PURPOSE


def test_shared_definitions_are_word_for_word_the_same():
    dqn, ppo = definitions(DQN), definitions(PPO)
    assert [name for name in SHARED.split() if dqn[name] != ppo[name]] == []


def test_shared_sections_and_their_comments_are_one_text():
    sections = [re.search(r"^# -+ shared: options.*?(?=^# -+ network$)", text, re.M | re.S)[0] for text in (DQN, PPO)]
    assert sections[0] == sections[1] and len(sections[0]) > 10_000


def test_sections_come_in_the_same_order_with_the_same_rules():
    rules = [re.findall(r"^# -{9,} .*$", text, re.M) for text in (DQN, PPO)]
    assert rules[0] == rules[1] and len(rules[0]) == 9


def test_options_of_both_scripts_have_the_same_type_default_and_text():
    dqn, ppo = options(DQN), options(PPO)
    common = dqn.keys() & ppo.keys()
    assert len(common) > 25
    assert {name for name in common if dqn[name] != ppo[name]} == OPTIONS_DIFFERENT_ON_PURPOSE


def test_the_scripts_import_nothing_of_this_repository_at_the_top():
    for text in (DQN, PPO):
        imported = {
            (n.module or "") if isinstance(n, ast.ImportFrom) else a.name
            for n in ast.parse(text).body
            if isinstance(n, (ast.Import, ast.ImportFrom))
            for a in n.names
        }
        assert not [name for name in imported if (ROOT / f"{name.split('.')[0]}.py").exists() or name.startswith("evals")]
        assert "wandb" not in imported and "moviepy" not in imported

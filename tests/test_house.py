"""Which file may import which, and what belongs where: read from the text of the modules, nothing is run."""

import ast
import re
from dataclasses import fields
from graphlib import TopologicalSorter
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from prune_utils.basics import GROUPS
from prune_utils.run import CRITERIA, NEUTRAL, OF_THE_CUT
from tests.conftest import SCRIPTS

ROOT = Path(__file__).resolve().parents[1]
TRAINING = {"dqn_atari_prune", "ppo_atari_prune"}
MAY_IMPORT = {
    "prune_utils": {"prune_utils"},
    "dqn_atari_prune": {"prune_utils"},
    "ppo_atari_prune": {"prune_utils"},
    "evals": {"evals", "prune_utils"} | TRAINING,
    "analysis": {"analysis", "prune_utils"},
    "checks": {"checks", "evals", "analysis", "prune_utils"} | TRAINING,
    "scripts": set(),
}
"""the arrows of this repository: analysis, checks, evals -> the two scripts -> prune_utils"""
FLOORS = ({"basics"}, {"games", "device", "storage", "shrink"}, {"log", "evaluation", "health"}, {"run"})
"""files of prune_utils: each imports from lower floors only"""
MOST_LINES = {"dqn_atari_prune.py": 520 + 33, "ppo_atari_prune.py": 480 + 53}
"""the second house, and gradual pruning, shares per layer and health, which may take 60 lines each"""
FILES = [file for room in MAY_IMPORT for file in (*ROOT.glob(f"{room}.py"), *sorted(ROOT.glob(f"{room}/*.py")))]
TREES = {file.relative_to(ROOT): ast.parse(file.read_text()) for file in FILES}


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of all modules that are imported anywhere in a tree."""
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        assert node.level == 0, "relative import"
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            found.add(name if is_module(name) or not is_ours(name) else node.module)
    return found


def is_ours(name: str) -> bool:
    return name.split(".")[0] in {*MAY_IMPORT, "tests"}


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def module(file: Path) -> str:
    return str(file.with_suffix("")).replace("/", ".").removesuffix(".__init__")


def outside_of_functions(tree: ast.AST) -> list[ast.AST]:
    """All nodes that run when a module is imported."""
    nodes = []
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            nodes += [child, *outside_of_functions(child)]
    return nodes


def handed_over(node: ast.AST, modules: set[str]) -> list[str]:
    """Arguments of calls that are modules; a parameter of the same name is something else."""
    if isinstance(node, ast.FunctionDef):
        modules = modules - {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
    found = []
    if isinstance(node, ast.Call):
        values = (*node.args, *(keyword.value for keyword in node.keywords))
        found = [each.id for each in values if isinstance(each, ast.Name) and each.id in modules]
    return found + [name for child in ast.iter_child_nodes(node) for name in handed_over(child, modules)]


def test_arrows_run_one_way():
    for file, tree in TREES.items():
        rooms = {name.split(".")[0] for name in imports(tree) if is_ours(name)}
        assert rooms <= MAY_IMPORT[file.parts[0].removesuffix(".py")], file


def test_inside_prune_utils_each_file_imports_from_lower_floors_only():
    files = {file.stem: tree for file, tree in TREES.items() if file.parts[0] == "prune_utils"}
    assert not imports(files.pop("__init__"))
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    assert files.keys() == floor_of.keys()
    for name, tree in files.items():
        used = {other.split(".")[1] for other in imports(tree) if other.startswith("prune_utils.")}
        assert not [other for other in used if floor_of[other] >= floor_of[name]], name


def test_no_circle_of_imports():
    modules = {module(file): {name for name in imports(tree) if is_ours(name)} for file, tree in TREES.items()}
    order = list(TopologicalSorter(modules).static_order())  # raises CycleError
    assert order.index("prune_utils.basics") < order.index("prune_utils.run") < order.index("dqn_atari_prune")


def test_modules_are_imported_by_statements_and_never_handed_over():
    for file, tree in TREES.items():
        assert not {"importlib", "runpy", "pkgutil"} & {name.split(".")[0] for name in imports(tree)}, file
        names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Name, ast.Attribute))}
        assert not {"sys.path", "sys.modules", "__import__", "exec"} & names, file
        modules = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.asname or alias.name for alias in node.names if is_ours(alias.name)}
            if isinstance(node, ast.ImportFrom):
                pairs = [(alias, f"{node.module}.{alias.name}") for alias in node.names]
                modules |= {alias.asname or alias.name for alias, name in pairs if is_ours(name) and is_module(name)}
        assert not handed_over(tree, modules), file


def test_wandb_and_ffmpeg_are_imported_only_when_they_are_asked_for():
    for file, tree in TREES.items():
        at_once = [node for node in outside_of_functions(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {name.split(".")[0] for node in at_once for name in imports(ast.Module([node], []))}
        assert not {"wandb", "wandb_workspaces", "imageio_ffmpeg"} & names, file


def test_prune_utils_knows_nothing_of_learning():
    scripts = [ast.parse((ROOT / name).read_text()) for name in MOST_LINES]
    kinds = (ast.FunctionDef, ast.ClassDef)
    theirs = {node.name for script in scripts for node in ast.walk(script) if isinstance(node, kinds)}
    theirs -= {"__init__", "__post_init__", "forward", "state_dict", "load_state_dict", "policy"}
    assert theirs > {"train", "update", "learn", "make_masks", "apply_masks", "td_target", "compute_gae", "policy_loss"}
    learning = r"(.*\.)?(backward|zero_grad|optimizer\.step|compute_mask|\w+_loss|autograd\.grad)"
    for file, tree in TREES.items():
        if file.parts[0] != "prune_utils":
            continue
        assert not [name for name in imports(tree) if name.startswith("torch.nn.utils")], file
        nodes = list(ast.walk(tree))
        calls = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
        assert not [call for call in calls if re.fullmatch(learning, call)], file
        assert not theirs & {node.name for node in nodes if isinstance(node, kinds)}, file
        loops = [node.iter for node in nodes if isinstance(node, ast.For)]
        loops += [node.test for node in nodes if isinstance(node, ast.While)]
        steps = "global_step|total_timesteps|num_iterations|epochs"
        assert not [loop for loop in loops if re.search(steps, ast.unparse(loop))], file


@pytest.mark.parametrize(("name", "most"), MOST_LINES.items())
def test_a_script_is_short_enough_to_be_read(name, most):
    assert len((ROOT / name).read_text().splitlines()) <= most


def test_the_tables_of_names_in_prune_utils_fit_the_options_of_the_scripts():
    for script in SCRIPTS.values():
        offered = get_args(get_type_hints(script.Args)["prune_type"])
        assert {*offered} == {"none", *CRITERIA} and len(offered) == 1 + len(CRITERIA)
        options = {field.name for field in fields(script.Args)}
        grouped = [name for names in GROUPS.values() for name in names.split()]
        assert len(grouped) == len(set(grouped)) and {*grouped} | NEUTRAL | OF_THE_CUT <= options

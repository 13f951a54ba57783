"""An ONNX file computes what its agent does, for batches of any size, and what can't be exported is one line."""

import shutil
import sys

import onnx
import pytest
import torch

from evals import common, efficiency, export
from prune_utils.storage import load_weights
from tests.conftest import SCRIPTS, SHORT, summary

NETWORKS = {"dqn": SCRIPTS["dqn"].QNetwork, "ppo": SCRIPTS["ppo"].Agent}


def run(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, words)])
    try:
        export.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize(("algorithm", "names"), [("dqn", ["q_values"]), ("ppo", ["logits", "value"])])
def test_the_file_of_a_smaller_network_has_its_outputs_by_name(algorithm, names, small_run, tmp_path, monkeypatch, capsys):
    folder = small_run(algorithm, "short", **(SHORT[algorithm] | {"prune_type": "l1-structured", "prune_rate": 0.5}))
    assert run(monkeypatch, folder, "--out", tmp_path / "a.onnx") == 0
    assert "(of the largest, if that is above 1) on 100 stacks" in capsys.readouterr().out.splitlines()[-1]
    assert run(monkeypatch, folder, "--out", folder / "model.pt") == 2  # and it is still there
    assert "--out must not name the model itself" in capsys.readouterr().err
    mine = shutil.copy(folder / "model.pt", tmp_path / "mine.pt")
    assert run(monkeypatch, mine, "--env-id", "SpaceInvadersNoFrameskip-v4", "--out", mine) == 2
    assert "--out must not name the model itself" in capsys.readouterr().err
    data = (tmp_path / "a.onnx").read_bytes()
    graph = onnx.load_model_from_string(data).graph
    assert [node.name for node in graph.input] == ["frames"] and [node.name for node in graph.output] == names
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    network, _ = common.load(folder, NETWORKS[algorithm])
    frames = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for theirs, ours in zip(export.onnx_network(data)(frames), export.outputs(network, frames), strict=True):
        assert theirs.shape == ours.shape and abs(theirs - ours).max() < 1e-5
    monkeypatch.setattr(export, "onnx_bytes", lambda network: data)
    assert run(monkeypatch, mine, "--env-id", "SpaceInvadersNoFrameskip-v4") == 0
    assert (tmp_path / "mine.onnx").read_bytes() == data  # a name of its own, beside those of other models
    if algorithm == "dqn":
        monkeypatch.setattr(efficiency, "onnx_bytes", lambda network: data)
        identity = {key: summary(folder)[key] for key in ("algorithm", "arm", "sparsity")}
        rows = efficiency.measure(identity, network, 10, torch.device("cpu"), onnx=True)
        assert rows[-1]["form"] == "onnx" and rows[-1]["file_bytes"] == len(data) and rows[-1]["us_1x1"] > 0


def test_what_can_not_be_exported_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys):
    agent = "results/agents/ppo_l1-0.5_s1"
    monkeypatch.setattr(export, "onnx_bytes", lambda network: b"")
    monkeypatch.setattr(
        export, "onnx_network", lambda data: lambda frames: [torch.zeros(100, 6).numpy(), torch.zeros(100).numpy()]
    )
    assert run(monkeypatch, agent, "--out", tmp_path / "a.onnx") == 1
    undefined = [torch.zeros(100, 6).numpy(), torch.full((100,), torch.nan).numpy()]
    monkeypatch.setattr(export, "onnx_network", lambda data: lambda frames: undefined)
    assert run(monkeypatch, agent, "--out", tmp_path / "a.onnx") == 1
    assert run(monkeypatch, tmp_path / "nothing", "--out", tmp_path / "a.onnx") == 2
    assert run(monkeypatch, agent, "--out", tmp_path / "nowhere" / "a.onnx") == 2
    for name, change in (
        ("nan", lambda weights: weights["conv1.weight"].view(-1)[:1].fill_(torch.nan)),
        ("empty", lambda weights: weights.update({n: t[:0] for n, t in weights.items() if n.startswith("conv1")})),
        ("short", lambda weights: weights.update({"conv1.bias": weights["conv1.bias"][:20]})),
    ):
        weights = load_weights(agent)
        change(weights)
        torch.save(weights, tmp_path / f"{name}.pt")
        words = [tmp_path / f"{name}.pt", "--env-id", "SpaceInvadersNoFrameskip-v4", "--out", tmp_path / "a.onnx"]
        assert run(monkeypatch, *words) == 2
        (tmp_path / f"{name}.pt").unlink()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run(monkeypatch, agent) == 2
    told = capsys.readouterr().err.splitlines()
    assert "nothing is written" in told[0] and "outputs differ from PyTorch's by nan" in told.pop(1)
    assert len(told) == 7 and not any(tmp_path.iterdir())
    assert told[1].endswith("no such file") and told[2].startswith("error: --out must be")
    assert all(line.endswith("ValueError: a layer without units, or weights that are not finite") for line in told[3:5])
    assert "size mismatch for conv1.bias: " in told[5] and told[5].endswith("current model is torch.Size([32]).")
    assert told[6] == "error: onnxruntime is not installed: pip install -r requirements-export.txt"

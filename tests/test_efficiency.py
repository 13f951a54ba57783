"""What a pruned network costs in each form: all compute the same, and the table says what is measured."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from analysis import costs
from evals import efficiency
from evals.export import without_dead_units
from prune_utils.device import low_precision
from tests.conftest import SCRIPTS, summary, weights

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {"dqn": SCRIPTS["dqn"].QNetwork, "ppo": SCRIPTS["ppo"].Agent}
both = pytest.mark.parametrize("algorithm", NETWORKS)


def outputs(network: torch.nn.Module) -> torch.Tensor:
    obs = torch.randint(256, (5, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = network(obs)
    return torch.cat([out[0], out[1][:, None]], 1) if isinstance(out, tuple) else out


def some_network(algorithm: str) -> torch.nn.Module:
    """With biases that count (PPO's are born 0) and heads of a size that shows a difference."""
    network = NETWORKS[algorithm](6, (32, 64, 64, 64))
    for name, p in network.named_parameters():
        p.data.normal_(std=0.05 if p.dim() > 1 else 0.5, generator=torch.Generator().manual_seed(len(name)))
    return network


@both
def test_csr_layers_compute_what_the_dense_ones_do(algorithm):
    network = some_network(algorithm)
    network.fc1.weight.data *= torch.rand(64, 3136) < 0.2
    sparse = efficiency.with_csr(network)
    assert sparse.fc1.weight.layout == torch.sparse_csr and sparse.fc1.weight.col_indices().dtype == torch.int32
    torch.testing.assert_close(outputs(sparse), outputs(network))
    # 3136 * 64 entries: a value and an index, 4 bytes each, where they are not zero, and 65 row pointers
    nonzero = int(network.fc1.weight.count_nonzero())
    assert efficiency.resident_bytes(sparse.fc1.weight) == 8 * nonzero + 4 * 65


@both
def test_removing_dead_units_changes_no_output_and_removes_those_that_their_removal_leaves_dead(algorithm):
    network = some_network(algorithm)
    with torch.no_grad():
        network.conv1.weight[[0, 31]] = 0  # no input: constants relu(bias)
        network.conv2.weight[:, 1] = 0  # nobody reads channel 1 of conv1
        network.fc1.weight.view(64, 64, 49)[:, 3] = 0  # nobody reads channel 3 of conv3 ...
        network.conv3.weight[[i for i in range(64) if i != 3], 5] = 0  # ... which alone reads channel 5 of conv2
        network.fc1.weight[7] = 0
    smaller = without_dead_units(network)
    assert [len(layer.weight) for layer in (smaller.conv1, smaller.conv2, smaller.conv3, smaller.fc1)] == [29, 63, 63, 63]
    torch.testing.assert_close(outputs(smaller), outputs(network))
    assert len(network.conv1.weight) == 32 and not torch.equal(outputs(network), 0 * outputs(network))


@both
def test_a_network_without_dead_units_stays_as_it_is_and_an_empty_layer_keeps_one_unit(algorithm):
    network = some_network(algorithm)
    untouched = without_dead_units(network)
    assert all(torch.equal(a, b) for a, b in zip(untouched.parameters(), network.parameters(), strict=True))
    emptied = copy.deepcopy(network)
    emptied.conv2.weight.data.zero_()
    smaller = without_dead_units(emptied)
    assert [len(layer.weight) for layer in (smaller.conv1, smaller.conv2)] == [1, 1]
    torch.testing.assert_close(outputs(smaller), outputs(emptied))


def test_the_table_measures_every_form_of_a_run_and_its_csv_is_what_analysis_costs_reads(small_run, tmp_path):
    folders = [small_run("ppo", prune_type=kind, **rate) for kind, rate in (("none", {}), ("l1", {"prune_rate": 0.5}))]
    call = [sys.executable, "-m", "evals.efficiency", *map(str, folders), "--calls=10", "--no-cuda"]
    call.append(f"--csv={tmp_path / 'a.csv'}")
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    table = costs.read(tmp_path / "a.csv")
    assert table.form.tolist() == ["dense", "packed", "csr", "without_dead_units"] * 2
    assert table.arm.tolist() == ["none"] * 4 + ["l1-0.5"] * 4
    timed = [column for column in table if column.startswith("us_") and "_q" not in column]
    assert {column.split("x")[0] for column in timed} == {"us_1", "us_64"} and list(costs.latencies(table)) == timed
    for folder, (_, rows) in zip(folders, table.groupby("arm", sort=False), strict=True):
        saved, row = summary(folder), rows.set_index("form").to_dict("index")
        assert set(rows.run) == {folder.name}
        assert row["packed"]["file_bytes"] == (folder / "model_packed.npz").stat().st_size
        assert row["dense"]["file_bytes"] == saved["disk"]["dense"]
        assert {name: row["dense"][f"{name}_bytes"] for name in saved["disk"]} == saved["disk"]
        assert row["dense"]["resident_bytes"] == row["packed"]["resident_bytes"] == saved["resident_bytes"]
        assert row["dense"]["multiply_adds"] == saved["multiply_adds"]["dense"]
        linear = sum(int(t.count_nonzero()) for name, t in weights(folder).items() if t.dim() == 2)
        assert row["csr"]["multiply_adds"] == 400 * 8 * 256 + 81 * 16 * 128 + 49 * 16 * 144 + linear  # positions x kernels
        assert row["dense"]["units"] == 8 + 16 + 16 + 16 + 6 + 1 and all(form["load_ms"] > 0 for form in row.values())
        for form in ("dense", "csr", "without_dead_units"):
            assert all(0 < row[form][f"{c}_q25"] <= row[form][c] <= row[form][f"{c}_q75"] for c in timed)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + 8 and lines[0].startswith(table.device[0]) and lines[1].split() == [
        *("run", "sparsity", "form", "file_bytes", "load_ms", "resident_bytes", "multiply_adds", "units"), *timed
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{ppo}", "--calls=5"], "--calls must be a multiple of 10, got 5"),
        (["{ppo}", "--calls=0"], "--calls must be a multiple of 10, got 0"),
        (
            ["{ppo}", "--csv={tmp}/nowhere/a.csv"],
            "--csv must be a file in a folder that can be written, got {tmp}/nowhere/a.csv",
        ),
        (["{ppo}", "--csv={tmp}"], "--csv must be a file in a folder that can be written, got {tmp}"),
        (["{ppo}", "--csv={ppo}/summary.json"], "--csv must not name a file that the run itself wrote, got {ppo}/summary.json"),
        (
            ["{ppo}", "{ppo}/../{ppo.name}"],
            "RUN must name each run once (runs of equal name, arm and seed need a call each), got {ppo}/../{ppo.name}",
        ),
        ([], "RUN must be at least one run folder, got none"),
        (["{ppo}", "{tmp}/nowhere"], "RUN must be the folder of a finished run, got {tmp}/nowhere: FileNotFoundError: "),
        (["{ppo}", "{tmp}/odd"], "RUN must be the folder of a finished run, got {tmp}/odd: KeyError: 'algorithm'"),
        (["{ppo}", "{tmp}/strange"], "RUN must be the folder of a finished run, got {tmp}/strange: KeyError: 'sac'"),
        (
            ["{ppo}", "{tmp}/bare"],
            "MODEL must be the folder of a run that has finished and saved its model, got {tmp}/bare: no model.pt",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line_before_anything_is(
    words, message, small_run, tmp_path, monkeypatch, capsys
):
    places = {"ppo": small_run("ppo", prune_type="none"), "tmp": tmp_path}
    whole = summary(places["ppo"])
    for name, content in {"odd": {}, "strange": whole | {"algorithm": "sac"}, "bare": whole}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(content))
        shutil.copy(places["ppo"] / "config.json", tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["efficiency", *(word.format(**places) for word in words)])
    monkeypatch.setattr(efficiency, "measure", None)
    capsys.readouterr()
    with pytest.raises(SystemExit, match=r"^2$"):
        efficiency.main()
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {message.format(**places)}") and err.count("\n") == 1


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs 2:4 on a GPU")
def test_two_of_four_computes_what_its_dense_weights_do():
    network = low_precision(NETWORKS["dqn"](6).cuda(), torch.float16)
    sparse = efficiency.with_two_of_four(network)
    dense = copy.deepcopy(network)
    dense.fc1.weight.data = sparse.fc1.weight.detach().to_dense()
    assert int((dense.fc1.weight.view(-1, 4) != 0).sum(1).max()) == 2
    obs = torch.randint(256, (64, 4, 84, 84), dtype=torch.uint8, device="cuda")
    with torch.no_grad():
        torch.testing.assert_close(sparse(obs), dense(obs), rtol=1e-2, atol=1e-2)

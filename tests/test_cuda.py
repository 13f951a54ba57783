"""On a GPU: a captured run is the eager run, bit for bit, and takes no more memory when it is longer."""

import subprocess
import sys

import pytest
import torch

from scripts.kill_runs import bits
from tests.conftest import SCRIPTS, SMALL, flags, summary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
both = pytest.mark.parametrize("algorithm", SCRIPTS)


@both
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_of_cuda_graphs_ends_in_the_same_bits_as_one_without_them(small_run, algorithm, precision, monkeypatch):
    options = {"prune_rate": 0.5, "prune_type": "l1", "precision": precision}
    captured = small_run(algorithm, **options)
    monkeypatch.setattr(SCRIPTS[algorithm], "capture", lambda function, state: function)
    assert bits(small_run(algorithm, name="eager", **options)) == bits(captured)


@both
def test_gpu_memory_does_not_grow_with_the_length_of_a_run(algorithm, tmp_path):
    peaks = []
    for steps in (3072, 9216):  # each in a process of its own: what a run leaves to the garbage collector is not the next one's
        options = SMALL[algorithm] | {"eval_episodes": 0, "runs_dir": tmp_path, "run_name": steps, "total_timesteps": steps}
        subprocess.run([sys.executable, SCRIPTS[algorithm].__file__, *flags(options)], check=True)
        peaks.append(summary(tmp_path / str(steps))["time"]["peak_gpu_bytes"])
    assert peaks[1] <= 1.02 * peaks[0]

"""The benchmark of a tiny net's block: whatever it tries gives the same block."""

import json

import pytest
import torch

from benchmarks import blocks
from pipelines.errors import InputError

pytest.importorskip("triton", reason="Triton is not installed")
from nets import gated_kernels as kernels

CUDA = torch.cuda.is_available()


@pytest.mark.parametrize(("count", "channels"), [(5, 5), (1, 40)])
def test_every_way_gives_the_same_block(count, channels):
    torch.manual_seed(0)
    device = "cuda" if CUDA else "cpu"
    kind = torch.float16 if CUDA else torch.float32  # whose products a GPU's kernels are not made for: they would take minutes to compile
    images, gradient = (torch.randn(count, channels, 6, 7, device=device, dtype=kind).to(memory_format=torch.channels_last) for _ in range(2))
    sizes = (1, channels, 9), (1, channels), (1, channels), (1, 2 * channels, channels), (1, channels, channels), (1, channels)
    parameters = tuple(torch.randn(size, device=device) for size in sizes)

    def work():
        out, looked, vectors, matrices = kernels.forward(images, parameters, 1e-5)
        return [out, *kernels.backward(gradient, images, looked, vectors, matrices, parameters, 1e-5)]

    expected, before = work(), dict(vars(kernels))
    ways = blocks.ways(channels, kernels)
    assert len(ways) > 12 and ways["as it is"] == {}
    for constants in ways.values():
        with blocks.set_to(kernels, constants | {"MULTIPROCESSORS": 1}):
            torch.testing.assert_close(work(), expected, **({"rtol": 2e-2, "atol": 2e-2} if CUDA else {"rtol": 1e-4, "atol": 1e-4}))
        assert all(getattr(kernels, name) is before[name] for name in constants)


@pytest.mark.parametrize("given", ["--channels 32", "--channels 65 --sides 8", "--channels 8 --sides 0", "--channels 8 --sides 8 --batch-size 0"])
def test_shapes_that_there_are_not_are_one_line(given):
    with pytest.raises(InputError, match="--channels"):
        blocks.main(given.split())


@pytest.mark.skipif(CUDA, reason="there is a CUDA device")
def test_without_a_gpu_it_says_so():
    with pytest.raises(InputError, match="no CUDA device"):
        blocks.main([])


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_it_measures_every_way(tmp_path, capsys):
    blocks.main(["--channels", "16", "--sides", "8", "--batch-size", "8", "--json", str(tmp_path / "blocks.json")])
    (shape,) = json.loads((tmp_path / "blocks.json").read_text())["shapes"]
    assert set(shape["us"]) == set(blocks.ways(16, kernels)) and all(min(times) > 0 for times in shape["us"].values())
    assert "as it is" in capsys.readouterr().out

"""A training step, and the test pass of a batch, recorded once and replayed: on CUDA a graph of all its kernels, which costs the host a single launch.

A replay reads and writes the addresses that were recorded. So batches are copied into tensors of the recording's own, results are
copied out before the next step writes over them, and all that a step moves (weights, momenta, statistics, rates) must stay in place.

From: CUDA graphs of a whole network (pytorch.org/docs/stable/notes/cuda.html#whole-network-capture).
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch

from nets.aside import Copied, refuse
from pipelines.mixing import Targets

Batch = tuple[torch.Tensor, Targets]
Results = tuple[torch.Tensor, torch.Tensor]  # losses float32[G], right predictions int64[G], of G nets
Work = Callable[[list[Batch]], Results]

FIRST = 3  # calls that run as they are: they compile programs, choose kernels, and make what the optimiser keeps


class Recording(NamedTuple):
    """What `replay` reads and writes: tensors of the batches, and of the results."""

    given: list[torch.Tensor]
    results: Results
    replay: Callable[[], None]


class Recorded:
    """`work`, recorded for every size of batch and every phase that it is called in: the first calls run as they are.

    phase   tells in which way `work` works at present, a value that can be a key
    device  gives `alone(work, batches)`, the results of a call that is not recorded, and `record(work, batches)`, which does no work yet:
            (results, replay); as `Graphs`
    """

    def __init__(self, work: Work, device, phase: Callable[[], object] = lambda: None):
        self.work, self.device, self.phase = work, device, phase
        self.calls: Counter = Counter()
        self.recordings: dict[tuple, Recording] = {}

    def __call__(self, batches: list[Batch]) -> Results:
        given = [tensor for images, targets in batches for tensor in (images, *targets)]
        size = self.phase(), *(None if tensor is None else (*tensor.shape, tensor.dtype) for tensor in given)
        if size not in self.recordings:
            self.calls[size] += 1
            if self.calls[size] <= FIRST:
                return self.device.alone(self.work, batches)
            self.recordings[size] = self._recorded(batches)
        recording = self.recordings[size]
        torch._foreach_copy_(recording.given, [tensor for tensor in given if tensor is not None])
        recording.replay()
        losses, rights = recording.results
        return losses.clone(), rights.clone()

    def _recorded(self, batches: list[Batch]) -> Recording:
        own = [(torch.empty_like(images), room(targets)) for images, targets in batches]
        try:
            results, replay = self.device.record(self.work, own)
        except Copied:
            refuse()
            results, replay = self.device.record(self.work, own)
        return Recording([tensor for images, targets in own for tensor in (images, *targets) if tensor is not None], results, replay)


def room(targets: Targets) -> Targets:
    """Tensors of the same sizes."""
    return Targets(torch.empty_like(targets.labels), *(None if t is None else torch.empty_like(t) for t in targets[1:]))


class RecordedLook:
    """A test pass's `look`, (images, views) → logits, recorded for every size of batch and number of views: the first calls run as they are."""

    def __init__(self, look: Callable[[torch.Tensor, int], torch.Tensor], device):
        self.look, self.device = look, device
        self.calls: Counter = Counter()
        self.recordings: dict[tuple, tuple[torch.Tensor, torch.Tensor, Callable[[], None]]] = {}

    def __call__(self, images: torch.Tensor, views: int) -> torch.Tensor:
        size = views, *images.shape, images.dtype
        if size not in self.recordings:
            self.calls[size] += 1
            if self.calls[size] <= FIRST:
                return self.device.alone(lambda given: self.look(given, views), images)
            own = torch.empty_like(images)
            self.recordings[size] = own, *self.device.record(lambda given: self.look(given, views), own)
        own, logits, replay = self.recordings[size]
        own.copy_(images)
        replay()
        return logits.clone()


class Graphs:
    """Recordings as CUDA graphs. Their memory is one pool, since only one runs at a time and its results are copied."""

    def __init__(self, device: torch.device):
        # of the higher priority: what `nets/aside.py` has made beside it is for the gaps
        self.stream, self.pool = torch.cuda.Stream(device, priority=-1), torch.cuda.graph_pool_handle()

    def alone(self, work: Callable, batches):
        """On the stream that recordings are made on: autograd goes back along the streams that it came."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = work(batches)
        current.wait_stream(self.stream)
        return results

    def record(self, work: Callable, batches) -> tuple:
        """(what the work gives, the replay)."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: a loader's thread may copy its next images meanwhile
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            results = work(batches)
        return results, graph.replay

"""FFCV's own loader on a `.beton` file, with the plan as one of its operations.

The file is written once per content of a split and kept in the cache folder. FFCV reads and decodes it
(raw pixels, its memory-mapped mode) in its own thread, batches ahead, and hands every batch with its
sample ids to `Augment`, which applies the plan with the compiled kernels.

Shapes: images_BHWC uint8 as decoded, ids_B int64, batch [B,C,H,W] in channels_last memory order.
"""

import hashlib
import queue
from collections import deque
from contextlib import contextmanager
from ctypes import c_uint64
from dataclasses import replace
from multiprocessing import Value
from os.path import exists  # unlike Path's, False for what may not be looked at
from pathlib import Path

import numba
import numpy as np
import torch

from pipelines.errors import InputError, NotInstalled
from pipelines.files import make_folder, replacing
from pipelines.kernels_cpu import Pass
from pipelines.plan import Plan, check_start
from pipelines.store import AGAIN, Store, cache_folder, read
from pipelines.threads import threads_kept
from pipelines.transfer import wanted
from pipelines.turns import Turns

try:
    with threads_kept():
        import ffcv
        from ffcv.fields import IntField, RGBImageField
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader.epoch_iterator import EpochIterator
        from ffcv.memory_allocator import MemoryAllocator
        from ffcv.pipeline.allocation_query import AllocationQuery
        from ffcv.pipeline.compiler import Compiler
        from ffcv.pipeline.operation import Operation
        from ffcv.transforms import ToDevice, ToTensor, ToTorchImage
        from ffcv.traversal_order.base import TraversalOrder
        from ffcv.types import CURRENT_VERSION
except ImportError:
    raise NotInstalled("pipeline ffcv needs FFCV: run make ffcv (it tells what else it needs)") from None

PAGE = 1 << 23  # bytes, FFCV's default; an image lies inside one page
AHEAD = 3  # batches prepared in advance, FFCV's default
_compiled: dict = {}  # what FFCV has compiled in this process, see `compiled_once`


class Writer(ffcv.DatasetWriter):
    """FFCV's writer in this process: its own worker processes leave it waiting for ever when one dies of a full disk."""

    def _write_common(self, num_samples, queue_content, work_fn, extra_worker_args):
        self.num_samples = num_samples
        self.prepare()
        todo, allocations = queue.Queue(), queue.Queue()
        for chunk in [*queue_content, None]:
            todo.put(chunk)
        allocator = MemoryAllocator(self.fname, self.data_region_start, self.page_size)
        try:
            shared = self.metadata_sm, self.metadata_type, self.fields
            work_fn(todo, *shared, allocator, Value(c_uint64, 0), allocations, *extra_worker_args)
            self.finalize(allocations.get())
        finally:
            self.metadata_sm.unlink()


def beton(store: Store, split: str) -> Path:
    """The split as a `.beton` file in the cache folder, written where it is not there yet.

    Named after all that it holds: FFCV's format version, the shape, and the checksums of images and labels.
    """
    sums = {name: digest for name, digest in store.sha256.items() if name.startswith(f"{split}.")}
    if not {f"{split}.images", f"{split}.labels"} <= sums.keys():
        raise InputError(f"{store.path}: names no checksums, by which FFCV's copy could be known: {AGAIN}")
    content = repr((CURRENT_VERSION, store.encoding, store.height, store.width, sorted(sums.items())))
    path = cache_folder() / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.beton"
    if not exists(path):
        images, labels = store.images(split), store.labels(split)
        make_folder(path.parent)
        with replacing(path) as temporary:
            fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
            Writer(str(temporary), fields, page_size=PAGE).from_indexed_dataset(list(zip(images, labels)))
    return path


class Order(TraversalOrder):
    """The plan's order, from a step on: `epoch` and `start` are set before each pass."""

    epoch, start = 0, 0

    def __init__(self, loader, plan: Plan):
        super().__init__(loader)
        self.plan = plan

    def sample_order(self, _):
        """int64[n]; FFCV's own count of epochs does not know where a run was resumed."""
        ids = self.plan.order(self.epoch)
        return np.array(ids[self.start * self.plan.part : self.plan.steps * self.plan.part])


class Augment(Operation):
    """The plan, from decoded pixels to a normalised tensor [B,H,W,C]; `epoch` is set before each pass.

    Not for FFCV to compile (jit_mode): the kernel is compiled already, and kept on disk.
    """

    epoch = 0

    def __init__(self, fused: Pass, dtype: torch.dtype, pinned: bool):
        super().__init__()
        self.fused, self.dtype, self.pinned = fused, dtype, pinned

    def declare_state_and_memory(self, previous_state):
        """No buffer on a CPU, so every batch is the caller's to keep; a pinned one to upload from."""
        memory = AllocationQuery(previous_state.shape, self.dtype) if self.pinned else None
        return replace(previous_state, jit_mode=False, dtype=self.dtype), memory

    def generate_code(self):
        def augment(images, out, ids):
            if out is None:
                out = torch.empty(images.shape, dtype=self.dtype)
            self.fused(images, np.arange(len(ids)), ids, out, self.epoch)
            return out

        augment.with_indices = True
        return augment


class Upload(ToDevice):
    """FFCV's ToDevice, which does not wait for a copy before it writes to the copy's source again."""

    def generate_code(self):
        to_device, copies = super().generate_code(), deque()

        def upload(batch, out):
            result = to_device(batch, out)
            copies.append(torch.cuda.current_stream().record_event())
            if len(copies) > AHEAD:
                copies.popleft().synchronize()
            return result

        return upload


class Batches(EpochIterator):
    """FFCV's thread, which can be stopped at once, and which ends the epoch with its error instead of silence."""

    error = None

    def run(self):
        try:
            super().run()
        except Exception as error:
            self.error = error
            self.output_queue.put(None)

    def stop(self):
        """End the thread, dropping the batches it has prepared; every copy it began is awaited by the GPU."""
        self.iter_ixes = iter(())
        while self.is_alive():
            while not self.output_queue.empty():
                self.output_queue.get()
            self.join(0.01)  # seconds; it may have to put one more batch and the end
        self.close()
        for stream in filter(None, self.cuda_streams):
            self.current_stream.wait_stream(stream)


@contextmanager
def compiled_once():
    """Let FFCV's loaders share what it compiles: else every loader takes seconds to compile the same functions again.

    Two functions are the same where their code and all that they capture are.
    """
    compile, own = Compiler.compile, vars(Compiler)["compile"]

    def shared(code, signature=None):
        captured = tuple(cell.cell_contents for cell in code.__closure__ or ())
        name = code.__code__, captured, signature, Compiler.num_threads > 1
        if name not in _compiled:
            _compiled[name] = compile(code, signature)
        return _compiled[name]

    Compiler.compile = shared
    try:
        yield
    finally:
        Compiler.compile = own


class Ffcv(Turns):
    """The contract, by FFCV; see `pipelines.Pipeline`."""

    def __init__(self, path: Path, plan: Plan, augment: Augment, device: torch.device):
        self.plan, self.augment, self.device = plan, augment, device
        image = [SimpleRGBImageDecoder(), augment, ToTorchImage(convert_back_int16=False)]
        label = [IntDecoder(), ToTensor()]
        if device.type != "cpu":
            image.append(Upload(device))
            label.append(Upload(device))
        with threads_kept(), compiled_once():
            self.loader = ffcv.Loader(
                str(path),
                plan.part,
                num_workers=min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS),
                os_cache=True,
                seed=0,  # without one, it draws one from NumPy's global stream
                pipelines={"image": image, "label": label},
                drop_last=plan.drop_last,
                batches_ahead=AHEAD,
            )
        self.loader.traversal_order = Order(self.loader, plan)  # its `order` argument refuses every class but its own

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0):
        check_start(epoch, start)
        order = self.loader.traversal_order
        order.epoch, order.start, self.augment.epoch = epoch, start, epoch
        batches = Batches(self.loader, order.sample_order(epoch))
        try:
            for images, labels in batches:
                yield images if self.device.type == "cpu" else images.clone(), labels[:, 0].clone()
            if batches.error:
                raise batches.error
        finally:
            batches.stop()


def open(store, split="train", *, batch_size=512, policy=None, seed=0, device="cpu", dtype=torch.float32, ids=None, drop_last=False, share=(0, 1)):
    """Open FFCV; arguments as in `pipelines.open`."""
    store, device = read(store), wanted("ffcv", device, dtype)
    plan = Plan.of(store, split, policy, seed, batch_size, ids, drop_last, share)
    if store.channels != 3 or store.height * store.width * 3 > PAGE:
        size = f"{store.height}x{store.width}x{store.channels}"
        raise InputError(f"{store.path}: FFCV takes images of 3 channels and {PAGE:,} bytes at most, not {size}: choose another pipeline")
    current = torch.cuda.current_device() if torch.cuda.is_available() else None
    if device.type != "cpu" and (device.type != "cuda" or device.index not in (None, current)):
        found = "" if current is None else f", cuda:{current}"
        raise InputError(f"pipeline ffcv: device {device}: FFCV works on cpu or the current CUDA device{found}: choose one of them")
    augment = Augment(Pass(store, plan, dtype), dtype, pinned=device.type == "cuda")
    return Ffcv(beton(store, split), plan, augment, device)

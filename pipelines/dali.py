"""NVIDIA DALI: its own operators make the pixels, the plan's choices reach it as inputs of its graph.

Shapes: samples uint8[B,H,W,C], or the bytes of B JPEGs; labels int64[B]; flip int32[B];
start int32[B,2] (dy, dx, pixels); corner float32[B,2] (y, x, pixels; erase takes no integers).

A batch is gathered in the caller's thread while DALI's threads make the one before it. The flip is
left to crop_mirror_normalize, which has it nearly for nothing, so the square is cut before the flip, at
its mirrored place. With a `jpeg` store every image is decoded anew in every epoch: on the CPU to Pillow's
pixels, bit for bit; on a GPU by nvJPEG, whose pixels may differ from Pillow's by a few levels.
"""

import numpy as np
import torch

from pipelines.errors import InputError, NotInstalled
from pipelines.plan import Plan, Policy
from pipelines.reference import mean_pixel, scaling
from pipelines.store import AGAIN, Store, read
from pipelines.threads import cores
from pipelines.transfer import wanted
from pipelines.turns import Turns

try:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.tensors import TensorCPU
except ImportError:
    raise NotInstalled("pipeline dali needs nvidia-dali-cuda120 (Linux x86-64): run make setup") from None

BOUNDS = {"zero": "pad", "mean": "pad", "reflect": "reflect_101"}  # DALI's names; reflect_101 does not repeat the edge
AHEAD = 2  # batches that DALI works on or keeps ready; more gained nothing
INPUTS = {  # name of a graph input: its element type and its dimensions in one sample
    "samples": (types.UINT8, 3),
    "labels": (types.INT64, 0),
    "flip": (types.INT32, 0),
    "start": (types.INT32, 1),
    "corner": (types.FLOAT, 1),
}


def inputs(policy: Policy) -> list[str]:
    """The graph inputs that a policy needs."""
    needed = {"flip": policy.flip != "none", "start": policy.translate > 0, "corner": policy.cutout > 0}
    return [name for name in INPUTS if needed.get(name, True)]


class Source:
    """What DALI calls for each batch; it ends an epoch with StopIteration. `begin` says what comes next."""

    def __init__(self, store: Store, split: str, plan: Plan):
        self.plan, self.names, self.labels = plan, inputs(plan.policy), store.labels(split)
        self.epoch, self.steps = 0, iter(())
        if store.encoding == "jpeg":
            # Wrapped once, since DALI wraps each array it is fed, which costs more than all else here.
            self.files = {i: TensorCPU(np.frombuffer(store.jpeg(split, i), np.uint8)) for i in plan.ids.tolist()}
        else:
            self.files, self.images = None, store.images(split)

    def begin(self, epoch: int, start: int) -> None:
        """Go to step `start` of `epoch`."""
        self.epoch, self.steps = epoch, self.plan.batches(epoch, start)

    def end(self) -> None:
        """Give nothing more."""
        self.steps = iter(())

    def __call__(self) -> list:
        """The next batch: one array for each of `names`, or a list of B JPEGs."""
        ids, plan = next(self.steps), self.plan
        flip, dy, dx, cut_y, cut_x = plan.augmentation(self.epoch, ids)
        cut_x = np.where(flip, plan.width - plan.policy.cutout - cut_x, cut_x)  # DALI flips after the cut
        batch = {
            "samples": [self.files[i] for i in ids.tolist()] if self.files else self.images[ids],
            "labels": self.labels[ids],
            "flip": flip.astype(np.int32),
            "start": np.stack([dy, dx], axis=1),
            "corner": np.stack([cut_y, cut_x], axis=1).astype(np.float32),
        }
        return [batch[name] for name in self.names]


@pipeline_def
def graph(source: Source, store: Store, policy: Policy, cuda: bool, dtype: types.DALIDataType):
    """DALI's graph: (images of `dtype` [B,H,W,C], labels int64[B]), on the GPU if `cuda`."""
    jpeg, fill, size = store.encoding == "jpeg", mean_pixel(store).tolist(), (store.height, store.width)
    kinds, dims = zip(*(INPUTS[name] for name in source.names))
    dims = (1 if jpeg else dims[0], *dims[1:])
    layout = None if jpeg else ["HWC"]
    nodes = fn.external_source(source, num_outputs=len(kinds), dtype=list(kinds), ndim=list(dims), layout=layout)
    given = dict(zip(source.names, nodes))
    images, labels = given["samples"], given["labels"]
    if jpeg:  # Pillow smooths chroma as libjpeg does and leaves EXIF's orientation alone
        images = fn.decoders.image(images, device="mixed" if cuda else "cpu", jpeg_fancy_upsampling=True, adjust_orientation=False)
    elif cuda:
        images = images.gpu()
    if policy.translate:
        # A value a channel even where all are 0: DALI then takes a path that is twice as fast on the CPU.
        outside = fill if policy.padding == "mean" else [0] * store.channels
        bounds = BOUNDS[policy.padding]
        images = fn.slice(images, start=given["start"], shape=size, axis_names="HW", out_of_bounds_policy=bounds, fill_values=outside)
    if policy.cutout:  # erase truncates its fill, and these are whole numbers
        images = fn.erase(images, anchor=given["corner"], shape=[policy.cutout] * 2, axis_names="HW", fill_value=fill)
    mean, std = (values.tolist() for values in scaling(store))
    images = fn.crop_mirror_normalize(images, mirror=given.get("flip", 0), mean=mean, std=std, dtype=dtype, output_layout="HWC")
    return images, labels.gpu() if cuda else labels


class Dali(Turns):
    """The contract, by DALI; see `pipelines.Pipeline`. Its graph and threads live as long as this object."""

    def __init__(self, store: Store, split: str, plan: Plan, device: torch.device, dtype: torch.dtype):
        self.store, self.plan, self.device, self.dtype = store, plan, device, dtype
        self.source = Source(store, split, plan)
        cuda = device.type == "cuda"
        native = types.FLOAT16 if dtype == torch.float16 else types.FLOAT  # DALI has no bfloat16: torch rounds to it
        self.pipe = graph(
            *(self.source, store, plan.policy, cuda, native),
            batch_size=min(plan.part, len(plan.places)),
            num_threads=cores(),
            device_id=device.index,
            prefetch_queue_depth=AHEAD,
        )
        self.pipe.build()

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0):
        self._clear()
        self.source.begin(epoch, start)
        while (outputs := self._run()) is not None:
            # DALI allocates every output anew and DLPack keeps it, so a batch stays as it is without a copy.
            images, labels = (torch.from_dlpack(output.as_tensor()) for output in outputs)
            del outputs
            yield images.permute(0, 3, 1, 2).to(self.dtype), labels

    def _run(self):
        """DALI's next outputs, or None at the end of the epoch."""
        # Bound to torch's stream, a GPU batch is ready there when it is read and is freed after its last use.
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        try:
            return self.pipe.run(stream)
        except StopIteration:
            return None
        except RuntimeError as error:
            if "decoders.image" not in str(error):
                raise
            raise InputError(f"{self.store.path}: damaged, DALI cannot decode an image of it: {AGAIN}") from None

    def _clear(self) -> None:
        """Throw away the batches that are under way of an epoch that was left early."""
        self.source.end()
        while self._run() is not None:
            pass
        self.pipe.reset()


def open(store, split="train", *, batch_size=512, policy=None, seed=0, device="cpu", dtype=torch.float32, ids=None, drop_last=False, share=(0, 1)):
    """Open DALI's pipeline; arguments as in `pipelines.open`, whose batches it makes on the CPU or on one GPU."""
    store, device = read(store), wanted("dali", device, dtype)
    plan = Plan.of(store, split, policy, seed, batch_size, ids, drop_last, share)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"pipeline dali: device {device}: DALI works on cpu or cuda")
    if device.type == "cpu":
        return Dali(store, split, plan, torch.device("cpu"), dtype)
    index = torch.cuda.current_device() if device.index is None else device.index
    return Dali(store, split, plan, torch.device("cuda", index), dtype)

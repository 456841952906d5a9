"""A recipe: every setting of a training, flat and frozen. CLI flag = field name = JSON key."""

import math
import os
from dataclasses import dataclass, field, fields

from nets.layers import NORMS
from pipelines.errors import InputError
from pipelines.mixing import Mixing
from pipelines.plan import FLIPS, PADDINGS, Policy
from pipelines.stage import Extra

SCHEDULES = ("constant", "plateau", "step", "linear", "cosine")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
OPTIMISERS = ("sgd", "adamw", "muon")
MUON_NORMS = ("filter", "row")
VIEWS = (1, 2, 6)
# what the host decides, step by step or before a batch is there: a step that is made once has none of it in it
HOSTS = (
    *("epochs", "limit", "held_out", "eval_every", "save_minutes", "events", "views", "views_share", "lr", "head_lr", "muon_lr", "schedule", "warmup", "floor"),
    *("step_epochs", "factor", "patience", "settle", "freeze", "first_side", "grown", "flip", "translate", "padding", "cutout"),
)
ASIDE = ("seed", "runs", "together", "sweep", "out", "data", "report")  # what two runs of one experiment may differ in
ANYWAY = ("pipeline", "events", "save_minutes")  # what the same training may go on with in another way
# (settings, what a value must be, how to ask for it)
RANGES = (
    (("eval_every", "held_out", "first_side", "size", "patience", "erase"), lambda value: value >= 0, "0 or more"),
    (("lr", "head_lr", "muon_lr", "weight_decay", "warmup", "mix_ramp", "minutes", "save_minutes"), lambda value: 0 <= value < math.inf, "0 or more"),
    (("shift", "rotate", "brightness", "contrast", "saturation", "sharpness"), lambda value: 0 <= value < math.inf, "0 or more"),
    (("momentum", "muon_momentum", "beta", "scale"), lambda value: 0 <= value < 1, "0 or more, below 1"),
    (("ema", "floor", "label_smoothing", "teacher_share", "settle", "freeze", "grown", "factor"), lambda value: 0 <= value <= 1, "a share from 0 to 1"),
    (("temperature",), lambda value: 0 < value < math.inf, "a number above 0"),
    (("affine_p", "erase_p", "grey_p"), lambda value: 0 <= value <= 1, "a probability from 0 to 1"),
)


def _setting(default, text: str, choices=None):
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """All settings of one run. The text beside a field gives its meaning and unit."""

    net: str = _setting("quick", "of those that python -m nets lists")
    norm: str = _setting("batch", "normalisation layers; batch stands for the net's own, which are others in tiniest (channel)", NORMS)
    pipeline: str = _setting("resident", "what loads the images: resident, torchvision, dali or ffcv; the training is the same")
    data: str = _setting("", "a store or a source; else $TENFOLD_DATA, data/, or the official archive")
    size: int = _setting(0, "side that a source's pictures are cut and brought to, pixels; 0 leaves them as they are")
    limit: int = _setting(0, "train on that many images, balanced over the classes; 0 for all")
    held_out: int = _setting(0, "test on that many training images, balanced, left out of training; 0 for the test split")
    epochs: int = _setting(10, "passes over the training images")
    minutes: float = _setting(0.0, "of training: as many epochs as fit into them, by a few timed steps; 0 for epochs as given")
    eval_every: int = _setting(1, "epochs between test passes; 0 for one, after the last epoch")
    batch_size: int = _setting(128, "images a step, those of all processes where several share a training")
    seed: int = _setting(0, "of the weights, the order and the augmentation; 0 to 2**32 - 1")
    runs: int = _setting(1, "trainings, with seeds seed, seed + 1, ...")
    together: int = _setting(1, "trainings that share one program, where there are several: a GPU has room for many small nets")
    sweep: str = _setting("", "FIELD=VALUE,VALUE,...: a training (or `runs` of them) for each value of a setting")
    device: str = _setting("auto", "where to train", DEVICES)
    precision: str = _setting("auto", "of the forward and backward pass", PRECISIONS)
    compiled: bool = _setting(False, "compile the training step (torch.compile; on a GPU recorded as a CUDA graph)")
    recorded: bool = _setting(False, "on a GPU of one process: record the training step as a CUDA graph without compiling it, which takes a minute and more")
    deterministic: bool = _setting(False, "the same bits again on CUDA too, at some cost; a CPU gives them always")
    out: str = _setting("", "run folder; else runs/<date>-<net>-<pipeline>")
    events: bool = _setting(False, "write TensorBoard's events, too, into RUN/events")
    report: bool = _setting(True, "write the run's page and pictures, which take seconds; all figures and the model are there without")
    optimiser: str = _setting("sgd", "muon: Muon for the filters, SGD with Nesterov's momentum for the rest", OPTIMISERS)
    save_minutes: float = _setting(2.0, "minutes between checkpoints within an epoch; 0 for one after every step")
    lr: float = _setting(0.1, "largest learning rate of SGD or AdamW")
    momentum: float = _setting(0.9, "of SGD; the first of AdamW's two")
    beta: float = _setting(0.99, "of AdamW's mean of squared gradients")
    head_lr: float = _setting(0.0, "largest learning rate of the other weights beside Muon's filters; 0 for lr")
    muon_lr: float = _setting(0.1, "largest learning rate of Muon, fraction of a filter's norm")
    muon_momentum: float = _setting(0.6, "of Muon")
    muon_norm: str = _setting("filter", "what Muon keeps at one norm: filter, the whole of it, or row, what makes one channel", MUON_NORMS)
    nesterov: bool = _setting(False, "Nesterov's momentum")
    weight_decay: float = _setting(0.0, "L2 penalty on weights of two or more dimensions")
    label_smoothing: float = _setting(0.0, "share of the target spread over all classes")
    ema: float = _setting(0.0, "what is tested and saved is a running mean of the weights, which keeps that share at a step; 0 for the weights themselves")
    teacher: str = _setting(
        "", "distillation: run folder whose net's logits are learnt beside the labels; of several seeds, or several folders as A:B, the mean of all"
    )
    teacher_share: float = _setting(0.5, "of the teacher in the loss")
    temperature: float = _setting(2.0, "of the teacher's and the net's softmax in that share")
    views: int = _setting(1, "views of each test image whose logits are averaged: 2 with its mirror image, 6 with both shifted, too", VIEWS)
    views_share: float = _setting(1.0, "of the test images, the least confident, that have more views than one")
    schedule: str = _setting("cosine", "of the learning rate", SCHEDULES)
    warmup: float = _setting(0.0, "epochs of linear rise to lr")
    floor: float = _setting(0.0, "share of the largest rate that the linear and cosine schedules end at")
    step_epochs: int = _setting(10, "epochs between falls of the step schedule")
    factor: float = _setting(0.1, "what the step and plateau schedules multiply by")
    patience: int = _setting(5, "epochs without a better training loss before plateau falls")
    settle: float = _setting(1.0, "share of the epochs after which what matters only at first rests: the bias of speednet's whitening")
    freeze: float = _setting(1.0, "share of the epochs after which the first layers rest: speednet's first group")
    first_side: int = _setting(0, "side that training images are shrunk to at first, pixels; 0 for never")
    grown: float = _setting(0.5, "share of the epochs in which they grow to full size")
    flip: str = _setting("random", "horizontal flip", FLIPS)
    translate: int = _setting(4, "largest shift, pixels")
    padding: str = _setting("zero", "what a shift brings in", PADDINGS)
    cutout: int = _setting(0, "side of the cut square, pixels")
    affine_p: float = _setting(0.0, "probability of shift-scale-rotate")
    shift: float = _setting(0.0, "largest shift of shift-scale-rotate, fraction of the side")
    scale: float = _setting(0.0, "largest change of size of shift-scale-rotate, fraction")
    rotate: float = _setting(0.0, "largest rotation of shift-scale-rotate, degrees")
    erase_p: float = _setting(0.0, "probability of an erased square behind shift-scale-rotate")
    erase: int = _setting(0, "side of the erased square, pixels")
    erase_fill: str = _setting("mean", "mean: the mean colour; offset: the mean as a normalised value", ("mean", "offset"))
    grey_p: float = _setting(0.0, "probability of a grey image")
    brightness: float = _setting(0.0, "largest change of brightness, fraction")
    contrast: float = _setting(0.0, "largest change of contrast, fraction")
    saturation: float = _setting(0.0, "largest change of saturation, fraction")
    sharpness: float = _setting(0.0, "largest change of sharpness, fraction")
    mixup: float = _setting(0.0, "largest share of a partner that is mixed into an image, 0 to 0.5")
    cutmix: float = _setting(0.0, "probability of a rectangle from a partner instead")
    mix_ramp: float = _setting(0.0, "epochs in which mixup and cutmix grow to their full strength")

    def __post_init__(self):
        for setting in fields(self):
            choices, value = setting.metadata["choices"], getattr(self, setting.name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, setting.name, os.fspath(value))
            if choices and value not in choices:
                raise InputError(f"--{flag(setting.name)} {value}: choose one of {', '.join(map(str, choices))}")
        for name in ("epochs", "batch_size", "runs", "together", "step_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"--{flag(name)} {getattr(self, name)}: give 1 or more")
        for names, fits, asked in RANGES:
            for name in names:
                if not fits(getattr(self, name)):
                    raise InputError(f"--{flag(name)} {getattr(self, name)}: give {asked}")
        if self.limit < 0 or self.seed < 0 or self.seed + self.runs > 2**32:
            raise InputError("--limit and --seed: give 0 or more, and seeds below 2**32")
        if self.nesterov and not self.momentum:
            raise InputError("--nesterov needs --momentum above 0")
        if not 0 < self.views_share <= 1:
            raise InputError(f"--views-share {self.views_share}: give a share above 0, at most 1")
        if self.minutes and (self.sweep or self.together > 1):
            raise InputError("--minutes: epochs are fitted to one training at a time: leave --sweep and --together out, or give --epochs")
        self.policy(), self.mixing()

    def experiment(self) -> dict:
        """The settings that two runs of one experiment have in common."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ASIDE}

    def program(self) -> dict:
        """The settings that a step made once has in it, so that it serves all recipes that have them in common."""
        return {name: value for name, value in self.experiment().items() if name not in HOSTS}

    def policy(self) -> Policy:
        """What the pipeline does to the training images."""
        return Policy(self.flip, self.translate, self.padding, self.cutout)

    def rates(self) -> dict[str, float]:
        """The learning rates that it trains with, by setting; the first is that of most weights."""
        names = ("muon_lr", "lr", "head_lr") if self.optimiser == "muon" else ("lr",)
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @property
    def idle(self) -> list[str]:
        """Settings of shift-scale-rotate where no image has it."""
        return [] if self.affine_p else [name for name in ("shift", "scale", "rotate") if getattr(self, name)]

    def mixing(self) -> Mixing:
        """What is mixed behind the batch stage."""
        return Mixing(self.mixup, self.cutmix)

    def extra(self, mean: tuple[float, ...]) -> Extra:
        """What the batch stage does behind it; `mean` is the store's, fractions of 1."""
        fill = mean if self.erase_fill == "offset" else tuple(0.0 for _ in mean)
        chosen = {f.name: getattr(self, f.name) for f in fields(Extra) if f.name != "erase_fill"}
        return Extra(**chosen, erase_fill=fill)


def flag(name: str) -> str:
    """The command-line flag of a field, without its dashes."""
    return name.replace("_", "-")

"""A recipe: every setting of a training, flat and frozen. CLI flag = field name = JSON key."""

import math
import os
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real

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
    *("step_epochs", "factor", "patience", "settle", "freeze", "first_side", "grown", "flip", "translate", "padding", "cutout", "weights"),
)
ASIDE = ("seed", "runs", "together", "sweep", "out", "data", "report")  # what two runs of one experiment may differ in
ANYWAY = ("pipeline", "events", "save_minutes")  # what the same training may go on with in another way
KINDS: dict[object, tuple[type, str]] = {int: (Integral, "a whole number"), float: (Real, "a number"), bool: (bool, "True or False"), str: (str, "text")}
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

    net: str = _setting("quick", "architecture: any that python -m nets lists")
    norm: str = _setting("batch", "normalisation layers; batch means the net's own, which differ for tiniest (channel)", NORMS)
    weights: str = _setting(
        "", "run folder whose model's weights the net begins with, for fine-tuning; the classifier begins anew for another number of classes"
    )
    pipeline: str = _setting("resident", "data loader: resident, torchvision, dali or ffcv; the training is the same with each")
    data: str = _setting("", "store, image folder, archive or dataset name; default: $TENFOLD_DATA, data/, or the official archive")
    size: int = _setting(0, "crop and resize the source's images to this side, pixels; 0 keeps their size")
    limit: int = _setting(0, "train on this many images, balanced over the classes; 0 for all")
    held_out: int = _setting(0, "hold out this many training images, balanced, and test on them; 0 for the test split")
    epochs: int = _setting(10, "passes over the training images")
    minutes: float = _setting(0.0, "training time: fits the number of epochs to it by timing a few steps; 0 for --epochs as given")
    eval_every: int = _setting(1, "epochs between test passes; 0 tests once, after the last epoch")
    batch_size: int = _setting(128, "images per step, over all processes where several share a training")
    seed: int = _setting(0, "seed of initial weights, data order and augmentation; 0 to 2**32 - 1")
    runs: int = _setting(1, "number of trainings, with seeds SEED, SEED + 1, ...")
    together: int = _setting(1, "of several trainings, how many to train at a time as one batched program")
    sweep: str = _setting("", "SETTING=VALUE,VALUE,...: train once (or --runs times) for each value of a setting")
    device: str = _setting("auto", "where to train; auto takes a GPU if there is one", DEVICES)
    precision: str = _setting("auto", "precision of the forward and backward pass", PRECISIONS)
    compiled: bool = _setting(False, "compile the training step with torch.compile, on a GPU into a CUDA graph")
    recorded: bool = _setting(False, "record the training step as a CUDA graph without compiling it, which saves a minute at the start (GPU, one process)")
    deterministic: bool = _setting(False, "bit-reproducible on CUDA too, at some cost; on a CPU training always is")
    out: str = _setting("", "run folder; default: runs/<date>-<net>-<pipeline>")
    events: bool = _setting(False, "also write TensorBoard events, into RUN/events")
    report: bool = _setting(True, "write the report and its plots, which take seconds; metrics and the model are written anyway")
    optimiser: str = _setting("sgd", "muon: Muon for convolution filters, SGD with Nesterov momentum for the rest", OPTIMISERS)
    save_minutes: float = _setting(2.0, "minutes between checkpoints within an epoch; 0 saves after every step")
    lr: float = _setting(0.1, "peak learning rate of SGD or AdamW")
    momentum: float = _setting(0.9, "momentum of SGD; beta1 of AdamW")
    beta: float = _setting(0.99, "beta2 of AdamW")
    head_lr: float = _setting(0.0, "with muon, peak learning rate of the other weights, such as the classifier's; 0 for --lr, which norms and biases have")
    muon_lr: float = _setting(0.1, "peak learning rate of Muon, as a fraction of a filter's norm")
    muon_momentum: float = _setting(0.6, "momentum of Muon")
    muon_norm: str = _setting("filter", "what Muon keeps at constant norm: the whole filter, or each row, which makes one output channel", MUON_NORMS)
    nesterov: bool = _setting(False, "Nesterov momentum")
    weight_decay: float = _setting(0.0, "L2 penalty on weights of two or more dimensions")
    label_smoothing: float = _setting(0.0, "share of the target that is spread over all classes")
    ema: float = _setting(0.0, "decay per step of an exponential moving average of the weights, which is what is tested and saved; 0 for none")
    teacher: str = _setting("", "run folder whose model teaches this net; several seeds, or folders given as A:B, teach by their mean logits")
    teacher_share: float = _setting(0.5, "weight of the teacher in the loss; the labels have the rest")
    temperature: float = _setting(2.0, "softmax temperature of the teacher's part of the loss")
    views: int = _setting(1, "test-time augmentation: average the logits of 2 (mirrored) or 6 (mirrored and shifted) views of each test image", VIEWS)
    views_share: float = _setting(1.0, "share of the test images, the least confident, that get these views")
    schedule: str = _setting("cosine", "learning rate schedule", SCHEDULES)
    warmup: float = _setting(0.0, "epochs of linear warm-up")
    floor: float = _setting(0.0, "final learning rate of the linear and cosine schedules, as a share of the peak")
    step_epochs: int = _setting(10, "epochs between drops of the step schedule")
    factor: float = _setting(0.1, "factor of each drop of the step and plateau schedules")
    patience: int = _setting(5, "epochs without a better training loss before the plateau schedule drops")
    settle: float = _setting(1.0, "share of the epochs after which the bias of speednet's whitening layer is frozen")
    freeze: float = _setting(1.0, "share of the epochs after which the early layers are frozen: speednet's first group")
    first_side: int = _setting(0, "side of the training images at the start, pixels; 0 for full size throughout")
    grown: float = _setting(0.5, "share of the epochs after which they have their full size")
    flip: str = _setting("random", "horizontal flip", FLIPS)
    translate: int = _setting(4, "largest shift (random crop of the padded image), pixels")
    padding: str = _setting("zero", "what fills the border of a shifted image", PADDINGS)
    cutout: int = _setting(0, "side of the cutout square, pixels")
    affine_p: float = _setting(0.0, "probability of the affine transform: shift, scale and rotate")
    shift: float = _setting(0.0, "largest shift of the affine transform, fraction of the side")
    scale: float = _setting(0.0, "largest change of scale of the affine transform, fraction")
    rotate: float = _setting(0.0, "largest rotation of the affine transform, degrees")
    erase_p: float = _setting(0.0, "probability of an erased square, after the affine transform")
    erase: int = _setting(0, "side of the erased square, pixels")
    erase_fill: str = _setting("mean", "fill of the erased square. mean: the mean colour; offset: the mean as a value after normalisation", ("mean", "offset"))
    grey_p: float = _setting(0.0, "probability of a greyscale image")
    brightness: float = _setting(0.0, "largest change of brightness, fraction")
    contrast: float = _setting(0.0, "largest change of contrast, fraction")
    saturation: float = _setting(0.0, "largest change of saturation, fraction")
    sharpness: float = _setting(0.0, "largest change of sharpness, fraction")
    mixup: float = _setting(0.0, "largest share of a partner that mixup blends into an image, 0 to 0.5")
    cutmix: float = _setting(0.0, "probability of CutMix, a rectangle of the partner, instead of mixup")
    mix_ramp: float = _setting(0.0, "epochs over which mixup and CutMix ramp up to full strength")

    def __post_init__(self):
        for setting in fields(self):
            choices, value = setting.metadata["choices"], plain(setting, getattr(self, setting.name))
            object.__setattr__(self, setting.name, value)
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
    def main_rate(self) -> str:
        """The setting that most weights learn by."""
        return next(iter(self.rates()), "lr")

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


def plain(setting: Field, value):
    """The value of a setting as JSON has it: a path as text, NumPy's numbers as Python's. Raises `InputError` where it is of another kind."""
    kinds, asked = KINDS[setting.type]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and setting.type is not bool):
        raise InputError(f"--{flag(setting.name)} {value!r:.60}: give {asked}")
    return value if type(value) in (int, float, bool, str) else setting.type(value)


def flag(name: str) -> str:
    """The command-line flag of a field, without its dashes."""
    return name.replace("_", "-")

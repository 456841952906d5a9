"""Several trainings as one program: small nets may leave a device idle, and seeds of one net have one shape.

The weights of G nets are slices of stacked tensors, so that each net, its optimiser's state and its running mean stay its own,
while forward and backward run once for all (`torch.func.vmap` makes grouped convolutions of them) and the optimiser
moves all in the launches of one. On a CPU the grouped convolutions were measured five times slower than one net after another,
so there it is one after another.

Shapes: images_BGCHW in memory order B,H,W,G,C (channels_last for a convolution of G groups), logits_GBK.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import nn
from torch.func import functional_call, vmap

from pipelines.errors import InputError
from pipelines.mixing import Targets
from train.compiled import build_step
from train.course import Course, Diverged
from train.loop import Training, right_of, set_rate
from train.objective import cross_entropies, distillations
from train.recorded import Batch, Results
from train.rehearsal import rehearse
from train.resting import SHARES, Resting
from train.saving import CtrlC
from train.scaling import FixedScale


class Stopped(KeyboardInterrupt):
    """Ctrl-C between two steps of trainings that go together: the state of those that go on, `going`, is that behind a step of each."""

    def __init__(self, going: set[int]):
        super().__init__()
        self.going = going


class Together:
    """G trainings, of recipes that may differ in what does not change a net's shape or the steps' number and size.

    batched  as one program; without it one after another, which gives the same

    Raises `InputError` where that cannot be. The trainings' weights are moved; their states stay theirs.
    """

    def __init__(self, trainings: list[Training], batched: bool):
        self.trainings, self.batched = trainings, batched
        first = trainings[0]
        self.device, self.precision, self.ranks = first.device, first.precision, first.ranks
        if not batched:
            return
        if self.device.type == "cpu" and self.precision != "fp32":
            raise InputError("--as-one: on a CPU torch casts nothing to half precision where several nets are one program: use --precision fp32")
        if any(hasattr(first.net, switch) and getattr(t.recipe, share) < 1 for switch, share in SHARES.items() for t in trainings):
            raise InputError("--together: in one program every part of a net trains to the end: add --settle 1 --freeze 1, or leave --together out")
        own_norms(first.net)
        if hasattr(first.net, "several"):
            first.net.several = True
        self.parameters = stacked([dict(t.net.named_parameters()) for t in trainings])
        self.buffers = stacked([dict(t.net.named_buffers()) for t in trainings])
        self.gradients = [p.grad for p in self.parameters.values() if p.requires_grad]
        self.optimiser, self.followed = merged(trainings)
        self.scaler = FixedScale(first.recipe.batch_size if self.precision == "fp16" else 1)  # a scaler would look at one net at a time
        self.link()
        build_step(self, first.recipe)

    def warm_up(self) -> None:
        """Have every kernel built before the clock of training runs (`rehearsal.py`)."""
        if self.batched:
            rehearse(self.trainings, self.step)
        else:
            for training in self.trainings:
                training.warm_up()

    def holds(self, trainings: list[Training]) -> bool:
        """Whether it is the group of just these, which may have been restarted with other seeds."""
        return len(trainings) == len(self.trainings) and all(ours is theirs for ours, theirs in zip(self.trainings, trainings))

    def follow(self, courses: list[Course], ctrl_c: CtrlC | None = None) -> list[Diverged | None]:
        """Take the courses of all trainings to their ends, step by step; where one diverges, the others go on.

        Raises `Stopped` behind a step in which Ctrl-C was asked for and after which the state of all that go on may be taken.
        """
        outcomes: list[Diverged | None] = [None] * len(courses)
        batches: list = [None] * len(courses)
        going = set()
        for i, course in enumerate(courses):
            with self.random_of(i), suppress(StopIteration):  # gone on with behind its last step
                batches[i] = next(course)
                going.add(i)
        self.link()  # a course may have begun from a checkpoint
        while going:
            some = batches[min(going)]  # of one size with all others that go on
            try:
                results = self.step([batch if i in going else some for i, batch in enumerate(batches)], going)
            except BaseException as error:
                courses[min(going)].throw(error)  # to be saved or explained there
                raise
            if ctrl_c:
                ctrl_c.ready = 0
            for i in sorted(going):
                try:
                    with self.random_of(i):
                        batches[i] = courses[i].send(results[i])
                except StopIteration:
                    going.discard(i)
                except Diverged as error:  # its slices go on as they are, and nobody looks at them
                    outcomes[i] = error
                    going.discard(i)
            if ctrl_c and ctrl_c.asked and going and ctrl_c.ready >= len(going):
                raise Stopped(going)
        return outcomes

    @contextmanager
    def random_of(self, i: int) -> Iterator[None]:
        """Draws of one of several trainings that go one after another are from its own stream, so that they are what they are without the others."""
        if self.batched:
            yield
            return
        torch.set_rng_state(self.trainings[i].random)
        try:
            yield
        finally:
            self.trainings[i].random = torch.get_rng_state()

    def step(self, batches: list[Batch], going: Iterable[int] = ()) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(detached loss, right predictions) of each training's update by its batch; of those that are `going`, where not all are."""
        if not self.batched:
            going, results = set(going) or range(len(batches)), []
            for i, (training, batch) in enumerate(zip(self.trainings, batches)):
                with self.random_of(i):
                    results.append(training.step(*batch) if i in going else None)
            return results
        for group, followed in zip(self.optimiser.param_groups, self.followed):
            i, number = next((one for one in followed if one[0] in going), followed[0])  # the rate of one that has ended stands still
            set_rate(group, self.trainings[i].optimiser.param_groups[number]["lr"])
        losses, rights = self.work(batches)
        for training in self.trainings:
            training.moved()
        return list(zip(losses, rights))

    def work(self, batches: list[Batch]) -> Results:
        """What a step does on the device: the nets are moved where they lie, and the results are new tensors."""
        images = side_by_side([images for images, _ in batches])
        losses, logits = self.forward(images, [targets for _, targets in batches])
        torch._foreach_zero_(self.gradients)
        self.scaler.scale(losses.sum()).backward()  # of nets that share nothing: each gets the gradient of its own loss
        self.update()
        return losses.detach(), torch.stack([right_of(said, targets) for said, (_, targets) in zip(logits, batches)])

    def forward(self, images_BGCHW: torch.Tensor, targets: list[Targets]) -> tuple[torch.Tensor, torch.Tensor]:
        """(losses float32[G], logits_GBK) of a batch a net, with their graph."""
        first = self.trainings[0]

        def one(parameters: dict, buffers: dict, images_BCHW: torch.Tensor) -> torch.Tensor:
            return functional_call(first.net, (parameters, buffers), (images_BCHW,))

        with first.autocast():
            logits = vmap(one, in_dims=(0, 0, 1), randomness="different")(self.parameters, self.buffers, images_BGCHW)
        kinds = {(t.recipe.label_smoothing, t.recipe.teacher, t.recipe.teacher_share, t.recipe.temperature) for t in self.trainings}
        if len(kinds) == len({wanted.partners is None for wanted in targets}) == 1:
            each = self.losses(logits.float().flatten(0, 1), images_BGCHW, targets)
            return each.view(len(targets), -1).mean(1), logits
        parts = zip(self.trainings, logits, images_BGCHW.unbind(1), targets)
        return torch.stack([t.loss(said, images, wanted) for t, said, images, wanted in parts]), logits

    def losses(self, logits_NK: torch.Tensor, images_BGCHW: torch.Tensor, targets: list[Targets]) -> torch.Tensor:
        """Of each image of the G batches, one batch behind the other, float32[N]: by the loss and the one look of the teacher that all trainings have in common."""
        first = self.trainings[0]
        every = Targets(*(None if part[0] is None else torch.cat(part) for part in zip(*targets)))
        each = cross_entropies(logits_NK, every, first.recipe.label_smoothing)
        if first.teacher is None:
            return each
        with torch.no_grad(), first.autocast():
            shown_NHWC = images_BGCHW.permute(1, 0, 3, 4, 2).flatten(0, 1)
            taught = first.teacher(shown_NHWC.permute(0, 3, 1, 2) if every.whole is None else every.whole)
        return torch.lerp(each, distillations(logits_NK, taught.float(), first.recipe.temperature), first.recipe.teacher_share)

    @property
    def phase(self) -> Resting:
        """As a training's own; all go through theirs together."""
        return self.trainings[0].phase

    def update(self) -> None:
        """Move all weights by their gradients."""
        self.scaler.step(self.optimiser)

    def link(self) -> None:
        """Have each weight's optimiser state be the one that its own training keeps."""
        for training in self.trainings if self.batched else ():
            for group in training.optimiser.param_groups:
                for parameter in group["params"]:
                    self.optimiser.state[parameter] = training.optimiser.state[parameter]


def own_norms(net: nn.Module) -> None:
    """Have batch norms call torch's own kernels: its choice between them and cuDNN's asks for a memory order, which a batch of vmap cannot tell."""
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.forward = partial(own_norm, module)


def own_norm(norm: nn.BatchNorm2d, images: torch.Tensor) -> torch.Tensor:
    """What `norm` does to its images, in their dtype: of several nets torch multiplies by the weights behind the norm, in float32, which would keep half
    precision's kernels from all that follows."""
    if norm.training:
        norm.num_batches_tracked.add_(1)
    tensors = images, norm.weight, norm.bias, norm.running_mean, norm.running_var
    return torch.native_batch_norm(*tensors, norm.training, norm.momentum, norm.eps)[0].to(images.dtype)


def stacked(each: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One tensor [G,...] for the tensors of a name; those become slices of it, their gradients slices of its gradient."""
    made = {}
    for name in each[0]:
        parts = [tensors[name] for tensors in each]
        if parts[0].ndim == 4:  # channels_last each, and still so when G and the first dimension are one
            whole = torch.stack([p.detach().permute(0, 2, 3, 1) for p in parts]).permute(0, 1, 4, 2, 3)
        else:
            whole = torch.stack([p.detach() for p in parts])
        for part, piece in zip(parts, whole):
            part.data = piece
        if parts[0].requires_grad:
            whole.requires_grad_()
            whole.grad = torch.zeros_like(whole)
            for part, piece in zip(parts, whole.grad):
                part.grad = piece
        made[name] = whole
    return made


def merged(trainings: list[Training]) -> tuple[torch.optim.Optimizer, list[list[tuple[int, int]]]]:
    """(one optimiser over all weights, every (training, group) whose one rate each of its groups follows). Groups of the same
    settings and schedule become one."""
    groups: dict[tuple, dict] = {}
    followed: dict[tuple, list[tuple[int, int]]] = {}
    for i, training in enumerate(trainings):
        recipe = training.recipe
        follows = recipe.schedule, recipe.warmup, recipe.floor, recipe.step_epochs, recipe.factor
        own = follows + ((i,) if recipe.schedule == "plateau" else ())  # whose rates part as the losses do
        for number, group in enumerate(training.optimiser.param_groups):
            settings = {key: value for key, value in group.items() if key not in ("params", "lr")}
            key = (*own, *settings.items())
            if key not in groups:
                groups[key] = {**settings, "params": [], "lr": group["initial_lr"]}
            groups[key]["params"] += group["params"]
            followed.setdefault(key, []).append((i, number))
    return type(trainings[0].optimiser)(list(groups.values()), lr=0.0), list(followed.values())


def side_by_side(images: list[torch.Tensor]) -> torch.Tensor:
    """images_BGCHW of G batches [B,C,H,W]: a view of B,H,W,G,C, so that a grouped convolution reads channels_last without a copy."""
    return torch.stack([batch.permute(0, 2, 3, 1) for batch in images], 3).permute(0, 3, 4, 1, 2)

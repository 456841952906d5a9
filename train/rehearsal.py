"""Steps before the clock of training runs, which have every kernel built and every program compiled, and leave no trace."""

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch

from train.compiled import restore
from train.objective import cross_entropy
from train.progressive import resize
from train.recorded import FIRST, Batch
from train.resting import Resting, rest, resting


def rehearse(trainings: list, step: Callable[[list[Batch]], object]) -> None:
    """Have the kernels ready of `loop.Training`s that go together; `step` takes a batch of each.

    Where their steps are made once, a step at every size of image and batch that is to come, undone afterwards, and a batch of the test pass;
    else a batch through a copy of the net.
    """
    random, cuda = torch.get_rng_state(), torch.cuda.get_rng_state_all() if trainings[0].device.type == "cuda" else []
    if trainings[0].built:
        before = [deepcopy(training.net.state_dict()) for training in trainings]
        for training in trainings:
            training.prepare()
        for batches in zip(*map(sizes, trainings)):
            for _ in range(FIRST + 1):  # the last one is recorded, where steps are
                step(list(batches))
        for training, state in zip(trainings, before):
            restore(training.net, training.optimiser, state)
            try_test(training)
    else:
        try_copy(trainings[0])
    torch.set_rng_state(random)  # dropout's draws do not depend on it
    torch.cuda.set_rng_state_all(cuda)


def try_copy(training) -> None:
    """A batch forward and backward through a copy of the net."""
    copied = deepcopy(training.net)
    images, targets = next(training.batches(0))
    with training.autocast():
        logits = copied(resize(images, training.side(0)))
    cross_entropy(logits.float(), targets, training.recipe.label_smoothing).backward()


@torch.no_grad()
def try_test(training) -> None:
    """A batch of the test pass."""
    images, _ = next(iter(training.test.epoch(0)))
    recipe, net = training.recipe, training.finished.eval()
    for views in {recipe.views, 1 if recipe.views_share < 1 else recipe.views}:
        for _ in range(FIRST + 1 if images.is_cuda else 1):
            training.look(images, views)
    net.train()


def phases(training) -> list[tuple[int, Resting]]:
    """(side of the images, pixels; what rests meanwhile) of all epochs, each once, in the order of sides and, at each, of what rests."""
    return sorted({(training.side(epoch), resting(training.net, training.recipe, epoch)) for epoch in range(training.recipe.epochs)})


def sizes(training) -> Iterator[Batch]:
    """A batch of every size of image and of batch that is to come; the net trains what it will train with them."""
    images, targets = next(training.batches(0))
    last = len(training.train.plan.ids) % len(images)
    for shown, which in phases(training):
        rest(training.net, which)
        for count in {len(images), last} - {0}:
            yield training.shrunk(images[:count], targets.first(count), shown)

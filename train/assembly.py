"""A recipe and a store become a training: net, pipelines, optimiser."""

from copy import deepcopy

import torch
from torch import nn

import nets
import pipelines
from pipelines import stage
from pipelines.errors import InputError, reason
from pipelines.plan import PLAIN
from pipelines.store import Store
from train.device import DTYPES, precision_of
from train.failures import explained
from train.loop import Training
from train.progressive import side
from train.ranks import Ranks
from train.recipe import Recipe
from train.split import split
from train.stopwatch import Stopwatch
from train.synced import synced
from train.teacher import teacher
from train.weights import begin

TEST_BATCH = {"cpu": 1000, "cuda": 2500}  # images; no gradient is kept, so it may be larger than a training batch; a GPU wants few launches, and has the memory


def known(recipe: Recipe) -> None:
    """Raise `InputError` where there is no net or pipeline of the recipe's name, or the pipeline is not installed."""
    pipelines.load(recipe.pipeline)
    try:
        nets.find(recipe.net)
    except nets.UnknownNet as error:
        raise InputError(str(error)) from None


def verified(store: Store) -> Store:
    """The store, every byte of it checked."""
    store.verify()
    return store


def assemble(
    recipe: Recipe, store: Store, device: torch.device, watch: Stopwatch, earlier: Training | None = None, ranks: Ranks = Ranks(), resumed: bool = False
) -> Training:
    """Net, pipelines and optimiser of a recipe. The seed fixes the weights that are not another run's, whatever the pipeline.

    earlier  a training of another seed, whose recipe has the same `program`: its step is then used again
    ranks    the processes that share the training, of which this one does its part
    resumed  whether a checkpoint's weights are put in next: then no others are read
    """
    if recipe.compiled and not ranks.alone:
        raise InputError("--compiled: several processes share a training eagerly only: add --no-compiled, or deal out whole trainings with --runs")
    if recipe.minutes:
        raise InputError("--minutes: only python -m train fits epochs to a time: give --epochs")
    dtype = DTYPES[precision_of(recipe, device)]
    held, ids = split(recipe, store.labels("train"))
    common = dict(device=device, dtype=dtype, seed=recipe.seed, share=ranks.share)
    loader = pipelines.open(recipe.pipeline, store, "train", batch_size=recipe.batch_size, policy=recipe.policy(), ids=ids, **common)
    loader = stage.stage(loader, recipe.extra(store.mean), store)
    tested = {"split": "test"} if held is None else {"split": "train", "ids": held}
    test = pipelines.open(recipe.pipeline, store, batch_size=ranks.whole(TEST_BATCH[device.type]), policy=PLAIN, **tested, **common)
    torch.manual_seed(recipe.seed)
    net = net_of(recipe, store)
    check_fit(net, recipe, store)
    if recipe.weights and not resumed:
        begin(net, recipe, store)
    if recipe.batch_size == 1 or len(loader.plan.ids) % recipe.batch_size == 1:
        check_alone(net, recipe, store)
    net = synced(net, ranks)
    if earlier is not None:
        return earlier.restart(recipe, net, loader, test, watch)
    return Training(recipe, net, loader, test, device, watch, teacher(recipe.teacher, store) if recipe.teacher else None, ranks=ranks)


def check_alone(net: nn.Module, recipe: Recipe, store: Store) -> None:
    """Raise `InputError` unless the net can train by a batch of one image, at the smallest size that training shows: a norm may find a single value there."""
    height = side(0, recipe.epochs, recipe.first_side, store.height, recipe.grown)
    try:
        with torch.random.fork_rng(devices=[]):
            deepcopy(net).train()(torch.zeros(1, store.channels, height, round(store.width * height / store.height)))
    except ValueError as error:
        remedy = f"give another --batch-size than {recipe.batch_size}, or another --limit"
        raise InputError(f"net {recipe.net} cannot train by a batch of one image, as the last one is ({reason(error)}): {remedy}") from None


def net_of(recipe: Recipe, store: Store) -> nn.Module:
    """A recipe's net for a store's classes, its weights drawn anew."""
    options = {} if recipe.norm == "batch" else {"norm": recipe.norm}
    return nets.load(recipe.net, len(store.classes), **options)


def check(recipe: Recipe, store: Store) -> None:
    """Raise `InputError` where a store's images, the teacher or the weights do not allow a recipe's settings, which else is found when a training is put together."""
    split(recipe, store.labels("train"))
    recipe.policy().fits(store.height, store.width)
    recipe.extra(store.mean).fits(store.height, store.width)
    net = net_of(recipe, store)
    check_fit(net, recipe, store)
    if recipe.weights:
        begin(net, recipe, store)
    if recipe.teacher:
        teacher(recipe.teacher, store)


def check_fit(net: nn.Module, recipe: Recipe, store: Store) -> None:
    """Raise `InputError` unless the net takes the store's images, at their size and at the smallest that training shows, and knows its classes."""
    first = side(0, recipe.epochs, recipe.first_side, store.height, recipe.grown)
    for height in {first, store.height}:
        width = round(store.width * height / store.height)
        try:
            with explained(recipe, torch.device("cpu")):  # memory that runs out is no matter of size
                given = nets.output_shape(net, (store.channels, height, width))
        except InputError:
            raise
        except (RuntimeError, ValueError) as error:
            remedy = "choose another net, or larger images with --size or --first-side"
            raise InputError(f"net {recipe.net} cannot take images of {width}x{height} pixels, {store.channels} channels ({reason(error)}): {remedy}") from None
        if given != (len(store.classes),):
            raise InputError(f"net {recipe.net} gives {given} for an image, not a logit for each of {len(store.classes)} classes: mend its build(num_classes)")

"""Pictures of the page: wrong predictions with their reasons, and training images as the net saw them.

Shapes: images uint8[N,H,W,C] pixels, heat_HW in [0, 1].
"""

from dataclasses import dataclass, fields, replace
from html import escape

import numpy as np
import torch

from pipelines import reference
from pipelines.errors import InputError
from pipelines.mixing import mix
from pipelines.stage import stage
from pipelines.store import Store
from train.document import picture
from train.gradcam import heat
from train.progressive import resize, side
from train.recipe import Recipe
from train.result import Model
from train.split import split
from train.testing import Outcome

CARDS = 24  # wrong predictions shown
SAMPLES, COLUMNS = 6, 8  # training images in the sheet, and pictures of each: as it is, and in epochs spread over the training
RED, BLUE = (238, 60, 30), (40, 130, 255)  # what speaks for the predicted class, and for the true one


def wrong_ones(outcome: Outcome, most: int) -> np.ndarray:
    """int64[n]: positions of at most `most` wrong predictions, spread evenly over the images."""
    wrong = np.flatnonzero(outcome.predicted != outcome.true)
    return wrong[np.linspace(0, len(wrong) - 1, min(most, len(wrong))).astype(int)] if len(wrong) else wrong


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction of `image` uint8[H,W,C]: the class it was `taken` for and its own, with the net's shares of both, and
    the image tinted by what speaks for each (`why`, `why_not`), which are None for a net that Grad-CAM cannot look into."""

    place: int
    image: np.ndarray
    taken: str
    own: str
    shares: tuple[float, float]
    why: np.ndarray | None
    why_not: np.ndarray | None


def explained(outcome: Outcome, images: np.ndarray, model: Model, most: int = CARDS) -> list[Mistake]:
    """At most `most` wrong predictions, with their reasons."""
    shown = wrong_ones(outcome, most)
    if not len(shown):
        return []
    pixels, predicted, true = np.stack([images[i] for i in shown]), outcome.predicted[shown], outcome.true[shown]
    inputs, shares = model.inputs(pixels), model.logits(pixels).softmax(1).numpy()
    try:
        heats = [heat(model.net, inputs, torch.from_numpy(classes)).numpy() for classes in (predicted, true)]
    except InputError:  # a net without feature maps
        heats = None
    found = []
    for k, (i, said, is_) in enumerate(zip(shown, predicted, true)):
        why, why_not = [tinted(pixels[k], maps[k], colour) for maps, colour in zip(heats, (RED, BLUE))] if heats else (None, None)
        found.append(Mistake(int(i), pixels[k], model.classes[said], model.classes[is_], (shares[k, said], shares[k, is_]), why, why_not))
    return found


def mistakes(outcome: Outcome, found: list[Mistake], views: int = 1) -> str:
    """The part of the page with wrong predictions and their reasons."""
    if not found:
        return "<h2>Misclassified images</h2><p>None.</p>"
    cards = []
    for one in found:
        pictures = picture(one.image, f"image {one.place}: {one.own}")
        if one.why is not None and one.why_not is not None:
            pictures += picture(one.why, f"evidence for {one.taken}") + picture(one.why_not, f"evidence for {one.own}")
        taken = f'<b style="color:var(--test)">{escape(one.taken)}</b> {one.shares[0]:.0%}'
        own = f'<span style="color:var(--train)">is {escape(one.own)}</span> {one.shares[1]:.0%}'
        cards.append(f"<div class=card><div>{pictures}</div>{taken}<br>{own}</div>")
    return f"<h2>Misclassified images</h2><p class=soft>{escape(legend(outcome, found, views))}</p><div class=cards>{''.join(cards)}</div>"


def legend(outcome: Outcome, found: list[Mistake], views: int = 1) -> str:
    """What the pictures of mistakes show, "" where there are none. With several views of a test image, what is predicted need not be what one view says."""
    if not found:
        return ""
    wrong = int((outcome.predicted != outcome.true).sum())
    which = f"{wrong:,} of {len(outcome.true):,} images are misclassified; shown are {len(found)} of them, evenly spaced."
    which += f" Predicted from up to {views} views, percentages from one." if views > 1 else ""
    if found[0].why is None:
        return f"{which} The net has no feature maps, so Grad-CAM cannot explain them."
    return f"{which} Beside each, by Grad-CAM (arXiv:1610.02391), the evidence for the predicted class (red) and for the true class (blue)."


def tinted(image: np.ndarray, heat_HW: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """uint8[H,W,3]: the image in dim grey, with `heat_HW` in [0, 1] laid over it in `colour`."""
    grey = image[:, :, :3].astype(np.float32).mean(2, keepdims=True) * 0.75
    strength = 0.8 * heat_HW[:, :, None]
    return (grey * (1 - strength) + np.array(colour, np.float32) * strength).astype(np.uint8)


@dataclass(frozen=True)
class Sheet:
    """Training images: `ids` int64[n] and their class `names`; `columns` maps a heading to the n images under it, uint8[H,W,C]."""

    ids: np.ndarray
    names: list[str]
    columns: dict[str, list[np.ndarray]]


def sheet_of(summary: dict, store: Store) -> Sheet:
    """Some training images as they are, and as the net saw them in epochs spread over the training."""
    recipe = recipe_of(summary["recipe"])
    ids = trained(recipe, store)
    epochs = sorted(set(np.linspace(0, recipe.epochs - 1, COLUMNS - 1).round().astype(int).tolist()))
    originals, labels = store.images("train"), store.labels("train")[ids]
    columns = {"original": [originals[i] for i in ids]} | {f"epoch {epoch + 1}": list(seen(recipe, store, ids, epoch)) for epoch in epochs}
    return Sheet(ids, [store.classes[label] for label in labels], columns)


def sheet(made: Sheet) -> str:
    """The part of the page with training images."""
    cells = [f"<small>{heading}</small>" for heading in made.columns]
    for row, (i, name) in enumerate(zip(made.ids, made.names)):
        cells += [picture(images[row], f"{name}, training image {i}, {heading}") for heading, images in made.columns.items()]
    style = f"grid-template-columns: repeat({len(made.columns)}, minmax(0, 1fr))"
    return f'<h2>Training images as the net sees them</h2><p class=soft>The original, and the augmented image in several epochs.</p><div class=sheet style="{style}">{"".join(cells)}</div>'


def seen(recipe: Recipe, store: Store, ids: np.ndarray, epoch: int) -> np.ndarray:
    """uint8[B,h,w,C]: training samples `ids` as the recipe's plan treats them in `epoch` (from 0); what is mixed is mixed with its neighbour."""
    policy = replace(recipe.policy(), shuffle=False)  # in the order of `ids`; what happens to an image does not depend on it
    loader = reference.open(store, policy=policy, seed=recipe.seed, ids=ids, batch_size=len(ids))
    images, labels = next(iter(stage(loader, recipe.extra(store.mean), store).epoch(epoch)))
    if recipe.mixing():
        strength = min(1.0, epoch / recipe.mix_ramp) if recipe.mix_ramp else 1.0
        images, _ = mix(images, labels, ids, recipe.mixing(), recipe.seed, epoch, strength)
    images = resize(images, side(epoch, recipe.epochs, recipe.first_side, store.height, recipe.grown))
    mean, std = (torch.tensor(values)[:, None, None] for values in (store.mean, store.std))
    return ((images * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def recipe_of(settings: dict) -> Recipe:
    """The recipe that `summary.json` holds; what it says beside a recipe's fields is left out."""
    return Recipe(**{f.name: settings[f.name] for f in fields(Recipe) if f.name in settings})


def trained(recipe, store: Store) -> np.ndarray:
    """int64[n]: a few samples that the run trained on, spread over the split."""
    _, ids = split(recipe, store.labels("train"))
    ids = np.arange(store.count("train")) if ids is None else ids
    return ids[np.linspace(0, len(ids) - 1, min(SAMPLES, len(ids))).astype(int)]

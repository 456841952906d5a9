"""Pictures of the page: wrong predictions with their reasons, and training images as the net saw them.

Shapes: images uint8[N,H,W,C] pixels, heat_HW in [0, 1].
"""

from dataclasses import fields, replace
from html import escape

import numpy as np
import torch

from pipelines import reference
from pipelines.stage import stage
from pipelines.store import Store
from train.document import picture
from train.evaluate import Outcome
from train.gradcam import heat
from train.progressive import resize, side
from train.recipe import Recipe
from train.result import Model

CARDS = 24  # wrong predictions shown
SAMPLES, COLUMNS = 6, 8  # training images in the sheet, and pictures of each: as it is, and in epochs spread over the training
RED, BLUE = (238, 60, 30), (40, 130, 255)  # what speaks for the predicted class, and for the true one


def wrong_ones(outcome: Outcome, most: int) -> np.ndarray:
    """int64[n]: positions of at most `most` wrong predictions, spread evenly over the images."""
    wrong = np.flatnonzero(outcome.predicted != outcome.true)
    return wrong[np.linspace(0, len(wrong) - 1, min(most, len(wrong))).astype(int)] if len(wrong) else wrong


def mistakes(outcome: Outcome, images: np.ndarray, model: Model) -> str:
    """Wrong predictions: the image, what speaks for the predicted class, and what for the true one."""
    shown = wrong_ones(outcome, CARDS)
    wrong = int((outcome.predicted != outcome.true).sum())
    if not len(shown):
        return "<h2>Its mistakes</h2><p>None.</p>"
    pixels, predicted, true = np.stack([images[i] for i in shown]), outcome.predicted[shown], outcome.true[shown]
    inputs = model.inputs(pixels)
    shares = model.logits(pixels).softmax(1).numpy()
    reasons = [heat(model.net, inputs, torch.from_numpy(classes)).numpy() for classes in (predicted, true)]
    cards = []
    for k, i in enumerate(shown):
        said, is_ = model.classes[predicted[k]], model.classes[true[k]]
        pictures = picture(pixels[k], f"image {i}: {is_}")
        pictures += picture(tinted(pixels[k], reasons[0][k], RED), f"what speaks for {said}") + picture(tinted(pixels[k], reasons[1][k], BLUE), f"what speaks for {is_}")
        text = f'<b style="color:var(--test)">{escape(said)}</b> {shares[k, predicted[k]]:.0%}<br><span style="color:var(--train)">is {escape(is_)}</span> {shares[k, true[k]]:.0%}'
        cards.append(f"<div class=card><div>{pictures}</div>{text}</div>")
    note = (
        f"{wrong:,} of {len(outcome.true):,} are wrong; {len(shown)} of them, spread over the images. Beside each, by Grad-CAM (arXiv:1610.02391), "
        "what speaks for the class it was taken for (red) and for its own (blue)."
    )
    return f"<h2>Its mistakes</h2><p class=soft>{note}</p><div class=cards>{''.join(cards)}</div>"


def tinted(image: np.ndarray, heat_HW: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """uint8[H,W,3]: the image in dim grey, with `heat_HW` in [0, 1] laid over it in `colour`."""
    grey = image[:, :, :3].astype(np.float32).mean(2, keepdims=True) * 0.75
    strength = 0.8 * heat_HW[:, :, None]
    return (grey * (1 - strength) + np.array(colour, np.float32) * strength).astype(np.uint8)


def sheet(summary: dict, store: Store) -> str:
    """Training images as they are, and as the net saw them in epochs spread over the training."""
    recipe = recipe_of(summary["recipe"])
    ids = trained(recipe, store)
    epochs = sorted(set(np.linspace(0, recipe.epochs - 1, COLUMNS - 1).round().astype(int).tolist()))
    originals, labels = store.images("train"), store.labels("train")[ids]
    treated = {epoch: seen(recipe, store, ids, epoch) for epoch in epochs}
    cells = ["<small>as it is</small>", *(f"<small>epoch {epoch + 1}</small>" for epoch in epochs)]
    for row, i in enumerate(ids):
        name = store.classes[labels[row]]
        cells.append(picture(originals[i], f"{name}, training image {i}"))
        cells += [picture(images[row], f"{name} in epoch {epoch + 1}") for epoch, images in treated.items()]
    style = f"grid-template-columns: repeat({len(epochs) + 1}, minmax(0, 1fr))"
    return f'<h2>What the net sees</h2><p class=soft>Training images, and what the recipe made of them.</p><div class=sheet style="{style}">{"".join(cells)}</div>'


def seen(recipe: Recipe, store: Store, ids: np.ndarray, epoch: int) -> np.ndarray:
    """uint8[B,h,w,C]: training samples `ids` as the recipe's plan treats them in `epoch` (from 0)."""
    policy = replace(recipe.policy(), shuffle=False)  # in the order of `ids`; what happens to an image does not depend on it
    loader = reference.open(store, policy=policy, seed=recipe.seed, ids=ids, batch_size=len(ids))
    images, _ = next(iter(stage(loader, recipe.extra(store.mean), store).epoch(epoch)))
    images = resize(images, side(epoch, recipe.epochs, recipe.first_side, store.height, recipe.grown))
    mean, std = (torch.tensor(values)[:, None, None] for values in (store.mean, store.std))
    return ((images * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def recipe_of(settings: dict) -> Recipe:
    """The recipe that `summary.json` holds; what it says beside a recipe's fields is left out."""
    return Recipe(**{f.name: settings[f.name] for f in fields(Recipe) if f.name in settings})


def trained(recipe, store: Store) -> np.ndarray:
    """int64[n]: a few samples that the run trained on, spread over the split."""
    from train.run import split  # which imports the report

    _, ids = split(recipe, store.labels("train"))
    ids = np.arange(store.count("train")) if ids is None else ids
    return ids[np.linspace(0, len(ids) - 1, min(SAMPLES, len(ids))).astype(int)]

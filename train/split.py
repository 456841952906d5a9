"""Which samples a recipe trains on, and which it is tested on."""

import numpy as np

from pipelines.errors import InputError
from pipelines.plan import balanced
from pipelines.store import Store
from train.recipe import Recipe


def split(recipe: Recipe, labels: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(samples held out for the test, samples to train on), int64 positions in train; None for no such choice."""
    if recipe.held_out >= len(labels):
        raise InputError(f"--held-out {recipe.held_out} leaves none of {len(labels)} images to train on: give less")
    if recipe.limit > len(labels) - recipe.held_out:
        raise InputError(f"--limit {recipe.limit}: there are {len(labels) - recipe.held_out} images to train on: give as many or less, or 0 for all")
    held = balanced(labels, recipe.held_out) if recipe.held_out else None
    if held is None:
        return None, balanced(labels, recipe.limit) if recipe.limit else None
    rest = np.setdiff1d(np.arange(len(labels)), held)
    return held, rest[balanced(labels[rest], recipe.limit)] if recipe.limit else rest


def tested_images(recipe: Recipe, store: Store) -> np.ndarray:
    """uint8[N,H,W,C], the images of the test pass in its order."""
    held, _ = split(recipe, store.labels("train"))
    return store.images("test") if held is None else store.images("train")[held]

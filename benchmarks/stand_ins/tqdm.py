"""A progress bar that shows nothing. `steps.py` puts this folder on the path where the real tqdm is not installed."""


class tqdm:  # the real one's name
    """Takes what tqdm takes; iterates, counts nothing and prints nothing."""

    def __init__(self, iterable=None, **_):
        self.iterable = iterable

    def __iter__(self):
        return iter(self.iterable)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, count: int = 1) -> None:
        pass

    def close(self) -> None:
        pass

"""The plan: pinned values, and that its choices are fair, independent, and the same however they are asked for."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pipelines.errors import InputError
from pipelines.plan import CUT_X, CUT_Y, DX, DY, FLIP, MASK, ORDER, PLAIN, Plan, Policy, augmentation, balanced, below, hash32, mix, order, unit

SEEDS = st.integers(0, MASK)
EPOCHS = st.integers(0, 10_000)
STREAMS = (ORDER, FLIP, DY, DX, CUT_Y, CUT_X)
N = 50_000


# The plan a second time, in plain Python integers


def plain_mix(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def plain_hash(seed: int, epoch: int, stream: int, sample: int) -> int:
    first, second = (plain_mix(plain_mix(plain_mix(salt ^ seed) ^ epoch) ^ stream) for salt in (0x9E3779B9, 0x7F4A7C15))
    return plain_mix((plain_mix(sample ^ first) + second) % 2**32)


def plain_augmentation(flip, translate, cutout, side, seed, epoch, sample) -> tuple:
    def choice(stream, n, epoch=epoch):
        return plain_hash(seed, epoch, stream, sample) * n // 2**32

    flips = {"none": 0, "random": choice(1, 2), "alternate": (choice(1, 2, epoch=0) + epoch) % 2}[flip]
    shifts = [choice(stream, 2 * translate + 1) - translate for stream in (2, 3)]
    return flips == 1, *shifts, *(choice(stream, side - cutout + 1) for stream in (4, 5))


@given(st.integers(0, MASK))
def test_mix_is_the_same_for_arrays_and_integers(x):
    assert mix(x) == plain_mix(x) == int(mix(np.array([x], np.uint32))[0])


@given(SEEDS, EPOCHS, st.integers(0, 14), st.lists(st.integers(0, MASK), min_size=1, max_size=9))
def test_hash_is_the_plain_one(seed, epoch, stream, ids):
    ours = hash32(seed, epoch, stream, np.array(ids))
    assert ours.dtype == np.uint32 and ours.tolist() == [plain_hash(seed, epoch, stream, i) for i in ids]


@settings(max_examples=30)
@given(SEEDS, EPOCHS, st.integers(0, 300))
def test_order_is_the_plain_one(seed, epoch, n):
    ours = order(seed, epoch, n)
    assert ours.dtype == np.int64 and ours.tolist() == sorted(range(n), key=lambda i: plain_hash(seed, epoch, 0, i))


@given(
    st.sampled_from(("none", "random", "alternate")),
    st.integers(0, 15),
    st.integers(0, 32),
    st.integers(32, 64),
    SEEDS,
    EPOCHS,
    st.lists(st.integers(0, N), max_size=5),
)
def test_augmentation_is_the_plain_one_and_in_range(flip, translate, cutout, side, seed, epoch, ids):
    ours = augmentation(Policy(flip, translate, cutout=cutout), seed, epoch, np.array(ids, np.int64), side, side)
    plain = [plain_augmentation(flip, translate, cutout, side, seed, epoch, i) for i in ids]
    assert list(zip(*(a.tolist() for a in ours))) == plain
    assert ours.flip.dtype == bool and all(a.dtype == np.int32 for a in ours[1:])
    for shift in (ours.dy, ours.dx):
        assert (abs(shift) <= translate).all()
    for corner in (ours.cut_y, ours.cut_x):
        assert (corner >= 0).all() and (corner + cutout <= side).all()


def test_pinned_values():
    """Literal numbers: whoever changes these changes every experiment that was ever run."""
    assert [mix(x) for x in (0, 1, MASK)] == [0, 1753845952, 1734902346]
    ids = np.array([0, 1, 49999])
    assert hash32(0, 0, ORDER, ids).tolist() == [0xD426F6A2, 0xAA47DFA8, 0x4F5E8F60]
    assert hash32(0, 0, FLIP, ids).tolist() == [0x364A1579, 0x9816E929, 0x9F350CE9]
    assert hash32(1, 0, ORDER, ids).tolist() == [0x1DCD815D, 0x195DB656, 0x6540E2B7]
    assert hash32(0, 1, ORDER, ids).tolist() == [0x947DE10A, 0x44ECF911, 0x7B572C34]
    assert hash32(MASK, 7, CUT_X, ids).tolist() == [0xC7B1C33A, 0x92D34026, 0x93AD0E59]
    assert order(0, 0, 10).tolist() == [8, 3, 6, 4, 2, 5, 7, 1, 9, 0]
    assert order(42, 3, 10).tolist() == [9, 1, 5, 7, 4, 6, 0, 8, 2, 3]
    ours = augmentation(Policy(), 42, 3, np.array([0, 1, 2, 3, 49999]), 32, 32)
    assert ours.flip.tolist() == [True, True, False, False, False]
    assert ours.dy.tolist() == [-2, 2, 4, 4, -1] and ours.dx.tolist() == [-3, -1, -4, -3, -3]
    assert ours.cut_y.tolist() == [13, 13, 2, 21, 6] and ours.cut_x.tolist() == [15, 11, 3, 21, 20]


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_seeds_and_epochs_of_numpy_are_those_integers(kind):
    with np.errstate(all="raise"):
        assert hash32(kind(42), kind(3), ORDER, np.arange(9, dtype=kind)).tolist() == hash32(42, 3, ORDER, np.arange(9)).tolist()
    with pytest.raises(TypeError):
        hash32(1.5, 0, ORDER, np.arange(9))


# Order


@settings(max_examples=30)
@given(SEEDS, EPOCHS, st.integers(0, 3000))
def test_each_epoch_is_a_permutation(seed, epoch, n):
    assert np.array_equal(np.sort(order(seed, epoch, n)), np.arange(n))


def test_epochs_and_seeds_differ():
    orders = {order(seed, epoch, 100).tobytes() for seed in (0, 1, 2, 1 << 31, MASK) for epoch in range(40)}
    assert len(orders) == 200
    assert (order(0, 0, N) == order(0, 1, N)).sum() < 12  # a shared place is one in N: one is expected


def test_thousands_of_seeds_share_no_epoch():
    """One 32-bit key would repeat among 20,000 (seed, epoch) pairs with probability 1/21 a stream; two never do here."""
    pairs = ((seed, epoch) for seed in range(400) for epoch in range(50))
    first = [hash32(seed, epoch, ORDER, np.arange(12)).tobytes() for seed, epoch in pairs]
    assert len(set(first)) == len(first)


# Fairness: fixed seeds, so that each statistic is one number; thresholds are at p = 1e-4


def chi_square(values: np.ndarray, n: int) -> float:
    """How far the counts of values in [0, n) are from equal: mean n - 1, deviation sqrt(2 (n - 1))."""
    counts, expected = np.bincount(values, minlength=n), len(values) / n
    assert len(counts) == n
    return float(((counts - expected) ** 2 / expected).sum())


def limit(n: int) -> float:
    """The chi-square that n - 1 degrees of freedom exceed once in 10,000 (Wilson and Hilferty, 1931)."""
    freedom = n - 1
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * np.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("seed, epoch", [(0, 0), (0, 1), (1, 0), (MASK, 99)])
def test_every_choice_is_uniform(seed, epoch):
    ours = augmentation(Policy(translate=4, cutout=8), seed, epoch, np.arange(N), 32, 32)
    assert chi_square(ours.flip.astype(int), 2) < limit(2)
    for values, n in ((ours.dy + 4, 9), (ours.dx + 4, 9), (ours.cut_y, 25), (ours.cut_x, 25)):
        assert chi_square(values, n) < limit(n)
    for values, n in (((ours.dy + 4) * 9 + ours.dx + 4, 81), (ours.cut_y * 25 + ours.cut_x, 625), (ours.flip * 9 + ours.dx + 4, 18)):
        assert chi_square(values, n) < limit(n)  # in pairs: no choice follows from another


def test_every_place_of_the_order_is_as_likely():
    """Where sample 7 of 20 comes, over 20,000 epochs; and which sample follows it."""
    places = np.array([order(5, epoch, 20) for epoch in range(20_000)])
    where = np.argmax(places == 7, axis=1)
    assert chi_square(where, 20) < limit(20)
    followers = places[np.arange(20_000), (where + 1) % 20]
    assert chi_square(followers - (followers > 7), 19) < limit(19)


@given(SEEDS, st.integers(1, 200), st.lists(st.integers(0, MASK), min_size=1, max_size=20))
def test_below_and_unit_stay_in_range(seed, n, ids):
    hashes = hash32(seed, 0, DY, np.array(ids))
    assert ((below(n, hashes) >= 0) & (below(n, hashes) < n)).all()
    assert ((unit(hashes) >= 0) & (unit(hashes) < 1)).all() and unit(hashes).dtype == np.float32
    extremes = np.array([0, MASK], np.uint32)
    assert below(n, extremes).tolist() == [0, n - 1] and unit(extremes).tolist() == [0, 1 - 2**-24]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return abs(float(np.corrcoef(a.astype(float), b.astype(float))[0, 1]))


SMALL = 4 / np.sqrt(N)  # four standard deviations of the correlation of N independent pairs


def test_streams_epochs_seeds_and_neighbours_are_uncorrelated():
    ids = np.arange(N)
    streams = [hash32(3, 5, stream, ids) for stream in range(15)]
    for i, a in enumerate(streams):
        for b in streams[:i]:
            assert correlation(a, b) < SMALL
            assert correlation(a >> 31, b >> 31) < SMALL and correlation(a & 1, b & 1) < SMALL
        for step in (1, 2, 32, 1024):
            assert correlation(a[step:], a[:-step]) < SMALL
    base = hash32(7, 9, FLIP, ids)
    others = [(7, 9 + 1), (7, 9 ^ 4), (8, 9), (7 ^ 1 << 31, 9), (9, 7)]
    for seed, epoch in others:
        assert correlation(base, hash32(seed, epoch, FLIP, ids)) < SMALL
    across = np.array([hash32(seed, epoch, FLIP, ids[:1])[0] for seed in range(200) for epoch in range(250)])
    assert correlation(across[1:], across[:-1]) < SMALL and correlation(across[250:], across[:-250]) < SMALL


# Flips


@settings(max_examples=50)
@given(SEEDS, st.integers(0, 10_000))
def test_alternate_flips_every_image_every_other_epoch(seed, epoch):
    policy, ids = Policy(flip="alternate"), np.arange(500)
    now, following, after = (augmentation(policy, seed, e, ids, 32, 32).flip for e in (epoch, epoch + 1, epoch + 2))
    assert np.array_equal(now, ~following) and np.array_equal(now, after)
    assert 180 < now.sum() < 320


def test_none_never_flips_and_random_changes_its_mind():
    ids = np.arange(N)
    assert not augmentation(Policy(flip="none"), 0, 0, ids, 32, 32).flip.any()
    one, two = (augmentation(Policy(flip="random"), 0, e, ids, 32, 32).flip for e in (0, 1))
    assert abs((one == two).mean() - 0.5) < 0.01


# Plans


def plan(n=100, batch_size=16, ids=None, policy=Policy(), seed=3, drop_last=False) -> Plan:
    return Plan(policy, seed, np.arange(n) if ids is None else ids, batch_size, 32, 32, drop_last)


@settings(max_examples=60)
@given(SEEDS, EPOCHS, st.integers(1, 200), st.integers(1, 250), st.booleans())
def test_batches_are_the_order_cut_up(seed, epoch, n, batch_size, drop_last):
    ours = plan(n, batch_size, seed=seed, drop_last=drop_last)
    batches = list(ours.batches(epoch))
    assert len(batches) == len(ours) == (n // batch_size if drop_last else -(-n // batch_size))
    whole = order(seed, epoch, n)
    joined = np.concatenate([*batches, np.zeros(0, np.int64)])
    assert np.array_equal(joined, whole[: len(joined)])
    assert len(joined) == (n - n % batch_size if drop_last else n)
    for start in {0, 1, len(batches) // 2, len(batches), len(batches) + 3}:
        resumed = list(ours.batches(epoch, start))
        assert len(resumed) == max(0, len(batches) - start) and all(np.array_equal(a, b) for a, b in zip(resumed, batches[start:]))


@settings(max_examples=40)
@given(SEEDS, EPOCHS, st.integers(1, 120), st.integers(1, 60), st.sampled_from(("none", "random", "alternate")))
def test_what_happens_to_an_image_does_not_depend_on_its_batch(seed, epoch, n, batch_size, flip):
    policy = Policy(flip=flip)
    at_once = augmentation(policy, seed, epoch, np.arange(n), 32, 32)
    ours = plan(n, batch_size, policy=policy, seed=seed)
    for ids in ours.batches(epoch):
        for mine, whole in zip(ours.augmentation(epoch, ids), at_once):
            assert np.array_equal(mine, whole[ids])


def test_a_subset_keeps_each_samples_augmentation():
    chosen = np.array([90, 3, 41, 17, 55])
    whole, subset = plan(), plan(ids=chosen, batch_size=2)
    assert sorted(np.concatenate(list(subset.batches(4)))) == sorted(chosen)
    for ours, theirs in zip(subset.augmentation(4, chosen), whole.augmentation(4, np.arange(100))):
        assert np.array_equal(ours, theirs[chosen])


def test_without_shuffle_the_order_is_the_stores():
    assert plan(policy=PLAIN).order(8).tolist() == list(range(100))


def test_of_takes_the_splits_size_and_policy(store):
    train, test = Plan.of(store, "train", None, 0, 8), Plan.of(store, "test", None, 0, 8)
    assert (len(train.ids), train.policy, len(test.ids), test.policy) == (37, Policy(), 11, PLAIN)
    assert Plan.of(store, "train", None, 0, 8, ids=[36, 0]).ids.tolist() == [36, 0]
    for ids in ([], [37], [-1], [0.5], [True, False], [[1, 2]], ["a"]):
        with pytest.raises(InputError, match="sample ids"):
            Plan.of(store, "train", None, 0, 8, ids=ids)


def test_what_cannot_be_is_refused():
    for bad in (dict(flip="sometimes"), dict(padding="wrap"), dict(translate=-1), dict(cutout=-1)):
        with pytest.raises(InputError, match="^[^\n]*$"):
            Policy(**bad)
    for bad in (dict(batch_size=0), dict(seed=-1), dict(seed=1 << 32), dict(policy=Policy(cutout=33)), dict(policy=Policy(translate=32))):
        with pytest.raises(InputError, match="^[^\n]*$"):
            plan(**bad)
    assert len(plan(seed=MASK, policy=Policy(cutout=32, translate=31))) == 7


@given(st.integers(1, 300), st.integers(2, 10), st.data())
def test_balanced_has_as_many_of_each_class_as_can_be(n, classes, data):
    labels = np.arange(n * classes) % classes
    count = data.draw(st.integers(1, len(labels)))
    ours = balanced(labels, count)
    assert len(set(ours.tolist())) == count and np.array_equal(ours, np.sort(ours))
    counts = np.bincount(labels[ours], minlength=classes)
    assert counts.max() - counts.min() <= 1 and (np.diff(counts) <= 0).all()

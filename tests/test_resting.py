"""Parts of a net that rest after some epochs."""

import pytest
import torch
from test_recorded import StandIn

import nets
from pipelines.errors import InputError
from train.recipe import Recipe
from train.recorded import Recorded
from train.resting import at_rest, rest, resting
from train.run import Kept, Run
from train.together import Together

SMALL = dict(net="speednet", epochs=4, batch_size=8, limit=16, device="cpu", precision="fp32", optimiser="muon", muon_lr=0.05, lr=0.1, settle=0.25, freeze=0.5)


def made(store, folder, **settings):
    recipe = Recipe(**{**SMALL, **settings}, data=str(store.path))
    return Run(recipe, folder, torch.device("cpu"), "", lambda *_: None, Kept()).training


def test_what_rests_stays_and_all_else_moves(store, tmp_path):
    training, seen = made(store, tmp_path), []
    training.run(lambda *_: seen.append({name: value.clone() for name, value in training.net.state_dict().items()}))
    moved = [{name for name in one if not torch.equal(one[name], other[name])} for one, other in zip(seen, seen[1:])]
    first = {"groups.group1.0.weight", "groups.group1.2.bias", "groups.group1.4.weight", "groups.group1.5.bias"}
    for epoch, names in enumerate(moved, 1):  # of the epochs 0 to 3 the bias trains in the first, the first group in two
        assert ("whitening.bias" in names) == (epoch < 1) and (first <= names) == (epoch < 2) and bool(first & names) == (epoch < 2)
        assert {"groups.group1.2.running_mean", "groups.group2.0.weight", "groups.group3.4.weight", "head.weight"} <= names


def test_each_phase_has_a_recording_of_its_own(store, tmp_path):
    plain, recorded = (made(store, tmp_path / name, epochs=8) for name in "ab")
    device = StandIn()
    recorded.work = Recorded(recorded.work, device, lambda: recorded.phase)
    for training in (plain, recorded):
        training.run(lambda *_: None)
    assert device.recorded == 3
    assert all(torch.equal(value, recorded.net.state_dict()[name]) for name, value in plain.net.state_dict().items())


def test_a_net_without_such_parts_has_none_at_rest():
    net = nets.load("level1")
    rest(net, resting(net, Recipe(settle=0.0, freeze=0.0), 5))
    assert at_rest(net) == (False, False) and not hasattr(net, "frozen")


def test_flop_are_of_what_trains():
    net = nets.load("speednet")
    each = []
    for which in ((False, False), (True, False), (True, True)):
        rest(net, which)
        each.append(nets.training_flop(net))
    first = 31 * 31 * 9 * 24 * 64 + 15 * 15 * 9 * 64 * 64
    whitening = 31 * 31 * 12 * 24
    wide = 15 * 15 * 9 * 64 * 256 + 7 * 7 * 9 * 256 * 256 * 2 + 3 * 3 * 9 * 256 * 256 + 2560
    assert each[2] == 2 * (whitening + first) + 6 * wide - 2 * 15 * 15 * 9 * 64 * 256  # the first convolution that trains has no gradient of its input
    assert each[1] == each[2] + 2 * first + 2 * 15 * 15 * 9 * 64 * (64 + 256)
    assert each[0] == each[1] + 2 * 31 * 31 * 9 * 24 * 64


def test_one_program_of_several_nets_has_nothing_at_rest(store, tmp_path):
    trainings = [made(store, tmp_path / str(seed), seed=seed) for seed in range(2)]
    with pytest.raises(InputError, match="add --settle 1 --freeze 1"):
        Together(trainings, batched=True)
    Together(trainings, batched=False)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_from_0_to_1(share):
    with pytest.raises(InputError, match="--freeze .*: give a share from 0 to 1"):
        Recipe(freeze=share)

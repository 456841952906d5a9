"""The family of tiny nets: budgets, names, filters that are used again, and convolutions in groups."""

import copy

import pytest
import torch
from torch.func import functional_call, vmap

import nets
from nets import tiny
from nets.layers import NORMS
from nets.measure import layers

TINY = {"tiny10k": 9_738, "tiny25k": 24_666, "tiny50k": 49_090, "tiny83k": 82_570, "tiny100k": 99_482, "tiny200k": 199_634, "tiny300k": 299_794}
BUDGETS = {"tiny83k": 83_368} | {name: 1000 * int(name[4:-1]) for name in TINY if name != "tiny83k"}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("kind", NORMS)
def test_parameters_of_the_tiny_nets_are_within_their_budgets(name, kind):
    assert nets.parameters(nets.load(name, norm=kind)) == TINY[name] <= BUDGETS[name]


def test_every_member_of_the_family_is_tested():
    assert {name for name in nets.names() if name.startswith("tiny")} == set(TINY)


@pytest.mark.parametrize(
    "name, chosen",
    [("tiny_16-48x2_3-2_2", "tiny25k"), ("tiny_24-72x2_3-2_2", "tiny50k"), ("tiny_32-48-64_2-4-3", "tiny83k"), ("tiny_32x1-48-64_2-4-3_1", "tiny83k")],
)
def test_any_member_of_the_tiny_family_is_a_name(name, chosen):
    torch.manual_seed(3)
    made = nets.load(name, 7, norm="group")
    torch.manual_seed(3)
    expected = nets.load(chosen, 7, norm="group").state_dict()
    assert list(made.state_dict()) == list(expected) and all(torch.equal(value, expected[key]) for key, value in made.state_dict().items())


@pytest.mark.parametrize(
    "name, says",
    [
        ("tiny_16-24", "tiny_WIDTHS_BLOCKS"),
        ("tiny_", "choose one of"),
        ("tiny_16-24-40_2-3-2_0", "once or more"),
        ("tiny_16-24-40_2-3", "3 widths for 2 stages"),
        ("tiny_12-24_2-3", "multiples of eight"),
        ("tiny_0_1", "multiples of eight"),
        ("tiny_8-8-8-8-8-8_1-1-1-1-1-1", "at most 5"),
        ("tiny_8-8x5_1-1", "at most 5"),
        ("tiny_8x0_1", "once or more"),
        ("tiny_8x_1", "tiny_WIDTHS_BLOCKS"),
        ("tiny_8x22_1", "tiny_WIDTHS_BLOCKS"),
        ("tiny_99999_1", "tiny_WIDTHS_BLOCKS"),
        ("tiny25k_8_1", "choose one of"),
        ("level1_8_1", "choose one of"),
    ],
)
def test_a_member_that_cannot_be_is_one_line(name, says):
    with pytest.raises(nets.UnknownNet, match=says) as caught:
        nets.find(name)
    assert "\n" not in str(caught.value)


def test_filters_used_twice_look_twice():
    """A block that uses its 1x1 filters again is two blocks that share them."""
    torch.manual_seed(0)
    twice, once = tiny.Block(8, "batch", 0.0, scale=0.7, times=2), [tiny.Block(8, "batch", 0.0, scale=0.7) for _ in range(2)]
    for each, own in zip(once, (twice, *twice.more)):
        each.load_state_dict({name: value for name, value in twice.state_dict().items() if not name.startswith("more")} | own.state_dict(), strict=False)
    images = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(twice(images), once[1](once[0](images)))
    assert nets.parameters(twice) == nets.parameters(once[0]) + 12 * 8


def test_filters_of_several_sizes_are_those_of_a_stage_for_each():
    """The stage that uses its 1x1 filters at three sizes of the map has the logits of three stages with copies of them, and the sum of the copies' gradients."""
    shared, apart = nets.load("tiny_8-16x3_1-2_2"), nets.load("tiny_8-16-16-16_1-2-2-2_2")
    pairs = [(getattr(shared, name), getattr(apart, name)) for name in ("stem", "stage1", "down1", "head")] + [
        (shared.stage2.downs[i], getattr(apart, f"down{i + 2}")) for i in range(2)
    ]
    for size, stage in enumerate((apart.stage2, apart.stage3, apart.stage4)):
        for block, copied in zip(list(shared.stage2)[:2], stage):
            looks = [block, *block.more][2 * size :]
            pairs += [(block.widen, copied.widen), (block.narrow, copied.narrow)]
            for look, own in zip(looks, [copied, *copied.more]):
                pairs += [(look.look, own.look), (look.norm, own.norm)]
                own.scale.data = look.scale.data = torch.rand(16, 1, 1)
    for ours, theirs in pairs:
        theirs.load_state_dict(ours.state_dict())
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(shared(images), apart(images), rtol=1e-4, atol=1e-5)
    for net in (shared, apart):
        net(images).square().sum().backward()
    for name in ("widen", "narrow"):
        copies = sum(getattr(stage[1], name).weight.grad for stage in (apart.stage2, apart.stage3, apart.stage4))
        torch.testing.assert_close(getattr(shared.stage2[1], name).weight.grad, copies, rtol=1e-3, atol=1e-4)
    assert nets.parameters(apart) - nets.parameters(shared) == 2 * 2 * 3 * 16**2
    assert nets.macs(apart) == nets.macs(shared) and nets.receptive_field(apart) == nets.receptive_field(shared)


def test_a_block_that_uses_filters_itself_has_a_row_for_them():
    """Two 1x1 convolutions of 3 * channels**2 parameters, used twice, and a scale for each use."""
    block = next(row for row in layers(nets.load("tiny25k")) if row.name == "stage1.0")
    assert (block.kind, block.parameters, block.macs) == ("Block", 3 * 16**2 + 2 * 16, 2 * 3 * 16**2 * 32 * 32)
    own = [(row.parameters, row.macs) for row in layers(nets.load("tiny_8-16x2_1-1_2")) if row.name == "stage2.0"]
    assert own == [(3 * 16**2 + 4 * 16, 2 * 3 * 16**2 * 16 * 16), (0, 2 * 3 * 16**2 * 8 * 8)]  # at its second size it has them already
    assert not any(row.kind == "Dropout2d" for row in layers(nets.load("tiny25k")))


def test_receptive_field_of_many_gates():
    assert nets.receptive_field(tiny.tiny(10, widths=(8,), blocks=(20,))) == 3 + 20 * 2


@pytest.mark.parametrize("sizes", [(32, 48), (16, 32), (8, 8)], ids=str)
def test_a_convolution_in_groups_is_the_same_with_zeros_for_the_other_groups(sizes, monkeypatch):
    """Its gradients, too, and for several nets at once."""
    monkeypatch.setattr(tiny.Grouped, "nativable", lambda *_: False)
    plain = tiny.Grouped(*sizes)
    filled, pictures, results = copy.deepcopy(plain), torch.randn(3, sizes[0], 8, 8).contiguous(memory_format=torch.channels_last), []
    monkeypatch.setattr(filled, "dense", lambda images: True)
    for one in (plain, filled):
        given = pictures.clone().requires_grad_()
        out = one(given)
        out.square().sum().backward()
        results.append((out, one.weight.grad, given.grad))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    weights = torch.stack([plain.weight, 2 * plain.weight])
    out = vmap(lambda weight: functional_call(filled, {"weight": weight}, (pictures,)))(weights)
    torch.testing.assert_close(out, torch.stack([plain(pictures), 2 * plain(pictures)]), rtol=1e-5, atol=1e-5)

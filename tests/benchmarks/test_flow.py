"""The inpainting of flows: what is simulated, and which symmetry is its own."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from gsym.check import equivariance_error
from gsym.groups import PermutationGroup, Representation
from gsym_bench.simulators.plume import simulate_plumes, velocities
from gsym_bench.suite.task import with_images
from gsym_bench.tasks.filling import harmonic_fill, many_holes
from gsym_bench.tasks.flow import MIRROR, REFLECTION, SIZE, FlowInpainting
from gsym_bench.tasks.inpainting import FILL

TASK = FlowInpainting()


@pytest.fixture(scope="module")
def problem():
    return TASK.load(None, "quick", 0)


def test_a_vortex_turns_about_its_place():
    place, width = torch.tensor([[[0.125, -0.375]]]), torch.tensor([[0.25]])
    flow = velocities(place, torch.tensor([[2.0]]), width, 8).view(8, 8, 2)
    # Cell (5, 4) lies on it, (5, 5) at one radius on its right, (4, 4) at one radius above.
    assert flow[5, 4].tolist() == [0, 0]
    torch.testing.assert_close(flow[5, 5], torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(flow[4, 4], torch.tensor([-2.0, 0.0]))
    assert flow.norm(dim=-1).max() <= 2 + 1e-6


def test_the_mirror_image_of_a_flow_is_a_flow():
    generator = torch.Generator().manual_seed(0)
    place = 2 * torch.rand(5, 3, 2, generator=generator) - 1
    turning, width = torch.randn(5, 3, generator=generator), torch.full((5, 3), 0.4)
    flow = velocities(place, turning, width, SIZE)
    seen = velocities(place * torch.tensor([-1, 1]), -turning, width, SIZE)
    mirrored = flow.view(5, SIZE, SIZE, 2).flip(2).flatten(1, 2) * torch.tensor([-1, 1])
    torch.testing.assert_close(seen, mirrored, rtol=0, atol=1e-6)


def symmetries():
    """The seven others of the square, and signs of both velocities, after axes are exchanged."""
    for turns, flips in product(range(4), (False, True)):
        for signs in product((1, -1), repeat=2):
            if (turns, flips, signs) != (0, False, (1, 1)):
                yield turns, flips, signs


def test_the_law_has_one_symmetry_and_no_other():
    generator = torch.Generator().manual_seed(0)
    flows = simulate_plumes(40_000, 4, generator).view(2, 20_000, 4, 4, 2)

    def features(flow):
        # The mean and the mean products of all velocities tell a law well enough.
        flat = flow.flatten(1)
        return torch.cat([flat.mean(0), (flat.T @ flat / len(flat)).flatten()])

    one, other = map(features, flows)
    noise = (one - other).norm()
    kept = []
    for turns, flips, signs in symmetries():
        moved = flows[1].rot90(turns, (1, 2)).flip(2) if flips else flows[1].rot90(turns, (1, 2))
        moved = moved.flip(-1) if turns % 2 else moved
        difference = (features(moved * torch.tensor(signs)) - one).norm()
        assert difference < 1.5 * noise or difference > 4 * noise
        if difference < 1.5 * noise:
            kept.append((turns, flips, signs))
    assert kept == [(0, True, (-1, 1))]


def test_holes_hide_both_velocities(problem):
    assert [len(part) for part in (problem.train, problem.val, problem.test)] == [100, 100, 1000]
    split = problem.train
    hole, velocity = split.aux["hole"].expand_as(split.targets), split.inputs[..., :2]
    assert (velocity[hole] == 0).all() and torch.equal(velocity[~hole], split.targets[~hole])
    assert torch.equal(split.inputs[..., 2:] > 0, split.aux["hole"])
    assert (split.aux["hole"].sum((1, 2)) == 16).all()


def test_seeds_differ_and_files_and_profiles_do_not(problem, tmp_path):
    assert torch.equal(TASK.load(tmp_path, "standard", 0).test.inputs, problem.test.inputs)
    assert not torch.equal(TASK.load(None, "quick", 1).test.inputs, problem.test.inputs)


def test_candidates(problem):
    assert list(problem.groups) == ["S_64", "(S_4)^16", MIRROR, "trivial", REFLECTION]
    assert problem.truth == REFLECTION
    assert problem.groups[MIRROR].fingerprint() == problem.groups[REFLECTION].fingerprint()


def test_each_net_has_the_symmetry_of_its_group_and_no_more(problem):
    torch.manual_seed(0)
    mirror, moving = problem.groups[REFLECTION], problem.representations[REFLECTION]
    still = Representation.trivial(mirror, 3), Representation.trivial(mirror, 2)
    cyclic = PermutationGroup.from_cycles(64, [(0, 9, 2)])
    x = problem.val.inputs[:20]
    for name in problem.groups:
        model = TASK.model(problem, name, "quick")
        assert model(x).shape == (20, 64, 2)
        for reps in (still, moving):
            error = equivariance_error(model, mirror, x, in_rep=reps[0], out_rep=reps[1])
            # Nets that mix all nodes alike keep the mirror of nodes; a sign is kept by one net.
            has = name == REFLECTION if reps is moving else name in ("S_64", MIRROR)
            assert (error < 1e-5) == has, (name, error)
        assert (equivariance_error(model, cyclic, x) < 1e-5) == (name == "S_64")
    count = {
        name: sum(p.numel() for p in TASK.model(problem, name, "quick").parameters())
        for name in (REFLECTION, MIRROR, "trivial")
    }
    assert count[REFLECTION] == count[MIRROR] == count["trivial"] / 2
    seen = TASK.view(FILL, problem, "quick")
    net = TASK.variant(FILL, seen, REFLECTION, "quick")
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    told = Representation.from_signs(mirror, [[-1, 1, 1, -1, 1]])
    x = seen.val.inputs[:20]
    assert equivariance_error(net, mirror, x, in_rep=told, out_rep=moving[1]) < 1e-5
    assert equivariance_error(net, mirror, x, in_rep=told, out_rep=still[1]) > 1e-2


def test_ridge_on_images_commutes_with_the_reflection(problem):
    mirror, (told, velocity) = problem.groups[REFLECTION], problem.representations[REFLECTION]
    swap, split = mirror.generators[0], problem.val
    seen = type(split)(
        told.act(swap, split.inputs),
        velocity.act(swap, split.targets),
        aux={"hole": split.aux["hole"][:, swap]},
    )
    off = {}
    for name in ("ridge", "ridge, reflected"):
        predict = TASK.baselines()[name](problem)
        off[name] = (predict(seen) - velocity.act(swap, predict(split))).abs().max().item()
    assert off["ridge, reflected"] < 1e-4 and off["ridge"] > 1e-2
    images = with_images(many_holes(problem), REFLECTION)
    assert len(images.train) == 3200 and images.val is problem.val


def test_harmonic_fill_takes_each_channel_by_itself(problem):
    split, edges = problem.val, problem.edge_index
    both = harmonic_fill(split.inputs, split.aux["hole"], edges)
    for channel in (0, 1):
        alone = harmonic_fill(split.inputs[..., channel, None], split.aux["hole"], edges)
        torch.testing.assert_close(both[..., channel, None], alone)

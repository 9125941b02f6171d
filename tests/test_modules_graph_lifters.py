"""LCN and SemGCN: who sees whom, against NumPy, sizes, any skeleton, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from erd_models import scramble
from precision import assert_exact
from torch import Tensor

from erd_cuda import ERD, LCNLifter, Lifter, SemGCNLifter, Skeleton, get_skeleton
from erd_cuda.modules.graph import hop_distances
from erd_cuda.modules.lcn import LocallyConnected
from erd_cuda.modules.lifters import new_lifter
from erd_cuda.modules.semgcn import NonLocal, SemGraphConv

LAYOUTS = ("h36m17", "h36m16", "humaneva15", "coco17")
LIFTERS: dict[str, Callable[..., Lifter]] = {
    "lcn": lambda skeleton="h36m17": LCNLifter(skeleton, width=8, blocks=2),
    "semgcn": lambda skeleton="h36m17": SemGCNLifter(skeleton, width=8, blocks=2),
    "semgcn-nonlocal": lambda skeleton="h36m17": SemGCNLifter(
        skeleton, width=8, blocks=1, non_local=True
    ),
}
each_lifter = pytest.mark.parametrize("name", LIFTERS)


def line(joints: int) -> Skeleton:
    """Joint 0 is the root, every other one hangs on the one before it."""
    names = tuple(f"joint{i}" for i in range(joints))
    return Skeleton("line", names, tuple(range(-1, joints - 1)), (), ())


def fitted(lifter: Lifter) -> Lifter:
    """Normalisation and statistics as after training, every weight moved, in eval mode."""
    joints = lifter.num_joints
    keypoints = 500 + 100 * torch.randn(64, joints, 2)
    pose = 300 * torch.randn(64, joints, 3)
    pose[:, 0] = 0
    lifter.fit_normalization(keypoints, pose)
    with torch.no_grad():
        for module in lifter.modules():
            if isinstance(module, NonLocal):
                module.norm.weight.fill_(0.5)
        lifter(keypoints)
    scramble(lifter)
    return lifter.eval()


def numpy_state(lifter: Lifter) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in lifter.state_dict().items()}


def norm(h: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    """BatchNorm in eval mode over the last dimension."""
    h = (h - state[f"{name}.running_mean"]) / np.sqrt(state[f"{name}.running_var"] + 1e-5)
    return h * state[f"{name}.weight"] + state[f"{name}.bias"]


def distance(skeleton: Skeleton, i: int, j: int) -> int:
    """Bones between two joints, through their nearest common ancestor."""

    def ancestors(joint: int) -> list[int]:
        return [joint, *(ancestors(skeleton.parents[joint]) if joint != skeleton.root else [])]

    above_i, above_j = ancestors(i), ancestors(j)
    return min(above_i.index(joint) + above_j.index(joint) for joint in {*above_i} & {*above_j})


# ---- the graph -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hop_distances(layout: str) -> None:
    skeleton = get_skeleton(layout)
    count = range(skeleton.num_joints)
    assert hop_distances(skeleton) == [[distance(skeleton, i, j) for j in count] for i in count]


def test_who_is_three_bones_from_human36ms_joints() -> None:
    """Read off the skeleton by hand."""
    lifter = LCNLifter(width=2, blocks=0)
    matrix = lifter.input.linear.matrix().view(17, 2, 17, 2)
    seen = (matrix != 0).any(dim=3).any(dim=1)
    joints = get_skeleton("h36m17").joints

    def of(name: str) -> set[str]:
        return {joints[j] for j in seen[joints.index(name)].nonzero().squeeze(1).tolist()}

    assert of("RFoot") == {"RFoot", "RKnee", "RHip", "Hip"}
    assert of("LWrist") == {"LWrist", "LElbow", "LShoulder", "Thorax"}
    assert of("Head") == {"Head", "Neck/Nose", "Thorax", "Spine", "LShoulder", "RShoulder"}
    assert of("Hip") == set(joints) - {"Head", "LElbow", "LWrist", "RElbow", "RWrist"}
    assert int(seen.sum()) == 131


# ---- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reach", [0, 1, 3, 99])
def test_a_joint_sees_what_is_within_reach(reach: int) -> None:
    skeleton = get_skeleton("humaneva15")
    layer = LocallyConnected(hop_distances(skeleton), reach, 2, 3).double()
    x = torch.randn(4, 30, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x).sum(0), x).sum(1)
    touched = jacobian.view(15, 3, 15, 2) != 0
    for i in range(15):
        for j in range(15):
            near = distance(skeleton, i, j) <= reach
            assert bool(touched[i, :, j].all()) == bool(touched[i, :, j].any()) == near


def test_locally_connected_is_a_sum_over_near_joints() -> None:
    hops = hop_distances(line(5))
    layer = LocallyConnected(hops, 2, 3, 4).double()
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    out = layer(x.flatten(1)).view(6, 5, 4)
    block = iter(layer.weight)
    for i in range(5):
        expected = layer.bias.view(5, 4)[i].expand(6, 4)
        for j in range(5):
            if abs(i - j) <= 2:
                expected = expected + x[:, j] @ next(block).T
        torch.testing.assert_close(out[:, i], expected)
    assert next(block, None) is None


def test_semantic_convolution_is_the_sum_of_the_paper() -> None:
    skeleton = get_skeleton("coco17")
    conv = SemGraphConv(hop_distances(skeleton), 3, 5, bias=True).double()
    with torch.no_grad():
        conv.edges.normal_()
        conv.bias.normal_()
    x = torch.randn(17, 4, 3, dtype=torch.float64)
    out = conv(x)
    pairs = zip(conv.rows.tolist(), conv.columns.tolist(), strict=True)
    logits = dict(zip(pairs, conv.edges, strict=True))
    own, other = conv.weight
    for i in range(17):
        near = [j for j in range(17) if distance(skeleton, i, j) <= 1]
        a = torch.softmax(torch.stack([logits.pop((i, j)) for j in near]), dim=0)
        expected = conv.bias + sum(
            a[k] * x[j] @ (own if j == i else other) for k, j in enumerate(near)
        )
        torch.testing.assert_close(out[i], expected)
    assert not logits, "weights for joints that are no neighbours"


def test_edge_weights_are_normalised_over_the_neighbours() -> None:
    skeleton = get_skeleton("h36m17")
    conv = SemGraphConv(hop_distances(skeleton), 2, 2, bias=False)
    for _ in range(2):
        a = conv.adjacency()
        torch.testing.assert_close(a.sum(1), torch.ones(17))
        near = torch.tensor(hop_distances(skeleton)) <= 1
        assert torch.equal(a > 0, near)
        with torch.no_grad():
            conv.edges.normal_()
    assert len(conv.edges) == 17 + 2 * 16
    fresh = SemGraphConv(hop_distances(line(3)), 2, 2, bias=False).adjacency()
    torch.testing.assert_close(fresh[1], torch.full((3,), 1 / 3))


def test_non_local_is_the_concatenation_of_wang_et_al() -> None:
    layer = NonLocal(6).double()
    x = torch.randn(5, 7, 6, dtype=torch.float64)
    assert torch.equal(layer(x), x), "it begins as the identity"
    scramble(layer)
    with torch.no_grad():
        layer.norm.weight.fill_(2.0)
    layer.eval()
    theta, phi, g = layer.theta(x), layer.phi(x), layer.g(x)
    for i in range(5):
        total = torch.zeros(7, 3, dtype=torch.float64)
        for j in range(5):
            f = torch.relu(layer.affinity(torch.cat((theta[i], phi[j]), dim=-1)))
            total = total + f * g[j]
        expected = x[i] + layer.norm(layer.output(total / 5))
        torch.testing.assert_close(layer(x)[i], expected)


# ---- networks ------------------------------------------------------------------------------------


def test_lcn_is_the_network_of_the_paper() -> None:
    lifter = fitted(LCNLifter("h36m17", width=6, blocks=2).double())
    state = numpy_state(lifter)
    keypoints = 500 + 100 * torch.randn(10, 17, 2, dtype=torch.float64)

    def linear(h: np.ndarray, name: str) -> np.ndarray:
        blocks, out = iter(state[f"{name}.weight"]), []
        for i in range(17):
            near = [j for j in range(17) if distance(get_skeleton(17), i, j) <= 3]
            out.append(sum(h[:, j] @ next(blocks).T for j in near))
        return np.stack(out, axis=1) + state[f"{name}.bias"].reshape(17, -1)

    def layer(h: np.ndarray, name: str) -> np.ndarray:
        h = norm(linear(h, f"{name}.linear"), state, f"{name}.norm")
        return np.where(h > 0, h, 0.2 * h)

    z = (keypoints.numpy() - state["mean2d"]) / state["std2d"]
    h = layer(z, "input")
    for block in range(2):
        h = h + layer(layer(h, f"blocks.{block}.layers.0"), f"blocks.{block}.layers.1")
    out = linear(h, "output")
    out[..., :2] += z
    assert_exact(lifter(keypoints).detach(), state["mean3d"] + state["std3d"] * out)


def test_semgcn_is_the_network_of_the_paper() -> None:
    lifter = fitted(SemGCNLifter("h36m17", width=6, blocks=2).double())
    state = numpy_state(lifter)
    keypoints = 500 + 100 * torch.randn(10, 17, 2, dtype=torch.float64)
    near = np.array(hop_distances(get_skeleton(17))) <= 1

    def conv(h: np.ndarray, name: str) -> np.ndarray:
        a = np.zeros((17, 17))
        a[near] = np.exp(state[f"{name}.edges"])
        a /= a.sum(1, keepdims=True)
        own, other = state[f"{name}.weight"]
        alone = np.diag(np.diag(a))
        return np.einsum("ij,njc->nic", alone, h @ own) + np.einsum(
            "ij,njc->nic", a - alone, h @ other
        )

    def layer(h: np.ndarray, name: str) -> np.ndarray:
        return np.maximum(norm(conv(h, f"{name}.conv"), state, f"{name}.norm"), 0)

    z = (keypoints.numpy() - state["mean2d"]) / state["std2d"]
    h = layer(z, "hidden.0")
    for block in (1, 2):
        h = h + layer(layer(h, f"hidden.{block}.layers.0"), f"hidden.{block}.layers.1")
    out = conv(h, "output") + state["output.bias"]
    assert_exact(lifter(keypoints).detach(), state["mean3d"] + state["std3d"] * out)


def touched_joints(lifter: Lifter, joint: int) -> list[int]:
    """Joints whose 3D answer moves when one 2D joint does."""
    keypoints = 500 + 100 * torch.randn(32, lifter.num_joints, 2)
    moved = keypoints.clone()
    moved[:, joint] += 50
    with torch.no_grad():
        change = (lifter(moved) - lifter(keypoints)).abs().amax(dim=(0, 2))
    return (change > 0).nonzero().squeeze(1).tolist()


def test_what_a_joint_moves_reaches_no_further_than_the_layers_carry_it() -> None:
    """Joint 0 is the root here, which is answered exactly."""
    skeleton = line(12)
    lcn = fitted(LCNLifter(skeleton, width=8, blocks=0, hops=2))
    assert touched_joints(lcn, 7) == list(range(3, 12))  # two layers of two bones
    semgcn = fitted(SemGCNLifter(skeleton, width=8, blocks=1))
    assert touched_joints(semgcn, 7) == list(range(3, 12))  # four layers of one bone
    everywhere = fitted(SemGCNLifter(skeleton, width=8, blocks=1, non_local=True))
    assert touched_joints(everywhere, 7) == list(range(1, 12))


@each_lifter
def test_joints_in_another_order_give_the_same_poses(name: str) -> None:
    """The graph, not the order of the joints, decides: weights moved with their joints."""
    skeleton = get_skeleton("humaneva15")
    order = torch.randperm(15)  # new joint i is old joint order[i]
    new = order.argsort().tolist()
    parents = [-1 if (p := skeleton.parents[old]) < 0 else new[p] for old in order.tolist()]
    names = [skeleton.joints[old] for old in order.tolist()]
    mixed = Skeleton("mixed", tuple(names), tuple(parents), (), ())
    lifter, other = fitted(LIFTERS[name](skeleton)), LIFTERS[name](mixed).eval()
    state = lifter.state_dict()
    for key, value in state.items():
        if key in ("mean2d", "std2d", "mean3d", "std3d"):
            state[key] = value[order]
    modules = dict(other.named_modules())
    for prefix, module in lifter.named_modules():
        twin = modules[prefix]
        if isinstance(module, LocallyConnected):
            index = [
                module.pairs.tolist().index(int(order[q // 15]) * 15 + int(order[q % 15]))
                for q in twin.pairs.tolist()
            ]
            state[f"{prefix}.weight"] = module.weight[index]
            state[f"{prefix}.bias"] = module.bias.view(15, -1)[order].flatten()
        elif isinstance(module, SemGraphConv):
            pairs = list(zip(module.rows.tolist(), module.columns.tolist(), strict=True))
            theirs = zip(twin.rows.tolist(), twin.columns.tolist(), strict=True)
            index = [pairs.index((int(order[i]), int(order[j]))) for i, j in theirs]
            state[f"{prefix}.edges"] = module.edges[index]
    other.load_state_dict(state)
    keypoints = 500 + 100 * torch.randn(4, 15, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            other(keypoints[:, order]), lifter(keypoints)[:, order], rtol=1e-4, atol=1e-2
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@each_lifter
def test_any_skeleton_and_batch_and_gradients_everywhere(name: str, layout: str) -> None:
    lifter = fitted(LIFTERS[name](layout))
    joints = get_skeleton(layout).num_joints
    assert lifter.num_joints == joints
    for batch in ((), (0,), (3,), (2, 3)):
        keypoints = 500 + 100 * torch.randn(*batch, joints, 2)
        pose = lifter(keypoints)
        assert pose.shape == (*batch, joints, 3)
        flat = lifter(keypoints.reshape(-1, joints, 2)).reshape(pose.shape)
        torch.testing.assert_close(pose, flat, rtol=1e-4, atol=1e-2)
    lifter.train()
    keypoints = (500 + 100 * torch.randn(64, joints, 2)).requires_grad_()
    lifter(keypoints).square().sum().backward()
    assert keypoints.grad is not None and (keypoints.grad != 0).all()
    for key, parameter in lifter.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert (parameter.grad != 0).any(), key


@each_lifter
def test_it_learns(name: str) -> None:
    lifter = LIFTERS[name]()
    generator = torch.Generator().manual_seed(1)
    keypoints = 500 + 100 * torch.randn(256, 17, 2, generator=generator)
    pose = torch.cat((keypoints - 500, keypoints.sum(-1, keepdim=True) - 1000), dim=-1)
    lifter.fit_normalization(keypoints, pose)
    z, target = lifter.normalized(keypoints), lifter.normalize_pose(pose)
    optimizer = torch.optim.Adam(lifter.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (lifter.regress(z) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def count(lifter: Lifter) -> int:
    return sum(p.numel() for p in lifter.parameters())


def test_number_of_parameters() -> None:
    """Ci et al.'s six hidden layers of 64 channels; 0.27 and 0.43 million as Zhao et al. say."""
    pairs, norms = 131, 7 * 2 * 64
    assert count(LCNLifter()) == (pairs * 64 * (2 + 6 * 64 + 3) + 17 * (7 * 64 + 3) + norms)
    assert count(SemGCNLifter(16)) == (
        2 * 128 * (2 + 8 * 128 + 3) + 10 * (16 + 2 * 15) + 3 + 9 * 2 * 128
    )
    half = 3 * (128 * 64 + 64) + 128 + 64 * 128 + 2 * 128
    assert count(SemGCNLifter(16, non_local=True)) == count(SemGCNLifter(16)) + 5 * half
    for skeleton in ("h36m16", "h36m17"):
        assert round(count(SemGCNLifter(skeleton)) / 1e6, 2) == 0.27
        assert round(count(SemGCNLifter(skeleton, non_local=True)) / 1e6, 2) == 0.43


# ---- names and files -----------------------------------------------------------------------------


@each_lifter
@pytest.mark.parametrize("half", [False, True])
def test_a_model_file_holds_it(name: str, half: bool, tmp_path: Path) -> None:
    lifter = fitted(LIFTERS[name]())
    ERD(lifter, stages=1, width=8).save(tmp_path / "model.safetensors", half=half)
    state = torch.get_rng_state()
    loaded = ERD.from_pretrained(tmp_path / "model.safetensors").lifter
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(loaded, Lifter) and type(loaded) is type(lifter)
    assert loaded.config() == lifter.config()
    keypoints = 500 + 100 * torch.randn(4, 17, 2)
    with torch.no_grad():
        difference = (loaded(keypoints) - lifter(keypoints)).abs().max()
        assert (0 < difference < 10) if half else difference == 0
        twin = type(lifter)(**lifter.config())
        twin.load_state_dict(lifter.state_dict())
        assert torch.equal(twin.eval()(keypoints), lifter(keypoints))


def test_the_names_that_training_knows() -> None:
    skeleton = get_skeleton("humaneva15")
    sizes = {"martinez": (1024, 2), "lcn": (64, 3), "semgcn": (128, 4), "semgcn-nonlocal": (128, 4)}
    for name, size in sizes.items():
        lifter: Any = new_lifter(name, skeleton)
        assert (lifter.width, lifter.num_blocks) == size
        assert lifter.num_joints == 15
        assert getattr(lifter, "skeleton", skeleton) == skeleton
        small: Any = new_lifter(name, skeleton, 8, 1, dropout=0.125)
        assert (small.width, small.num_blocks) == (8, 1)
        assert getattr(small, "dropout", 0.125) == 0.125
        assert getattr(small, "non_local", False) == (name == "semgcn-nonlocal")
    with pytest.raises(ValueError, match="lifter is 'gcn', expected one of 'martinez', 'lcn'"):
        new_lifter("gcn", skeleton)
    with pytest.raises(ValueError, match="pca is 30, expected None with the lifter 'lcn'"):
        new_lifter("lcn", skeleton, pca=30)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LCNLifter("h36m18"), "no skeleton is called 'h36m18'"),
        (lambda: LCNLifter(hops=-1), "hops is -1, expected an integer of at least 0"),
        (lambda: LCNLifter(dropout=1.0), "dropout is 1.0"),
        (lambda: SemGCNLifter(13), "no skeleton has 13 joints"),
        (lambda: SemGCNLifter({"name": "x"}), "a skeleton needs name, joints"),
        (lambda: SemGCNLifter(width=0), "width is 0, expected an integer of at least 1"),
    ],
)
def test_what_cannot_be_built(build: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", ["lcn", "semgcn-nonlocal"])
def test_compiled_it_is_the_same(name: str) -> None:
    torch._dynamo.reset()
    lifter = fitted(LIFTERS[name]())
    compiled = torch.compile(lifter, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (5, 9):
        keypoints = 500 + 100 * torch.randn(size, 17, 2)
        torch.testing.assert_close(compiled(keypoints), lifter(keypoints), rtol=1e-4, atol=1e-2)

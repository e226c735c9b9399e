"""Parametrisations, augmentations, objectives and the loop: identities and gradients, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from sklearn_clpdd import DSA, Augmentation, CLPDistiller, LinearSchedule
from sklearn_clpdd.baselines import LGM_PUBLISHED
from sklearn_clpdd.distill import _objectives as objectives
from sklearn_clpdd.distill._augmentations import AUGMENTATIONS
from sklearn_clpdd.distill._checkpoint import read_checkpoint
from sklearn_clpdd.distill._loop import ChunkPlan, StepViews, ViewPlan, backpropagate, optimize, split_views
from sklearn_clpdd.distill._objectives import (
    OBJECTIVES,
    CosineCrossEntropy,
    CrossEntropy,
    MeanOverEncoders,
    Objective,
    WithNeighbors,
    anchors,
    neighbor_cross_entropy,
    spread_of_neighbor_logits,
    spread_of_scores,
)
from sklearn_clpdd.distill._parametrizations import PARAMETRIZATIONS, Points, Pyramid
from sklearn_clpdd.distill._real_features import BatchSampler, RealFeatures, held_out_counts, split_order
from sklearn_clpdd.distill._state import State, padded_like
from sklearn_clpdd.encoder._preprocessing import Preprocessing
from sklearn_clpdd.utils._ridge import relative_penalty, ridge
from sklearn_clpdd.utils._tensor_file import write_tensors

SIZE = 11  # odd, and not a power of two


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=PARAMETRIZATIONS)
def parametrization(request):
    return PARAMETRIZATIONS[request.param]((4, 3, SIZE, SIZE), generator(), dtype=torch.float64)


def test_decoded_images_are_in_range_and_differentiable(parametrization):
    parametrization.grow(0.99)
    images = parametrization()
    assert images.shape == (4, 3, SIZE, SIZE)
    assert 0 < images.min() < images.max() < 1
    images.square().sum().backward()
    assert all(theta.grad.abs().sum() > 0 for theta in parametrization.parameters)


def test_set_reproduces_images(parametrization):
    wanted = 0.02 + 0.96 * torch.rand((4, 3, SIZE, SIZE), generator=generator(1)).double()
    parametrization.set_samples(wanted)
    torch.testing.assert_close(parametrization(), wanted, rtol=0, atol=1e-6)


def test_set_clips_black_and_white_to_what_a_sigmoid_reaches(parametrization):
    wanted = torch.zeros((4, 3, SIZE, SIZE), dtype=torch.float64)
    wanted[:2] = 1
    parametrization.set_samples(wanted)
    assert (parametrization() - wanted).abs().max() < 1 / 255


def test_pyramid_grows_from_one_pixel_to_full_size():
    pyramid = Pyramid((1, 3, SIZE, SIZE), generator())
    assert [level.shape[-1] for level in pyramid.parameters] == [1, 2, 4, 8, 11]
    assert pyramid().flatten(2).std(dim=2).max() < 1e-6  # one level: constant images
    active = []
    for progress in np.linspace(0, 0.99, 100):
        pyramid.grow(progress)
        active.append(pyramid.stage)
    assert active == sorted(active)
    assert (active[0], active[-1]) == (1, 5)


def test_points_are_unbounded_and_exact():
    points = Points((3, 5), generator(), dtype=torch.float64)
    wanted = 10 * torch.randn(3, 5, generator=generator(1)).double()
    points.set_samples(wanted)
    torch.testing.assert_close(points(), wanted)


@pytest.mark.parametrize(
    "bad",
    [
        {"scale": (2, 3)},
        {"scale": (0, 1)},
        {"scale": (0.1, 0.2, 0.3)},
        {"n_views": 0},
        {"unaugmented_weight": 1.0},
        {"ratio": (0, 1)},
        {"flip": 2},
        {"noise": -1},
        {"noise_mean": float("nan")},
        {"noise_probability": 1.5},
        {"outside": "reflect"},
    ],
)
def test_impossible_augmentations(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        CLPDistiller(None, augmentation=DSA(**bad)).fit(np.eye(4), [0, 1, 0, 1])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_views_of_a_chunk_are_those_of_the_whole(name):
    noise = {"noise": 0.1, "noise_mean": 0.2, "noise_probability": 0.5, "outside": "zeros"}
    augmentation = AUGMENTATIONS[name](**noise) if name == "dsa" else AUGMENTATIONS[name]()
    images = torch.rand(6, 3, SIZE, SIZE, generator=generator())
    preprocessing = Preprocessing(image_size=8, crop_pct=8 / SIZE)
    draws = augmentation.draw(6, generator())
    whole = augmentation(images, draws, preprocessing)
    parts = [augmentation(images[c], {k: v[c] for k, v in draws.items()}, preprocessing) for c in (slice(0, 2), slice(2, 6))]
    assert whole.shape == (6, 3, 8, 8)
    torch.testing.assert_close(torch.cat(parts), whole)


def test_dsa_without_randomness_is_the_image():
    images = torch.rand(2, 3, SIZE, SIZE, generator=generator())
    plain = DSA(scale=(1, 1), ratio=(1, 1), flip=0)
    view = plain(images, plain.draw(2, generator()), Preprocessing(image_size=SIZE))
    torch.testing.assert_close(view, images, rtol=0, atol=1e-5)
    mirrored = DSA(scale=(1, 1), ratio=(1, 1), flip=1)
    view = mirrored(images, mirrored.draw(2, generator()), Preprocessing(image_size=SIZE))
    torch.testing.assert_close(view, images.flip(3), rtol=0, atol=1e-5)


def test_dsa_crops_have_the_area_asked_for_and_stay_inside():
    draws = DSA(scale=(0.2, 0.4)).draw(1000, generator())
    width, height = draws["scale"].abs().unbind(1)
    assert 0.2 <= (width * height).min() < 0.21
    assert 0.39 < (width * height).max() <= 0.4
    assert (draws["center"].abs() + draws["scale"].abs()).max() <= 1 + 1e-6
    assert 0.4 < (draws["scale"][:, 0] < 0).double().mean() < 0.6
    assert (draws["scale"][:, 1] > 0).all()


def test_published_views_are_those_of_the_released_code():
    """LGM, commit 1d84ffd, src/augmentation: flip, crop, noise, with these ranges; crops may extend beyond the image."""
    published, n, side = LGM_PUBLISHED["augmentation"], 4000, 16
    draws = published.draw(n, generator())
    width, height = draws["scale"].abs().double().unbind(1)
    area, ratio = width * height, width / height
    assert (area.min(), area.max()) == (pytest.approx(0.08, abs=0.01), pytest.approx(1.0, abs=0.01))
    assert area.mean() == pytest.approx(0.54, abs=0.02)  # uniform
    assert (ratio.min(), ratio.max()) == (pytest.approx(3 / 4, abs=0.01), pytest.approx(4 / 3, abs=0.01))
    assert ratio.log().mean() == pytest.approx(0.0, abs=0.02)  # uniform in the logarithm
    assert 1 < width.max() <= (4 / 3) ** 0.5
    assert (draws["scale"][:, 0] < 0).double().mean() == pytest.approx(0.5, abs=0.03)
    corner = (draws["center"][:, 0] + 1 - width) / (2 * (1 - width))  # relative position within its range
    assert (corner.min(), corner.max()) == (pytest.approx(0.0, abs=0.01), pytest.approx(1.0, abs=0.01))

    images = torch.full((1, 3, side, side), 0.5)
    views = published(images, draws, Preprocessing(image_size=side))
    affine = torch.cat([torch.diag_embed(draws["scale"]), draws["center"][..., None]], dim=2)
    grid = F.affine_grid(affine, [n, 3, side, side], align_corners=False)
    crops = F.grid_sample(images.expand(n, -1, -1, -1), grid, padding_mode="zeros", align_corners=False)
    assert crops.min() == 0  # black outside the image
    noise = views - crops
    noisy = noise.flatten(1).abs().amax(1) > 0.01
    assert noisy.double().mean() == pytest.approx(0.5, abs=0.03)
    assert noise[~noisy].abs().max() < 1e-5
    assert noise[noisy].mean() == pytest.approx(0.5, abs=0.002)
    assert noise[noisy].std() == pytest.approx(0.2, abs=0.002)
    assert DSA(noise=0.1).draw(3, generator()).keys() == DSA().draw(3, generator()).keys()


def test_dsa_views_are_affine_crops():
    """Compared with torch's own sampling, one view at a time."""
    dsa, images, k, side = DSA(), torch.rand(3, 3, SIZE, SIZE + 5, generator=generator()), 4, 9
    draws = dsa.draw(3 * k, generator())
    views = dsa(images, draws, Preprocessing(image_size=side))
    affine = torch.cat([torch.diag_embed(draws["scale"]), draws["center"][..., None]], dim=2)
    grid = F.affine_grid(affine, [3 * k, 3, side, side], align_corners=False)
    single = F.grid_sample(images.repeat_interleave(k, dim=0), grid, padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(views, single)


def _features(n, d=7, C=3, seed=0):
    Z = F.normalize(torch.randn(n, d, generator=generator(seed)).double(), dim=1)
    return Z, torch.arange(n) % C


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_of_the_objective_in_the_features(name):
    (Z, y), (R, r) = _features(6), _features(20, seed=1)
    objective = OBJECTIVES[name](alpha=0.1, temperature=0.5)
    for loss in (objective, WithNeighbors(objective, y, 0.2)):
        assert torch.autograd.gradcheck(lambda Z, loss=loss: loss(Z, F.one_hot(y, 3).double(), R, r), Z.requires_grad_())


def test_alpha_is_relative_to_the_scale_of_the_features():
    Z, y = _features(6)
    Y = F.one_hot(y, 3).double()
    objective = CrossEntropy(0.1, 0.5)
    torch.testing.assert_close(anchors(objective.probe(100 * Z, Y)), anchors(objective.probe(Z, Y)))


def test_alpha_of_normalised_features_is_the_plain_ridge_strength():
    Z, y = _features(6)
    Y = F.one_hot(y, 3).double()
    W = CrossEntropy(0.1, 0.5).probe(Z, Y)
    torch.testing.assert_close(Z.T @ (Z @ W - Y) + 0.1 * W, torch.zeros_like(W), rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("augmentation", [Augmentation(), DSA()])
def test_gradient_of_the_whole_step_against_finite_differences(module, objective, augmentation):
    """The whole chain θ → images → views → encoder → probe → loss, for each parametrisation."""
    module = module.double()
    preprocessing = Preprocessing(image_size=8, crop_pct=8 / SIZE, interpolation="bilinear")
    y = torch.arange(3)
    R, r = _features(20, d=12, seed=1)
    k = 2 if augmentation.is_random else 1
    draws = augmentation.draw(3 * k, generator())
    loss_of = OBJECTIVES[objective](alpha=0.1, temperature=0.5)
    if loss_of.with_neighbors:
        loss_of = WithNeighbors(loss_of, y.repeat_interleave(k), 0.2)

    def loss(*parameters):
        parametrization.parameters = list(parameters)
        views = augmentation(parametrization(), draws, preprocessing)
        return loss_of(F.normalize(module(views), dim=1), F.one_hot(y.repeat_interleave(k), 3).double(), R, r)

    for parametrization in (kind((3, 3, SIZE, SIZE), generator(), dtype=torch.float64) for kind in PARAMETRIZATIONS.values()):
        parametrization.grow(0.99)
        assert torch.autograd.gradcheck(loss, parametrization.parameters, fast_mode=True)


@pytest.mark.parametrize(("m", "alpha"), [(30, 1.0), (300, 0.3), (300, 1e-3), (30, 1e-5)])
def test_single_precision_is_enough_or_not_used(m, alpha):
    """Gradients in float32 compared with float64, for nearly collinear features on both sides of the limit."""
    Z, R = (F.normalize(1 + 0.1 * torch.randn(n, 40, generator=generator(n)), dim=1) for n in (m, 50))
    Y, r = F.one_hot(torch.arange(m) % 5, 5).float(), torch.arange(50) % 5

    def gradient(dtype):
        z = Z.to(dtype).requires_grad_()
        return torch.autograd.grad(CrossEntropy(alpha, 0.1)(z, Y.to(dtype), R.to(dtype), r), z)[0].double()

    error = (gradient(torch.float32) - gradient(torch.float64)).norm() / gradient(torch.float64).norm()
    assert error <= 1e-4


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
@pytest.mark.parametrize("size", [7, 12, 20])
def test_some_images_are_decoded_as_all_of_them(kind, size):
    """To the last bit, whatever a CPU does with the last elements of a tensor: processes decode some of the images each."""
    whole = PARAMETRIZATIONS[kind]((40, 3, size, size), generator())
    whole.grow(0.99)
    decoded = whole.decode(whole.parameters)
    for n in (1, 5, 7):
        for first in range(0, 40, n):
            part = whole.decode([theta[first : first + n] for theta in whole.parameters])
            assert torch.equal(part, decoded[first : first + n])


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
@pytest.mark.parametrize(("size", "kept"), [(1, 1), (2, 1), (2, 99), (3, 2), (4, 1), (7, 99), (12, 1), (15, 1)])
def test_two_passes_give_the_gradient_of_one(module, kind, size, kept):
    """Chunks of whole images, or of some views of one image, have the gradient of one graph over everything."""
    module = module.double()
    m, k = 5, 3
    R, r = _features(20, d=12, seed=1)
    dsa = DSA(noise=0.05)
    draws = dsa.draw(m * k, generator())
    Y = F.one_hot((torch.arange(m) % 3).repeat_interleave(k), 3).double()

    def features(samples, rows):
        return module(dsa(samples, {name: drawn[rows] for name, drawn in draws.items()}, Preprocessing(image_size=8)))

    def loss_of(Z):
        return CrossEntropy(0.1, 0.2)(Z, Y, R, r)

    one, two = (PARAMETRIZATIONS[kind]((m, 3, SIZE, SIZE), generator(), dtype=torch.float64) for _ in range(2))
    one.grow(0.1), two.grow(0.1)
    expected = loss_of(features(one(), slice(0, m * k)))
    expected.backward()
    chunks = split_views(m, k, size)
    for _ in range(2):  # once more: gradients of the last step are replaced
        loss = backpropagate(two, features, loss_of, chunks, k, min(kept, len(chunks)))
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        for theta, same in zip(two.parameters, one.parameters, strict=True):
            assert (theta.grad is None) == (same.grad is None)
            if theta.grad is not None:
                torch.testing.assert_close(theta.grad, same.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("m", "k", "size"), [(10, 2, 64), (10, 10, 10), (10, 10, 9), (7, 3, 7), (3, 100, 32), (1000, 1, 16)])
def test_chunks_cover_all_views_and_are_of_about_equal_size(m, k, size):
    chunks = split_views(m, k, size)
    assert [row for rows in chunks for row in range(rows.start, rows.stop)] == list(range(m * k))
    lengths = [rows.stop - rows.start for rows in chunks]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= min(k, size)
    for rows in chunks:
        samples = -(-rows.stop // k) - rows.start // k
        assert (rows.stop - rows.start) % samples == 0


@pytest.mark.parametrize(
    ("size", "views", "kept"),
    [(100, 0, 1), (30, 0, 1), (30, 39, 1), (30, 60, 2), (30, 99, 3), (30, 100, 4), (30, 999, 4), (4, 21, 6)],
)
def test_chunks_keep_their_graphs_while_memory_lasts(size, views, kept):
    chunks, n = ChunkPlan(size, views).chunks(10, 10)
    assert n == kept
    assert n == 1 or sum(rows.stop - rows.start for rows in chunks[-n:]) <= views
    assert n == len(chunks) or sum(rows.stop - rows.start for rows in chunks[-n - 1 :]) > views


def _real(R, r, batch_size=40, sampling="uniform"):
    return _sampler(R.numpy(), r.numpy(), batch_size, r.numpy() if sampling == "balanced" else None, R.dtype)


def _sampler(R, r, batch_size, strata, dtype):
    real = RealFeatures(R, r, np.arange(len(r)), strata=strata)
    return BatchSampler(real, batch_size, torch.device("cpu"), dtype)


def _start(max_iter=30, objective=None, chunk_size=64, seed=0, schedule=None):
    R, r = _features(60, seed=1)
    random = {"views": generator(1), "batches": generator(2)}
    state = State(Points((3, 7), generator(seed), dtype=torch.float64), torch.eye(3, dtype=torch.float64), random)
    steps = optimize(
        state,
        _real(R + 0.5 * F.one_hot(r, 7), r),
        encode=lambda views: views,
        preprocess=lambda samples: samples,
        views=ViewPlan(Augmentation(), 1, 0.0),
        objective=objective or CrossEntropy(0.1, 0.1),
        unaugmented_objective=CrossEntropy(0.1, 0.1),
        learning_rate=(schedule or LinearSchedule(0.1)).rate,
        progress=lambda: state.step / max_iter,
        chunk_plan=ChunkPlan(chunk_size),
    )
    return state, steps


def _run(**parameters):
    state, steps = _start(**parameters)
    losses = [loss.item() for loss in steps]
    return losses, state.parametrization().detach()


def test_a_run_continues_from_its_state_bit_for_bit(tmp_path):
    losses, samples = _run()
    for stop in (0, 1, 13, 29):
        state, steps = _start()
        for _, _loss in zip(range(stop + 1), steps, strict=False):
            pass  # the gradient of step `stop` is computed, but θ is not updated
        write_tensors(tmp_path / "run", state.tensors(), {"step": state.step, "progress": state.progress})
        tensors, info = read_checkpoint(tmp_path / "run")
        other, steps = _start(seed=3)
        other.load(tensors, info["step"], info["progress"])
        assert other.step == stop
        assert [loss.item() for loss in steps] == losses[stop:]
        assert torch.equal(other.parametrization().detach(), samples)


@pytest.mark.parametrize(
    ("warmup_steps", "decay_fraction", "wanted"),
    [
        (0, 0.0, [1, 1, 1, 1, 1, 1, 1, 1]),
        (3, 0.0, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1]),
        (0, 0.5, [1, 1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4]),
        (10, 1.0, [n / 11 * (9 - n) / 8 for n in range(1, 9)]),
    ],
)
def test_rate_rises_over_the_first_steps_and_falls_over_the_last(warmup_steps, decay_fraction, wanted):
    schedule = LinearSchedule(0.1, warmup_steps=warmup_steps, decay_fraction=decay_fraction)
    state, steps = _start(max_iter=8, schedule=schedule)
    rates = [state.optimizer.param_groups[0]["lr"] / 0.1 for _ in steps]
    assert rates == pytest.approx(wanted)


def test_batches_are_views_of_the_features_in_memory():
    R, r = _features(60, seed=1)
    real = _real(R, r, 20)
    base = real._R.untyped_storage().data_ptr()
    seen = np.zeros(60)
    draws = generator()
    for _ in range(600):
        batch, codes = real.sample(draws)
        assert batch.shape == (20, 7)
        start = int((batch[0] == R).all(1).nonzero()[0, 0])
        rows = (start + torch.arange(20)) % 60
        assert torch.equal(batch, R[rows])
        assert torch.equal(codes, r[rows])
        assert (batch.untyped_storage().data_ptr() == base) == (start <= 40)
        seen[rows] += 1
    assert 120 < seen.min() <= seen.max() < 280  # 200 expected
    assert _real(R, r, 60).sample(draws)[0].shape == _real(R, r, 99).sample(draws)[0].shape == (60, 7)


def test_balanced_batches_have_equal_classes():
    r = torch.tensor([0] * 50 + [1] * 9 + [2])
    R = torch.arange(60.0)[:, None]
    batch, codes = _real(R, r, 30_000, "balanced").sample(generator())
    assert torch.equal(r[batch[:, 0].long()], codes)
    np.testing.assert_allclose(np.bincount(codes) / 30_000, 1 / 3, atol=0.02)
    np.testing.assert_allclose(np.bincount(batch[codes == 1, 0].long())[50:] / 10_000, 1 / 9, atol=0.02)


def test_features_on_disk_give_the_same_batches(tmp_path):
    R, r = _features(60, seed=1)
    mapped = np.memmap(tmp_path / "R", dtype=np.float16, mode="w+", shape=(60, 7))
    mapped[:] = R.numpy()
    for sampling in ("uniform", "balanced"):
        on_disk = _sampler(mapped, r.numpy(), 20, r.numpy() if sampling == "balanced" else None, torch.float32)
        in_memory = _real(torch.from_numpy(np.array(mapped)).float(), r, 20, sampling)
        for seed in range(10):
            for one, other in zip(on_disk.sample(generator(seed)), in_memory.sample(generator(seed)), strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)


@pytest.mark.parametrize("fraction", [None, 0.1, 0.5])
def test_a_fraction_of_each_class_is_held_out(fraction):
    codes = np.repeat([0, 1, 2], [100, 9, 35])
    order, n = split_order(codes, fraction, np.random.RandomState(0))
    assert sorted(order) == list(range(144))
    expected = {None: [0, 0, 0], 0.1: [10, 0, 3], 0.5: [50, 4, 17]}[fraction]
    assert np.bincount(codes[order[144 - n :]], minlength=3).tolist() == expected
    assert len(set(np.flatnonzero(np.diff(codes[order])))) > 20  # shuffled
    large, n = split_order(np.zeros(10**6, int), 0.1, np.random.RandomState(0))
    assert (len(large), n) == (10**6, 10_000)
    assert held_out_counts(np.array([10**6, 50]), 0.1).tolist() == [9999, 0]  # the same share of each class as of all samples


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "run"
    write_tensors(path, {"a": torch.zeros(300)}, {"loss": 0.1 + 0.2, "best": float("inf")})

    def killed(*args):
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{name}", killed)
            with pytest.raises(KeyboardInterrupt):
                write_tensors(path, {"a": torch.ones(300)}, {})
        tensors, info = read_checkpoint(path)
        assert torch.equal(tensors["a"], torch.zeros(300))
        assert info == {"loss": 0.1 + 0.2, "best": float("inf")}
    write_tensors(path, {"a": torch.ones(300)}, {})
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="nowhere"):
        write_tensors(tmp_path / "nowhere" / "run", {}, {})


@pytest.mark.parametrize("spoil", ["truncate", "text", "other"])
def test_files_that_are_not_checkpoints(tmp_path, spoil):
    path = tmp_path / "run"
    if spoil == "other":
        save_file({"a": torch.zeros(3)}, path)
    else:
        write_tensors(path, {"a": torch.zeros(300)}, {"step": 1})
        path.write_bytes(path.read_bytes()[:500] if spoil == "truncate" else b"not this")
    with pytest.raises(ValueError, match="not a checkpoint of a distillation"):
        read_checkpoint(path)


def test_loop_lowers_the_loss_and_repeats_itself():
    losses, samples = _run()
    assert losses[-1] < 0.5 * losses[0]
    again, same = _run()
    assert losses == again
    assert torch.equal(samples, same)
    torch.testing.assert_close(_run(chunk_size=2)[1], samples)


# ---- several encoders, unaugmented samples, learned targets --------------------------------------------------------------


def test_several_encoders_average_their_losses():
    (A, r), (B, _) = _features(20, d=7, seed=1), _features(20, d=4, seed=2)
    Za, Zb = _features(3, d=7, seed=3)[0], _features(3, d=4, seed=4)[0]
    objective, Y = CrossEntropy(0.1, 0.1), torch.eye(3, dtype=A.dtype)
    for own in (objective, WithNeighbors(objective, torch.arange(3), 0.2)):
        joint = MeanOverEncoders(own, [7, 4])(torch.cat([Za, Zb], 1) / 2**0.5, Y, torch.cat([A, B], 1) / 2**0.5, r)
        torch.testing.assert_close(joint, (own(Za, Y, A, r) + own(Zb, Y, B, r)) / 2)


def test_cross_entropy_sees_the_scores_of_the_probe_and_its_cosine_form_the_anchors():
    (R, r), (Z, _) = _features(20, seed=1), _features(3, seed=2)
    Y = torch.eye(3, dtype=Z.dtype)
    W = ridge(Z, Y, relative_penalty(Z, 0.1))
    for objective, scaled in (
        (CrossEntropy, W / W.square().sum(0).mean().sqrt()),
        (CosineCrossEntropy, W / W.norm(dim=0)),
    ):
        wanted = F.cross_entropy(R @ scaled / 0.3, r)
        torch.testing.assert_close(objective(0.1, 0.3)(Z, Y, R, r), wanted)


def test_spreads_are_standard_deviations_by_hand():
    R, r = _features(60, seed=1)
    M = torch.stack([R[r == c].mean(0) for c in range(3)])
    W = ridge(M / M.norm(dim=1, keepdim=True), torch.eye(3, dtype=R.dtype), 0.5)
    of_scores, of_neighbor_logits = (
        (values - values.mean(1, keepdim=True)).square().mean().sqrt().item()
        for values in (R @ (W / W.norm(dim=0)), -torch.cdist(R, M).square() / 2)
    )
    assert spread_of_scores(R, r, 3, 0.5) == pytest.approx(of_scores, rel=1e-6)
    assert spread_of_scores(3 * R, r, 3, 0.5) == pytest.approx(3 * of_scores, rel=1e-6)
    assert spread_of_neighbor_logits(R, r, 3) == pytest.approx(of_neighbor_logits, rel=1e-6)
    assert spread_of_neighbor_logits(3 * R, r, 3) == pytest.approx(9 * of_neighbor_logits, rel=1e-6)
    assert spread_of_neighbor_logits(R, r, 5) == pytest.approx(of_neighbor_logits, rel=1e-6)  # two classes without samples


class _Nothing(Objective):
    """An objective without a loss of the probe."""

    def columns(self, Z, Y):
        return Z[:1].T

    def loss(self, scores, r):
        return 0.0 * scores.sum()


def test_neighbors_have_weights_that_fall_with_the_squared_distance():
    (R, r), (Z, classes) = _features(20, seed=1), _features(7, seed=2)
    weights = torch.exp(-torch.cdist(R, Z).square() / (2 * 0.3)) @ F.one_hot(classes, 3).to(R)
    wanted = 0.75 * F.nll_loss((weights / weights.sum(1, keepdim=True)).log(), r)
    loss_of = WithNeighbors(_Nothing(1.0, 1.0), classes, 0.3)
    loss = loss_of(Z, torch.ones(7, 1).to(Z), R, r)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(loss_of(Z + 5, torch.ones(7, 1).to(Z), R + 5, r), wanted)  # distances


def test_neighbors_have_three_quarters_of_the_loss_and_the_classes_that_they_are_given(monkeypatch):
    (R, r), (Z, y) = _features(20, seed=1), _features(6, seed=2)
    probe = CrossEntropy(0.1, 0.3)
    learned = torch.eye(3, dtype=Z.dtype)[y.flip(0)]  # targets that now favour other classes
    neighbors = neighbor_cross_entropy(-torch.cdist(R, Z.requires_grad_()).square() / (2 * 0.2), y, r)
    wanted = 0.25 * probe(Z, learned, R, r) + 0.75 * neighbors
    (gradient,) = torch.autograd.grad(wanted, Z)
    loss_of = WithNeighbors(probe, y, 0.2)
    parts, checkpoint = [], objectives.checkpoint
    monkeypatch.setattr(objectives, "checkpoint", lambda *args, **kw: parts.append(len(args[3])) or checkpoint(*args, **kw))
    for entries, wanted_parts in ((objectives._ENTRIES, []), (27, [3] * 6 + [2])):
        monkeypatch.setattr(objectives, "_ENTRIES", entries)
        loss = loss_of(Z, learned, R, r)
        assert parts == wanted_parts
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(torch.autograd.grad(loss, Z)[0], gradient)


@pytest.mark.parametrize("angle", [0.3, 1e-2])
def test_neighbors_of_nearly_collinear_features_in_single_precision(angle):
    Z, R = (F.normalize(1 + angle * torch.randn(n, 40, generator=generator(n)), dim=1) for n in (30, 50))
    classes, r = torch.arange(30) % 5, torch.arange(50) % 5
    loss_of = WithNeighbors(_Nothing(1.0, 1.0), classes, spread_of_neighbor_logits(R.double(), r, 5))

    def gradient(dtype):
        own = Z.to(dtype).requires_grad_()
        return torch.autograd.grad(loss_of(own, own.new_ones(30, 1), R.to(dtype), r), own)[0].double()

    reference = gradient(torch.float64)
    assert (gradient(torch.float32) - reference).norm() < 1e-2 * reference.norm()


@pytest.mark.parametrize("n_random", [1, 3])
@pytest.mark.parametrize("with_unaugmented", [False, True])
@pytest.mark.parametrize("size", [2, 3, 4, 8, 64])
def test_views_of_a_step_are_the_same_in_any_chunks(n_random, with_unaugmented, size):
    """The random views of each sample come first, followed by the unaugmented sample."""
    generator_ = generator(0)
    images = torch.rand(5, 3, 8, 8, generator=generator_)
    preprocessing = Preprocessing(image_size=6, crop_pct=6 / 8)
    k = n_random + with_unaugmented
    views = StepViews(ViewPlan(DSA(), n_random, 0.5 * with_unaugmented), preprocessing, 5, generator(1))
    parts = []
    for rows in split_views(5, k, size):
        samples = images[rows.start // k : -(-rows.stop // k)]
        parts.append(views.features(samples, rows, lambda own: own.flatten(1)))
    Z = torch.cat(parts).view(5, k, -1)
    random = DSA()(images, DSA().draw(5 * n_random, generator(1)), preprocessing).flatten(1).view(5, n_random, -1)
    torch.testing.assert_close(Z[:, :n_random], random)
    if with_unaugmented:
        torch.testing.assert_close(Z[:, n_random], preprocessing(images).flatten(1))


def test_a_parametrization_may_move_its_parameters():
    """Adam's update reaches them all the same."""
    torch.manual_seed(0)
    start, gradient = torch.rand(3, 7), torch.rand(3, 7)
    moved = []
    for moves in (False, True):
        points = Points((3, 7), generator(0))
        state = State(points, torch.eye(3), {"views": generator(1), "batches": generator(2)})
        with torch.no_grad():
            points.parameters[0].copy_(start)
        if moves:
            points.parameters[0].data = points.parameters[0].data.clone()
        state.set_learning_rate(0.1)
        for _ in range(2):
            points.parameters[0].grad = padded_like(gradient).copy_(gradient)
            state.update()
        moved.append(points.parameters[0].detach().clone())
    assert not torch.equal(moved[0], start)
    assert torch.equal(*moved)

"""k-NN, PaDiM and PatchCore: what is remembered, and scores against direct formulas in float64."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from selftaught import methods
from selftaught.errors import InputError
from selftaught.methods.logistic import fit_logistic
from selftaught.methods.mahalanobis import fit_gaussian
from selftaught.methods.patchcore import coreset
from selftaught.methods.patches import Patches
from selftaught.models.encoder import EncoderConfig
from selftaught.models.network import Network
from tests import thin

SIZE, IMAGES = 64, 25
ROWS = np.arange(2, IMAGES)


@pytest.fixture(autouse=True)
def thin_encoder():
    with thin.patch():
        yield


class Start:
    """25 images, of which rows 2 to 24 train and every fifth is known to be abnormal."""

    seed, rows = 3, ROWS
    labels = torch.tensor([-1, 0, 0, 1, 0] * 5)

    def __init__(self, task, kind=torch.float64):
        generator = torch.Generator().manual_seed(1)
        self.task, self.notes = task, []
        self.masks = torch.zeros(IMAGES, 1, SIZE, SIZE, dtype=kind)
        self.masks[:, :, 8:48, :40] = 1
        self.masks[::4, :, :24] = 1
        self.masks[[5, 7], :, :, 40:] = 1
        noise = torch.rand(IMAGES, 1, 16, 16, generator=generator).to(kind)
        self.images = nn.functional.interpolate(noise, SIZE, mode="bilinear") * self.masks

    def weights(self):
        with thin.patch():
            state = Network(seed=8).embedder().double().state_dict()
        return {f"embedder.{name}": value for name, value in state.items()}

    def batches(self, rows):
        for part in np.array_split(rows, range(16, len(rows), 16)):
            ids = torch.from_numpy(part)
            yield {
                "views": self.images[ids][:, None],
                "masks": self.masks[ids][:, None],
                "ids": ids,
            }

    def features(self, rows, mirrored=False):
        images = self.images[torch.from_numpy(rows)]
        return self.task.features(images.flip(-1) if mirrored else images)[1]

    def alone(self, work):
        return work()

    def note(self, text):
        self.notes.append(text)


def begun(name, **options):
    network = Network(image_size=SIZE, images=len(ROWS), seed=5)
    task = methods.load(name)(methods.options(name, **options), network).double()
    start = Start(task)
    task.begin(start)
    return task, start


def normal_rows(start):
    return ROWS[start.labels.numpy()[ROWS] != -1]


def scored(task, start):
    given = (start.images, start.masks) if task.masks else (start.images,)
    with torch.no_grad():
        outputs = task.scorer()(*given)
    torch.testing.assert_close(outputs["h"], task.encoder(start.images))
    return outputs["score"].double().numpy()


def places_of(task, start):
    """Features (N, P, C) of all images, and which are inside their masks, by other means."""
    names = {"layer2": "two", "layer3": "three"}
    network = create_feature_extractor(task.encoder.layers, return_nodes=names)
    with torch.no_grad():
        maps = network(start.images.expand(-1, 3, -1, -1))
    averaged = []
    for one in maps.values():
        padded = nn.functional.pad(one, (1, 1, 1, 1))
        ones = nn.functional.pad(torch.ones_like(one), (1, 1, 1, 1))
        sums, counts = (x.unfold(2, 3, 1).unfold(3, 3, 1).sum((4, 5)) for x in (padded, ones))
        averaged.append(sums / counts)
    two, three = averaged
    three = nn.functional.interpolate(three, size=two.shape[2:], mode="bilinear")
    features = torch.cat([two, three], 1).flatten(2).transpose(1, 2).numpy()
    side = two.shape[2]
    cells = start.masks.reshape(IMAGES, side, SIZE // side, side, SIZE // side).mean((2, 4))
    return features, (cells >= 0.5).flatten(1).numpy()


@pytest.mark.parametrize("neighbours", [3, 100])
def test_knn_is_the_mean_distance_to_images_not_known_abnormal(neighbours):
    task, start = begun("knn", neighbours=neighbours)
    with torch.no_grad():
        h = task.encoder(start.images).numpy()
    bank = h[normal_rows(start)]
    k = min(neighbours, len(bank))
    expected = NearestNeighbors(n_neighbors=k).fit(bank).kneighbors(h)[0].mean(1)
    np.testing.assert_allclose(scored(task, start), expected, rtol=1e-5, atol=1e-6)


def test_knn_remembers_so_many_images_at_most():
    task, start = begun("knn", memory=7, neighbours=1)
    assert task.memory.shape == (7, task.encoder.width) and task.count == 7
    near = np.flatnonzero(scored(task, start) < 1e-6)
    assert len(near) == 7 and set(near) <= set(normal_rows(start))


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("size", [32, 72])
def test_the_map_of_patches_has_the_side_that_is_expected(stem, size):
    encoder = Network(encoder=EncoderConfig(stem=stem)).embedder().encoder.eval()
    patches = Patches(encoder, size)
    with torch.no_grad():
        features, h = patches(torch.rand(2, 1, size, size))
    assert features.shape == (2, patches.side**2, patches.width) and h.shape == (2, encoder.width)
    assert patches.inside(torch.ones(2, 1, size, size)).shape == features.shape[:2]


def test_padim_is_the_largest_mahalanobis_distance_of_places_inside():
    task, start = begun("padim", channels=9)
    features, inside = places_of(task, start)
    features = features[..., task.channels.numpy()]
    rows = normal_rows(start)
    counts = inside[rows].sum(0)
    known = counts >= 0.1 * counts.max()
    assert 0 < known.sum() < (counts > 0).sum(), "some places are covered, but too rarely"
    expected = np.full((IMAGES, len(known)), -np.inf)
    for place in np.flatnonzero(known):
        sample = features[rows, place][inside[rows, place]]
        covariance = np.cov(sample, rowvar=False) + 0.01 * np.eye(9)
        off = features[:, place] - sample.mean(0)
        squared = np.einsum("nc,cd,nd->n", off, np.linalg.inv(covariance), off)
        expected[inside[:, place], place] = np.sqrt(squared[inside[:, place]])
    np.testing.assert_allclose(scored(task, start), expected.max(1), rtol=1e-6)


@pytest.mark.parametrize("neighbours", [1, 4, 1000])
def test_patchcore_is_the_weighted_distance_of_the_worst_patch_inside(neighbours):
    task, start = begun("patchcore", share=0.02, neighbours=neighbours)
    features, inside = places_of(task, start)
    rows = normal_rows(start)
    memory = task.memory[: task.count].numpy()
    candidates = features[rows][inside[rows]]
    assert len(memory) == int(np.ceil(0.02 * len(candidates)))
    # Each is a patch inside a mask of an image that is not known to be abnormal.
    assert np.linalg.norm(memory[:, None] - candidates[None], axis=2).min(1).max() < 1e-12
    expected = []
    for row in range(IMAGES):
        patches = features[row][inside[row]]
        distances = np.linalg.norm(patches[:, None] - memory[None], axis=2)
        worst = distances.min(1).argmax()
        nearest = memory[distances[worst].argmin()]
        around = np.linalg.norm(memory - nearest, axis=1).argsort()[:neighbours]
        exps = np.exp(distances[worst][around])
        weight = 1 - np.exp(distances[worst].min()) / exps.sum() if neighbours > 1 else 1
        expected.append(weight * distances[worst].min())
    np.testing.assert_allclose(scored(task, start), expected, rtol=1e-5, atol=1e-9)


def test_patches_that_are_all_remembered_are_at_distance_zero():
    task, start = begun("patchcore", share=1.0)
    score, rows = scored(task, start), normal_rows(start)
    abnormal = np.setdiff1d(np.arange(IMAGES), rows)
    assert score[rows].max() < 1e-6 < score[abnormal].min()


def test_of_many_patches_few_are_drawn_from_every_image():
    task, start = begun("patchcore", patches=80, share=1.0)
    rows = normal_rows(start)
    assert len(task.memory) == 80 and int(task.count) == 80 // len(rows) * len(rows)
    assert f"{int(task.count)} of {int(task.count)} patches" in start.notes[0]
    features, inside = places_of(task, start)
    memory = task.memory[: task.count].numpy()
    for row in rows:
        near = np.linalg.norm(features[row][:, None] - memory[None], axis=2).min(1) < 1e-12
        assert near.sum() == 80 // len(rows) and inside[row][near].all()


@pytest.mark.parametrize("name", ["padim", "patchcore"])
def test_an_image_without_a_patch_inside_is_scored_by_all(name):
    task, start = begun(name)
    masks = start.masks.clone()
    masks[5] = 0
    scorer, images = task.scorer(), start.images[5:6]
    with torch.no_grad():
        none, whole = scorer(images, masks[5:6]), scorer(images, torch.ones_like(masks[5:6]))
    assert torch.isfinite(none["score"]).all()
    torch.testing.assert_close(none["score"], whole["score"])


@pytest.mark.parametrize("name", ["padim", "patchcore"])
def test_masks_that_cover_no_patch_are_refused_in_one_line(name):
    network = Network(image_size=SIZE, images=len(ROWS))
    task = methods.load(name)(methods.options(name), network).double()
    start = Start(task)
    start.masks.zero_()
    with pytest.raises(InputError, match=f"{name}: no training image's mask .* allowed: ") as error:
        task.begin(start)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["knn", "padim", "patchcore", "logistic", "mahalanobis"])
def test_what_is_remembered_is_saved_and_scores_the_same(name):
    task, start = begun(name)
    again = methods.load(name)(task.options, task.network).double()
    again.load_state_dict(task.state_dict())
    assert np.array_equal(scored(again.eval(), start), scored(task, start))
    parameters = sum(p.numel() for p in task.encoder.parameters())
    assert sum(p.numel() for p in task.parameters()) == parameters


@pytest.mark.parametrize("name", ["knn", "padim", "patchcore", "logistic", "mahalanobis"])
def test_known_abnormal_images_alone_are_refused(name):
    task = methods.load(name)(methods.options(name), Network(image_size=SIZE))
    with pytest.raises(ValueError, match="all training images are known to be abnormal; allowed"):
        task.check(torch.tensor([-1, -1]))
    task.check(torch.tensor([-1, 0]))


def test_a_coreset_is_the_greedy_one():
    points = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).double()
    chosen = coreset(points, 10).tolist()
    assert chosen[0] == int((points - points.mean(0)).norm(dim=1).argmax())
    for number in range(1, 10):
        distances = torch.cdist(points, points[chosen[:number]]).min(1).values
        assert chosen[number] == int(distances.argmax())
    twice = torch.cat([points[:3]] * 4)
    assert sorted(row % 3 for row in coreset(twice, 12).tolist()) == [0, 1, 2]
    assert len(coreset(points[:4], 9)) == 4


def both_views(task, start, rows):
    images = start.images[torch.from_numpy(rows)]
    with torch.no_grad():
        views = [task.encoder(one) for one in (images, images.flip(-1))]
    return torch.cat(views).numpy()


def of_kind(start, *labels):
    return ROWS[np.isin(start.labels.numpy()[ROWS], labels)]


@pytest.mark.parametrize(("normals", "labels"), [("all", (0, 1)), ("known", (1,))])
def test_logistic_scores_are_those_of_scikit_learn(normals, labels):
    task, start = begun("logistic", normals=normals, inverse_regularisation=0.3)
    kinds = [both_views(task, start, of_kind(start, *one)) for one in (labels, (-1,))]
    target = np.repeat([0, 1], [len(one) for one in kinds])
    model = LogisticRegression(C=0.3, class_weight="balanced", max_iter=10_000, tol=1e-8)
    truth = make_pipeline(StandardScaler(), model).fit(np.concatenate(kinds), target)
    h = task.features(start.images)[0].detach().numpy()
    np.testing.assert_allclose(scored(task, start), truth.decision_function(h), rtol=1e-5)


@pytest.mark.parametrize(("normals", "labels"), [("all", (0, 1)), ("known", (1,))])
def test_mahalanobis_distances_are_those_of_scikit_learn(normals, labels):
    task, start = begun("mahalanobis", normals=normals)
    scaler = StandardScaler()
    features = scaler.fit_transform(both_views(task, start, of_kind(start, *labels)))
    model = LedoitWolf(assume_centered=True).fit(features)
    h = task.features(start.images)[0].detach().numpy()
    squared = model.mahalanobis(scaler.transform(h))
    np.testing.assert_allclose(scored(task, start), np.sqrt(squared), rtol=1e-6)


def test_neighbours_of_known_normal_images_alone():
    task, start = begun("knn", normals="known", neighbours=1)
    score = scored(task, start)
    known = of_kind(start, 1)
    assert int(task.count) == len(known)
    assert score[known].max() < 1e-6 < np.delete(score, known).min()


def test_a_constant_feature_says_nothing():
    normal, abnormal = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0)).double()
    normal[:, 1] = abnormal[:, 1] = 7.0
    weight, bias = fit_logistic(normal, abnormal, 1.0)
    assert weight[1] == 0 and torch.isfinite(bias)
    mean, root = fit_gaussian(normal)
    assert torch.isfinite(root).all() and mean[1] == 7


@pytest.mark.parametrize(
    ("name", "options", "labels", "line"),
    [
        ("logistic", {}, [0, 1], "no training image is known to be abnormal; allowed: split"),
        ("logistic", {"normals": "known"}, [-1, 0], "normals is 'known', but no training image"),
        ("mahalanobis", {"normals": "known"}, [0, -1], "allowed: all, or split.known_normal"),
    ],
)
def test_a_training_set_without_a_kind_is_refused(name, options, labels, line):
    task = methods.load(name)(methods.options(name, **options), Network(image_size=SIZE))
    with pytest.raises(ValueError, match=line):
        task.check(torch.tensor(labels))

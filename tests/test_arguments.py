"""What callers hand over: numbers, arrays and paths of every kind, taken as they are or refused."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from selftaught import Detector
from selftaught.arguments import real, whole
from selftaught.losses import MADLoss, NTXentLoss, mad_loss, ntxent_loss
from selftaught.models import Calibration, Preprocessing
from selftaught.search import kmeans, knn_score
from tests.tiny import write_images, write_model

HALVES = {
    "float": 0.5,
    "float16": np.float16(0.5),
    "float32": np.float32(0.5),
    "float64": np.float64(0.5),
    "long double": np.longdouble(0.5),
    "0-d array": np.array(0.5),
    "0-d tensor": torch.tensor(0.5),
    "fraction": Fraction(1, 2),
}
WHOLE = {
    "int": 3,
    **{kind.__name__: kind(3) for kind in (np.int8, np.int64, np.uint8, np.uint64)},
    "float32": np.float32(3),
    "0-d array": np.array(3),
    "0-d tensor": torch.tensor(3),
    "fraction": Fraction(3),
}
NO_NUMBERS = {
    "bool": True,
    "NumPy's bool": np.bool_(True),
    "0-d array of a bool": np.array(True),
    "tensor of a bool": torch.tensor(True),
    "text": "3",
    "None": None,
    "NaN": np.float32("nan"),
    "one in a list": [3],
    "one in an array": np.array([3]),
    "complex": np.complex64(3),
    "masked": np.ma.masked,
}
Z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, -1, 0, 1, -1])
X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)


@pytest.mark.parametrize("kind", HALVES)
def test_any_number_is_a_setting_of_a_loss(kind):
    half = HALVES[kind]
    assert torch.equal(ntxent_loss(Z, Z.flip(0), half), ntxent_loss(Z, Z.flip(0), 0.5))
    wanted = mad_loss(Z, Z[:2], LABELS, eta=0.5, eps=0.5)
    assert torch.equal(mad_loss(Z, Z[:2], LABELS, eta=half, eps=half), wanted)
    assert torch.equal(NTXentLoss(half)(Z, Z.flip(0)), ntxent_loss(Z, Z.flip(0), 0.5))
    assert torch.equal(MADLoss(Z[:2], eta=half, eps=half)(Z, LABELS), wanted)


@pytest.mark.parametrize("kind", WHOLE)
def test_any_whole_number_is_a_setting_of_a_search(kind):
    three, wanted = WHOLE[kind], kmeans(X, 3, seed=3, iterations=3, restarts=3)
    found = kmeans(X, three, seed=three, iterations=three, restarts=three)
    assert torch.equal(found.centers, wanted.centers) and found.inertia == wanted.inertia
    assert torch.equal(knn_score(X, X, three), knn_score(X, X, 3))
    assert mad_loss(Z, Z[:2], LABELS, eta=three) == mad_loss(Z, Z[:2], LABELS, eta=3.0)


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_number_is_refused_in_a_line(kind):
    value = NO_NUMBERS[kind]
    for name, call in (
        ("k", lambda: kmeans(X, value)),
        ("seed", lambda: kmeans(X, 3, seed=value)),
        ("iterations", lambda: kmeans(X, 3, iterations=value)),
        ("restarts", lambda: kmeans(X, 3, restarts=value)),
        ("k", lambda: knn_score(X, X, value)),
        ("eta", lambda: mad_loss(Z, Z[:2], LABELS, eta=value)),
        ("eps", lambda: mad_loss(Z, Z[:2], LABELS, eps=value)),
        ("quantile", lambda: Calibration.from_normals([1.0], value)),
    ):
        with pytest.raises(ValueError, match=f"^{name}[=:]") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_edges_of_numbers():
    assert whole("seed", 2**70 + 1, 0) == 2**70 + 1
    assert real(10**400) == np.inf and np.isnan(real(torch.tensor(1.0, requires_grad=True)))
    for value in (2.5, np.inf, np.float16(1.5), Fraction(5, 2)):
        with pytest.raises(ValueError, match="^k=.*whole number, at least 1"):
            kmeans(X, value)


class Named(torch.Tensor):
    """A subclass of someone's."""


FORMS = {
    "tensor": torch.from_numpy,
    "needs a gradient": lambda x: torch.from_numpy(x).requires_grad_() * 1,
    "parameter": lambda x: torch.nn.Parameter(torch.from_numpy(x)),
    "subclass": lambda x: torch.from_numpy(x).as_subclass(Named),
    "columns first": lambda x: torch.from_numpy(x.T.copy()).T,
    "lazily negated": lambda x: torch._neg_view(torch.from_numpy(-x)),
    "imaginary part of a conjugate": lambda x: (
        torch.complex(torch.zeros(x.shape), torch.from_numpy(-x)).conj().imag
    ),
    "every other column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: x[::-1].copy()[::-1],
    "Fortran order": np.asfortranarray,
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "may not be written": lambda x: read_only(x),
    "not aligned": lambda x: not_aligned(x),
    "masked nowhere": np.ma.masked_array,
    "memory view": memoryview,
    "table": pd.DataFrame,
    "table of missing kinds": lambda x: pd.DataFrame(x).astype("Float32"),
    "list": lambda x: x.tolist(),
    "tuple of tuples": lambda x: tuple(map(tuple, x.tolist())),
    "list of rows": list,
    "list of tensors": lambda x: list(torch.from_numpy(x)),
}


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def not_aligned(x):
    raw = np.empty(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
    return raw[1:].view(x.dtype).reshape(x.shape)


@pytest.mark.parametrize("form", FORMS)
def test_rows_in_any_form_are_the_same_rows(form, recwarn):
    given, wanted = FORMS[form](X), kmeans(X, 5, initial=X[:5])
    found = kmeans(given, 5, initial=FORMS[form](X[:5]))
    assert torch.equal(found.centers.float(), wanted.centers)
    assert torch.equal(found.labels, wanted.labels)
    assert torch.equal(knn_score(given, given, 7), knn_score(X, X, 7))
    assert np.array_equal(np.asarray(plain(given)), X)
    assert not recwarn.list


def plain(given):
    if isinstance(given, torch.Tensor):
        return given.detach().resolve_neg().numpy()
    return [np.asarray(row) for row in given] if isinstance(given, list) else given


def test_half_and_extended_precision_and_files_in_memory(tmp_path):
    np.save(tmp_path / "x.npy", X)
    opened = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert torch.equal(kmeans(opened, 4).centers, kmeans(X, 4).centers)
    half = X.astype(np.float16)
    assert torch.equal(kmeans(half, 4).centers, kmeans(half.astype(np.float32), 4).centers)
    double = kmeans(X.astype(np.float64), 4).centers
    assert torch.equal(kmeans(X.astype(np.longdouble), 4).centers, double)
    assert double.dtype == torch.float64


def masked_rows():
    x = X.copy()
    x[:30] = 1e6
    return np.ma.masked_array(x, mask=x == 1e6)


def missing():
    table = pd.DataFrame(X).astype("Float32")
    table.iloc[2, 1] = pd.NA
    return table


REFUSED = {
    "masked rows": (masked_rows, r"is masked at \[0, 0\]; allowed: rows without masked"),
    "a missing value": (missing, "row 2 holds a value that is not finite"),
    "sparse": (
        lambda: torch.from_numpy(X).to_sparse(),
        "its layout is sparse_coo; allowed: a dense",
    ),
    "rows compressed": (lambda: torch.from_numpy(X).to_sparse_csr(), "its layout is sparse_csr"),
    "meta": (
        lambda: torch.empty(60, 4, device="meta"),
        "is on the device meta, which holds no numbers",
    ),
    "MaskedTensor": (
        lambda: torch.masked.masked_tensor(torch.from_numpy(X), torch.from_numpy(X > 0)),
        "is a MaskedTensor; allowed: a plain tensor",
    ),
    "whole numbers": (lambda: X.astype(int), "torch.int64, must be floating point"),
    "booleans": (lambda: X > 0, "torch.bool, must be floating point"),
    "complex": (lambda: X.astype(np.complex64), "a NumPy array of complex64; allowed: a tensor"),
    "complex tensor": (lambda: torch.from_numpy(X).cfloat(), "torch.complex64, must be floating"),
    "objects": (lambda: X.astype(object), "a NumPy array of object; allowed: a tensor, an array"),
    "text": (lambda: X.astype(str), "a NumPy array of <U32; allowed"),
    "table of text": (
        lambda: pd.DataFrame(X.astype(str)),
        "pandas.*DataFrame: holds other things than",
    ),
    "ragged": (lambda: [[1.0, 2.0], [3.0]], "builtins.list: .*; allowed: a tensor"),
    "a dictionary": (lambda: {"x": X}, "builtins.dict of object; allowed: a tensor, an array"),
    "nothing": (lambda: None, "None of object; allowed: a tensor, an array"),
    "a generator": (lambda: (row for row in X), "builtins.generator of object; allowed"),
    "NaN": (lambda: np.where(X == X[3, 2], np.nan, X), "row 3 holds a value that is not finite"),
}


@pytest.mark.filterwarnings("ignore:.*prototype")
@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("form", REFUSED)
def test_rows_that_cannot_be_meant_are_refused_in_a_line(form):
    make, line = REFUSED[form]
    for name, call in (
        ("x", lambda: kmeans(make(), 3)),
        ("initial", lambda: kmeans(X, 60, initial=make())),
        ("queries", lambda: knn_score(make(), X, 3)),
        ("database", lambda: knn_score(X, make(), 3)),
    ):
        if form == "nothing" and name == "initial":
            continue
        with pytest.raises(ValueError, match=f"^{name}: {line}") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_scores_and_settings_of_a_model_may_be_numpys():
    wanted = Calibration(0.5, (0.25, 0.75))
    for kind in (np.asarray, torch.tensor, list, pd.Series):
        made = Calibration(np.float32(0.5), kind([0.25, 0.75]))
        assert made == wanted and type(made.threshold) is float
        assert Calibration.from_normals(kind([0.75, 0.25]), np.float64(0.5)).threshold == 0.25
        assert wanted.percentiles(kind([0.5])).tolist() == [50]
    with pytest.raises(ValueError, match="scores: is masked"):
        wanted.percentiles(np.ma.masked_array([0.5, 9], mask=[False, True]))
    assert Preprocessing(image_size=np.int64(32)) == Preprocessing(image_size=32)
    for size in (True, 32.0, "32", 0):
        with pytest.raises(ValueError, match="preprocessing.image_size"):
            Preprocessing(image_size=size)


@pytest.fixture(scope="module")
def detector(thin_encoder, tmp_path_factory):
    return Detector.load(write_model(tmp_path_factory.mktemp("run") / "model"), device="cpu")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    place = tmp_path_factory.mktemp("films")
    write_images(place, 3)
    return sorted(place.glob("*.png"))


PATHS = {
    "strings": lambda films: [str(film) for film in films],
    "tuple": tuple,
    "generator": iter,
    "array of text": lambda films: np.array([str(film) for film in films]),
    "array of objects": lambda films: np.array(films, dtype=object),
    "column of a table": lambda films: pd.DataFrame({"path": map(str, films)}, index=[7, 8, 9])[
        "path"
    ],
    "index": lambda films: pd.Index([str(film) for film in films]),
    "text of NumPy's": lambda films: [np.str_(film) for film in films],
}


@pytest.mark.parametrize("form", PATHS)
def test_paths_in_any_list(detector, films, form):
    wanted = detector.score(films)
    assert torch.equal(detector.score(PATHS[form](films), batch_size=np.int64(32)), wanted)
    assert torch.equal(detector.score(PATHS[form](films), masks=None), wanted)


def picture(_):
    return Image.new("L", (32, 32))


NO_PATHS = {
    "a picture": (picture, "images: PIL.Image.Image; allowed: a list of paths of image files, or"),
    "pictures": (lambda films: [films[0], picture(0)], r"images\[1\]: PIL.Image.Image; allowed"),
    "an array": (lambda _: np.zeros((32, 32)), "images: a NumPy array; allowed: a list of paths"),
    "arrays": (lambda _: [np.zeros((32, 32))], r"images\[0\]: a NumPy array; allowed: a list of"),
    "tensors": (lambda _: [torch.zeros(1, 32, 32)], r"images\[0\]: torch.Tensor; allowed"),
    "an address": (lambda _: "https://a.org/b.png", "images: the address 'https://a.org/b.png'; a"),
    "addresses": (lambda films: [films[0], "s3://a/b.png"], r"images\[1\]: the address 's3://a/b"),
    "a path": (lambda films: films[0], r"images: PosixPath\(.* is one path, must be a list of pat"),
    "bytes": (lambda films: films[0].read_bytes(), "images: b'.*is one path, must be a list"),
    "contents": (lambda films: [films[0].read_bytes()], r"images\[0\]: builtins.bytes; allowed: a"),
    "None": (lambda _: None, "images: None; allowed: a list of paths"),
    "a hole": (lambda films: [*films, None], r"images\[3\]: None; allowed: a list of paths"),
    "a missing cell": (lambda films: [np.nan], r"images\[0\]: nan; allowed: a list of paths"),
    "an empty cell": (lambda films: [""], r"images\[0\]: ''; allowed: a list of paths"),
    "a table": (lambda films: pd.DataFrame({"path": films}), "images: pandas.*DataFrame; allowed"),
    "a dictionary": (lambda films: {film: 1 for film in films}, "images: builtins.dict; allowed"),
    "a set": (set, "images: builtins.set; allowed: a list of paths"),
    "an open file": (lambda films: films[0].open("rb"), "images: _io.BufferedReader; allowed"),
    "a number": (lambda _: 3, "images: 3; allowed: a list of paths"),
    "sparse": (lambda _: torch.zeros(1, 1, 32, 32).to_sparse(), "images: its layout is sparse_coo"),
}


@pytest.mark.parametrize("form", NO_PATHS)
def test_images_of_another_kind_are_refused_in_a_line(detector, films, form):
    make, line = NO_PATHS[form]
    for call in (detector.score, detector.embed, detector.explain):
        for bad_files in ("fail", "skip"):
            with pytest.raises(ValueError, match=f"^{line}") as caught:
                call(make(films), bad_files=bad_files)
            assert "\n" not in str(caught.value)


def test_a_folder_and_a_missing_file_are_named(detector, films, tmp_path):
    for path in (tmp_path, tmp_path / "gone.png"):
        with pytest.raises(ValueError, match=str(path)) as caught:
            detector.score([films[0], path])
        assert "\n" not in str(caught.value)


def test_masks_and_body_parts_are_lists_too(thin_encoder, tmp_path, films):
    masked = Detector.load(write_model(tmp_path / "model", masked=True), device="cpu")
    for masks, line in (
        (str(films[0]), "masks: '.*is one path, must be a list of paths"),
        (
            [films[0], np.zeros(3), None],
            r"masks\[1\]: a NumPy array; allowed: a list of paths of m",
        ),
        ([""] * 3, r"masks\[0\]: ''; allowed: .*None where there is none"),
    ):
        with pytest.raises(ValueError, match=line):
            masked.score(films, masks=masks)
    assert masked.score(films, masks=(None,) * 3).shape == (3,)
    for parts, line in (
        ("arm", "body_parts: 'arm' is one name, must be a list of names"),
        (["arm", None, ""], r"body_parts\[1\]: None; allowed: a name, '' where unknown"),
        (pd.Series(["arm", "", np.nan], dtype=object), r"body_parts\[2\]: nan; allowed: a name"),
        (["arm"], "body_parts: 1 for 3 images"),
    ):
        with pytest.raises(ValueError, match=line):
            masked.score(films, masks=[None] * 3, body_parts=parts)
    for parts in (("arm", "", ""), np.array(["arm", "", ""]), iter(["arm", "", ""])):
        assert masked.score(films, masks=[None] * 3, body_parts=parts).shape == (3,)


@pytest.mark.parametrize("form", ["lazily negated", "needs a gradient", "subclass", "parameter"])
def test_tensors_of_images_in_any_form(detector, form):
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    given = FORMS[form](images.numpy())
    assert torch.equal(detector.score(given), detector.score(images))
    assert torch.equal(detector.score(images.double()), detector.score(images))

"""What every method promises, of methods whose defaults leave a part of them out."""

import numpy as np
import pytest
import torch

from tests import thin
from tests.methods import runs
from tests.ranks import run_ranks

VARIANTS = {
    # On two dozen images the default key network is a copy of the query network.
    "moco": {"momentum": 0.8, "queue": 11, "group": 4},
    "svdd": {"boundary": "soft", "warmup_epochs": 1, "nu": 0.3, "lr": 1e-2},
}
EXACT = {"precision": "fp64", "optimizer": "sgd", "epochs": 2}


@pytest.fixture(autouse=True)
def thin_encoder():
    torch.set_num_threads(1)
    with thin.patch():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("images"))


def weights_of_all(root, folder):
    with thin.patch():
        return {
            name: {
                key: value.numpy()
                for key, value in runs.train(
                    root, folder / name, name, **EXACT, **options
                ).weights.items()
            }
            for name, options in VARIANTS.items()
        }


@pytest.fixture(scope="module")
def one_and_two(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return weights_of_all(root, folder / "one"), run_ranks(2, weights_of_all, root, folder / "two")


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_learn_what_one_does(one_and_two, name):
    one, two = one_and_two
    for rank in two:
        for key, value in one[name].items():
            np.testing.assert_allclose(rank[name][key], value, rtol=1e-7, atol=1e-9, err_msg=key)


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", VARIANTS)
def test_a_killed_run_ends_with_the_same_bits(root, tmp_path, name):
    def kill(event, **facts):
        if event == "step" and facts["step"] == 5:
            raise Killed

    options = {"epochs": 4, **VARIANTS[name]}
    whole = runs.train(root, tmp_path / "whole", name, **options)
    with pytest.raises(Killed):
        runs.train(root, tmp_path / "killed", name, on_event=kill, **options)
    again = runs.train(root, tmp_path / "killed", name, **options)
    assert again.step == whole.step > 5
    assert again.weights.keys() == whole.weights.keys()
    assert all(torch.equal(again.weights[key], whole.weights[key]) for key in whole.weights)

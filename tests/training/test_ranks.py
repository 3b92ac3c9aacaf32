"""Two ranks do what one process does: images, losses, weights, centres, inference, pruning.

In float64, where a difference of rounding stays one: Adam's first steps blow it up in float32.
"""

import pytest
import torch

from tests.ranks import results_of, start_ranks

from . import rank_cases


@pytest.fixture
def both(config, images, tmp_path):
    pool = start_ranks(2, rank_cases.everything, config, images, tmp_path / "two")
    alone = rank_cases.everything(config, images, tmp_path / "one")
    return alone, results_of(*pool)


def test_two_ranks_do_what_one_process_does(both):
    alone, ranks = both
    for stage, parts in (("pretext", 2), ("finetune", 1)):
        for step, whole in enumerate(alone[stage]["seen"]):
            for name, value in whole.items():
                # Micro-batches hold the same images; each is divided over the ranks.
                pieces = [rank[stage]["seen"][step][name].chunk(parts) for rank in ranks]
                joined = torch.cat([piece[i] for i in range(parts) for piece in pieces])
                assert torch.equal(joined, value), f"{stage} step {step}: other {name}"
        losses = alone[stage]["losses"]
        assert len(losses) == len(alone[stage]["seen"]) == 10
        assert ranks[0][stage]["losses"] == pytest.approx(losses, rel=1e-7)
        for name, value in alone[stage]["weights"].items():
            for rank in ranks:
                found = rank[stage]["weights"][name]
                torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-7, msg=name)
    centers = alone["finetune"]["centers"]
    assert centers == ranks[0]["finetune"]["centers"]
    assert centers[-1] < 6, "pruning is not exercised"

    for rank in ranks:
        for count in (1, 7, 23):
            given, expected = rank[f"inferred {count}"], alone[f"inferred {count}"]
            for ours, theirs in zip(given, expected, strict=True):
                assert ours.shape[0] == count
                torch.testing.assert_close(ours, theirs)
        assert rank["occupancy"] == alone["occupancy"]
        assert rank["active"].tolist() == alone["active"].tolist() == [True, True, False, False]

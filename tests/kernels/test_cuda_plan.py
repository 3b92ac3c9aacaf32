"""How CUDA passes are cut: nothing is left out, and no buffer grows with the batch squared."""

import pytest

from selftaught.kernels.cuda import plan

SIZES = [1, 64, 129, 4096, 16_384, 65_536, 1_048_576]


@pytest.mark.parametrize("processors", [1, 108, 132])
@pytest.mark.parametrize("rows", SIZES)
def test_symmetric_pass(rows, processors):
    cut = plan.circle(rows, rows, 128, processors, symmetric=True, walked=True)
    assert cut.own_blocks == cut.circle == -(-rows // 128)
    assert cut.distances == cut.circle // 2 + 1
    assert 1 <= cut.span <= cut.distances and cut.chunk >= 1
    chunks = -(-cut.span // cut.chunk)
    assert chunks <= plan.MOST_CHUNKS
    assert 4 * chunks * rows <= plan.PARTS_BYTES
    assert 8 * cut.span * rows <= max(plan.PARTS_BYTES, 64 * rows)


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("walked", [True, False])
def test_pass_of_two_sets(rows, columns, walked):
    cut = plan.circle(rows, columns, 64, 132, symmetric=False, walked=walked)
    assert cut.distances == cut.circle == max(-(-rows // 64), -(-columns // 64))
    chunks = -(-cut.span // cut.chunk)
    assert chunks <= plan.MOST_CHUNKS and 4 * chunks * rows <= 2 * plan.PARTS_BYTES
    if walked:
        assert 8 * cut.span * columns <= max(plan.PARTS_BYTES, 64 * columns)
    else:
        assert cut.span == cut.distances


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("columns", SIZES)
def test_gradient_pass(rows, columns):
    chunk = plan.column_chunk(rows, columns, 128, 64, 132)
    assert chunk % plan.TILE == 0 and chunk > 0
    chunks = -(-columns // chunk)
    assert chunks == 1 or chunks * rows * 128 * 4 <= plan.SUMS_BYTES

"""One tiny model for the tests of this folder."""

import pytest

pytest.importorskip("pynetdicom", reason="pynetdicom is missing: pip install selftaught[dicom]")
pytest.importorskip("highdicom", reason="highdicom is missing: pip install selftaught[dicom]")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    from tests import thin
    from tests.dicom.films import write_model

    with thin.patch():
        return write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="session")
def scorer(model):
    from selftaught.dicom.scorer import Scorer
    from tests import thin

    with thin.patch():
        return Scorer(model)

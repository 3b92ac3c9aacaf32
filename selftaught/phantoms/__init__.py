"""Generated radiographs of the upper limb with ground truth."""

from selftaught.phantoms.anatomy import BODY_PARTS
from selftaught.phantoms.anomalies import KINDS
from selftaught.phantoms.dataset import write_set
from selftaught.phantoms.export import FORMATS, encode, to_8bit
from selftaught.phantoms.folder import LAYOUTS
from selftaught.phantoms.radiograph import Radiograph, radiograph

__all__ = [
    "BODY_PARTS",
    "FORMATS",
    "KINDS",
    "LAYOUTS",
    "Radiograph",
    "encode",
    "radiograph",
    "to_8bit",
    "write_set",
]

"""Generated radiographs of the upper limb with ground truth."""

from selftaught.data.synthetic.anatomy import BODY_PARTS
from selftaught.data.synthetic.anomalies import KINDS
from selftaught.data.synthetic.dataset import write_set
from selftaught.data.synthetic.export import FORMATS, encode, to_8bit
from selftaught.data.synthetic.folder import LAYOUTS
from selftaught.data.synthetic.radiograph import Radiograph, radiograph

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

"""Networks, what films and scores mean to a model, and the folder a trained one is kept in."""

from selftaught.models.bank import Bank
from selftaught.models.calibration import Calibration
from selftaught.models.encoder import Encoder, EncoderConfig
from selftaught.models.files import StoredModel, read_model, save_model
from selftaught.models.heads import Embedder, ProjectionHead, build_embedder
from selftaught.models.network import Network
from selftaught.models.preprocessing import Preprocessing
from selftaught.models.weights import load_encoder_weights

__all__ = [
    "Bank",
    "Calibration",
    "Embedder",
    "Encoder",
    "EncoderConfig",
    "Network",
    "Preprocessing",
    "ProjectionHead",
    "StoredModel",
    "build_embedder",
    "load_encoder_weights",
    "read_model",
    "save_model",
]

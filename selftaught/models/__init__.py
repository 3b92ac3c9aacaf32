"""Networks, and the folder a trained one is kept in."""

from selftaught.models.encoder import Encoder, EncoderConfig
from selftaught.models.files import LoadedModel, load_model, save_model
from selftaught.models.heads import Embedder, ProjectionHead, build_embedder
from selftaught.models.weights import load_encoder_weights

__all__ = [
    "Embedder",
    "Encoder",
    "EncoderConfig",
    "LoadedModel",
    "ProjectionHead",
    "build_embedder",
    "load_encoder_weights",
    "load_model",
    "save_model",
]

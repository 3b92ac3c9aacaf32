"""Heat maps: where in a film the score comes from, on one scale for all films of a model."""

from selftaught.maps.heat import METHODS, Method
from selftaught.maps.overlay import Cut, film_of, on_film, overlay
from selftaught.maps.scale import Scale

__all__ = ["METHODS", "Cut", "Method", "Scale", "film_of", "on_film", "overlay"]

"""k-means, and the mean distance to the nearest neighbours."""

from selftaught.search.kmeans import KMeansResult, kmeans
from selftaught.search.neighbours import knn_score

__all__ = ["KMeansResult", "kmeans", "knn_score"]

"""k-means, occupancy of centres and exact nearest neighbours, on one device or over ranks."""

from selftaught.search.kmeans import KMeansResult, kmeans
from selftaught.search.neighbours import NeighbourScores, knn, knn_score, knn_score_with_report

__all__ = [
    "KMeansResult",
    "NeighbourScores",
    "kmeans",
    "knn",
    "knn_score",
    "knn_score_with_report",
]

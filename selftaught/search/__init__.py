"""Exact k-means and nearest neighbours through FAISS."""

from selftaught.search.kmeans import KMeansResult, kmeans
from selftaught.search.neighbours import knn, knn_score

__all__ = ["KMeansResult", "kmeans", "knn", "knn_score"]

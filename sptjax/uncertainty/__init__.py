"""How well poses are known: covariances, other modes and their probabilities."""

from ._measure import pose_table as pose_table

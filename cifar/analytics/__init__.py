"""What the records say: whether one version is better than another, and whether photos are still what they were.

Numbers in, numbers out; `reports.py` and `watch.py` ask the database for them. The room knows nothing of serving.
"""

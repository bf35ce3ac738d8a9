"""Bulk runs: classify many image files offline, on this machine or on a Ray cluster, into a folder of Parquet files.

OUTPUT.parquet/
  _run.json                the parameters of the run; written together with the listing when the folder is created
  _listing/000001.txt      the paths of part 1, one JSON string per line
  part-000001.parquet      the rows of part 1, in that order; complete as soon as the file exists
"""

"""Many images in, a table out: on this machine or on a cluster, and whole parts only.

OUTPUT.parquet/
  _run.json                what was asked for; the folder is made with it and with the listing, at once
  _listing/000001.txt      the paths of part 1, a JSON string a line
  part-000001.parquet      their rows, in that order
"""

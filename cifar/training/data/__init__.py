"""Data sets: reading, downloading, augmentation, synthetic outliers."""

"""What ``erd-cuda refine`` does: one file, or a data set of any size by parts, on many workers."""

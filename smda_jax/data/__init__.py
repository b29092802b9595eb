"""From files to padded token batches."""

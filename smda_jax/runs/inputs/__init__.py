"""What a run reads: loaded and checked before anything is written."""

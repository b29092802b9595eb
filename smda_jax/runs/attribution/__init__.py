"""The main job, stage by stage, and what it writes."""
